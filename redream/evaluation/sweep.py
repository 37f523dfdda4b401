"""Prompts, methods and seeds → one sweep of runs, its tables and its gallery.

    OUT/runs/METHOD/PROMPT-SEED-DIGEST/        a run's folder; evaluation.json, costs.json and sprite.jpg are added to it
    OUT/table.json, table.md, results.parquet  see `redream.evaluation.tables`
    OUT/gallery.html                           everything to look at
    OUT/runs/.claims                           which program works on what

A finished run of an equal trial (see `redream.evaluation.trials`) is used again (and scored again if other models judge now), an
interrupted one goes on, one whose files are damaged is made anew. A sweep that was killed and called again ends with the very same table.json, if it has as many
threads: they decide in which order sums are taken. Several programs may be called with the same folder: each takes what
no other works on, and each ends with the whole table. Two more rows stand beside the methods: "retrieval", the best asset
as it is, turned to its front, and "truth", the object that was asked for, where the stack has it.
"""

import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from redream import pipeline
from redream.distillation.checkpoint import CheckpointError
from redream.errors import RedreamError
from redream.evaluation import gallery, tables
from redream.evaluation.scorer import EvaluationError, Scorer, objects_of, rounded, true_objects
from redream.evaluation.tables import TRUTH, Outcome
from redream.evaluation.trials import METHODS, METHODS_VERSION, ModelDigests, Prompt, Trial, digest, own_settings, plan
from redream.files import read_json, write_json, write_text
from redream.runs import events
from redream.runs.locks import TrialLocks
from redream.runs.run import Run, RunError
from redream.scoring.metrics import SCORES_VERSION
from redream.scoring.scores import SCORES
from redream.settings import PRESETS, VARIANTS, Preset, Settings
from redream.stack import environment
from redream.stack.models import Models
from redream.stack.stack import PERCEPTUALS
from redream.stack.vocabulary import ParsedPrompt, parse_prompt

CLAIMS = "runs/.claims"  # in an evaluation's folder: who makes which run
PAUSE_S = 1.0  # between two looks at what other programs do
IN_GALLERY = ("clip_a", "view_accuracy_a", "janus_rate_a", "a_lpips_a", "silhouette_iou")


@dataclass(frozen=True)
class SweepProgress:
    """Where a sweep is: a trial goes on or, if `ended`, is done."""

    trial: Trial
    done: float  # trials, the present one in parts
    total: int
    seconds_left: float | None  # for one program; None: no run was made yet to judge by
    ended: bool = False
    failure: str | None = None


def evaluate(
    out: Path,
    prompts: Sequence[Prompt],
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = (0,),
    *,
    models: Models,
    settings: Preset | None = None,
    tuned: Mapping[str, Mapping] | None = None,
) -> Iterator[SweepProgress]:
    """Make or reuse a run for each prompt, method and seed, and write the tables and the gallery to `out`.

    `settings` (by default the stack's preset) are changed by `METHODS` and, for a name of these alone, by `tuned` (name →
    changes).
    The sweep goes on as what it tells is asked for; a run that fails by a named error is listed and the rest goes on.
    Raises `EvaluationError`.
    """
    tuned = tuned or {}
    if unknown := [name for name in (*methods, *tuned) if name not in METHODS]:
        raise EvaluationError(f"There is no method {unknown[0]}; there are: {', '.join(METHODS)}.")
    if not (prompts and methods and seeds):
        raise EvaluationError("Name at least one prompt, one method and one seed.")
    settings = settings or PRESETS[models.stack.preset]
    digests = ModelDigests.of(models.stack)
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
        (out / CLAIMS).touch()
    except OSError as error:
        raise EvaluationError(f"The folder {out.name} cannot be written to; name another one.") from error
    methods, seeds = dict.fromkeys(methods), dict.fromkeys(seeds)  # each of them once
    own = {name: own_settings(name, settings).with_(**tuned.get(name, {})) for name in (*methods, TRUTH)}
    same = _equal_methods(methods, own)
    methods = [name for name in methods if name not in same]
    still = [TRUTH] * bool(models.stack.truth) + [m for m in methods if m not in VARIANTS]
    asked = [(prompt, method, None) for prompt in prompts for method in still]
    asked += [(p, m, seed) for seed in seeds for p in prompts for m in methods if m not in still]
    trials = [plan(out, *one, own[one[1]], digests) for one in asked]
    common = asdict(settings["redream"])
    header = {"stack": models.stack.name} | asdict(digests) | {"settings": common, "seeds": list(seeds)}
    header |= {"methods_version": METHODS_VERSION, "scores_version": SCORES_VERSION}
    header |= {"changes": {name: _changes(asdict(own[name]), common) for name in methods}}
    header |= {"same": same} if same else {}
    return _sweep(out, trials, models, header)


