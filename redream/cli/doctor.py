"""Say which stack this computer can run, and why; check its files, its iterations, and what the Hub has."""

import argparse

from redream.cli.common import number_to, progress
from redream.errors import RedreamError
from redream.runs.schedule import in_proportion
from redream.settings import MAX_ITERATIONS, PRESETS
from redream.stack import environment, online
from redream.stack.inventory import in_bytes, missing_files, total_size
from redream.stack.models import Models
from redream.stack.stack import Stack

AFTER_INTERRUPT = "nothing was changed"


class DoctorError(RedreamError):
    """Something that does not work on this computer, or is not as stack.json says."""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    help = "look at this one: a name, or a folder with a stack.json; default: sd21 with a GPU, else mini"
    add("--stack", metavar="S", help=help)
    add("--run", action="store_true", help="make iterations of its preset, and say pass or fail")
    help = "of --run, through all resolutions; default: 200"
    add("--iterations", type=number_to(MAX_ITERATIONS), default=200, metavar="N", help=help)
    add("--online", action="store_true", help="check at the Hub each fact that its stack.json states; default: sd21's")


def run(options: argparse.Namespace) -> None:
    if options.run:
        default = environment.FOR_A_GPU if environment.device() == "cuda" else "mini"
        _run(Stack.load(options.stack or default), options)
    if options.online:
        _online(Stack.load(options.stack or environment.FOR_A_GPU))
    if not (options.run or options.online):
        _describe(options.stack)


def _describe(name: str | None) -> None:
    diagnosis = environment.doctor()
    print(f"Stack: {diagnosis.stack}. {diagnosis.reason}")
    name = name or (environment.FOR_A_GPU if diagnosis.missing else diagnosis.stack)
    missing = missing_files(Stack.load(name))
    for file in missing:
        print(file)
    if any(file.on_hub for file in missing):
        size = in_bytes(total_size(missing))
        print(f"Fetch them, about {size}: python -m redream setup {name}")
    elif not missing:
        print(f"Every file that {name} needs is here.")
    for fact, value in diagnosis.facts:
        print(f"{fact}: {value}")


def _run(stack: Stack, options: argparse.Namespace) -> None:
    """Raises `DoctorError` if iterations do not work."""
    from redream.stack.self_test import self_test

    if missing := [file for file in missing_files(stack) if file.entry == "prior"]:
        raise DoctorError(f"The prior of {stack.name} is not here ({missing[0]}): python -m redream setup {stack.name}")
    settings = in_proportion(PRESETS[stack.preset]["redream"], options.iterations)
    progress("loading the prior")
    result = self_test(Models.load(stack).prior, settings, progress)
    device = environment.device_name(environment.device())
    print(f"{stack.name}, preset {stack.preset}, {result.iterations} of {options.iterations} iterations on {device}")
    for path in result.fast_paths:
        print(f"{path.name}: {'on' if path.on else 'off'} ({path.reason})")
    for pixels, ms in result.ms.items():
        print(f"{pixels} px: {ms:,.0f} ms an iteration")
    print("Losses at the end: " + ", ".join(f"{name} {value:.4g}" for name, value in result.losses.items()))
    if result.peak_gb is not None:
        print(f"Peak memory: {result.peak_gb:.1f} GB")
    if result.faults:
        raise DoctorError("Fail: " + " ".join(result.faults))
    print(f"Pass, in {result.seconds:.0f} s")


def _online(stack: Stack) -> None:
    """Raises `DoctorError` if a fact is wrong."""
    found = []
    for fact in online.facts(stack):
        print(f"{'right' if fact.right else 'WRONG'}: {fact.text}", flush=True)
        found.append(fact.right)
    if not all(found):
        wrong = f"{found.count(False)} of {len(found)} facts about {stack.name} are wrong"
        raise DoctorError(f"{wrong}; correct its stack.json, or choose other repositories.")
