"""The command line: what it makes, says and refuses. Most of it is called in this process, which is faster."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_stack import TINY

from redream import pipeline
from redream.cli import main
from redream.evaluation.trials import VARIED
from redream.files import read_json
from redream.runs import events, locks
from redream.runs.events import Started
from redream.runs.run import Run
from redream.settings import PRESETS, by_method

COMMAND = [sys.executable, "-m", "redream"]


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch, tmp_path):
    monkeypatch.setitem(PRESETS, "mini", by_method(TINY.with_(iterations=2)))
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path / "runs"))


def refused(capsys, *words) -> str:
    """The one sentence on stderr of a command that ends with 2."""
    try:
        status = main([str(word) for word in words])
    except SystemExit as error:
        status = error.code
    out, err = capsys.readouterr()
    assert status == 2 and out == "" and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_generate_says_where_the_files_are_and_the_scores_in_words(tiny_stack, capsys, tmp_path):
    assert main(["generate", "a purple owl", "--stack", str(tiny_stack), "--seed", "3"]) == 0
    out, err = capsys.readouterr()
    (folder,) = (tmp_path / "runs").iterdir()
    assert str(folder / "turntable-0.mp4") in out and str(folder / "mesh-0.glb") in out
    assert "CLIP" in out and "higher is better" in out and "A-LPIPS" in out
    assert "Found in the library" in err and "iteration 2 of 2" in err
    assert Run.open(folder).request.settings == PRESETS["mini"]["redream"].with_(seed=3)

    assert main(["resume", folder.name]) == 0
    assert "is finished" in capsys.readouterr().out
    assert main(["resume", str(folder), "--iterations", "1"]) == 0
    assert Run.open(folder).read_json("record.json")["done"] == 3


def test_every_switch_reaches_the_settings(tiny_stack, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(pipeline, "generate", lambda prompt, **values: asked.update(values) or iter(()))
    words = "generate owl --preset mini-fast --method redream --no-init --particles 2 --iterations 7 --seed 5"
    words = [*words.split(), "--asset", "a.glb", "b.glb", "--asset", "c.glb", "--asset-caption", "an owl"]
    assert main([*words, "--stack", str(tiny_stack), "--out", str(tmp_path / "run")]) == 0
    expected = PRESETS["mini-fast"]["redream"].with_(initialise=False, particles=2, iterations=7, seed=5)
    assert asked["settings"] == expected and asked["out"] == tmp_path / "run"
    assert asked["assets"] == [("a.glb", "an owl"), ("b.glb", "an owl"), ("c.glb", "an owl")]


def test_bad_input_ends_with_2_and_one_sentence(tiny_stack, capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    tiny = ("--stack", tiny_stack)
    assert "empty" in refused(capsys, "generate", "", *tiny)
    assert "10,000 characters" in refused(capsys, "generate", "o" * 10_000, *tiny)
    assert "kinds of things" in refused(capsys, "generate", "an ironman", *tiny)
    assert "not empty" in refused(capsys, "generate", "an owl", *tiny, "--out", tmp_path / "mine")
    assert "initialisation" in refused(capsys, "generate", "an owl", *tiny, "--method", "vsd", "--asset", "a.glb")
    assert "cannot be" in refused(capsys, "generate", "an owl", *tiny, "--asset", tmp_path / "none.glb")
    assert "particles" in refused(capsys, "generate", "an owl", *tiny, "--particles", "9")
    assert "There is no stack" in refused(capsys, "generate", "an owl", "--stack", "none")
    assert "invalid choice" in refused(capsys, "generate", "an owl", "--method", "magic")
    assert "no run" in refused(capsys, "resume", tmp_path / "none")
    assert ".png" in refused(capsys, "sample", "an owl", *tiny, "--out", tmp_path / "owl.bmp")
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_once_stops_and_keeps_what_there_is(tiny_stack, capsys, tmp_path, monkeypatch):
    real = pipeline.generate

    def interrupted(*arguments, **values):
        for event in real(*arguments, **values):
            if isinstance(event, events.Progress) and event.losses and event.iteration == 1:
                signal.raise_signal(signal.SIGINT)
            yield event

    monkeypatch.setattr(pipeline, "generate", interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert main(["generate", "an owl", "--stack", str(tiny_stack), "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert "Stopping" in err and "resume" in out
    assert (tmp_path / "run/turntable-0.mp4").is_file() and Run.open(tmp_path / "run").read_json("record.json")[
        "done"
    ] == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_twice_ends_at_once(tiny_stack, capsys, monkeypatch):
    def interrupted(*arguments, **values):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        yield events.Finished(False)

    monkeypatch.setattr(pipeline, "generate", interrupted)
    assert main(["generate", "an owl", "--stack", str(tiny_stack)]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_retrieve_prints_what_retrieved_json_says(tiny_stack, capsys):
    assert main(["retrieve", "a red owl", "-k", "2", "--json", "--stack", str(tiny_stack)]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["prompt"] == "a red owl" and len(values["assets"]) == 2
    assert set(values["assets"][0]) == {"uid", "caption", "author", "license", "similarity", "source"}
    assert main(["retrieve", "a red owl", "--stack", str(tiny_stack)]) == 0
    assert capsys.readouterr().out.count("similarity") == 3


def test_sample_writes_a_grid(tiny_stack, capsys, tmp_path):
    words = ["sample", "an owl", "--view", "back", "--adapt", "-n", "6", "--stack", str(tiny_stack)]
    assert main([*words, "--out", str(tmp_path / "owls.png")]) == 0
    assert Image.open(tmp_path / "owls.png").size == (4 * 64, 2 * 64)


def test_evaluate_makes_tables_and_goes_on_where_it_was(tiny_stack, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("dev\ta purple owl\ntest\tan ironman\n")
    words = ["evaluate", "--stack", str(tiny_stack), "--prompts", str(tmp_path / "prompts.txt"), "--methods", "sds"]
    words += ["--set", "iterations=1", "--set", "sds.t_max=[1, 0.5]", "--out", str(tmp_path / "out")]
    assert main([*words, "--split", "validation"]) == 0
    out, err = capsys.readouterr()
    assert "table.md" in out and "missing" not in out and "1 of 1: sds: a purple owl" in err
    (folder,) = (tmp_path / "out/runs/sds").iterdir()
    assert Run.open(folder).request.settings == PRESETS["mini"]["redream"].with_(
        method="sds", iterations=1, distillation={"t_max": (1.0, 0.5)}
    )
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "1 of 2 runs are missing" in out and "*ironman*" in err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "runs",
        "gallery.html",
        "results.parquet",
        "table.json",
        "table.md",
    }


def test_two_programs_make_each_run_of_an_evaluation_once(tiny_stack, tmp_path, monkeypatch):
    helpers, begin = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: helpers.append(begin(*a, **k)) or helpers[-1])
    real, worker_processes = pipeline.generate, []

    def patient(*arguments, **values):
        """This program begins its first run when the helper has begun one."""
        while not worker_processes:
            worker_processes.extend(tmp_path.glob("out/runs/sds/*/events.jsonl"))
            time.sleep(0.1)
        return real(*arguments, **values)

    monkeypatch.setattr(pipeline, "generate", patient)
    (tmp_path / "prompts.txt").write_text("a purple owl\na red vase\n")
    words = ["evaluate", "--stack", str(tiny_stack), "--prompts", str(tmp_path / "prompts.txt"), "--methods", "sds"]
    for name, value in asdict(TINY.with_(iterations=2)).items():  # the other program knows no preset of these tests
        words += ["--set", f"{name}={json.dumps(value)}"] if name not in VARIED else []
    threads = torch.get_num_threads()
    assert main([*words, "--processes", "2", "--out", str(tmp_path / "out")]) == 0
    assert [helper.returncode for helper in helpers if "--helper" in helper.args] == [0]
    runs = [Run.open(folder) for folder in (tmp_path / "out/runs/sds").iterdir()]
    assert len(runs) == 2 and all(sum(isinstance(e, Started) for e in run.events()) == 1 for run in runs)
    rows = read_json(tmp_path / "out/table.json")["methods"]
    assert (
        (rows["sds"]["runs"], rows["sds"]["missing"]) == (2, 0)
        and len(worker_processes) == 1
        and torch.get_num_threads() == threads
    )


def test_who_helps_an_evaluation_ends_with_who_started_it(tiny_stack, tmp_path):
    (tmp_path / "prompts.txt").write_text("a purple owl\na red vase\n")
    words = ["evaluate", "--stack", str(tiny_stack), "--prompts", str(tmp_path / "prompts.txt"), "--helper"]
    command = [*COMMAND, *words, "--methods", "vsd", "--out", str(tmp_path / "out")]  # a run of many minutes
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as helper:
        while not list((tmp_path / "out").glob("runs/vsd/*/events.jsonl")):
            assert helper.poll() is None
            time.sleep(0.1)
        helper.stdin.close()
        assert helper.wait(timeout=60) == 130


def test_an_evaluation_says_that_a_helper_failed_and_is_complete_without_it(tiny_stack, capsys, tmp_path, monkeypatch):
    begin = subprocess.Popen
    fail = [sys.executable, "-c", "raise SystemExit(1)"]
    monkeypatch.setattr(subprocess, "Popen", lambda words, **k: begin(fail if "--helper" in words else words, **k))
    (tmp_path / "prompts.txt").write_text("a purple owl")
    words = ["evaluate", "--stack", str(tiny_stack), "--prompts", str(tmp_path / "prompts.txt"), "--methods", "sds"]
    assert main([*words, "--processes", "2", "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert "A helping program ended early" in err and "missing" not in out
    assert [one["prompt"] for one in read_json(tmp_path / "out/table.json")["prompts"]] == ["a purple owl"]


def test_where_programs_cannot_share_an_evaluation_helpers_are_refused(tiny_stack, capsys, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError("no locks here")

    (tmp_path / "prompts.txt").write_text("a purple owl")
    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    words = ("evaluate", "--stack", tiny_stack, "--processes", "2", "--out", tmp_path / "out")
    words += ("--prompts", tmp_path / "prompts.txt")
    assert "leave --processes out" in refused(capsys, *words)
    monkeypatch.setattr(locks, "fcntl", None)
    assert "leave --processes out" in refused(capsys, *words)


def test_an_interrupted_evaluation_says_that_the_same_command_goes_on(tiny_stack, capsys, tmp_path, monkeypatch):
    def interrupted(*arguments, **values):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(pipeline, "generate", interrupted)
    (tmp_path / "prompts.txt").write_text("a purple owl")
    words = ["evaluate", "--stack", str(tiny_stack), "--prompts", str(tmp_path / "prompts.txt"), "--methods", "sds"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_evaluate_refuses_in_a_sentence(tiny_stack, capsys, tmp_path):
    words = ("evaluate", "--stack", tiny_stack, "--out", tmp_path / "out")
    assert "no setting colour" in refused(capsys, *words, "--set", "colour=1")
    for method in ("magic", "retrieval"):
        assert f"no method {method} that has settings" in refused(capsys, *words, "--set", f"{method}.iterations=1")
    assert "no setting seed" in refused(capsys, *words, "--set", "seed=1")
    assert "t_max is not like [0.7, 0.5]" in refused(capsys, *words, "--set", "t_max=high")
    for name in ("method", "initialise", "adapt", "delta_every"):
        assert f"no setting {name}" in refused(capsys, *words, "--set", f"{name}=0")
    for text in ("t_max=[0.7]", "t_max=0.7", "t_max=[0.7, 0.6, 0.5]", "t_max=[0.7, true]"):
        assert "t_max is not like [0.7, 0.5]" in refused(capsys, *words, "--set", text)
    assert "levels is not like 4" in refused(capsys, *words, "--set", "levels=2.5")
    assert "render_size is not like" in refused(capsys, *words, "--set", "render_size=[[0.0]]")
    assert "render_size" in refused(capsys, *words, "--set", "render_size=[]")
    assert "out of its range" in refused(capsys, *words, "--set", "warmup=2")
    assert "no method magic" in refused(capsys, *words, "--methods", "magic")
    assert "--seeds" in refused(capsys, *words, "--seeds", "0,x")
    assert "cannot be read" in refused(capsys, *words, "--prompts", tmp_path / "none.txt")
    assert not (tmp_path / "out").exists()


def test_doctor_names_a_stack_and_why(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(("Stack: mini. There is", "Stack: sd21. There is")) and "torch" in out


def test_the_program_itself_ends_with_2_without_a_traceback(tiny_stack):
    here = Path(__file__).parent.parent
    words = [*COMMAND, "generate", "an ironman", "--stack", str(tiny_stack)]
    ended = subprocess.run(words, check=False, capture_output=True, text=True, cwd=here, env=os.environ)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.startswith("The tiny model does not know the word *ironman*.") and ended.stderr.count("\n") == 1


def test_a_fault_of_the_program_is_not_taken_for_the_users(monkeypatch):
    monkeypatch.setattr(pipeline, "retrieve", lambda *a: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["retrieve", "an owl"])
