() => {  // The 3D viewer puts itself before everything else that the tab key reaches.
  new MutationObserver(() => {
    for (const canvas of document.querySelectorAll('canvas[tabindex="1"]')) canvas.tabIndex = 0;
  }).observe(document.body, {subtree: true, childList: true, attributes: true, attributeFilter: ['tabindex']});
}
