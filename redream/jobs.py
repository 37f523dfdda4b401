"""One worker per device makes the runs, one after the other; pages follow a run's history, and may come and go.

A run that was submitted is made whether or not anybody looks. Its history is its events.jsonl: who comes late reads it
from the beginning, also after the program was started anew.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from redream import events, pipeline, runs
from redream.events import Event, Finished
from redream.models import Models
from redream.runs import Run, RunError
from redream.settings import Settings

WAITING = 8  # runs that may wait for their turn
PACE = 0.2  # seconds between two looks at a history
TIDY = 3600.0  # seconds between two looks for runs to remove


class JobError(ValueError):
    """A run that is not taken on; the message says why and what to do."""


@dataclass(frozen=True)
class Waiting(Event):
    """A run's turn has not come yet. Told to who follows it; not part of its history."""

    ahead: int  # runs before it, the one being made included


@dataclass(frozen=True)
class Job:
    """A run that waits or is being made."""

    events: Iterator[Event]
    stop: threading.Event = field(default_factory=threading.Event)


class Worker:
    """Makes runs on one device, in the order of their submission, in a thread of its own: models are loaded there.

    Runs that ended more than `keep_days` ago are removed, now and every hour (None: never).
    """

    def __init__(self, models: Models, generate: Callable = pipeline.generate, keep_days: float | None = None) -> None:
        self.models, self._generate = models, generate
        self._jobs: dict[str, Job] = {}  # by run, the one being made first
        self._changed = threading.Condition()  # guards _jobs
        self._door = threading.Lock()  # one submission after the other
        threading.Thread(target=self._work, name="redream-worker", daemon=True).start()
        if keep_days is not None:
            threading.Thread(target=_tidy, args=(keep_days,), name="redream-tidy", daemon=True).start()

    def submit(
        self, prompt: str, settings: Settings | None = None, assets: Sequence[tuple[str | Path, str]] = ()
    ) -> str:
        """Take a run on; its id, which is hard to guess. Arguments as in `pipeline.generate`, which also says what it
        raises; raises `JobError` when too many wait."""
        run, stop = runs.new_id(), threading.Event()
        with self._door:
            if len(self._jobs) > WAITING:
                raise JobError(
                    f"{WAITING} runs are waiting already, and no more are taken on. Try again in some minutes."
                )
            told = self._generate(
                prompt, settings=settings, assets=assets, out=runs.root() / run, stop=stop.is_set, models=self.models
            )
            with self._changed:
                self._jobs[run] = Job(told, stop)
                self._changed.notify_all()
        return run

    def stop(self, run: str) -> None:
        """Let a run end with what there is; one that waits ends at once, with nothing. Nothing happens to others."""
        with self._changed:
            if job := self._jobs.get(run):
                job.stop.set()
                if self._ahead(run) > 0:
                    find(run).log(Finished(stopped=True))
                    del self._jobs[run]

    def ahead(self, run: str) -> int | None:
        """How many runs come before this one, 0 if it is being made; None if there is nothing to be done for it."""
        with self._changed:
            return self._ahead(run)

    def follow(self, run: str) -> Iterator[list[Event]]:
        """A run's events from its first one on: all that is new at a time, until there is no more to come.

        Raises `RunError` if there is no such run.
        """
        history, read, told = find(run).folder / "events.jsonl", 0, None
        while True:
            ahead = self.ahead(run)  # asked before the history is read, so that its last lines are not missed
            new, read = _after(history, read)
            if ahead and ahead != told:
                new.append(Waiting(ahead))
                told = ahead
            if new:
                yield new
            if ahead is None:
                return
            time.sleep(PACE)

    def _ahead(self, run: str) -> int | None:
        return list(self._jobs).index(run) if run in self._jobs else None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs)
                run, job = next(iter(self._jobs.items()))
            try:
                for _ in job.events:  # the pipeline writes each one into the run's history
                    pass
            except Exception as error:  # its sentence is in the history; the next run has its turn
                logging.getLogger(__name__).warning("%s broke off", run, exc_info=not pipeline.is_named(error))
            with self._changed:
                del self._jobs[run]


def find(run: str) -> Run:
    """A run by its id alone, never by a folder: ids come from strangers. Raises `RunError`."""
    if not runs.ID.fullmatch(run):
        raise RunError("There is no such run.")
    return Run.open(runs.root() / run)


def _tidy(days: float) -> None:
    while True:
        runs.prune(days)
        time.sleep(TIDY)


def _after(history: Path, place: int) -> tuple[list[Event], int]:
    """The events after a place in a history (bytes), and the place after them; a line being written waits."""
    if not history.is_file():
        return [], place
    with history.open("rb") as file:
        file.seek(place)
        whole, end, _ = file.read().rpartition(b"\n")
    found = []
    for line in whole.splitlines():
        with suppress(ValueError, KeyError, TypeError):  # one that was cut off when a run was killed
            found.append(events.from_line(line.decode()))
    return found, place + len(whole) + len(end)
