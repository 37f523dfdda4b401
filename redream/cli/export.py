"""Write a run's model, or any GLB, as OBJ, USDZ or STL."""

import argparse
from pathlib import Path

from redream.runs.run import Run

AFTER_INTERRUPT = "no file was written"
SOURCE = "a run's folder or id, whose first object is taken, or a GLB"
OUT = "by default the GLB's name, ending in .zip for OBJ, .usdz or .stl"


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="RUN|FILE.glb", help=SOURCE)
    add("--format", required=True, choices=("obj", "usdz", "stl"))
    add("--height-mm", type=float, default=100.0, metavar="H", help="of an STL, in millimetres; by default 100")
    add("--out", type=Path, metavar="FILE", help=OUT)


def run(options: argparse.Namespace) -> None:
    from redream.scene.export import export

    glb = Path(options.source) if options.source.lower().endswith(".glb") else Run.open(options.source).mesh()
    file, sentence = export(glb, options.format, options.out, options.height_mm)
    print(f"{file}: {sentence}")
