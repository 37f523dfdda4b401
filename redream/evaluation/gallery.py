"""All objects of an evaluation on one page: prompts down, methods across, every turntable in step.

The page is one file that asks nothing of anybody else: pictures are in it, and its own policy forbids the rest.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import imageio_ffmpeg
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from redream.files import replacing

COLUMNS = 6  # of a sprite sheet, which has as many rows
FRAMES = COLUMNS**2  # views once around, 10° apart
SIDE = 96  # pixels of each
QUALITY = 75  # of JPEG, 0 to 100


@dataclass(frozen=True)
class Cell:
    """What one method made of one prompt."""

    sprite: Path | None
    scores: Sequence[tuple[str, str]]  # names and values
    failure: str | None = None


@dataclass(frozen=True)
class Row:
    """One prompt: what each method made of it, and the retrieved assets as (strip of views, caption, origin)."""

    prompt: str
    split: str  # these two are "" where there is none
    kind: str
    cells: Mapping[str, Cell]
    assets: Sequence[tuple[Path, str, str]] = ()


def frames(video: Path) -> list[UInt8[np.ndarray, "h w 3"]]:
    """The pictures of a turntable's MP4; none if it cannot be read."""
    try:
        read = imageio_ffmpeg.read_frames(video)
        width, height = next(read)["size"]
        return [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in read]
    except (OSError, RuntimeError, StopIteration):
        return []


def save_sprites(pictures: Sequence[UInt8[np.ndarray, "h w 3"]], path: Path) -> None:
    """Write `FRAMES` of the pictures, evenly chosen, row by row on one JPEG; the file is complete or absent."""
    sheet = Image.new("RGB", (COLUMNS * SIDE, COLUMNS * SIDE), "white")
    for place in range(FRAMES):
        picture = Image.fromarray(pictures[place * len(pictures) // FRAMES])
        row, column = divmod(place, COLUMNS)
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (column * SIDE, row * SIDE))
    with replacing(path) as file:
        sheet.save(file, "JPEG", quality=QUALITY)


def page(title: str, rows: Sequence[Row]) -> str:
    """The whole page as HTML; every text that comes from outside is escaped."""
    methods = list(dict.fromkeys(method for row in rows for method in row.cells))
    splits, kinds = sorted({row.split for row in rows} - {""}), sorted({row.kind for row in rows} - {""})
    head = "".join(f'<th scope="col" data-method="{_text(m)}">{_text(m)}</th>' for m in methods)
    ticks = "".join(
        f'<label><input type="checkbox" data-shows="{_text(m)}" checked> {_text(m)}</label>' for m in methods
    )
    return Template(PAGE).substitute(
        title=_text(title),
        splits="".join(f"<option>{_text(split)}</option>" for split in splits),
        kinds="".join(f"<option>{_text(kind)}</option>" for kind in kinds),
        ticks=ticks,
        head=head,
        rows="".join(_row(row, methods) for row in rows),
        columns=COLUMNS,
        frames=FRAMES,
        side=SIDE,
    )


def _row(row: Row, methods: Sequence[str]) -> str:
    strips = "".join(
        f'<figure><img src="{_strip(path)}" alt="{_text(caption)}, from eight sides">'
        f"<figcaption>{_text(caption)}{_small(origin)}</figcaption></figure>"
        for path, caption, origin in row.assets
    )
    found = f"<details><summary>Found in the library</summary>{strips}</details>" if strips else ""
    cells = "".join(
        f'<td data-method="{_text(method)}">{_cell(row.cells.get(method), f"{row.prompt}, {method}")}</td>'
        for method in methods
    )
    head = f'<th scope="row">{_text(row.prompt)}{_small(row.split)}{found}</th>'
    return f'<tr data-split="{_text(row.split)}" data-kind="{_text(row.kind)}">{head}{cells}</tr>\n'


def _cell(cell: Cell | None, name: str) -> str:
    if cell is None:
        return ""
    if cell.failure:
        return f'<p class="missing">{_text(cell.failure)}</p>'
    scores = "".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in cell.scores)
    turning = ""
    if cell.sprite:
        picture = _data(cell.sprite.read_bytes())
        turning = (
            f'<div class="turning" role="img" aria-label="{_text(name)}" style="background-image:url({picture})"></div>'
        )
    return f"{turning}<dl>{scores}</dl>"


