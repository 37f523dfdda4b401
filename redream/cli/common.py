"""What several commands share: the parser, the progress of a run, Ctrl-C, scores as sentences."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from redream.runs import events

RUN_AFTER_INTERRUPT = "a run goes on from its last checkpoint with: resume"


class Parser(argparse.ArgumentParser):
    """A parser that answers wrong arguments with one sentence and exit status 2."""

    def error(self, message: str):
        self.exit(2, f"{message[:1].upper()}{message[1:]}; see {self.prog} --help.\n")


def add_stack(parser: argparse.ArgumentParser) -> None:
    """Add the option --stack."""
    parser.add_argument("--stack", default="mini", metavar="S", help="a name, or a folder with a stack.json")


def follow(updates: Iterator[events.Event]) -> bool:
    """Show a run's events and return whether there were any.

    On a terminal its progress is a bar, elsewhere lines; the paths of results and the scores go to stdout.
    """
    started = None
    with tqdm(disable=not sys.stderr.isatty(), unit="it") as bar:
        written = None  # stage and tenth of the run in the last line
        for event in updates:
            match event:
                case events.Started():
                    started = event
                    bar.total, bar.initial, bar.n = event.total, event.iteration, event.iteration
                    tqdm.write(f"The run's folder is {event.run}.", file=sys.stderr)
                case events.Warned(sentence):
                    tqdm.write(sentence, file=sys.stderr)
                case events.Retrieved(assets):
                    captions = "; ".join(asset["caption"] for asset in assets)
                    tqdm.write(f"Retrieved assets: {captions}.", file=sys.stderr)
                case events.Progress(stage, iteration, total, seconds_left):
                    bar.set_description_str(stage.capitalize(), refresh=False)
                    bar.update(iteration - bar.n)
                    now = (stage, iteration * 10 // total)
                    if bar.disable and now != written:
                        left = "" if seconds_left is None else f", {seconds_left:.0f} s left"
                        print(f"{stage.capitalize()}, iteration {iteration} of {total}{left}", file=sys.stderr)
                        written = now
                case events.Artefact(kind, particle, file):
                    print(f"{kind.capitalize()} {particle}: {Path(started.run) / file}")
                case events.Scored(scores):
                    print(*score_sentences(scores), sep="\n")
                case events.Finished(stopped):
                    if stopped:
                        print(f"Stopped before its end; go on with: python -m redream resume {started.run}")
                    print(f"Everything is in {started.run}.")
    return started is not None


def score_sentences(scores: dict) -> list[str]:
    """One sentence for each object of scores.json."""
    sentences = []
    for number, score in enumerate(scores["objects"]):
        both = {
            key: [score.get(f"{key}_{name}") for name in ("a", "b")] for key in ("clip", "a_lpips", "view_accuracy")
        }
        parts = [f"CLIP score (higher is better) {_numbers(both['clip'])}"]
        parts.append(f"A-LPIPS (lower is steadier) {_numbers(both['a_lpips'])}")
        if both["view_accuracy"] != [None, None]:
            parts.append(f"view accuracy {_numbers(both['view_accuracy'], '{:.0%}')}")
        sentences.append(f"Object {number}: {'; '.join(parts)}.")
    return sentences


def _numbers(values: Sequence[float | None], form: str = "{:.3f}") -> str:
    return " and ".join("not available" if value is None else form.format(value) for value in values)


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C was pressed; pressed again, it interrupts as usual."""
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
