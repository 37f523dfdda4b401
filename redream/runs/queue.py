"""One worker per device makes the runs, one after the other; pages follow a run's history, and may come and go.

A run that was submitted is made whether or not anybody looks. Its history is its events.jsonl: who comes late reads it
from redream.errors import RedreamError
from the beginning, also after the program was started anew.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue

from redream import pipeline
from redream.runs import events
from redream.runs.eta import RuntimeEstimator
from redream.runs.events import Event, Finished, Progress
from redream.runs.run import ID, Run, RunError, new_id, prune, runs_folder
from redream.settings import MAX_WAITING, PRESETS, Settings
from redream.stack import environment
from redream.stack.models import Models

POLL_SECONDS = 0.2  # seconds between two looks at a history
HEARTBEAT_SECONDS = (
    1.0  # seconds after which who follows is told that there is nothing new, so that who has gone is noticed
)
HISTORY_RUNS = 5  # runs that are here at the start and tell how fast this machine is
PRUNE_SECONDS = 3600.0  # seconds between two looks for runs to remove


class QueueError(RedreamError):
    """A run that is not taken on; the message says why and what to do."""


@dataclass(frozen=True)
class Waiting(Event):
    """A run's turn has not come yet. Told to who follows it; not part of its history."""

    ahead: int  # runs before it, the one being made included
    seconds: float | None = None  # that they will take; None if nobody knows


@dataclass
class Job:
    """A run that waits or is being made."""

    events: Iterator[Event]
    stop: threading.Event
    seconds_left: float | None  # None: nobody knows yet


