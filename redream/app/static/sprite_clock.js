// Turns all sprites of a widget in step: each shows one of 6 × 6 views, 10° apart.
let view = 0;
const still = matchMedia('(prefers-reduced-motion: reduce)');
setInterval(() => {
  if (still.matches || document.hidden) return;
  view = (view + 1) % 36;
  element.style.setProperty('--x', view % 6);
  element.style.setProperty('--y', Math.floor(view / 6));
}, 110);
