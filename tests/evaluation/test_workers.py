"""Trials in worker processes: the results of one process, whatever ends early, and no process is left behind."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_stack import TINY, start_small_worker

from redream.evaluation import sweep, workers
from redream.evaluation.scorer import EvaluationError
from redream.evaluation.trials import ModelDigests, Prompt, plan
from redream.runs.events import Started
from redream.runs.run import Run
from redream.settings import by_method

SETTINGS = by_method(TINY.with_(iterations=2, output={"checkpoint_every": 1}))
PROMPTS = [Prompt("a purple owl"), Prompt("a red vase")]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _small_workers(monkeypatch):
    """Worker processes make outputs as small as this process does; a trial is shorter than the usual time between looks."""
    monkeypatch.setattr(workers, "_start_worker", start_small_worker)
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.05)


def evaluate(out, models, **changes):
    return sweep.evaluate(out, PROMPTS, ["sds"], models=models, settings=SETTINGS, **changes)


def sessions(out: Path) -> list[int]:
    """How often each run was begun or resumed."""
    runs = [Run.open(folder) for folder in sorted((out / "runs/sds").iterdir())]
    return [sum(isinstance(event, Started) for event in run.events()) for run in runs]


def test_worker_processes_have_the_table_of_one_process_and_repeat_only_the_run_of_one_that_dies(models, tmp_path):
    list(evaluate(tmp_path / "one", models))
    warnings, killed, ended = [], False, 0
    for update in evaluate(tmp_path / "dead", models, processes=2):
        if not killed and (children := multiprocessing.active_children()) and not update.ended:
            os.kill(children[0].pid, signal.SIGKILL)
            killed = True
        warnings += [update.warning] if update.warning else []
        ended += update.ended
    assert warnings == ["A worker process ended early; the others make its trials."]
    assert ended == 2 == update.done == update.total
    assert max(sessions(tmp_path / "dead")) <= 2  # with one, its pool ends: runs are resumed at most once
    assert len({(tmp_path / name / "table.json").read_bytes() for name in ("one", "dead")}) == 1
    assert not list(tmp_path.glob("*/runs/*/.*"))  # lock files
    for folder in (tmp_path / "dead/runs/sds").iterdir():  # a trial is pickled whole
        assert Run.open(folder).request.settings == SETTINGS["sds"]
        assert json.loads((folder / "costs.json").read_text())["threads"] == 1


def test_an_evaluation_whose_worker_processes_all_die_is_refused_in_a_sentence(models, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_start_worker", int)  # raises for its arguments
    with pytest.raises(EvaluationError, match="All worker processes ended early"):
        list(evaluate(tmp_path, models, processes=2))
    assert multiprocessing.active_children() == []


def test_an_error_of_the_program_in_a_worker_process_is_raised(models, tmp_path):
    trial = plan(tmp_path, PROMPTS[0], "sds", 0, SETTINGS["sds"], ModelDigests.of(models.stack))
    (tmp_path / "runs").write_text("")  # where a folder is needed
    with pytest.raises(OSError):
        list(workers.make_in_processes([trial], models, 1))


@pytest.mark.parametrize("ended_by", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.long)])
def test_worker_processes_end_with_their_parent(tiny_stack, tmp_path, ended_by):
    (tmp_path / "prompts.txt").write_text("a purple owl\na red vase\n")
    words = ["evaluate", "--stack", str(tiny_stack), "--prompts", str(tmp_path / "prompts.txt"), "--processes", "2"]
    command = [sys.executable, "-m", "redream", *words, "--methods", "vsd", "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True) as parent:
        while len(list((tmp_path / "out").glob("runs/vsd/*/events.jsonl"))) < 2:  # runs of many minutes
            assert parent.poll() is None
            time.sleep(0.2)
        group = processes_of(parent.pid)
        assert len(group) >= 3
        if ended_by == signal.SIGINT:
            os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
        else:
            parent.kill()
        parent.wait(timeout=120)
        deadline = time.monotonic() + 60
        while processes_of(parent.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert processes_of(parent.pid) == []
        if ended_by == signal.SIGINT:
            assert parent.returncode == 130
            assert parent.stderr.read().decode().endswith("Stopped at once; the same command goes on from there.\n")


def processes_of(session: int) -> list[int]:
    """The processes of a session that have not ended."""
    listing = subprocess.run(
        ["ps", "-s", str(session), "-o", "pid=,stat="], capture_output=True, text=True, check=False
    )
    rows = [line.split() for line in listing.stdout.splitlines()]
    return [int(pid) for pid, state in rows if not state.startswith("Z")]
