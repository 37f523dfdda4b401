"""Fetch what a stack needs, or build it; called again, it goes on where it was."""

import argparse
import shlex
import sys
from collections.abc import Generator

from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, logging
from tqdm import tqdm

from redream.stack import environment
from redream.stack.fetching import SetupError
from redream.stack.setup import setup
from redream.stack.stack import Stack, built_index

AFTER_INTERRUPT = "the same command goes on from there"


def configure(parser: argparse.ArgumentParser) -> None:
    help = "a name, or a folder with a stack.json; default: sd21"
    parser.add_argument("stack", nargs="?", default=environment.FOR_A_GPU, metavar="STACK", help=help)


def run(options: argparse.Namespace) -> None:
    stack = Stack.load(options.stack)
    built = built_index(stack.name)
    was_built = (built / "index.json").exists()
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # its retries would break the bar, and a sentence says what was wrong in the end
    disable_progress_bars()
    try:
        failures = _followed(setup(stack))
    finally:
        logging.set_verbosity(before)
        enable_progress_bars()
    if failures:
        raise SetupError(" ".join(failures))
    print(f"Everything that {stack.name} needs is here.")
    if (built / "index.json").exists() and not was_built:
        push = f"python -m redream index push {shlex.quote(str(built))} OWNER/NAME"
        print(f"Its index was built in {built}; this shares it with others: {push}")


def _followed(steps: Generator) -> tuple[str, ...]:
    """What a setup returns. Its progress is a bar on a terminal, elsewhere a line for each tenth."""
    shown: tuple | None = None  # stage and tenth of the last line
    with tqdm(disable=not sys.stderr.isatty(), unit_scale=True) as bar:
        while True:
            try:
                progress = next(steps)
            except StopIteration as end:
                return end.value
            stage, unit = progress.stage.capitalize(), progress.unit
            bar.unit, bar.total, bar.n = " B" if unit == "bytes" else f" {unit}", progress.total, progress.done
            bar.set_description_str(stage)
            line = (stage, int(10 * progress.done / max(progress.total, 1)))
            if bar.disable and line != shown:
                shown = line
                left = "" if progress.seconds_left is None else f", about {progress.seconds_left / 60:.0f} min left"
                print(f"{stage}, {progress.amount}{left}", file=sys.stderr)
