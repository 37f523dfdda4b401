"""Make a 3D object of a prompt."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from redream import pipeline
from redream.cli.common import RUN_AFTER_INTERRUPT, add_stack, follow, stop_on_interrupt
from redream.settings import METHODS, PRESETS
from redream.stack.stack import Stack

AFTER_INTERRUPT = RUN_AFTER_INTERRUPT


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompt", metavar="PROMPT")
    add_stack(parser)
    add("--preset", choices=PRESETS, help="default: the stack's")
    add("--method", choices=METHODS, default="redream")
    add("--no-init", dest="initialise", action="store_false", help="do not start from retrieved assets")
    add("--no-adapt", dest="adapt", action="store_false", help="do not adapt the prior to their views")
    add("--particles", type=int, metavar="K", help="objects at once")
    add("--iterations", type=int, metavar="N", help="per object")
    add("--seed", type=int, default=0)
    add("--asset", nargs="+", action="extend", default=[], metavar="FILE.glb", help="start from these instead")
    add("--asset-caption", action="append", default=[], metavar="TEXT", help="what they show; default: the prompt")
    add("--uid", action="append", default=[], help="start from this asset of the library instead; again for more")
    add("--out", type=Path, metavar="DIR", help="a new or empty folder; default: a new one in runs")


def run(options: argparse.Namespace) -> None:
    stack = Stack.load(options.stack)
    changes = {name: getattr(options, name) for name in ("initialise", "adapt", "seed", "particles", "iterations")}
    changes = {name: value for name, value in changes.items() if value is not None}
    settings = PRESETS[options.preset or stack.preset][options.method].with_(**changes)
    with stop_on_interrupt() as stop:
        updates = pipeline.generate(
            options.prompt,
            stack=stack,
            settings=settings,
            assets=_captioned(options.asset, options.asset_caption),
            uids=options.uid,
            out=options.out,
            stop=stop,
        )
        follow(updates)


def _captioned(files: Sequence[str], captions: Sequence[str]) -> list[tuple[str, str]]:
    """Each file with its caption, "" for the prompt; one caption counts for all files. Raises `PipelineError`."""
    if len(captions) not in (0, 1, len(files)):
        raise pipeline.PipelineError("Give one --asset-caption for all assets, or one for each of them.")
    if len(captions) != len(files):
        captions = [*(captions or [""])] * len(files)
    return list(zip(files, captions, strict=True))
