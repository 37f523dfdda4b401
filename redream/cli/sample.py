"""Show samples of the 2D prior for a prompt."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from redream import pipeline
from redream.cli.common import add_stack, number_to, print_warnings
from redream.settings import VIEWS
from redream.stack.models import Models

AFTER_INTERRUPT = "no picture was written"


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompt", metavar="PROMPT")
    add_stack(parser)
    add("--view", choices=VIEWS)
    add("--adapt", action="store_true", help="adapt the prior to the views of retrieved assets first")
    add("-n", dest="count", type=number_to(64), default=8, metavar="1..64", help="how many")
    add("--out", type=Path, required=True, metavar="IMAGE.png")


def run(options: argparse.Namespace) -> None:
    if options.out.suffix.lower() != ".png" or not options.out.resolve().parent.is_dir():
        raise pipeline.PipelineError("The picture's name must end in .png and its folder must exist.")
    models = Models.load(options.stack)
    print_warnings(models.parse(options.prompt))
    with tqdm(desc="Adaptation", disable=not (options.adapt and sys.stderr.isatty())) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        images = pipeline.sample(
            options.prompt, options.view, options.adapt, options.count, models=models, progress=progress
        )
    from redream.runs import outputs

    outputs.save_png(outputs.grid(images), options.out)
    print(f"{len(images)} pictures are in {options.out}.")
