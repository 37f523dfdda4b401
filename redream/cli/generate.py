"""Make a 3D object of a prompt."""

import argparse
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from redream import pipeline
from redream.cli.common import (
    RUN_AFTER_INTERRUPT,
    add_log_options,
    add_stack,
    changes_of,
    follow,
    parse_setting,
    progress,
    stop_on_interrupt,
)
from redream.runs.eta import RuntimeEstimator
from redream.runs.schedule import fewest_iterations, schedule
from redream.settings import METHODS, PRESETS
from redream.stack.models import Models
from redream.stack.stack import Stack
from redream.stack.vocabulary import parse_prompt

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
    length = parser.add_mutually_exclusive_group().add_argument
    length("--iterations", type=int, metavar="N", help="per object")
    length("--minutes", type=_minutes, metavar="M", help="as many, and as high a resolution, as take so long here")
    add("--seed", type=int, default=0)
    add("--set", type=parse_setting, action="append", default=[], metavar="GROUP.NAME=VALUE", help="another setting")
    add("--asset", nargs="+", action="extend", default=[], metavar="FILE.glb", help="start from these instead")
    add("--asset-caption", action="append", default=[], metavar="TEXT", help="what they show; default: the prompt")
    add("--uid", action="append", default=[], help="start from this asset of the library instead; again for more")
    add("--commercial-use", action="store_true", help="only assets whose licence allows it")
    add("--out", type=Path, metavar="DIR", help="a new or empty folder; default: a new one in runs")
    add_log_options(parser)


def run(options: argparse.Namespace) -> None:
    stack = Stack.load(options.stack)
    changes = {name: getattr(options, name) for name in ("initialise", "adapt", "seed", "particles", "iterations")}
    changes = {name: value for name, value in changes.items() if value is not None}
    preset = options.preset or stack.preset
    settings = PRESETS[preset][options.method].with_(**changes | changes_of(options.set))
    models = None
    if options.minutes is not None:
        parse_prompt(options.prompt, stack.vocabulary)  # before what takes long
        models = Models.load(stack)
        eta = RuntimeEstimator.of_device(models, progress)
        settings = schedule(settings, options.minutes, eta.seconds, fewest_iterations(preset))
        print(f"{settings.iterations} iterations, about {eta.seconds(settings) / 60:.1f} minutes.", file=sys.stderr)
    with stop_on_interrupt() as stop:
        updates = pipeline.generate(
            options.prompt,
            stack=stack,
            settings=settings,
            assets=_captioned(options.asset, options.asset_caption),
            uids=options.uid,
            commercial_use=options.commercial_use,
            out=options.out,
            stop=stop,
            models=models,
        )
        follow(updates)


def _minutes(text: str) -> float:
    """A positive number of minutes."""
    with suppress(ValueError):
        if 0 < (minutes := float(text)) < math.inf:
            return minutes
    raise argparse.ArgumentTypeError(f"{text} is no positive number of minutes")


def _captioned(files: Sequence[str], captions: Sequence[str]) -> list[tuple[str, str]]:
    """Each file with its caption, "" for the prompt; one caption counts for all files. Raises `PipelineError`."""
    if len(captions) not in (0, 1, len(files)):
        raise pipeline.PipelineError("Give one --asset-caption for all assets, or one for each of them.")
    if len(captions) != len(files):
        captions = [*(captions or [""])] * len(files)
    return list(zip(files, captions, strict=True))