def _equal_methods(methods: Iterable[str], own: Mapping[str, Settings]) -> dict[str, str]:
    """Methods that are the same as an earlier one with these settings, and that one: they are not made twice."""
    same, met = {}, {}
    for name in methods:
        if name in VARIANTS and met.setdefault(own[name], name) != name:
            same[name] = met[own[name]]
    return same


def _changes(own: dict, common: dict) -> dict:
    """The values in which settings differ from others, groups as dictionaries."""
    pairs = ((name, value, common[name]) for name, value in own.items() if value != common[name])
    return {name: _changes(value, other) if isinstance(value, dict) else value for name, value, other in pairs}


def _sweep(out: Path, trials: Sequence[Trial], models: Models, header: dict) -> Iterator[SweepProgress]:
    """One trial after the other, then the tables. What other programs work on is taken up when they are done with it."""
    found: dict[Path, Outcome] = {}  # by the trial's folder
    spent: dict[str, list[float]] = {}  # seconds, by method
    left, total = list(trials), len(trials)
    with closing(TrialLocks(out / CLAIMS)) as claims:
        while left:
            busy = 0  # trials that others work on
            while busy < len(left) and not claims.acquire(left[busy].number):
                busy += 1
            done, seconds = float(total - len(left)), _seconds_left(spent, left)
            if busy == len(left):
                yield SweepProgress(left[0], done, total, seconds)
                time.sleep(PAUSE_S)
                continue
            trial, start, is_new = left[busy], time.perf_counter(), not left[busy].is_scored
            checked = None
            try:
                checked = parse_prompt(trial.prompt.text, models.stack.vocabulary)
                if trial.method in VARIANTS:
                    for share in _make(trial, models):
                        yield SweepProgress(trial, done + share, total, seconds)
                outcome = _outcome(trial, checked, models)
            except RedreamError as error:
                outcome = trial.outcome(kind=checked and checked.kind, failure=str(error))
            finally:
                claims.release(trial.number)
            left.remove(trial)
            if outcome.scores or outcome.failure:
                found[trial.folder] = outcome
            if is_new:
                spent.setdefault(trial.method, []).append(time.perf_counter() - start)
            yield SweepProgress(trial, done + 1.0, total, _seconds_left(spent, left), True, outcome.failure)

    outcomes = tables.with_truth([found[trial.folder] for trial in trials if trial.folder in found])
    tables.save(out, outcomes, METHODS, header)
    write_text(out / "gallery.html", _gallery(outcomes, header["stack"]))


def _seconds_left(spent: Mapping[str, Sequence[float]], left: Sequence[Trial]) -> float | None:
    """What this program alone needs for the trials that are left and not scored. A method not met yet counts as the
    slowest run. None before the first run."""
    means = {method: sum(seconds) / len(seconds) for method, seconds in spent.items()}
    runs = [mean for method, mean in means.items() if method in VARIANTS]
    if not runs:
        return None
    return sum((means.get(trial.method, max(runs)) for trial in left if not trial.is_scored), 0.0)


