"""The same prompt and seed by several methods: which runs these are, how far each is, and their grid with scores."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from redream.app.browser_runs import existing_runs
from redream.app.components import SHOWN_QUANTITIES, data_uri, hint, queue_status, render
from redream.app.form import GenerationForm
from redream.app.run_page import PAUSED, stage_name
from redream.errors import RedreamError
from redream.files import read_json
from redream.runs.events import Event, Failed, Finished, Paused, Progress, events_after
from redream.runs.queue import Worker
from redream.runs.run import Run
from redream.scoring.scores import QUANTITIES, SCORES, keys_of
from redream.settings import VARIANTS, Preset, Settings

COMPARED = ("redream", "redream-no-init", "redream-no-adapt", "vsd", "sds")  # of `VARIANTS`
TAIL = 16_384  # bytes at the end of a history that hold its latest progress
EMPTY_GRID = hint("Choose a prompt and what to compare; missing runs will be made.")


class ComparisonError(RedreamError):
    """A run that cannot be compared; the message says why."""


@dataclass(frozen=True)
class ComparedRun:
    """A variant's run. `status` says how far it is, and is "" once it is finished."""

    variant: str
    run: Run
    status: str = ""

    @property
    def label(self) -> str:
        return VARIANTS[self.variant].label

    @property
    def sprite(self) -> Path | None:
        """The sheet of the first object's views; None before the run is finished, or if it made none."""
        file = self.run.folder / "sprite.jpg"
        return file if file.is_file() and not self.status else None

    @property
    def scores(self) -> Mapping:
        """The first object's scores; empty before it is finished."""
        scores = {} if self.status else read_json(self.run.folder / "scores.json") or {}
        return (scores.get("objects") or [{}])[0]


def settings_by_variant(variants: Sequence[str], run: Run | None, preset: Preset, seed: int) -> dict[str, Settings]:
    """The settings of each variant of a run (None: of the preset); another method has the preset's own settings.
    Raises `ComparisonError`."""
    if run is not None and (run.request.assets or run.request.uids):
        raise ComparisonError("This run started from an asset of one's own choice; compare one that did not.")
    base = (preset["redream"] if run is None else run.request.settings).with_(seed=seed)
    by_variant = {}
    for variant in variants:
        settings, method = base, VARIANTS[variant].method
        if method != base.method:
            settings = replace(GenerationForm.of(base, preset), method=method, guidance=None).settings(preset)
        by_variant[variant] = settings.with_(**({"initialise": True, "adapt": True} | VARIANTS[variant].changes))
    return by_variant


def submit_missing(
    worker: Worker, prompt: str, wanted: Mapping[str, Settings], known: Sequence[Run]
) -> Iterator[dict[str, str]]:
    """Find or submit a run for each variant; yield the ids by variant after each of them. Raises as `Worker.submit`."""
    ids: dict[str, str] = {}
    for variant, settings in wanted.items():
        equal = next((run for run in known if _is_usable(worker, run, prompt, settings)), None)
        ids = ids | {variant: equal.folder.name if equal else worker.submit(prompt, settings)}
        yield ids


def missing_settings(
    worker: Worker, prompt: str, wanted: Mapping[str, Settings], known: Sequence[Run]
) -> list[Settings]:
    """The settings of the runs that `submit_missing` would submit."""
    return [s for s in wanted.values() if not any(_is_usable(worker, run, prompt, s) for run in known)]


def _is_usable(worker: Worker, run: Run, prompt: str, settings: Settings) -> bool:
    """Whether a run has this prompt and settings and nothing else, and is finished or will be."""
    return run.request.is_same(prompt, settings) and (
        run.finished or worker.queue_position(run.folder.name) is not None
    )


def compared_runs(worker: Worker, ids: Mapping[str, str]) -> list[ComparedRun]:
    """The runs of some ids by variant, and how far each is. Removed runs are left out."""
    variants = {run: variant for variant, run in ids.items()}
    return [
        ComparedRun(variants[run.folder.name], run, _status(run, worker.queue_position(run.folder.name)))
        for run in existing_runs(ids.values())
    ]


def _status(run: Run, position: int | None) -> str:
    """How far a run with this queue position is; "" if it is finished."""
    if position:
        return queue_status(position, None)
    match _latest(run):
        case Progress(stage, iteration, total) if position == 0:
            return f"{stage_name(stage)}, {iteration / total:.0%}"
        case Finished(stopped=False):
            return ""
        case Failed(sentence):
            return sentence
        case Paused() if position is None:
            return PAUSED
    return "Starting." if position == 0 else "It was stopped before it was finished."


def _latest(run: Run) -> Event | None:
    """The latest event that says how far a run is."""
    history = run.folder / "events.jsonl"
    events = events_after(history, max(0, history.stat().st_size - TAIL))[0] if history.is_file() else []
    known = (Progress, Failed, Finished, Paused)
    return next((event for event in reversed(events) if isinstance(event, known)), None)


def paused(worker: Worker, ids: Iterable[str]) -> list[str]:
    """The runs that wait for their next GPU call to be asked for."""
    names = [run.folder.name for run in existing_runs(ids) if isinstance(_latest(run), Paused)]
    return [name for name in names if worker.queue_position(name) is None]


def continue_paused(worker: Worker, ids: Iterable[str]) -> None:
    """Ask for the next GPU call of each run that is paused. Raises as `Worker.resume`."""
    for run in paused(worker, ids):
        worker.resume(run)


# ---------------------------------------------------------------- HTML


def grid_html(runs: Sequence[ComparedRun]) -> str:
    """The objects in step, their retrieved assets above and their scores below, the best in bold."""
    if not runs:
        return EMPTY_GRID
    columns = [
        {
            "label": one.label,
            "prompt": one.run.request.prompt,
            "status": one.status,
            "sprite": data_uri(one.sprite) if one.sprite else None,
            "assets": _oriented_assets(one.run),
        }
        for one in runs
    ]
    rows = [
        {
            "name": QUANTITIES[quantity].name,
            "two_models": QUANTITIES[quantity].by_two_models,
            "cells": zip(*(_score_row(runs, key) for key in keys_of(quantity)), strict=True),
        }
        for quantity in SHOWN_QUANTITIES
    ]
    return render("compare_grid.html", columns=columns, rows=rows)


def progress_html(runs: Sequence[ComparedRun]) -> str:
    """A line for each run that is not finished."""
    return render("compare_progress.html", lines=[one for one in runs if one.status])


def _oriented_assets(run: Run) -> list[dict[str, str]]:
    """The views and captions of a run's assets; none if it uses none or they are not there yet."""
    retrieved = read_json(run.folder / "retrieved.json")
    if not (run.request.settings.uses_assets and retrieved):
        return []
    files = [run.folder / f"asset-{number}-turned.png" for number in range(len(retrieved["assets"]))]
    return [
        {"image": data_uri(file), "caption": asset["caption"]}
        for file, asset in zip(files, retrieved["assets"], strict=True)
        if file.is_file()
    ]


def _score_row(runs: Sequence[ComparedRun], key: str) -> list[dict]:
    """One score of each run as text, and whether it is the best of several."""
    values = [one.scores.get(key) for one in runs]
    known = [value for value in values if value is not None]
    best_of = {"higher": max, "lower": min}.get(SCORES[key].better)
    if len(known) < 2 or not SCORES[key].has_best:
        best_of = None
    best = best_of(known) if best_of else None
    texts = ["" if value is None else SCORES[key].text(value) for value in values]
    return [
        {"text": text, "best": value is not None and value == best} for text, value in zip(texts, values, strict=True)
    ]
