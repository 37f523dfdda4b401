"""Trials one after the other in this process, or several at once in worker processes.

Each trial is locked while it is made, so that several programs may make trials of the same folder: what another one works on
is tried again until it is done. A worker process ends with its parent; its locks end with it.
"""

import ctypes
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass

import torch

from redream.evaluation.scorer import EvaluationError
from redream.evaluation.tables import Outcome
from redream.evaluation.trial_runs import make
from redream.evaluation.trials import Trial
from redream.processes import CONTEXT, worker_pool
from redream.stack.models import Models
from redream.stack.stack import Stack

Fractions = ctypes.Array  # of doubles, in shared memory: the fractions of the trials that are done, by number

POLL_SECONDS = 1.0  # between two looks at trials of other programs, and at the progress of worker processes


@dataclass(frozen=True)
class TrialUpdate:
    """How far a trial is and, once it has ended, its outcome: None for a true object that is unknown."""

    trial: Trial
    fraction: float = 0.0  # of it that is done, in [0, 1]
    ended: bool = False
    outcome: Outcome | None = None
    seconds: float | None = None  # that it took to make and score; None: it was scored before
    warning: str | None = None  # about the worker processes


def make_here(trials: Sequence[Trial], models: Models) -> Iterator[TrialUpdate]:
    """Make the trials in this process, in their order; those that other programs work on come last."""
    remaining = list(trials)
    while remaining:
        for trial in remaining:
            with trial.lock() as is_free:
                if is_free:
                    yield from _updates(trial, models)
                    remaining.remove(trial)
                    break
        else:
            yield TrialUpdate(remaining[0])
            time.sleep(POLL_SECONDS)


def make_in_processes(trials: Sequence[Trial], models: Models, processes: int) -> Iterator[TrialUpdate]:
    """Make the trials in worker processes, which share the threads of this one; at least one each.

    If a worker process ends early, its pool is replaced by one with a process less: it may have been memory that was short.
    Raises `EvaluationError` if the last one ends early.
    """
    remaining = dict(enumerate(trials))
    threads = max(1, torch.get_num_threads() // processes)  # also in a smaller pool: equal scores need equal threads
    while remaining:
        try:
            fractions = CONTEXT.Array("d", len(trials), lock=False)  # a number is written at once
            with worker_pool(processes, _start_worker, models.stack, models.device, threads, fractions) as pool:
                yield from _pool_updates(remaining, pool, fractions)
        except BrokenProcessPool as error:
            processes -= 1
            if processes == 0:
                raise EvaluationError(
                    "All worker processes ended early; the same command goes on from there."
                ) from error
            trial = next(iter(remaining.values()))
            yield TrialUpdate(trial, warning="A worker process ended early; the others make its trials.")


def _updates(trial: Trial, models: Models) -> Iterator[TrialUpdate]:
    """Make a trial that is locked here."""
    is_new, start = not trial.is_scored, time.perf_counter()
    with closing(make(trial, models)) as steps:
        while True:
            try:
                fraction = next(steps)
            except StopIteration as end:
                outcome = end.value
                break
            yield TrialUpdate(trial, fraction)
    seconds = time.perf_counter() - start if is_new else None
    yield TrialUpdate(trial, 1.0, True, outcome, seconds)


def _pool_updates(remaining: dict[int, Trial], pool: Executor, fractions: Fractions) -> Iterator[TrialUpdate]:
    """Make the remaining trials in a pool; those that have ended are removed. Raises `BrokenProcessPool`."""
    futures: dict[Future, int] = {pool.submit(_work, number, trial): number for number, trial in remaining.items()}
    while futures:
        ended, _ = wait(futures, POLL_SECONDS, FIRST_COMPLETED)
        for future in ended:
            number, update = futures.pop(future), future.result()
            if update is None:  # another program works on it
                futures[pool.submit(_work, number, remaining[number])] = number
            else:
                del remaining[number]
                yield update
        for number, trial in remaining.items():
            if fractions[number] > 0:
                yield TrialUpdate(trial, fractions[number])


# In a worker process

_models: Models
_fractions: Fractions


def _start_worker(stack: Stack, device: str, threads: int, fractions: Fractions) -> None:
    """Prepare a worker process; its models are loaded once, when they are first used."""
    global _models, _fractions
    torch.set_num_threads(threads)
    _models, _fractions = Models.load(stack, device), fractions


def _work(number: int, trial: Trial) -> TrialUpdate | None:
    """Make a trial and return its last update; None if another program works on it."""
    with trial.lock() as is_free:
        if is_free:
            for update in _updates(trial, _models):
                _fractions[number] = update.fraction
            return update
    time.sleep(POLL_SECONDS)
    return None
