"""Two programs on one folder of runs: each shows what the other makes, follows it, and stops it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_stack import TINY

from redream import pipeline
from redream.app.run_page import ELSEWHERE, INTERRUPTED, QUEUED_ELSEWHERE, RunPage
from redream.cli import main
from redream.runs import locks
from redream.runs.events import Artefact, Finished, Preview, Progress
from redream.runs.queue import MadeElsewhere, QueueError, Worker
from redream.runs.run import Run, RunError

ROOT = Path(__file__).parents[2]
CODE = """
import sys
from redream import pipeline
from redream.runs.queue import Worker
from redream.stack.models import Models
from redream.stack.stack import Stack
from tiny_stack import TINY, make_outputs_small

make_outputs_small()
worker = Worker(Models.load(Stack.load(sys.argv[1], environ={}), "cpu"), pipeline.generate, pipeline.resume)
for _ in range(3):
    print(worker.submit("a purple owl", TINY.with_(iterations=2000, method="sds")), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tiny_stack, tmp_path, monkeypatch):
    """Another program that makes the first of three long runs, and the ids of these runs."""
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path))
    environ = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", CODE, str(tiny_stack)], env=environ, **pipes) as process:
        try:
            yield process, [process.stdout.readline().decode().strip() for _ in range(3)]
        finally:
            process.kill()


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.05)


def test_the_runs_of_another_program_are_followed_and_stopped(other, models, tmp_path):
    process, (made, waiting, last) = other
    worker = Worker(models, pipeline.generate, pipeline.resume)

    # What is true is shown: one is made and goes on, the others wait in the other program's queue.
    pages = RunPage.follow(worker, made)
    page = next(page for page in pages if page.preview and "Distillation" in page.status)
    assert ELSEWHERE in page.state_html() and not page.ended
    assert next(RunPage.follow(worker, last)).status == QUEUED_ELSEWHERE
    assert worker.queue_position(made) == worker.queue_position(last) == 0 and worker.is_elsewhere(last)

    # Nobody else works on them.
    for run in (made, last):
        with pytest.raises((QueueError, RunError), match="stop it"):
            worker.resume(run)
    assert main(["resume", made]) == 2

    # Stop reaches one that waits, although the other program makes another one, and one that is made.
    worker.stop(waiting)
    until(lambda: not worker.is_elsewhere(waiting))
    assert list(Run.open(waiting).events()) == [Finished(stopped=True)]
    worker.stop(made)
    assert worker.stopping(made)
    updates = [event for update in worker.follow(made) for event in update]
    assert updates.count(MadeElsewhere()) == 1 and updates[-1] == Finished(stopped=True)
    assert {Progress, Preview, Artefact} <= set(map(type, updates))
    until(lambda: not worker.stopping(made))
    assert 0 < Run.open(made).read_json("record.json")["done"] < 2000

    # Once that program has ended without a word, its run is one that was interrupted, and can be continued here.
    until(lambda: any(isinstance(event, Progress) for event in Run.open(last).events()))
    process.kill()
    process.wait()
    *_, page = RunPage.follow(worker, last)
    assert page.status == INTERRUPTED and ELSEWHERE not in page.state_html()
    assert worker.resume(last) == last and not worker.is_elsewhere(last)
    worker.stop(last)
    assert [event for update in worker.follow(last) for event in update][-1] == Finished(stopped=True)
    assert not any((tmp_path / waiting / name).exists() for name in (locks.QUEUED, locks.STOP))


def test_a_request_to_stop_a_run_that_nobody_makes_leaves_nothing(tmp_path, models, monkeypatch):
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path))
    worker = Worker(models, pipeline.generate, pipeline.resume)
    run = worker.submit("a purple owl", TINY.with_(method="sds", iterations=1))
    list(worker.follow(run))
    worker.stop(run)
    folder = Run.open(run).folder
    locks.request_stop(folder)
    assert not locks.stop_requested(folder) and not worker.stopping(run) and not worker.is_elsewhere(run)


def test_the_request_of_a_killed_session_does_not_stop_the_next_one(tmp_path, models, monkeypatch):
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path))
    settings = TINY.with_(method="sds", iterations=2)
    session = pipeline.generate("a purple owl", settings=settings, models=models, out=tmp_path / "run")
    next(session)
    locks.request_stop(tmp_path / "run")
    assert locks.stop_requested(tmp_path / "run") and locks.is_busy(tmp_path / "run")
    session.close()
    (tmp_path / "run" / locks.STOP).touch()  # as if it had been killed
    *_, last = pipeline.resume(tmp_path / "run", models=models)
    assert last == Finished(stopped=False)
