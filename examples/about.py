"""The five pictures of the app's About tab, from a finished run: python -m examples.about RUN [--out examples/about]

1 the retrieved assets, 2 one of them before and after orientation, 3 the object during the warm-up, pulled towards an
asset, 4 samples of the prior from back, side and front before and after adaptation, 5 the object during distillation.
The fourth is sampled anew, which takes about as long as the run's warm-up.
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

SIZE, COLUMNS = 128, 4  # pixels along a picture's side, pictures in a row
BACK_SIDE_FRONT = (0, 2, 4)  # of `pipeline.VIEW_STEPS`


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "about")
    options = parser.parse_args(arguments)
    run = Run.open(options.run)
    options.out.mkdir(parents=True, exist_ok=True)
    settings = run.request.settings
    previews = sorted((run.folder / "preview").glob("*.png"))
    warmup = [file for file in previews if int(file.stem) <= settings.initialisation.warmup * run.request.total]
    rows = {
        1: [strip_views(run.folder / f"asset-{number}.png") for number in range(min(2, settings.retrieval.assets))],
        2: [strip_views(run.folder / "asset-0.png"), strip_views(run.folder / "asset-0-turned.png")],
        3: [[read_image(file) for file in evenly_spaced(warmup)]],
        4: prior_samples(run),
        5: [[read_image(file) for file in evenly_spaced(previews[len(warmup) :])]],
    }
    for number, images in rows.items():
        sheet(images).save(options.out / f"{number}.jpg", quality=85)
    return 0


def strip_views(file: Path) -> list[Image.Image]:
    """Return every other view of a strip, from the first one on."""
    with Image.open(file) as strip:
        size = strip.height
        columns = range(0, STRIP_VIEWS, STRIP_VIEWS // COLUMNS)
        return [strip.convert("RGB").crop((column * size, 0, (column + 1) * size, size)) for column in columns]


def prior_samples(run: Run) -> list[list[Image.Image]]:
    """Return a row of samples before and a row after adaptation: back, side, front."""
    models = Models.load(run.request.stack)
    *_, samples = pipeline.prior_samples(run.request.prompt, 1, settings=run.request.settings, models=models)
    rows = ([batches[step] for step in BACK_SIDE_FRONT] for batches in (samples.before, samples.after))
    return [[Image.fromarray(as_bytes(grid(images))) for images in row] for row in rows]


def evenly_spaced(files: Sequence[Path]) -> list[Path]:
    """Return at most `COLUMNS` files, evenly spaced, the first and the last among them."""
    return [files[int(index)] for index in np.linspace(0, len(files) - 1, min(COLUMNS, len(files)))]


def read_image(file: Path) -> Image.Image:
    """Read a picture at the sheet's size."""
    with Image.open(file) as image:
        return image.convert("RGB").resize((SIZE, SIZE))


def sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Return rows of pictures, all of one size, on white."""
    canvas = Image.new("RGB", (max(map(len, rows)) * SIZE, len(rows) * SIZE), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            canvas.paste(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS), (x * SIZE, y * SIZE))
    return canvas


if __name__ == "__main__":
    sys.exit(main())
