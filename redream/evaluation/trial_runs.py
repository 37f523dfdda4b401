"""Make or reuse one trial's run, and score it.

A finished run of an equal trial is used again, an interrupted one goes on, one whose files are malformed is made anew. Its
folder gets two more files: costs.json (seconds, threads, memory) and evaluation.json (scores, and by which models).
"""

import math
import shutil
from collections.abc import Generator, Iterator

import torch

from redream import pipeline
from redream.distillation.checkpoint import CheckpointError
from redream.errors import RedreamError
from redream.evaluation.scorer import EvaluationError, Scorer, objects_of, rounded, true_objects
from redream.evaluation.tables import TRUTH, Outcome
from redream.evaluation.trials import RETRIEVAL, Trial
from redream.files import digest, read_json, write_json
from redream.runs import events
from redream.runs.run import Run, RunError
from redream.scoring.metrics import SCORES_VERSION
from redream.settings import VARIANTS
from redream.stack import environment
from redream.stack.models import Models
from redream.stack.stack import PERCEPTUALS
from redream.stack.vocabulary import ParsedPrompt


def make(trial: Trial, models: Models) -> Generator[float, None, Outcome | None]:
    """Make or reuse the trial's run and score it; yields the fraction of its iterations that is done.

    Returns the outcome, whose failure is the sentence of a named error; None for a true object that is unknown.
    """
    parsed = None
    try:
        parsed = models.parse(trial.prompt.text)
        if trial.method in VARIANTS:
            yield from _make_run(trial, models)
        return _score(trial, parsed, models)
    except RedreamError as error:
        return trial.outcome(kind=parsed and parsed.kind, failure=str(error))


def _make_run(trial: Trial, models: Models) -> Iterator[float]:
    """Begin, continue or reuse the trial's run; yields the fraction of its iterations that is done."""
    if _is_usable(trial):
        updates = pipeline.resume(trial.folder, models=models)
    else:
        shutil.rmtree(trial.folder, ignore_errors=True)
        updates = pipeline.generate(trial.prompt.text, settings=trial.settings, out=trial.folder, models=models)
    last_event = None
    try:
        for last_event in updates:
            if isinstance(last_event, events.Progress):
                yield last_event.iteration / last_event.total
    except CheckpointError:  # all of its checkpoints are malformed
        shutil.rmtree(trial.folder)
        yield from _make_run(trial, models)
        return
    if read_json(trial.folder / "costs.json") is None:
        _write_costs(Run.open(trial.folder), finished_here=isinstance(last_event, events.Finished))


def _write_costs(run: Run, finished_here: bool) -> None:
    """Write what a run took: the seconds of its last session, its number of sessions, threads, and this process's peak memory
    if it made the run."""
    costs = {"seconds": run.read_json("record.json")["seconds"]}
    costs |= {"sessions": sum(isinstance(event, events.Started) for event in run.events())}
    costs |= {"threads": torch.get_num_threads()}
    run.write_json("costs.json", costs | {"peak_memory_gb": environment.peak_memory_gb() if finished_here else None})


def _is_usable(trial: Trial) -> bool:
    """Whether the trial has a run that can be continued or, if it is finished, is scored or can be scored.

    Raises `EvaluationError` for a run that was asked for something else since.
    """
    try:
        run = Run.open(trial.folder)
        if run.request.is_same(trial.prompt.text, trial.settings):
            return not run.finished or trial.is_scored or bool(objects_of(run))
    except (RunError, EvaluationError, KeyError, TypeError):  # files that are missing or malformed
        return False
    raise EvaluationError(f"The run {run.folder.name} was changed afterwards; remove its folder.")


def _score(trial: Trial, parsed: ParsedPrompt, models: Models) -> Outcome | None:
    """Score a trial whose run, if it needs one, is finished; None for a true object that is unknown.

    The scores are stored in its folder, with the scoring models, the true objects and the networks that were missing.
    Raises `EvaluationError` for an object that cannot be scored.
    """
    truth, hashes = true_objects(models.stack, parsed)
    if trial.method == TRUTH and not truth:
        return None
    missing = [name for name in PERCEPTUALS if models.perceptual(name) is None]
    basis = {"version": SCORES_VERSION, "scorers": trial.scorers, "truth": digest(hashes) if hashes else ""}
    basis |= {"missing": missing}
    trial.folder.mkdir(parents=True, exist_ok=True)
    stored = read_json(trial.folder / "evaluation.json") or {}
    if {name: stored.get(name) for name in basis} != basis:
        (trial.folder / "evaluation.json").unlink(missing_ok=True)  # what cannot be scored now is no longer scored
        scorer = Scorer(models, trial.settings, parsed, truth)
        score = {TRUTH: scorer.score_truth, RETRIEVAL: scorer.score_retrieval}.get(trial.method, scorer.score_run)
        stored = basis | {"scores": rounded(score(trial.folder))}
        write_json(trial.folder / "evaluation.json", stored)
    clip_score = stored["scores"].get("clip_a")
    if clip_score is None or not math.isfinite(clip_score):
        raise EvaluationError("The pictures of this object are not numbers; its run diverged.")
    costs = read_json(trial.folder / "costs.json") or {}
    return trial.outcome(kind=parsed.kind, scores=stored["scores"], costs=costs)