class Worker:
    """Makes runs on one device, in the order of their submission, in a thread of its own: models are loaded there.

    Runs that ended more than `keep_days` ago are removed, now and every hour (None: never).
    """

    def __init__(self, models: Models, generate: Callable = pipeline.generate, keep_days: float | None = None) -> None:
        self.models, self._generate = models, generate
        self.pace = RuntimeEstimator(models.stack.name, environment.device_name(models.device))
        self._jobs: dict[str, Job] = {}  # by run, the one being made first
        self._changed = threading.Condition()  # guards _jobs
        self._door = threading.Lock()  # one submission after the other
        for run in _latest(HISTORY_RUNS):
            self.pace.learn(run)
        threading.Thread(target=self._work, name="redream-worker", daemon=True).start()
        if keep_days is not None:
            threading.Thread(target=_tidy, args=(keep_days,), name="redream-tidy", daemon=True).start()

    def prepare(self) -> None:
        """Load what every run needs and measure how fast it is: the first run then waits for nothing."""
        models = self.models
        _ = models.index, models.clip("retrieval"), models.clip("a"), models.prior

        def measure(stop: Callable[[], bool]) -> Iterator[None]:
            yield self.pace.measure(models.prior)

        for _ in self.do(measure):  # in its turn: runs change the prior while they use it
            pass

    def submit(self, prompt: str, settings: Settings | None = None, **more) -> str:
        """Take a run on; its id, which is hard to guess. `more`: assets or uids. All as in `pipeline.generate`, which also
        says what it raises; raises `QueueError` when too many wait."""
        run, settings = new_id(), settings or PRESETS[self.models.stack.preset]["redream"]

        def begin(stop: Callable[[], bool]) -> Iterator[Event]:
            return self._generate(
                prompt, settings=settings, out=runs_folder() / run, stop=stop, models=self.models, **more
            )

        return self._queue(run, begin, self.pace.seconds(settings))

    def resume(self, run: str, iterations: int | None = None) -> str:
        """Take a run on again, from its last checkpoint: to its end or, with `iterations`, so many more per object than
        were planned; its id. Raises as `pipeline.resume`; `QueueError` when too many wait or there is nothing to do."""
        here = find(run)

        def begin(stop: Callable[[], bool]) -> Iterator[Event]:
            if self.ahead(run) is not None:
                raise QueueError("This run is being made, or waits for its turn; stop it first.")
            if iterations is None and here.finished:
                raise QueueError("This run is finished; say how many more iterations it shall have.")
            return pipeline.resume(here.folder, iterations, stop=stop, models=self.models)

        (here.folder / "settings.json").touch()  # old runs are removed, but not what somebody comes back to
        done = int(checkpoints[-1].name) if (checkpoints := here.checkpoints()) else 0
        seconds = self.pace.seconds(here.request.settings, here.request.extra + (iterations or 0), done)
        return self._queue(run, begin, seconds)

    def _queue(self, run: str, begin: Callable[[Callable[[], bool]], Iterator[Event]], seconds: float | None) -> str:
        """Put a run at the end of the queue; what `begin` raises keeps it out."""
        stop = threading.Event()
        with self._door:
            if len(self._jobs) > MAX_WAITING:
                raise QueueError(
                    f"{MAX_WAITING} runs are waiting already, and no more are taken on. Try again in some minutes."
                )
            told = begin(stop.is_set)
            with self._changed:
                self._jobs[run] = Job(told, stop, seconds)
                self._changed.notify_all()
        return run

    def do(self, work: Callable[[Callable[[], bool]], Iterator]) -> Iterator:
        """Something else than a run, when its turn has come: `Waiting` until then, then what it tells. It is stopped when
        nobody listens any more. What it raises is raised here; raises `QueueError` when too many wait."""
        told, end, failed = Queue(), object(), []

        def passed_on(stop: Callable[[], bool]) -> Iterator[Event]:
            try:
                for news in work(stop):
                    told.put(news)
                    yield Event()
            except Exception as error:
                failed.append(error)
                raise
            finally:
                told.put(end)

        name = self._queue(new_id(), passed_on, None)
        try:
            while True:
                with suppress(Empty):
                    if (news := told.get(timeout=HEARTBEAT_SECONDS)) is end:
                        break
                    yield news
                    continue
                if ahead := self.ahead(name):
                    yield Waiting(ahead, self.wait(name))
            if failed:
                raise failed[0]
        finally:
            self.stop(name)

    def stop(self, run: str) -> None:
        """Let a run end with what there is; one that waits ends at once, with nothing. Nothing happens to others."""
        with self._changed:
            if job := self._jobs.get(run):
                job.stop.set()
                if self._ahead(run) > 0:
                    with suppress(RunError):  # something else than a run
                        find(run).log(Finished(stopped=True))
                    del self._jobs[run]

    def stopping(self, run: str) -> bool:
        """Whether a run was told to stop and is not over yet."""
        with self._changed:
            return run in self._jobs and self._jobs[run].stop.is_set()

    def ahead(self, run: str) -> int | None:
        """How many runs come before this one, 0 if it is being made; None if there is nothing to be done for it."""
        with self._changed:
            return self._ahead(run)

    def wait(self, run: str) -> float | None:
        """Seconds until a run has its turn; None if that is not known."""
        with self._changed:
            before = [job.seconds_left for job in list(self._jobs.values())[: self._ahead(run) or 0]]
        return None if None in before else sum(before, 0.0)

    def follow(self, run: str) -> Iterator[list[Event]]:
        """A run's events from its first one on: all that is new at a time, or nothing, until there is no more to come.

        Raises `RunError` if there is no such run.
        """
        history, read, told, last = find(run).folder / "events.jsonl", 0, None, time.monotonic()
        while True:
            ahead = self.ahead(run)  # asked before the history is read, so that its last lines are not missed
            new, read = after(history, read)
            if ahead and ahead != told and not new:  # what was written meanwhile is newer than its place
                new.append(Waiting(ahead, self.wait(run)))
                told = ahead
            if new or time.monotonic() - last > HEARTBEAT_SECONDS:
                yield new
                last = time.monotonic()
            if ahead is None:
                return
            time.sleep(POLL_SECONDS)

    def _ahead(self, run: str) -> int | None:
        return list(self._jobs).index(run) if run in self._jobs else None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs)
                run, job = next(iter(self._jobs.items()))
            try:
                for event in job.events:  # the pipeline writes each one into the run's history
                    if isinstance(event, Progress) and event.seconds_left is not None:
                        job.seconds_left = event.seconds_left
            except Exception as error:  # its sentence is in the history; the next run has its turn
                logging.getLogger(__name__).warning("%s broke off", run, exc_info=not isinstance(error, RedreamError))
            with suppress(RunError, OSError):  # somebody removes it
                self.pace.learn(find(run))
            with self._changed:
                del self._jobs[run]


def find(run: str) -> Run:
    """A run by its id alone, never by a folder: ids come from strangers. Raises `RunError`."""
    if not ID.fullmatch(run):
        raise RunError("There is no such run.")
    return Run.open(runs_folder() / run)


def _latest(count: int) -> list[Run]:
    """The runs under the root that ended last, the latest one last."""
    records = sorted(runs_folder().glob("run-*/record.json"), key=lambda path: path.stat().st_mtime)
    found = []
    for record in records[-count:]:
        with suppress(RunError, OSError):
            found.append(find(record.parent.name))
    return found


def _tidy(days: float) -> None:
    while True:
        prune(days)
        time.sleep(PRUNE_SECONDS)


def after(history: Path, place: int) -> tuple[list[Event], int]:
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
