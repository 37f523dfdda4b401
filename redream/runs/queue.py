"""The run queue: one worker per device makes runs one after the other; pages follow a run's events, and may come and go.

A run that was submitted is made whether or not a page follows it. What is followed is its events.jsonl: a page that comes
late, or after the program was restarted, reads it from the beginning.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from queue import Empty, Queue

from redream.errors import RedreamError
from redream.processes import release_memory
from redream.runs import locks
from redream.runs.eta import RuntimeEstimator
from redream.runs.events import Event, Finished, Paused, Progress, events_after
from redream.runs.retention import prune
from redream.runs.run import RunError, find_run, new_id, runs_folder
from redream.settings import MAX_WAITING, PRESETS, Settings
from redream.stack.models import Models

POLL_SECONDS = 0.2  # between two reads of a run's events
HEARTBEAT_SECONDS = 1.0  # without events a follower gets an empty update: a page that has gone is noticed by it
PRUNE_SECONDS = 3600.0  # between two removals of old runs
BUSY = "This run is being made, or waits for its turn; stop it first."

Stop = Callable[[], bool]  # asked at every iteration: whether to stop


class QueueError(RedreamError):
    """A run that is not taken on; the message says why and what to do."""


@dataclass(frozen=True)
class Queued(Event):
    """A run that waits for its turn. Followers get it; it is no part of the run's events.jsonl."""

    position: int  # runs before this one, the one that is being made included
    seconds: float | None = None  # until its turn; None: unknown


@dataclass(frozen=True)
class MadeElsewhere(Event):
    """Another program makes the run, or has it in its queue. Followers get it, as they get `Queued`."""


@dataclass
class Job:
    """A run that waits or is being made."""

    events: Iterator[Event]
    stop: threading.Event
    seconds_left: float | None  # None: unknown
    queued: ExitStack  # closed when it leaves the queue
    context: Context = field(default_factory=copy_context)  # of its submission: on ZeroGPU it says whose request it is
    started: bool = False

    def next_event(self) -> Event | None:
        """Do the next piece of its work; None once it is done."""
        return self.context.run(next, self.events, None)


