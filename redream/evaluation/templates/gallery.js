"use strict";
const find = (selector) => [...document.querySelectorAll(selector)];
const pause = document.getElementById("pause"), text = document.getElementById("text");
const split = document.getElementById("split"), kind = document.getElementById("kind"), rows = find("tbody tr");

const page = document.documentElement, { columns, frames } = page.dataset;
let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches, view = 0;
const label = () => { pause.textContent = playing ? "Pause" : "Turn"; };
pause.addEventListener("click", () => { playing = !playing; label(); });
setInterval(() => {  // the one timer
  if (!playing || document.hidden) return;
  view = (view + 1) % frames;
  page.style.setProperty("--x", view % columns);
  page.style.setProperty("--y", Math.floor(view / columns));
}, 110);

function filter() {
  const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of rows) {
    const title = row.querySelector("th").textContent.toLowerCase();
    row.hidden = [split, kind].some((choice) => choice.value && row.dataset[choice.id] !== choice.value)
      || !words.every((word) => title.includes(word));
  }
  const hidden = new Set(find("[data-toggles]").filter((box) => !box.checked).map((box) => box.dataset.toggles));
  for (const cell of find("[data-method]")) cell.hidden = hidden.has(cell.dataset.method);
  const count = rows.filter((row) => !row.hidden).length;
  document.getElementById("count").textContent = count + " of " + rows.length + " prompts";
}
document.querySelector("header").addEventListener("input", filter);
label();
filter();
