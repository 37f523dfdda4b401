"""The run queue: runs in turn, followed, stopped, resumed, and refused in a sentence when too many wait."""

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from queue import Queue

import pytest
from tiny_stack import TINY

from redream import pipeline
from redream.runs import locks, queue
from redream.runs.events import Failed, Finished, Paused, Progress, Warned, events_after
from redream.runs.queue import Queued, QueueError, Worker
from redream.runs.run import Request, Run, RunError, find_run
from redream.settings import MAX_WAITING, Settings
from redream.stack.vocabulary import PromptError


@pytest.fixture(autouse=True)
def runs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path))
    return tmp_path


class FakePipeline:
    """Runs of three iterations, each of which waits for `go`; "broken" and "unlucky" ones break off."""

    def __init__(self):
        self.go = threading.Event()
        self.made = []

    def __call__(self, prompt, *, settings, out, stop, models):
        run = Run.create(Request(prompt, Settings(), "tiny", {}), out)
        return self.events(run, prompt, stop)

    def events(self, run, prompt, stop):
        self.made.append(prompt)
        for iteration in range(1, 4):
            self.go.wait(10)
            if stop():
                break
            yield run.log(Progress("distillation", iteration, 3))
            if prompt in ("broken", "unlucky"):
                run.log(Failed("It broke."))
                raise RunError("It broke.") if prompt == "unlucky" else RuntimeError("a fault")
        yield run.log(Finished(stopped=stop()))


@pytest.fixture
def fake():
    pipeline = FakePipeline()
    yield pipeline
    pipeline.go.set()  # lets the worker's thread end its runs


@pytest.fixture
def worker(models, fake):
    return Worker(models, fake, pipeline.resume)


def all_of(followed):
    return [event for update in followed for event in update]


DONE = [*(Progress("distillation", iteration, 3) for iteration in (1, 2, 3)), Finished(stopped=False)]


def test_a_run_that_no_page_follows_is_made_and_a_late_follower_gets_its_events_from_the_first(worker, fake):
    run = worker.submit("a")
    fake.go.set()
    assert all_of(worker.follow(run)) == DONE
    assert worker.queue_position(run) is None
    assert all_of(worker.follow(run)) == DONE


def test_a_follower_that_leaves_disturbs_no_other(worker, fake):
    run = worker.submit("a")
    worker.submit("b")
    leaving = worker.follow(worker.submit("c"))
    assert next(leaving) == [Queued(position=2)]
    leaving.close()
    fake.go.set()
    assert all_of(worker.follow(run)) == DONE


def test_runs_are_made_in_turn_and_followers_of_a_waiting_run_get_its_queue_position(worker, fake):
    runs = [worker.submit(prompt) for prompt in "abc"]
    assert [worker.queue_position(run) for run in runs] == [0, 1, 2]
    fake.go.set()
    last = all_of(worker.follow(runs[2]))
    assert [event for event in last if not isinstance(event, Queued)] == DONE
    assert fake.made == ["a", "b", "c"]


def test_several_runs_are_made_at_once_where_each_has_a_device_of_its_own(models, fake):
    worker = Worker(models, fake, pipeline.resume, parallel=2)
    runs = [worker.submit(prompt) for prompt in "abc"]
    assert [worker.queue_position(run) for run in runs] == [0, 0, 1]
    fake.go.set()
    for run in runs:
        assert [event for event in all_of(worker.follow(run)) if not isinstance(event, Queued)] == DONE


def test_a_run_is_made_in_the_context_of_its_submission(models, fake):
    visitor, seen = ContextVar("visitor", default=None), []

    def noting(run_events):
        for event in run_events:
            seen.append(visitor.get())
            yield event

    worker = Worker(models, lambda *prompt, **inputs: noting(fake(*prompt, **inputs)), pipeline.resume)
    visitor.set("Ann")
    run = worker.submit("a")
    visitor.set("Bob")
    fake.go.set()
    list(worker.follow(run))
    assert set(seen) == {"Ann"}


