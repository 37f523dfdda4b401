() => {  // On a phone the results stand below the form; on a desk they may be above the visible part of the page.
  const results = document.getElementById('results'), {top} = results.getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) results.scrollIntoView();
}
