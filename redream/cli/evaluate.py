"""Make many runs and compare methods; called again, it goes on where it was."""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from redream.cli.common import add_stack, changes_of, list_of, number_to, parse_setting
from redream.settings import PRESETS, VARIANTS, Settings, SettingsError
from redream.stack.models import Models

AFTER_INTERRUPT = "the same command goes on from there"
PROMPTS = Path(__file__).parents[2] / "examples"
MAX_PROCESSES = 64


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_stack(parser)
    add("--preset", choices=PRESETS, help="default: the stack's")
    add("--prompts", type=Path, metavar="FILE", help="one per line; default: those in examples")
    add("--split", choices=("validation", "test"), help="only the prompts that are marked so")
    add("--methods", type=list_of(str), metavar="A,B,...", help="default: all")
    add("--seeds", type=list_of(int), default=[0], metavar="0,1,...")
    add("--limit", type=int, metavar="N", help="only the first prompts")
    setting_help = "a setting, for every method or, as METHOD.GROUP.NAME=VALUE, for one of them"
    add("--set", type=_setting, action="append", default=[], metavar="GROUP.NAME=VALUE", help=setting_help)
    processes = {"type": number_to(MAX_PROCESSES), "help": "runs at once, which share the cores"}
    add("--processes", default=1, metavar="N", **processes)
    add("--out", type=Path, required=True, metavar="DIR", help="may hold earlier runs, which are reused")


def run(options: argparse.Namespace) -> None:
    from redream.evaluation import sweep, trials

    models = Models.load(options.stack)
    common, tuned = _changes(options.set)
    preset = PRESETS[options.preset or models.stack.preset]
    settings = {method: values.with_(**common) for method, values in preset.items()}
    file = options.prompts or PROMPTS / ("prompts_mini.txt" if models.stack.vocabulary else "prompts.txt")
    prompts = trials.read_prompts(file, options.split, options.limit)
    updates = sweep.evaluate(
        options.out,
        prompts,
        options.methods or trials.METHODS,
        options.seeds,
        models=models,
        settings=settings,
        tuned=tuned,
        processes=options.processes,
    )
    missing, total = _follow(updates)
    print(f"Tables and gallery are in {options.out}: table.md, table.json, results.parquet, gallery.html.")
    if missing:
        print(f"{missing} of {total} runs are missing; table.md lists them. The same command tries again to make them.")


def _follow(updates: Iterator) -> tuple[int, int]:
    """Show a sweep's progress, on a terminal as a bar, elsewhere a line for each run; return how many runs are missing, and
    the number of all of them."""
    missing, total = 0, 0
    bar_format = "{desc} {percentage:3.0f}%|{bar}|{postfix}"
    with tqdm(unit="run", disable=not sys.stderr.isatty(), bar_format=bar_format) as bar:
        for update in updates:
            total = update.total
            name = f"{update.trial.method}: {update.trial.prompt.text}"
            left = "" if update.seconds_left is None else f", about {update.seconds_left / 60:.0f} min left"
            bar.total, bar.n = update.total, update.done
            bar.set_description_str(name, refresh=False)
            bar.set_postfix_str(f"{int(update.done)} of {total} runs{left}")
            if update.warning:
                tqdm.write(update.warning, file=sys.stderr)
            if update.failure:
                missing += 1
                tqdm.write(f"{name}: {update.failure}", file=sys.stderr)
            if update.ended and bar.disable:
                print(f"{int(update.done)} of {total}: {name}{left}", file=sys.stderr)
    return missing, total


def _setting(text: str) -> tuple[str, str, object]:
    """Parse [METHOD.][GROUP.]NAME=VALUE as (METHOD or "", "GROUP.NAME", value).

    Refuses settings that methods or seeds differ by.
    """
    from redream.evaluation.trials import VARIED

    first, _, rest = text.partition(".")
    method, text = (first, rest) if first in VARIANTS else ("", text)
    if (path := text.partition("=")[0]) in VARIED:
        raise argparse.ArgumentTypeError(f"methods or seeds differ by {path}: it is not to be changed")
    path, value = parse_setting(text)
    try:
        Settings().with_(**changes_of([(path, value)]))
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error
    return method, path, value


def _changes(settings: Iterable[tuple[str, str, object]]) -> tuple[dict, dict[str, dict]]:
    """What `_setting` parsed, as changes for `Settings.with_`: for every method, and by method."""
    by_method: dict[str, list] = {"": []}
    for method, path, value in settings:
        by_method.setdefault(method, []).append((path, value))
    changes = {method: changes_of(pairs) for method, pairs in by_method.items()}
    return changes.pop(""), changes