def test_stopping_a_run_ends_it_with_the_results_so_far(worker, fake):
    run = worker.submit("a")
    assert not worker.stopping(run)
    worker.stop(run)
    assert worker.stopping(run)
    fake.go.set()
    assert all_of(worker.follow(run)) == [Finished(stopped=True)]
    assert not worker.stopping(run)
    worker.stop(run)  # it has ended: nothing happens
    worker.stop("run-of-nobody")


def test_a_waiting_run_that_is_stopped_never_begins(worker, fake):
    _, second, third = (worker.submit(prompt) for prompt in "abc")
    worker.stop(second)
    assert all_of(worker.follow(second)) == [Finished(stopped=True)]
    assert worker.queue_position(third) == 1
    fake.go.set()
    assert all_of(worker.follow(third))[-1] == Finished(stopped=False)
    assert fake.made == ["a", "c"]


@pytest.mark.parametrize("stopped", ["too late for the session", "while paused", "while it is taken on again"])
def test_a_stop_about_a_pause_is_that_of_the_next_session(models, runs_folder, stopped):
    begun, ends, seen = threading.Event(), threading.Event(), []

    def pausing(prompt, *, settings, out, stop, models):
        def run_events(run):
            begun.set()
            ends.wait(10)
            yield run.log(Paused())  # it did not look for a stop any more

        return run_events(Run.create(Request(prompt, Settings(), "tiny", {}), out))

    def resuming(folder, iterations, *, stop, models):
        if stopped == "while it is taken on again" and not seen:
            worker.stop(run)

        def run_events():
            seen.append(stop())
            yield Run.open(folder).log(Finished(stopped=stop()))

        return run_events()

    worker = Worker(models, pausing, resuming)
    run = worker.submit("a")
    assert begun.wait(10)
    if stopped == "too late for the session":
        worker.stop(run)
    ends.set()
    assert all_of(worker.follow(run))[-1] == Paused()
    if stopped == "while paused":
        worker.stop(run)
    assert worker.stopping(run) == (stopped != "while it is taken on again")
    for _ in range(2):
        worker.resume(run, 1)
        all_of(worker.follow(run))
    assert seen == [True, False] and not worker.stopping(run)


def test_a_stop_of_a_paused_session_that_then_fails_is_not_kept(models, runs_folder):
    """As where ZeroGPU refuses the call for which the session was prepared."""
    begun, ends = threading.Event(), threading.Event()

    def failing(prompt, *, settings, out, stop, models):
        def run_events(run):
            yield run.log(Paused())
            begun.set()
            ends.wait(10)
            run.log(Failed("No GPU is free."))
            raise RunError("No GPU is free.")

        return run_events(Run.create(Request(prompt, Settings(), "tiny", {}), out))

    worker = Worker(models, failing, pipeline.resume)
    run = worker.submit("a")
    assert begun.wait(10)
    worker.stop(run)
    ends.set()
    assert all_of(worker.follow(run))[-1] == Failed("No GPU is free.")
    assert not worker.stopping(run)


def test_a_run_beyond_the_queues_limit_is_refused_and_makes_no_folder(worker, fake, runs_folder):
    taken = [worker.submit("a") for _ in range(1 + MAX_WAITING)]  # one is being made, the others wait
    with pytest.raises(QueueError, match="20 runs are waiting already"):
        worker.submit("a")
    assert len(list(runs_folder.iterdir())) == len(taken)
    worker.stop(taken[-1])
    worker.submit("a")  # there is room again


