(run) => { location.search = '?run=' + run; }  // as the run's link does
