"""Prompts, methods and seeds → one sweep of runs, its tables and its gallery.

    OUT/runs/METHOD/PROMPT-SEED-DIGEST/        a run's folder; evaluation.json and costs.json are added to it
    OUT/runs/METHOD/.PROMPT-SEED-DIGEST.lock   held while a program works on it
    OUT/table.json, table.md, results.parquet  see `redream.evaluation.tables`
    OUT/gallery.html                           see `redream.evaluation.gallery`

Called again, a sweep uses its finished runs and continues the others (`redream.evaluation.trial_runs`). One that was killed
and called again ends with an equal table.json if it has as many threads: they decide in which order sums are taken. With
several processes each has its share of the threads. Several programs may be called with the same folder: each makes what no
other works on, and each ends with the whole table. Two more rows stand beside the methods: "retrieval", the best retrieved
asset turned to its front, and "truth", the true object of the prompt, where the stack has it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from redream.evaluation import gallery, tables
from redream.evaluation.scorer import EvaluationError
from redream.evaluation.tables import TRUTH, Outcome
from redream.evaluation.trials import METHODS, METHODS_VERSION, ModelDigests, Prompt, Trial, method_settings, plan
from redream.evaluation.workers import TrialUpdate, make_here, make_in_processes
from redream.files import read_json, write_text
from redream.scoring.metrics import SCORES_VERSION
from redream.scoring.scores import SCORES, keys_of, quantities_on
from redream.settings import PRESETS, VARIANTS, Preset, Settings
from redream.stack.models import Models

GALLERY_SCORES = tuple(keys_of(quantity)[0] for quantity in quantities_on("gallery"))  # by the first model


@dataclass(frozen=True)
class SweepProgress:
    """How far a sweep is: a trial goes on or, if `ended`, is done."""

    trial: Trial
    done: float  # trials, those that go on in parts
    total: int
    seconds_left: float | None  # None before the first run has ended
    ended: bool = False
    failure: str | None = None  # why the trial has no scores
    warning: str | None = None  # a sentence about the worker processes


def evaluate(
    out: Path,
    prompts: Sequence[Prompt],
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = (0,),
    *,
    models: Models,
    settings: Preset | None = None,
    tuned: Mapping[str, Mapping] | None = None,
    processes: int = 1,
) -> Iterator[SweepProgress]:
    """Make or reuse a run for each prompt, method and seed, and write the tables and the gallery to `out`.

    `settings` (default: the stack's preset) are changed by each of `METHODS` and by its `tuned` (name → changes). With one
    process all is made in this one. The sweep proceeds as its progress is consumed; a run that fails by a named error is
    listed and the others are made. Raises `EvaluationError`.
    """
    tuned, settings = tuned or {}, settings or PRESETS[models.stack.preset]
    if unknown := [name for name in (*methods, *tuned) if name not in METHODS]:
        raise EvaluationError(f"There is no method {unknown[0]}; there are: {', '.join(METHODS)}.")
    if not (prompts and methods and seeds):
        raise EvaluationError("Name at least one prompt, one method and one seed.")
    methods, seeds, digests = dict.fromkeys(methods), dict.fromkeys(seeds), ModelDigests.of(models.stack)
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f"The folder {out.name} cannot be written to; name another one.") from error
    by_name = {name: method_settings(name, settings).with_(**tuned.get(name, {})) for name in (*methods, TRUTH)}
    same = _equal_methods(methods, by_name)
    methods = [name for name in methods if name not in same]
    assets = [TRUTH] * bool(models.stack.truth) + [name for name in methods if name not in VARIANTS]
    rows = [(prompt, name, None) for prompt in prompts for name in assets]
    rows += [(prompt, name, seed) for seed in seeds for prompt in prompts for name in methods if name not in assets]
    trials = [plan(out, prompt, name, seed, by_name[name], digests) for prompt, name, seed in rows]
    common = asdict(settings["redream"])
    header = {"stack": models.stack.name} | asdict(digests) | {"settings": common, "seeds": list(seeds)}
    header |= {"methods_version": METHODS_VERSION, "scores_version": SCORES_VERSION}
    header |= {"changes": {name: _changes(asdict(by_name[name]), common) for name in methods}}
    header |= {"same": same} if same else {}
    updates = make_here(trials, models) if processes == 1 else make_in_processes(trials, models, processes)
    return _sweep(out, trials, updates, header, processes)


def _equal_methods(methods: Iterable[str], by_name: Mapping[str, Settings]) -> dict[str, str]:
    """The methods that have the settings of an earlier one, and that one: they are not made twice."""
    same, first = {}, {}
    for name in methods:
        if name in VARIANTS and first.setdefault(by_name[name], name) != name:
            same[name] = first[by_name[name]]
    return same


def _changes(values: dict, common: dict) -> dict:
    """The values that differ from the common ones, in their groups."""
    pairs = ((name, value, common[name]) for name, value in values.items() if value != common[name])
    return {name: _changes(value, other) if isinstance(value, dict) else value for name, value, other in pairs}


def _sweep(
    out: Path, trials: Sequence[Trial], updates: Iterable[TrialUpdate], header: dict, processes: int
) -> Iterator[SweepProgress]:
    """Follow the trials to their end, then write the tables and the gallery."""
    outcomes: dict[Path, Outcome] = {}  # by the trial's folder, as the next one
    fractions = {trial.folder: 0.0 for trial in trials}
    seconds: dict[str, list[float]] = {}  # by method
    seconds_left = None
    for update in updates:
        trial = update.trial
        fractions[trial.folder] = update.fraction
        if update.seconds is not None:
            seconds.setdefault(trial.method, []).append(update.seconds)
        if update.outcome is not None:
            outcomes[trial.folder] = update.outcome
        if update.ended:
            seconds_left = _seconds_left(trials, fractions, seconds, processes)
        yield SweepProgress(
            trial,
            done=sum(fractions.values()),
            total=len(trials),
            seconds_left=seconds_left,
            ended=update.ended,
            failure=update.outcome and update.outcome.failure,
            warning=update.warning,
        )
    compared = tables.with_truth([outcomes[trial.folder] for trial in trials if trial.folder in outcomes])
    tables.save(out, compared, METHODS, header)
    write_text(out / "gallery.html", _gallery(compared, header["stack"]))


def _seconds_left(
    trials: Sequence[Trial], fractions: Mapping[Path, float], seconds: Mapping[str, Sequence[float]], processes: int
) -> float | None:
    """Seconds that the trials that are not scored will take; None before the first run has ended.

    A method of which no run has ended counts as the slowest one.
    """
    means = {method: sum(values) / len(values) for method, values in seconds.items()}
    runs = [mean for method, mean in means.items() if method in VARIANTS]
    if not runs:
        return None
    unscored = [trial for trial in trials if fractions[trial.folder] < 1 and not trial.is_scored]
    remaining = [(1 - fractions[trial.folder]) * means.get(trial.method, max(runs)) for trial in unscored]
    return sum(remaining, 0.0) / processes


def _gallery(outcomes: Sequence[Outcome], stack: str) -> str:
    """gallery.html; of several seeds it shows the first."""
    order, rows = [*METHODS, TRUTH], {}
    for outcome in sorted(outcomes, key=lambda outcome: order.index(outcome.method)):
        empty = gallery.Row(outcome.prompt, outcome.split or "", outcome.kind or "", {})
        row = rows.setdefault(outcome.prompt, empty)
        if outcome.method not in row.cells:
            assets = max(row.assets, _asset_strips(outcome.folder), key=len)
            rows[outcome.prompt] = replace(row, cells=row.cells | {outcome.method: _cell(outcome)}, assets=assets)
    return gallery.page(f"Redream, evaluated on {stack}", list(rows.values()))


def _cell(outcome: Outcome) -> gallery.Cell:
    sprite = outcome.folder / "sprite.jpg"
    keys = [key for key in GALLERY_SCORES if outcome.scores.get(key) is not None]
    scores = [(SCORES[key].label, SCORES[key].text(outcome.scores[key])) for key in keys]
    return gallery.Cell(sprite if sprite.is_file() else None, scores, outcome.failure)


def _asset_strips(folder: Path) -> list[gallery.AssetStrip]:
    """The retrieved assets of a run, as far as they were oriented."""
    strips = []
    for number, asset in enumerate((read_json(folder / "retrieved.json") or {"assets": []})["assets"]):
        if (strip := folder / f"asset-{number}-turned.png").is_file():
            origin = ", ".join(filter(None, (asset["author"], asset["license"])))
            strips.append(gallery.AssetStrip(strip, asset["caption"], origin))
    return strips
