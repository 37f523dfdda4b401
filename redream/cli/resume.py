"""Continue a run from its last checkpoint."""

import argparse

from redream import pipeline
from redream.cli.common import RUN_AFTER_INTERRUPT, add_log_options, follow, stop_on_interrupt
from redream.runs.run import Run

AFTER_INTERRUPT = RUN_AFTER_INTERRUPT


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="its folder or its id")
    parser.add_argument("--iterations", type=int, metavar="N", help="so many more per object than were planned")
    add_log_options(parser)


def run(options: argparse.Namespace) -> None:
    with stop_on_interrupt() as stop:
        if not follow(pipeline.resume(options.run, options.iterations, stop=stop)):
            print(f"This run is finished; its results are in {Run.open(options.run).folder}.")