class Worker:
    """Makes runs on one device in the order in which they were queued, in a thread of its own.

    `generate` and `resume` are those of `redream.pipeline`. Runs that ended more than `keep_days` ago are removed, now and
    every hour (None: never).

    preset: of runs that name no settings; default: the stack's
    parallel: runs that are made at once, where each has a device of its own (ZeroGPU)
    """

    def __init__(
        self,
        models: Models,
        generate: Callable,
        resume: Callable,
        keep_days: float | None = None,
        *,
        preset: str | None = None,
        parallel: int = 1,
    ) -> None:
        self.models, self._generate, self._resume = models, generate, resume
        self.preset, self._parallel = preset or models.stack.preset, parallel
        self.eta = RuntimeEstimator.of_latest_runs(models.stack.name, models.device_name)
        self._jobs: dict[str, Job] = {}  # by run, the one being made first
        self._entering: set[str] = set()  # runs whose inputs are being checked: they have a place, but no turn yet
        # By run, from before it is queued until its session has ended; beyond that where the run was stopped and paused
        # nevertheless, or while it was paused: the next session then makes its results.
        self._stops: dict[str, threading.Event] = {}
        self._changed = threading.Condition()  # guards all three
        self._upload_lock = threading.Lock()  # uploads are checked one after the other, as that takes much memory
        for _ in range(parallel):
            threading.Thread(target=self._work, name="redream-worker", daemon=True).start()
        if keep_days is not None:
            threading.Thread(target=_prune_regularly, args=(keep_days,), name="redream-prune", daemon=True).start()

    def prepare(self) -> None:
        """Load the models that every run needs and measure the device: the first run then waits for nothing.

        A model that cannot be used is said by the runs.
        """
        models = self.models
        with suppress(RedreamError):
            _ = models.clip("a")
        with suppress(RedreamError):
            _ = models.index, models.clip("retrieval"), models.prior

            def measure(stop: Stop) -> Iterator[None]:
                yield self.eta.measure(models.prior)

            for _ in self.run_exclusive(measure):  # not beside a run, which changes the prior's adapters
                pass

    @property
    def ready(self) -> bool:
        """Whether the models that every run needs are loaded: by `prepare`, or by runs."""
        return self.models.are_loaded("index", "clips.retrieval", "prior")

    def submit(self, prompt: str, settings: Settings | None = None, **inputs) -> str:
        """Queue a new run and return its id, which is hard to guess.

        `inputs`: `assets`, `uids` and `commercial_use`, as in `pipeline.generate`. Raises as `pipeline.generate`; `QueueError` if too many
        runs wait.
        """
        run, settings = new_id(), settings or PRESETS[self.preset]["redream"]

        def begin(stop: Stop) -> Iterator[Event]:
            folder = runs_folder() / run
            with self._upload_lock if inputs.get("assets") else nullcontext():
                return self._generate(prompt, settings=settings, out=folder, stop=stop, models=self.models, **inputs)

        return self._enqueue(run, begin, self.eta.seconds(settings))

    def resume(self, run: str, iterations: int | None = None) -> str:
        """Queue a run again, from its last checkpoint to its end or, with `iterations`, to so many more per object than
        were planned; return its id.

        Raises as `pipeline.resume`; `QueueError` if too many runs wait or there is nothing to do.
        """
        stored = find_run(run)

        def begin(stop: Stop) -> Iterator[Event]:
            if self.is_elsewhere(run):
                raise QueueError(BUSY)
            if iterations is None and stored.finished and not stored.lacks_results:
                raise QueueError("This run is finished; say how many more iterations it shall have.")
            return self._resume(stored.folder, iterations, stop=stop, models=self.models)

        with suppress(OSError):  # the pipeline says it in a sentence
            (stored.folder / "settings.json").touch()  # so that it is not removed as an old run meanwhile
        done = int(checkpoints[-1].name) if (checkpoints := stored.checkpoints()) else 0
        seconds = self.eta.seconds(stored.request.settings, stored.request.extra + (iterations or 0), done)
        return self._enqueue(run, begin, seconds)

    def _enqueue(self, run: str, begin: Callable[[Stop], Iterator[Event]], seconds: float | None) -> str:
        """Put a run at the end of the queue; if `begin` raises, it is not queued.

        `begin` checks the inputs, which may take long: the run has a place from before it on, and its turn after it.
        Raises as `begin`; `QueueError` if too many runs wait, or this one is queued already.
        """
        with self._changed:
            if run in self._jobs or run in self._entering:
                raise QueueError(BUSY)
            if len(self._jobs) + len(self._entering) > MAX_WAITING:
                raise QueueError(
                    f"{MAX_WAITING} runs are waiting already, and no more are taken on. Try again in some minutes."
                )
            self._entering.add(run)
            stop = self._stops.setdefault(run, threading.Event())
        try:
            run_events, queued = begin(stop.is_set), ExitStack()
        except BaseException:
            with self._changed:
                self._entering.remove(run)
                if not stop.is_set():
                    self._stops.pop(run)
            raise
        with suppress(RunError, OSError):  # other work than a run has no folder
            queued.enter_context(locks.queued(find_run(run).folder))
        with self._changed:
            self._entering.remove(run)
            self._jobs[run] = Job(run_events, stop, seconds, queued)
            self._changed.notify_all()
        return run

    def run_exclusive(self, work: Callable[[Stop], Iterator]) -> Iterator:
        """Do other work on the device when its turn in the queue has come: yields `Queued` until then, then what `work`
        yields.

        The work is stopped when this iterator is closed. What it raises is raised here; `QueueError` if too many runs wait.
        """
        updates, end, errors = Queue(), object(), []

        def forward(stop: Stop) -> Iterator[Event]:
            try:
                for update in work(stop):
                    updates.put(update)
                    yield Event()
            except Exception as error:
                errors.append(error)
                raise
            finally:
                updates.put(end)

        name = self._enqueue(new_id(), forward, None)
        try:
            while True:
                with suppress(Empty):
                    if (update := updates.get(timeout=HEARTBEAT_SECONDS)) is end:
                        break
                    yield update
                    continue
                if position := self.queue_position(name):
                    yield Queued(position, self.seconds_to_start(name))
            if errors:
                raise errors[0]
        finally:
            self.stop(name)

    def stop(self, run: str) -> None:
        """Let a run end: what was optimised so far becomes its result; one that still waits ends at once, without any.

        One of another program is asked to end. A paused one gets its results when it is resumed. Unknown and ended runs are
        ignored.
        """
        with self._changed:
            if stop := self._stops.get(run):
                stop.set()
            if run in self._jobs:
                if self._position(run) > 0:
                    with suppress(RunError, OSError):  # the disk is full
                        find_run(run).log(Finished(stopped=True))
                    self._remove(run)
                return
        if self.is_elsewhere(run):
            locks.request_stop(find_run(run).folder)
        elif _is_paused(run):
            with self._changed:
                self._stops.setdefault(run, threading.Event()).set()

    def stopping(self, run: str) -> bool:
        """Whether a run was stopped and has not ended yet."""
        with self._changed:
            if run in self._stops and self._stops[run].is_set():
                return True
        return self.queue_position(run) is not None and locks.stop_requested(find_run(run).folder)

    def is_elsewhere(self, run: str) -> bool:
        """Whether another program makes the run or has it in its queue."""
        with self._changed:
            if run in self._jobs:
                return False
        try:
            return locks.is_busy(find_run(run).folder)
        except RunError:
            return False

    def queue_position(self, run: str) -> int | None:
        """Return the queue position of a run: 0 while it is being made or is another program's, None if it is not queued."""
        with self._changed:
            position = self._position(run)
        return 0 if position is None and self.is_elsewhere(run) else position

    @property
    def queue_length(self) -> int:
        """Runs, and other work, that wait or are being made."""
        with self._changed:
            return len(self._jobs)

    def seconds_to_start(self, run: str) -> float | None:
        """Estimate the seconds until a run's turn; None if unknown."""
        with self._changed:
            before = [job.seconds_left for job in list(self._jobs.values())[: self._position(run) or 0]]
        return None if None in before else sum(before, 0.0)

    def follow(self, run: str) -> Iterator[list[Event]]:
        """Yield a run's events from its first one on, in lists of those that are new (or of none), until it has ended.

        Raises `RunError` if there is no such run.
        """
        history = find_run(run).folder / "events.jsonl"
        offset, last_position, last_update, elsewhere = 0, None, time.monotonic(), False
        while True:
            position = self.queue_position(run)  # before the events are read, so that the last ones are not missed
            update, offset = events_after(history, offset)
            if position == 0 and not elsewhere and self.is_elsewhere(run):
                update.append(MadeElsewhere())
                elsewhere = True
            if position and position != last_position and not update:  # events are newer than the position
                update.append(Queued(position, self.seconds_to_start(run)))
                last_position = position
            if update or time.monotonic() - last_update > HEARTBEAT_SECONDS:
                yield update
                last_update = time.monotonic()
            if position is None:
                return
            time.sleep(POLL_SECONDS)

    def _position(self, run: str) -> int | None:
        return max(0, list(self._jobs).index(run) - self._parallel + 1) if run in self._jobs else None

    def _next(self) -> tuple[str, Job] | None:
        """The first run that waits; those that are being made come before it."""
        return next(((run, job) for run, job in self._jobs.items() if not job.started), None)

    def _work(self) -> None:
        while True:
            with self._changed:
                run, job = self._changed.wait_for(self._next)
                job.started = True
            last = None
            try:
                while (event := job.next_event()) is not None:  # the pipeline writes each one into events.jsonl
                    last = event
                    if isinstance(event, Progress) and event.seconds_left is not None:
                        job.seconds_left = event.seconds_left
                    self._stop_as_requested()
            except Exception as error:  # its sentence is in events.jsonl; the next run has its turn
                last = None
                logging.getLogger(__name__).warning("%s broke off", run, exc_info=not isinstance(error, RedreamError))
            with suppress(RunError, OSError):  # it was removed meanwhile
                self.eta.learn(find_run(run))
            with self._changed:
                self._remove(run, keep_stop=isinstance(last, Paused) and job.stop.is_set())
            release_memory()

    def _stop_as_requested(self) -> None:
        """Stop the waiting runs that another program asked to end; those being made see it themselves."""
        with self._changed:
            waiting = [run for run, job in self._jobs.items() if not job.started]
        for run in waiting:
            with suppress(OSError):  # of that run's folder: the one being made has no part in it
                if locks.stop_requested(runs_folder() / run):
                    self.stop(run)

    def _remove(self, run: str, keep_stop: bool = False) -> None:
        with suppress(OSError):  # its files stay: no program holds them, so they say nothing
            self._jobs.pop(run).queued.close()
        if not keep_stop:
            self._stops.pop(run, None)


def _is_paused(run: str) -> bool:
    try:
        *_, last = find_run(run).events()
    except (RunError, ValueError):  # ValueError: no event
        return False
    return isinstance(last, Paused)


def _prune_regularly(days: float) -> None:
    while True:
        prune(days)
        time.sleep(PRUNE_SECONDS)