def _strip(path: Path) -> str:
    small = io.BytesIO()
    Image.open(path).convert("RGB").save(small, "JPEG", quality=QUALITY)
    return _data(small.getvalue())


def _data(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _small(text: str) -> str:
    return f" <small>{_text(text)}</small>" if text else ""


def _text(text: str) -> str:
    return html.escape(text, quote=True)


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --x: 0; --y: 0;
  --ground: light-dark(#fff, #17181c); --ink: light-dark(#1d1d22, #ececf0);
  --quiet: light-dark(#5d5d68, #a4a4b0); --line: light-dark(#dedee6, #34353d); --accent: #7c3aed; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.4 system-ui, sans-serif; }
header { padding: 16px; display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: center; }
h1 { margin: 0; width: 100%; font-size: 22px; }
input, select, button { font: inherit; padding: 4px 10px; }
button { border: 0; border-radius: 6px; background: var(--accent); color: #fff; cursor: pointer; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
#count { color: var(--quiet); }
main { overflow-x: auto; max-height: 100vh; }
table { border-collapse: collapse; }
th, td { padding: 8px; border-top: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { position: sticky; top: 0; z-index: 1; background: var(--ground); white-space: nowrap; }
tbody th { min-width: 220px; max-width: 220px; font-weight: 600; }
small { display: block; color: var(--quiet); font-weight: 400; }
details { margin-top: 6px; font-weight: 400; }
figure { margin: 6px 0; }
figure img { width: 100%; border-radius: 6px; display: block; }
figcaption { font-size: 12px; }
.turning { /* a sheet of views, all of them moved by the same two numbers */
  width: ${side}px; height: ${side}px; border-radius: 8px; background: #fff 0 0 / ${columns}00% ${columns}00%;
  background-position: calc(var(--x) * 100% / ($columns - 1)) calc(var(--y) * 100% / ($columns - 1)); }
dl { margin: 6px 0 0; width: max-content; display: grid; grid-template-columns: auto auto; gap: 0 8px;
  font-size: 12px; }
dt { color: var(--quiet); } dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
.missing { margin: 0; max-width: 160px; font-size: 12px; color: var(--quiet); }
[hidden] { display: none; }
</style>
</head>
<body>
<header>
<h1>$title</h1>
<button id="pause" type="button">Pause</button>
<label>Prompt <input id="text" type="search" placeholder="owl"></label>
<label>Split <select id="split"><option value="">all</option>$splits</select></label>
<label>Kind <select id="kind"><option value="">all</option>$kinds</select></label>
$ticks
<span id="count" role="status"></span>
</header>
<main tabindex="0" aria-label="Objects">
<table><thead><tr><th scope="col">Prompt</th>$head</tr></thead><tbody>
$rows</tbody></table>
</main>
<script>
"use strict";
const find = (selector) => [...document.querySelectorAll(selector)];
const pause = document.getElementById("pause"), text = document.getElementById("text");
const split = document.getElementById("split"), kind = document.getElementById("kind"), rows = find("tbody tr");

let turning = !matchMedia("(prefers-reduced-motion: reduce)").matches, view = 0;
const label = () => { pause.textContent = turning ? "Pause" : "Turn"; };
pause.addEventListener("click", () => { turning = !turning; label(); });
setInterval(() => {  // the one timer
  if (!turning || document.hidden) return;
  view = (view + 1) % $frames;
  document.documentElement.style.setProperty("--x", view % $columns);
  document.documentElement.style.setProperty("--y", Math.floor(view / $columns));
}, 110);

function filter() {
  const words = text.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const row of rows) {
    const said = row.querySelector("th").textContent.toLowerCase();
    row.hidden = [split, kind].some((one) => one.value && row.dataset[one.id] !== one.value)
      || !words.every((word) => said.includes(word));
  }
  const off = new Set(find("[data-shows]").filter((box) => !box.checked).map((box) => box.dataset.shows));
  for (const cell of find("[data-method]")) cell.hidden = off.has(cell.dataset.method);
  const shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("count").textContent = shown + " of " + rows.length + " prompts";
}
document.querySelector("header").addEventListener("input", filter);
label();
filter();
</script>
</body>
</html>
"""
