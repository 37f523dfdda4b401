"""What several commands share: the parser, the progress of a run, Ctrl-C, scores as sentences."""

import argparse
import dataclasses
import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from redream.errors import RedreamError
from redream.retrieval.licences import LicenceError
from redream.runs import events
from redream.runs.logs import LEVELS, configure
from redream.scoring.scores import QUANTITIES, keys_of, quantities_on
from redream.settings import Settings, setting_names
from redream.stack.vocabulary import ParsedPrompt

RUN_AFTER_INTERRUPT = "what was done up to the last checkpoint is kept"


class Parser(argparse.ArgumentParser):
    """A parser that answers wrong arguments with one sentence and exit status 2."""

    def error(self, message: str):
        self.exit(2, f"{message[:1].upper()}{message[1:]}; see {self.prog} --help.\n")


def add_stack(parser: argparse.ArgumentParser) -> None:
    """Add the option --stack."""
    parser.add_argument("--stack", default="mini", metavar="S", help="a name, or a folder with a stack.json")


def add_log_options(parser: argparse.ArgumentParser, level: str | None = None) -> None:
    """Add the options --log-level and --log-prompts; `level`: the default, None: no log."""
    parser.add_argument("--log-level", choices=LEVELS, default=level, help="log the events of runs to stderr")
    parser.add_argument("--log-prompts", action="store_true", help="with the texts of prompts")


def configure_log(options: argparse.Namespace) -> None:
    """Begin the log that `add_log_options` asks for."""
    if getattr(options, "log_level", None):
        configure(options.log_level, options.log_prompts)


def list_of(kind: type) -> Callable[[str], list]:
    """A parser of values with commas between them."""

    def parse(text: str) -> list:
        return [kind(value.strip()) for value in text.split(",") if value.strip()]

    parse.__name__ = f"list of {kind.__name__}"  # argparse names it when it refuses a text
    return parse


def progress(sentence: str) -> None:
    """Say on stderr what is done next."""
    print(f"{sentence} …", file=sys.stderr)


def print_warnings(parsed: ParsedPrompt) -> None:
    """Say on stderr what the models do not get of a prompt."""
    for sentence in parsed.warnings:
        print(sentence, file=sys.stderr)


def number_to(limit: int) -> Callable[[str], int]:
    """What reads a whole number from 1 to a limit, for argparse, whose own `choices` would all be listed in its sentence."""

    def read(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= limit:
            raise argparse.ArgumentTypeError(f"{text} is no whole number from 1 to {limit:,}")
        return int(text)

    return read


def parse_setting(text: str) -> tuple[str, object]:
    """Parse [GROUP.]NAME=VALUE as ("GROUP.NAME", value), for argparse; VALUE is JSON or plain text, and not checked."""
    path, _, value = text.partition("=")
    try:
        value = json.loads(value)
    except json.JSONDecodeError:
        pass
    if isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{path} is a group; give one setting of it, as {path}.NAME=VALUE")
    if path not in setting_names(dataclasses.asdict(Settings())):
        raise argparse.ArgumentTypeError(f"there is no setting {path}")
    return path, value


def changes_of(settings: Iterable[tuple[str, object]]) -> dict:
    """What `parse_setting` gave, as changes for `Settings.with_`."""
    changes: dict = {}
    for path, value in settings:
        group, _, name = path.rpartition(".")
        changes |= {group: changes.get(group, {}) | {name: value}} if group else {name: value}
    return changes


def follow(updates: Iterator[events.Event]) -> bool:
    """Show a run's events and return whether there were any.

    On a terminal its progress is a bar, elsewhere lines; the paths of results and the scores go to stdout. What ends the run
    early gets a note that says how it goes on.
    """
    folder = None
    try:
        for event in _shown(updates):
            folder = Path(event.run) if isinstance(event, events.Started) else folder
    except BaseException as error:
        if folder is not None and _can_resume(error, folder):
            error.add_note(f"Go on with: {_resume_command(folder)}")
        raise
    return folder is not None


def _shown(updates: Iterator[events.Event]) -> Iterator[events.Event]:
    """The same events, each once it is shown."""
    with tqdm(disable=not sys.stderr.isatty(), unit="it") as bar:
        last_line: tuple | None = None  # stage and tenth of the run in the last line
        for event in updates:
            match event:
                case events.Started(run, iteration=iteration, total=total):
                    folder = Path(run)
                    bar.total, bar.initial, bar.n = total, iteration, iteration
                    tqdm.write(f"The run's folder is {folder}.", file=sys.stderr)
                case events.Warned(sentence):
                    tqdm.write(sentence, file=sys.stderr)
                case events.Fetching(_, _, what):
                    bar.set_description_str(f"Fetching {what}", refresh=False)
                    if bar.disable and last_line != ("fetching", what):
                        last_line = ("fetching", what)
                        print(f"Fetching {what}", file=sys.stderr)
                case events.Retrieved(assets):
                    captions = "; ".join(asset["caption"] for asset in assets)
                    tqdm.write(f"Retrieved assets: {captions}.", file=sys.stderr)
                case events.Progress(stage, iteration, total):
                    bar.set_description_str(stage.capitalize(), refresh=False)
                    bar.update(iteration - bar.n)
                    line = (stage, iteration * 10 // total)
                    if bar.disable and line != last_line:
                        print(_progress_line(event), file=sys.stderr)
                        last_line = line
                case events.Artefact(kind, particle, file):
                    print(f"{kind.capitalize()} {particle}: {folder / file}")
                case events.Scored(scores):
                    print(*score_sentences(scores), sep="\n")
                case events.Finished(stopped):
                    if stopped:
                        print(f"Stopped before its end; go on with: {_resume_command(folder)}")
                    print(f"Everything is in {folder}.")
            yield event


def _resume_command(folder: Path) -> str:
    return f"python -m redream resume {shlex.quote(str(folder))}"


def _can_resume(error: BaseException, folder: Path) -> bool:
    """Whether a run that this ended can go on: unless it would end again, or its folder is gone."""
    if not isinstance(error, RedreamError):
        return True
    # takes seconds, of a run that has not come so far
    from redream.distillation.checkpoint import CheckpointError
    from redream.distillation.loop import DivergenceError

    return folder.is_dir() and not isinstance(error, (CheckpointError, DivergenceError, LicenceError))


def _progress_line(progress: events.Progress) -> str:
    left = "" if progress.seconds_left is None else f", {progress.seconds_left:.0f} s left"
    return f"{progress.stage.capitalize()}, iteration {progress.iteration} of {progress.total}{left}"


def score_sentences(scores: dict) -> list[str]:
    """One sentence for each object of scores.json, with both models' values."""
    sentences = []
    for number, object_scores in enumerate(scores["objects"]):
        parts = []
        for quantity in quantities_on("command line"):
            score = QUANTITIES[quantity]
            values = [object_scores.get(key) for key in keys_of(quantity)]
            if quantity == "view_accuracy" and set(values) == {None}:  # of an object without a front
                continue
            texts = ("not available" if value is None else score.text(value) for value in values)
            parts.append(f"{score.name} {' and '.join(texts)} ({score.direction})")
        sentences.append(f"Object {number}: {'; '.join(parts)}.")
    return sentences


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C was pressed. Pressed again, it raises `KeyboardInterrupt`."""
    pressed = []

    def press(number, frame) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)
        print("Stopping; making results of what there is. Ctrl-C again ends at once.", file=sys.stderr)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
