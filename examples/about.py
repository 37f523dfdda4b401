"""The five pictures of the app's About tab, from a finished run: python -m examples.about RUN [--out examples/about]

1 the assets that were found, 2 one of them before and after it was turned to its front, 3 the object while it is pulled
towards an asset, 4 what the prior sees from back, side and front before and after it learned the assets' views, 5 the
object while the prior paints it. The fourth is made anew, which takes about as long as the run's warm-up.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from redream import pipeline
from redream.runs.outputs import STRIP_VIEWS, grid
from redream.runs.run import Run
from redream.scene.turntable import as_bytes
from redream.stack.models import Models

SIDE, COLUMNS = 128, 4  # pixels of a picture, pictures in a row
SIDES = (0, 2, 4)  # of `pipeline.VIEW_STEPS`: back, side, front


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "about")
    asked = parser.parse_args(arguments)
    run = Run.open(asked.run)
    asked.out.mkdir(parents=True, exist_ok=True)
    settings = run.request.settings
    previews = sorted((run.folder / "preview").glob("*.png"))
    warm = [file for file in previews if int(file.stem) <= settings.initialisation.warmup * run.request.total]
    rows = {
        1: [strip(run.folder / f"asset-{number}.png") for number in range(min(2, settings.retrieval.assets))],
        2: [strip(run.folder / "asset-0.png"), strip(run.folder / "asset-0-turned.png")],
        3: [[opened(file) for file in spread(warm)]],
        4: prior_samples(run),
        5: [[opened(file) for file in spread(previews[len(warm) :])]],
    }
    for number, pictures in rows.items():
        sheet(pictures).save(asked.out / f"{number}.jpg", quality=85)
    return 0


def strip(file: Path) -> list[Image.Image]:
    """Every other view of a strip, from the first one on."""
    whole = opened(file, None)
    side = whole.height
    places = range(0, STRIP_VIEWS, STRIP_VIEWS // COLUMNS)
    return [whole.crop((place * side, 0, (place + 1) * side, side)) for place in places]


def prior_samples(run: Run) -> list[list[Image.Image]]:
    """A row before and a row after adaptation: back, side, front."""
    models = Models.load(run.request.stack)
    *_, seen = pipeline.views(run.request.prompt, 1, settings=run.request.settings, models=models)
    return [[as_image(grid(found[side])) for side in SIDES] for found in (seen.before, seen.after)]


def spread(files: Sequence[Path]) -> list[Path]:
    """Evenly chosen ones, the last among them."""
    return [files[int(place)] for place in np.linspace(0, len(files) - 1, min(COLUMNS, len(files)))]


def opened(file: Path, side: int | None = SIDE) -> Image.Image:
    with Image.open(file) as picture:
        return picture.convert("RGB") if side is None else picture.convert("RGB").resize((side, side))


def as_image(image) -> Image.Image:
    return Image.fromarray(as_bytes(image))


def sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of pictures, all of one size, on white."""
    canvas = Image.new("RGB", (max(map(len, rows)) * SIDE, len(rows) * SIDE), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            canvas.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x * SIDE, y * SIDE))
    return canvas


if __name__ == "__main__":
    sys.exit(main())
