"""Say which stack this computer can run, and why."""

import argparse

from redream.stack import environment

AFTER_INTERRUPT = "nothing was changed"


def configure(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(options: argparse.Namespace) -> None:
    diagnosis = environment.doctor()
    print(f"Stack: {diagnosis.stack}. {diagnosis.reason}")
    for name, value in diagnosis.facts:
        print(f"{name}: {value}")