@pytest.fixture
def checking(models, fake):
    """A worker whose runs of uploads, and resumed ones, are checked until `let_go`; `entered`: which are."""
    entered, let_go = Queue(), threading.Event()

    def generate(prompt, *, assets=(), **inputs):
        if assets:
            entered.put(prompt)
            assert let_go.wait(10)
        return fake(prompt, **inputs)

    def resume(folder, iterations, *, stop, models):
        entered.put(folder.name)
        assert let_go.wait(10)
        run = Run.open(folder)
        return fake.events(run, run.request.prompt, stop)

    worker = Worker(models, generate, resume)
    worker.entered, worker.let_go = entered, let_go
    yield worker
    let_go.set()


def test_nobody_waits_while_the_uploads_of_another_run_are_checked(checking, fake):
    with ThreadPoolExecutor(2) as threads:
        submitted = [threads.submit(checking.submit, prompt, assets=[("a.glb", "")]) for prompt in "ab"]
        assert checking.entered.get(timeout=10) in "ab"
        fake.go.set()
        assert all_of(checking.follow(checking.submit("c"))) == DONE
        assert list(checking.run_exclusive(lambda stop: iter([1]))) == [1]
        assert checking.entered.empty()  # of uploads one is checked at a time
        checking.let_go.set()
        for run in submitted:
            assert all_of(checking.follow(run.result()))[-1] == Finished(stopped=False)


def test_a_run_whose_inputs_are_being_checked_has_a_place_and_is_not_taken_on_twice(checking, fake, runs_folder):
    again = Run.create(Request("again", Settings(), "tiny", {})).folder.name
    with ThreadPoolExecutor(1) as threads:
        resumed = threads.submit(checking.resume, again, 1)
        assert checking.entered.get(timeout=10) == again
        with pytest.raises(QueueError, match="stop it first"):
            checking.resume(again, 1)
        taken = [checking.submit("a") for _ in range(MAX_WAITING)]
        with pytest.raises(QueueError, match="20 runs are waiting already"):
            checking.submit("a")
        assert len(list(runs_folder.iterdir())) == len(taken) + 1
        checking.let_go.set()
        assert resumed.result() == again and checking.queue_position(again) == MAX_WAITING


def test_the_waiting_time_is_the_sum_of_the_runs_before_once_the_device_is_known(models, fake):
    worker = Worker(models, fake, pipeline.resume)
    first, second = worker.submit("a"), worker.submit("b")
    assert worker.seconds_to_start(first) == 0 and worker.seconds_to_start(second) is None
    worker = Worker(models, fake, pipeline.resume)
    worker.eta.measured = 2.0
    runs = [worker.submit("a", TINY) for _ in range(3)]
    assert worker.seconds_to_start(runs[2]) == pytest.approx(2 * worker.eta.seconds(TINY))


@pytest.mark.parametrize("prompt", ["broken", "unlucky"])
def test_the_worker_goes_on_after_a_run_that_breaks_off(worker, fake, prompt):
    run, following = worker.submit(prompt), worker.submit("a")
    fake.go.set()
    assert all_of(worker.follow(run))[-1] == Failed("It broke.")
    assert all_of(worker.follow(following))[-4:] == DONE


def test_the_worker_goes_on_after_a_run_whose_files_cannot_be_read(worker, fake, monkeypatch):
    def fail(run):
        raise OSError("an error of the disk")

    monkeypatch.setattr(worker.eta, "learn", fail)
    following = [worker.submit("a"), worker.submit("b")][1]
    fake.go.set()
    assert all_of(worker.follow(following))[-4:] == DONE


def test_the_worker_goes_on_after_a_run_whose_files_cannot_be_removed(worker, fake, monkeypatch):
    def fail(folder):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(locks, "withdraw_stop", fail)
    runs = [worker.submit("a"), worker.submit("b")]
    fake.go.set()
    assert becomes_empty(worker)
    for run in runs:
        assert all_of(worker.follow(run)) == DONE
        assert not worker.stopping(run)


