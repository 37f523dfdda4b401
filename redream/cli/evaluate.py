"""Make many runs and compare methods; called again, it goes on where it was."""

import argparse
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from redream.cli.common import add_stack
from redream.runs import locks
from redream.settings import PRESETS, VARIANTS, Settings, SettingsError
from redream.stack.models import Models

AFTER_INTERRUPT = "the same command goes on from there"
PROMPTS = Path(__file__).parents[2] / "examples"


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_stack(parser)
    add("--preset", choices=PRESETS, help="default: the stack's")
    add("--prompts", type=Path, metavar="FILE", help="one per line; default: those in examples")
    add("--split", choices=("validation", "test"), help="only the prompts that are marked so")
    add("--methods", type=_listed(str), metavar="A,B,...", help="default: all")
    add("--seeds", type=_listed(int), default=[0], metavar="0,1,...")
    add("--limit", type=int, metavar="N", help="only the first prompts")
    setting_help = "a setting, for every method or, as METHOD.GROUP.NAME=VALUE, for one of them"
    add("--set", type=_setting, action="append", default=[], metavar="GROUP.NAME=VALUE", help=setting_help)
    processes_help = "programs at once, which share the cores"
    add("--processes", type=int, default=1, choices=range(1, 65), metavar="N", help=processes_help)
    add("--helper", action="store_true", help=argparse.SUPPRESS)  # started by another one
    add("--out", type=Path, required=True, metavar="DIR", help="may hold earlier runs, which are reused")


def run(options: argparse.Namespace) -> None:
    from redream.evaluation import sweep, trials

    if options.helper:
        threading.Thread(target=locks.end_with_input, daemon=True).start()
    models = Models.load(options.stack)
    changes: dict[str, dict] = {}  # method, "" for all → changes of its settings
    for method, path, value in options.set:
        group, _, name = path.rpartition(".")
        own = changes.setdefault(method, {})
        (own.setdefault(group, {}) if group else own)[name] = value
    preset, common = PRESETS[options.preset or models.stack.preset], changes.pop("", {})
    settings = {method: own.with_(**common) for method, own in preset.items()}
    file = options.prompts or PROMPTS / ("prompts_mini.txt" if models.stack.vocabulary else "prompts.txt")
    prompts = trials.read_prompts(file, options.split, options.limit)
    methods, missing = options.methods or list(trials.METHODS), 0
    updates = sweep.evaluate(
        options.out, prompts, methods, options.seeds, models=models, settings=settings, tuned=changes
    )
    if options.processes > 1 and not locks.possible(options.out / sweep.CLAIMS):
        raise sweep.EvaluationError("Here programs cannot share an evaluation; leave --processes out.")
    form = "{desc} {percentage:3.0f}%|{bar}|{postfix}"
    with (
        locks.worker_processes([*options.arguments, "--processes", "1", "--helper"], options.processes) as helpers,
        tqdm(unit="run", disable=not sys.stderr.isatty(), bar_format=form) as bar,
    ):
        for now in updates:
            minutes = None if now.seconds_left is None else now.seconds_left / options.processes / 60
            left = "" if minutes is None else f", about {minutes:.0f} min left"
            bar.total, bar.n = now.total, now.done
            bar.set_description_str(f"{now.trial.method}: {now.trial.prompt.text}", refresh=False)
            bar.set_postfix_str(f"{int(now.done)} of {now.total} runs{left}")
            if now.failure:
                missing += 1
                tqdm.write(f"{now.trial.method}, “{now.trial.prompt.text}”: {now.failure}", file=sys.stderr)
            if now.ended and bar.disable:
                print(f"{int(now.done)} of {now.total}: {bar.desc}{left}", file=sys.stderr)
            if options.helper and now.ended and now.done == now.total:
                return  # the tables are for the program that was called to write
    if any(helper.returncode for helper in helpers):
        print("A worker process ended early; the others did its share.", file=sys.stderr)
    print(f"Tables and gallery are in {options.out}: table.md, table.json, results.parquet, gallery.html.")
    if missing:
        print(
            f"{missing} of {now.total} runs are missing; table.md lists them. The same command tries again to make them."
        )


def _listed(kind: type) -> Callable[[str], list]:
    """A parser of lists with commas."""
    return lambda text: [kind(word.strip()) for word in text.split(",") if word.strip()]


def _setting(text: str) -> tuple[str, str, object]:
    """[METHOD.][GROUP.]NAME=VALUE as (METHOD or "", "GROUP.NAME", VALUE in JSON or plain); none of those that methods or
    seeds differ by."""
    from redream.evaluation.trials import VARIED

    path, _, value = text.partition("=")
    method, _, rest = path.partition(".")
    method, path = (method, rest) if method in VARIANTS else ("", path)
    try:
        value = json.loads(value)
    except json.JSONDecodeError:
        pass
    group, _, name = path.rpartition(".")
    if path in VARIED:
        raise argparse.ArgumentTypeError(f"methods or seeds differ by {path}: it is not to be changed")
    try:
        Settings().with_(**({group: {name: value}} if group else {name: value}))
    except (SettingsError, AttributeError, TypeError) as error:
        known = isinstance(error, SettingsError)
        raise argparse.ArgumentTypeError(str(error).rstrip(".") if known else f"there is no setting {path}") from error
    return method, path, value
