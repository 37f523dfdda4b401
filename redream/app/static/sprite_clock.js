// Turns all sprites of a widget in step; each is a sheet of --columns × --columns views once around its object.
let view = 0;
const reduced = matchMedia('(prefers-reduced-motion: reduce)');
setInterval(() => {
  const sprite = element.querySelector('.sprite');
  if (!sprite || reduced.matches || document.hidden) return;
  const columns = Number(sprite.style.getPropertyValue('--columns'));
  view = (view + 1) % (columns * columns);
  element.style.setProperty('--x', view % columns);
  element.style.setProperty('--y', Math.floor(view / columns));
}, 110);