@pytest.mark.parametrize("fault", ["it cannot be written", "it cannot be read"])
def test_a_waiting_run_with_a_fault_of_the_disk_does_not_end_the_one_being_made(worker, fake, monkeypatch, fault):
    made, waiting, last = (worker.submit(prompt) for prompt in "abc")
    log, stop_requested = Run.log, locks.stop_requested

    def failing(folder):
        if folder.name == waiting:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    if fault == "it cannot be written":
        monkeypatch.setattr(Run, "log", lambda run, event: failing(run.folder) or log(run, event))
        (find_run(waiting).folder / locks.STOP).touch()  # by another program
    else:
        monkeypatch.setattr(locks, "stop_requested", lambda folder: failing(folder) or stop_requested(folder))
    fake.go.set()
    assert becomes_empty(worker)
    assert all_of(worker.follow(made)) == all_of(worker.follow(last)) == DONE
    assert fake.made == (["a", "c"] if fault == "it cannot be written" else ["a", "b", "c"])


def test_runs_outside_the_folder_of_runs_cannot_be_followed(worker, tmp_path_factory):
    outside = Run.create(Request("a", Settings(), "tiny", {}), tmp_path_factory.mktemp("elsewhere") / "run-x").folder
    for name in (str(outside), f"../{outside.parent.name}/run-x", "run-x", "", ".."):
        with pytest.raises(RunError):
            next(worker.follow(name))


def test_only_names_with_the_form_of_an_id_are_looked_up(runs_folder, monkeypatch):
    run = Run.create(Request("a", Settings(), "tiny", {})).folder
    others = [Run.create(Request("a", Settings(), "tiny", {}), runs_folder / name) for name in ("mine", "run-x")]
    (runs_folder / "settings.json").write_bytes((run / "settings.json").read_bytes())
    monkeypatch.setenv("REDREAM_RUNS", str(runs_folder / "deep"))  # its ".." is a run now
    (runs_folder / "deep").mkdir()
    for name in ("..", ".", "", "../mine", f"../{run.name}", str(run), f"{run.name}\n", f"./{run.name}"):
        with pytest.raises(RunError, match="no such run"):
            queue.find_run(name)
    monkeypatch.setenv("REDREAM_RUNS", str(runs_folder))
    assert queue.find_run(run.name).folder == run
    for other in others:
        with pytest.raises(RunError, match="no such run"):
            queue.find_run(other.folder.name)


def test_a_worker_with_keep_days_removes_old_runs_at_its_start_and_regularly(models, fake, monkeypatch):
    def old():
        run = Run.create(Request("a", Settings(), "tiny", {}))
        run.log(Finished(stopped=False))
        for path in run.folder.iterdir():
            os.utime(path, (0, 0))
        return run.folder

    monkeypatch.setattr(queue, "PRUNE_SECONDS", 0.05)
    first = old()
    Worker(models, fake, pipeline.resume)
    time.sleep(0.2)
    assert first.is_dir()
    Worker(models, fake, pipeline.resume, keep_days=7.0)
    assert gone(first) and gone(old())


def gone(folder):
    return comes_true(lambda: not folder.exists())


def becomes_empty(worker):
    """Whether all runs of a worker end: a thread that has died would let its followers wait for ever."""
    return comes_true(lambda: worker.queue_length == 0)


