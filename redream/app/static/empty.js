() => ''  // empties a widget without asking the server
