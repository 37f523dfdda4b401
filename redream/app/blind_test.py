"""The blind test: two objects without their methods' names, one question of the paper's user study, and a tally."""

import functools
import random
from collections.abc import Mapping, Sequence

import gradio as gr

from redream.app.comparison import COMPARED, ComparedRun, compared_runs
from redream.app.components import data_uri, hint, render, script
from redream.app.wiring import UNQUEUED
from redream.runs.queue import Worker
from redream.settings import VARIANTS

QUESTIONS = {  # of the paper's user study
    "texture": "Which one has the better texture?",
    "shape": "Which one has the more plausible shape?",
    "geometry": "Which one fits together better from all sides?",
}
NO_PAIR = hint("When two objects are finished, they are shown without their names.")
NO_VOTES = hint("Your votes are counted here.")

Tally = Mapping[str, Sequence[int]]  # by variant: [preferred, shown]


class BlindTest:
    """The widgets; `runs` holds the compared runs' ids by variant, `grid` is hidden while the names are."""

    def __init__(self, worker: Worker, tab: gr.Tab, runs: gr.State, grid: gr.HTML) -> None:
        self.worker = worker
        self.pair = gr.State(None)  # the variants shown as A and B
        self.tally = gr.BrowserState({}, storage_key="redream-tally", secret="redream")
        self.objects = gr.HTML(NO_PAIR, js_on_load=script("sprite_clock.js"))
        with gr.Row():
            show = gr.Button("Show two", size="sm")
            self.votes = [gr.Button(label, size="sm", interactive=False) for label in ("A", "B", "the same")]
        self.counts = gr.HTML(NO_VOTES)

        tab.select(tally_html, self.tally, self.counts, **UNQUEUED)
        show.click(self.show, runs, [self.pair, self.objects, grid, *self.votes], **UNQUEUED)
        outputs = [self.tally, self.counts, self.objects, grid, *self.votes]
        for button, choice in zip(self.votes, ("A", "B", "same"), strict=True):
            button.click(functools.partial(self.vote, choice), [self.pair, self.tally], outputs, **UNQUEUED)

    def show(self, runs: dict[str, str]) -> list:
        """Two objects without their names; the grid, which names them, is hidden until the vote."""
        drawn = draw_pair(compared_runs(self.worker, runs), random.Random())
        if drawn is None:
            return [None, NO_PAIR, gr.skip(), *self._votes_enabled(False)]
        first, second, question = drawn
        pair = (first.variant, second.variant)
        return [pair, pair_html(first, second, question), gr.update(visible=False), *self._votes_enabled(True)]

    def vote(self, choice: str, pair: Sequence[str], tally: dict) -> list:
        """Count the choice "A", "B" or "same", and reveal the names."""
        tally = with_vote(tally, pair, choice)
        shown = [tally_html(tally), answer_html(pair, choice), gr.update(visible=True)]
        return [tally, *shown, *self._votes_enabled(False)]

    def _votes_enabled(self, enabled: bool) -> list[dict]:
        return [gr.update(interactive=enabled) for _ in self.votes]


def draw_pair(runs: Sequence[ComparedRun], generator: random.Random) -> tuple[ComparedRun, ComparedRun, str] | None:
    """Two finished objects in a random order and one of the `QUESTIONS`; None if fewer than two are finished."""
    finished = [one for one in runs if one.sprite is not None]
    if len(finished) < 2:
        return None
    first, second = generator.sample(finished, 2)
    return first, second, generator.choice(list(QUESTIONS))


def with_vote(tally: Tally, pair: Sequence[str], choice: str) -> dict[str, list[int]]:
    """The tally after a choice of "A", "B" or "same" between two variants."""
    counts = {variant: list(count) for variant, count in tally.items()}
    for letter, variant in zip("AB", pair, strict=True):
        preferred, shown = counts.get(variant, [0, 0])
        counts[variant] = [preferred + (choice == letter), shown + 1]
    return counts


def pair_html(first: ComparedRun, second: ComparedRun, question: str) -> str:
    """The question, and both objects in step without their names."""
    objects = [("A", data_uri(first.sprite)), ("B", data_uri(second.sprite))]
    return render("blind_pair.html", question=QUESTIONS[question], objects=objects)


def answer_html(pair: Sequence[str], choice: str) -> str:
    """The names of A and B, and which one was preferred."""
    a, b = (VARIANTS[variant].label for variant in pair)
    return render("blind_answer.html", a=a, b=b, preferred={"A": a, "B": b}.get(choice))


def tally_html(tally: Tally) -> str:
    """How often each variant was preferred, of how often it was shown; the most preferred first."""
    rows = [
        {"label": VARIANTS[variant].label, "preferred": preferred, "shown": shown}
        for variant, (preferred, shown) in sorted(tally.items(), key=lambda item: -item[1][0])
        if variant in COMPARED
    ]
    return render("blind_tally.html", rows=rows) if rows else NO_VOTES