def comes_true(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_an_incomplete_line_of_events_is_read_later_and_a_malformed_one_is_skipped(runs_folder):
    run = Run.create(Request("a", Settings(), "tiny", {}))
    run.log(Warned("eins"))
    history = run.folder / "events.jsonl"
    whole = history.read_bytes()
    history.write_bytes(whole + b'{"event": "warn\n' + whole[:-9])
    update, offset = events_after(history, 0)
    assert update == [Warned("eins")]
    history.write_bytes(history.read_bytes() + whole[-9:])
    assert events_after(history, offset) == ([Warned("eins")], history.stat().st_size)


def test_a_real_run_is_made_and_a_bad_prompt_is_refused_at_submission(models, runs_folder):
    worker = Worker(models, pipeline.generate, pipeline.resume)
    with pytest.raises(PromptError, match="ironman"):
        worker.submit("ironman")
    assert not list(runs_folder.iterdir())
    run = worker.submit("a purple owl", TINY)
    updates = all_of(worker.follow(run))
    assert updates == list(Run.open(run).events()) and updates[-1] == Finished(stopped=False)
    assert (runs_folder / run / "scores.json").is_file()


def test_another_worker_resumes_a_run_by_its_id_if_iterations_are_left_or_added(models, runs_folder):
    worker = Worker(models, pipeline.generate, pipeline.resume)
    run = worker.submit("a purple owl", TINY.with_(method="sds"))
    assert all_of(worker.follow(run))[-1] == Finished(stopped=False)
    with pytest.raises(QueueError, match="say how many more"):
        worker.resume(run)
    with pytest.raises(RunError, match="no such run"):
        worker.resume("../x")
    other = Worker(models, pipeline.generate, pipeline.resume)
    assert other.eta.seconds(TINY) > 0  # known from that run
    assert other.resume(run, 3) == run
    with pytest.raises(QueueError, match="stop it first"):
        other.resume(run, 3)
    updates = all_of(other.follow(run))
    assert [type(event) for event in updates].count(Finished) == 2 and updates[-1] == Finished(stopped=False)
    stored = Run.open(run)
    assert stored.read_json("record.json")["done"] == TINY.iterations + 3
    (stored.folder / "scores.json").unlink()  # as if the scoring models had been missing
    with pytest.raises(RunError, match="no scores yet"):
        stored.scores()
    other.resume(run)
    assert all_of(other.follow(run))[-1] == Finished(stopped=False) and stored.scores()["objects"]


def test_a_run_in_a_folder_that_cannot_be_written_is_not_continued(models, monkeypatch):
    run = Run.create(Request("a purple owl", TINY, models.stack.address, {})).folder.name

    def fail(path, **_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    worker = Worker(models, pipeline.generate, pipeline.resume)
    monkeypatch.setattr(Path, "touch", fail)
    with pytest.raises(RunError, match=f"You may not write to the folder .*{run}; mend that and resume the run"):
        worker.resume(run)
    assert worker.queue_position(run) is None and not worker.queue_length


def test_a_prepared_worker_estimates_the_time_of_its_first_run(models):
    worker = Worker(models, pipeline.generate, pipeline.resume)
    assert worker.eta.seconds(TINY) is None
    worker.prepare()
    assert worker.eta.seconds(TINY) > 0


def test_exclusive_work_has_its_turn_between_runs(worker, fake):
    first, order = worker.submit("a"), []

    def work(stop):
        order.append("work")
        yield from (1, 2)

    updates = worker.run_exclusive(work)
    assert next(updates) == Queued(1)
    last = worker.submit("b")
    assert not order and worker.queue_position(last) == 2
    fake.go.set()
    assert list(updates) == [1, 2]
    for run in (first, last):
        assert [event for event in all_of(worker.follow(run)) if not isinstance(event, Queued)] == DONE
    assert fake.made == ["a", "b"] and order == ["work"]


def test_an_error_of_exclusive_work_is_raised_to_its_caller_and_the_worker_goes_on(worker, fake):
    def work(stop):
        yield 1
        raise RunError("It broke.")

    updates = worker.run_exclusive(work)
    assert next(updates) == 1
    with pytest.raises(RunError, match="It broke"):
        next(updates)
    fake.go.set()
    following = all_of(worker.follow(worker.submit("a")))  # the work before may not have left the queue yet
    assert [event for event in following if not isinstance(event, Queued)] == DONE


def test_exclusive_work_is_stopped_when_its_iterator_is_closed(worker, fake):
    stopped = threading.Event()

    def work(stop):
        while not stop():
            yield 0
            time.sleep(0.01)
        stopped.set()

    updates = worker.run_exclusive(work)
    assert next(updates) == 0
    updates.close()
    assert stopped.wait(10)