def _make(trial: Trial, models: Models) -> Iterator[float]:
    """Begin, continue or reuse the trial's run; yields the share of its iterations that is done."""
    if _is_usable(trial):
        told = pipeline.resume(trial.folder, models=models)
    else:
        shutil.rmtree(trial.folder, ignore_errors=True)
        told = pipeline.generate(trial.prompt.text, settings=trial.settings, out=trial.folder, models=models)
    event = None
    try:
        for event in told:
            if isinstance(event, events.Progress):
                yield event.iteration / event.total
    except CheckpointError:  # all of its checkpoints are damaged
        shutil.rmtree(trial.folder)
        yield from _make(trial, models)
        return
    if read_json(trial.folder / "costs.json") is None:
        run = Run.open(trial.folder)
        seconds = run.read_json("record.json")["seconds"]
        sessions = sum(isinstance(e, events.Started) for e in run.events())
        made_here = isinstance(event, events.Finished)  # else this process does not know what the run took
        costs = {"seconds": seconds, "sessions": sessions}  # how many calls; the seconds are the last one's
        costs |= {"threads": torch.get_num_threads()}
        run.write_json("costs.json", costs | {"peak_memory_gb": environment.peak_memory_gb() if made_here else None})


def _is_usable(trial: Trial) -> bool:
    """Whether the trial has a run that can go on or, if it is finished, has its scores or can be scored."""
    try:
        run = Run.open(trial.folder)
        asked = run.request
        plain = not (asked.extra or asked.assets or asked.uids)
        if plain and (asked.prompt, asked.settings) == (trial.prompt.text, trial.settings):
            return not run.finished or trial.is_scored or bool(objects_of(run))
    except (RunError, EvaluationError, KeyError, TypeError):  # files that are missing or damaged
        return False
    raise EvaluationError(f"The run {run.folder.name} was changed afterwards; remove its folder.")


def _outcome(trial: Trial, checked: ParsedPrompt, models: Models) -> Outcome:
    """The scores of a trial whose run, if it needs one, is finished. They are kept in its folder, with who judged it,
    what it was compared with and which nets were missing. Raises `EvaluationError` for an object that cannot be scored."""
    truth, hashes = true_objects(models.stack, checked)
    if trial.method == TRUTH and not truth:
        return trial.outcome()
    compared_with = digest(hashes) if hashes else ""
    missing = [name for name in PERCEPTUALS if models.perceptual(name) is None]
    trial.folder.mkdir(parents=True, exist_ok=True)
    kept = read_json(trial.folder / "evaluation.json") or {}
    how = {"version": SCORES_VERSION, "scorers": trial.scorers, "truth": compared_with, "missing": missing}
    if {name: kept.get(name) for name in how} != how:
        for name in ("evaluation.json", "sprite.jpg"):  # what cannot be scored now is no longer scored
            (trial.folder / name).unlink(missing_ok=True)
        scorer = Scorer(models, trial.settings, checked, truth)
        score_it = {TRUTH: scorer.true_object, "retrieval": scorer.retrieval}.get(trial.method, scorer.run)
        kept = how | {"scores": rounded(score_it(trial.folder))}
        write_json(trial.folder / "evaluation.json", kept)
    likeness = kept["scores"].get("clip_a")
    if likeness is None or not math.isfinite(likeness):
        raise EvaluationError("The pictures of this object are not numbers; its run diverged.")
    costs = read_json(trial.folder / "costs.json") or {}
    return trial.outcome(kind=checked.kind, scores=kept["scores"], costs=costs)


def _gallery(outcomes: Sequence[Outcome], stack: str) -> str:
    """gallery.html; of several seeds it shows the first."""
    order, rows = [*METHODS, TRUTH], {}
    for o in sorted(outcomes, key=lambda o: order.index(o.method)):
        row = rows.setdefault(o.prompt, gallery.Row(o.prompt, o.split or "", o.kind or "", {}))
        if o.method in row.cells:
            continue
        sprite = o.folder / "sprite.jpg"
        said = [
            (SCORES[key].label, SCORES[key].text(o.scores[key])) for key in IN_GALLERY if o.scores.get(key) is not None
        ]
        cell = gallery.Cell(sprite if sprite.is_file() else None, said, o.failure)
        found = []
        for number, asset in enumerate((read_json(o.folder / "retrieved.json") or {"assets": []})["assets"]):
            if (strip := o.folder / f"asset-{number}-turned.png").is_file():
                found.append((strip, asset["caption"], ", ".join(filter(None, (asset["author"], asset["license"])))))
        most = max(row.assets, found, key=len)
        rows[o.prompt] = replace(row, cells={**row.cells, o.method: cell}, assets=most)
    return gallery.page(f"Redream, evaluated on {stack}", list(rows.values()))
