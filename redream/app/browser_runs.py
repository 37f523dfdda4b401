"""The runs that a browser remembers: their ids in its storage, and the runs behind them as far as these still exist."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import gradio as gr

from redream.app.form import METHOD_LABELS
from redream.errors import RedreamError
from redream.runs.queue import Worker, find_run
from redream.runs.run import Run
from redream.settings import Settings

MAX_REMEMBERED = 30  # runs of a browser


@dataclass
class BrowserRuns:
    """Gradio's states of one browser."""

    known: gr.BrowserState  # ids of its runs, the latest first
    current: gr.State  # id of the run that Create shows, or None

    @staticmethod
    def create() -> "BrowserRuns":
        """New states, within a `gr.Blocks`."""
        return BrowserRuns(gr.BrowserState([], storage_key="redream-runs", secret="redream"), gr.State(None))


def remembered(ids: Iterable[str], known: Sequence[str]) -> list[str]:
    """The known ids with further ones in front, each once, at most `MAX_REMEMBERED`."""
    return list(dict.fromkeys([*ids, *known]))[:MAX_REMEMBERED]


def existing_runs(ids: Iterable[str]) -> list[Run]:
    """The runs of these ids that were not removed; what is no id of a run is left out."""
    runs = []
    for run in dict.fromkeys(ids):
        try:
            runs.append(find_run(run))
        except RedreamError:
            continue
    return runs


def run_choices(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Choices of a dropdown: prompt, method and seed of each run, and its id."""
    return [(run_label(run), run.folder.name) for run in runs]


def run_label(run: Run) -> str:
    """A run's prompt, method and seed."""
    settings = run.request.settings
    return f"{run.request.prompt} · {METHOD_LABELS[settings.method]} · seed {settings.seed}"


def is_pending(worker: Worker, ids: Iterable[str], prompt: str, settings: Settings, start: Mapping) -> bool:
    """Whether one of these runs has the same prompt, settings and assets and is not over; `start`: the further inputs as
    `Worker.submit` takes them."""
    same = {**start, "assets": "assets" in start}
    return any(
        run.request.is_same(prompt, settings, **same) and worker.queue_position(run.folder.name) is not None
        for run in existing_runs(ids)
    )
