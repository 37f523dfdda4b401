"""A run's folder: complete or absent files, events that survive a kill, checkpoints, locks, and opening it again."""

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from redream import pipeline
from redream.cli import main
from redream.runs import events
from redream.runs.locks import LOCK
from redream.runs.retention import days_kept, prune
from redream.runs.run import Request, Run, RunError, UploadedAsset
from redream.settings import PRESETS, Settings


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


REQUEST = Request("a purple owl", Settings(iterations=10, particles=2), "mini", {})


def test_a_request_is_read_as_it_was_written():
    uploads = (UploadedAsset("upload-0.glb", "my owl.glb", "an owl"),)
    request = dataclasses.replace(REQUEST, assets=uploads, overrides={"REDREAM_PRIOR": "a/b@c"}, extra=3)
    assert Request.from_json(request.to_json()) == request
    assert request.total == (10 + 3) * 2


def test_a_request_is_the_same_if_prompt_settings_and_assets_are_and_no_iterations_were_added():
    settings, replaced = REQUEST.settings, dataclasses.replace
    assert REQUEST.is_same("a purple owl", settings) and not REQUEST.is_same("an owl", settings)
    assert not REQUEST.is_same("a purple owl", settings.with_(seed=1))
    by_uid = replaced(REQUEST, uids=("u", "v"))
    assert by_uid.is_same("a purple owl", settings, ["u", "v"]) and not by_uid.is_same("a purple owl", settings)
    uploaded = replaced(REQUEST, assets=(UploadedAsset("upload-0.glb", "my owl.glb", "an owl"),))
    assert uploaded.is_same("a purple owl", settings, assets=True) and not uploaded.is_same("a purple owl", settings)
    commercial = replaced(REQUEST, commercial_use=True)
    assert commercial.is_same("a purple owl", settings, commercial_use=True)
    assert not commercial.is_same("a purple owl", settings)
    assert not replaced(REQUEST, extra=1).is_same("a purple owl", settings)


def test_the_command_names_all_that_differs_from_a_preset():
    settings = PRESETS["mini-fast"]["redream"].with_(seed=7, initialise=False, particles=2)
    request = Request("it's an owl", settings, "mini", {"REDREAM_PRIOR": "a/b"})
    words = shlex.split(request.command)
    assert words[:5] == ["REDREAM_PRIOR=a/b", "python", "-m", "redream", "generate"] and words[-1] == "it's an owl"
    value = dict(pairwise(words))
    assert (value["--preset"], value["--seed"], value["--particles"]) == ("mini-fast", "7", "2")
    assert "--no-init" in words and "--no-adapt" not in words
    changed = Request("an owl", settings.with_(distillation={"t_min": 0.3}), "mini", {}).command
    assert "--set=distillation.t_min=0.3" in shlex.split(changed) and changed.count("--set") == 1


NASTY = [
    "-x",
    "--",
    "--seed 3",
    "--no-init",
    "-- --",
    "a 'cat'",
    'a "cat" $HOME `id`',
    "a\ncat; rm",
    "=",
    "# a",
    "é ü 猫",
]


def asked_by(command, tmp_path, monkeypatch) -> Request:
    """The request that a command line makes, read by a shell, the program's own parser and `Run`."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    say = "import json, os, sys; variables = {k: v for k, v in os.environ.items() if k.startswith('REDREAM')}; "
    say += "print(json.dumps([sys.argv[1:], variables]))"
    (tmp_path / "bin" / "python").write_text(f"""#!/bin/sh\nexec "{sys.executable}" -c "{say}" "$@"\n""")
    (tmp_path / "bin" / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    value = subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True, env=environment).stdout
    made = []

    def generate(prompt, *, stack, settings, assets, uids, out, models, **values):
        uploads = tuple(UploadedAsset(f"upload-{n}.glb", file, caption) for n, (file, caption) in enumerate(assets))
        request = Request(prompt, settings, *pipeline._address(stack), uploads, uids=tuple(uids), **values)
        made.append(Run.create(request, out))

    for words, variables in map(json.loads, value.splitlines()):
        assert words[:2] == ["-m", "redream"]
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)  # FOLDER is there
            patch.setattr(pipeline, "generate", lambda prompt, stop, **values: generate(prompt, **values) or iter(()))
            patch.setattr(pipeline, "resume", lambda run, more, stop: Run.open(run).extend(more) or iter(()))
            for name, value in variables.items():
                patch.setenv(name, value)
            assert main(words[2:]) == 0
    return Run.open(made[0].folder).request


@pytest.mark.parametrize("extra", [0, 5])
@pytest.mark.parametrize("text", NASTY)
def test_the_command_makes_the_same_request_whatever_the_texts_are(text, extra, tmp_path, monkeypatch):
    caption = text.removeprefix("--") or "-"  # no option of argparse takes "--" itself
    uploads = (UploadedAsset("upload-0.glb", "-my owl.glb", caption), UploadedAsset("upload-1.glb", "owl", text + "!"))
    settings = PRESETS["mini-fast"]["redream"].with_(seed=7, adapt=False, particles=2, iterations=11)
    settings = settings.with_(rendering={"resolutions": ((0.0, 64), (0.2, 128))}, adaptation={"prefix_learned": False})
    overrides = {"REDREAM_PRIOR": "/my models/it's a prior", "REDREAM_INDEX": "a/b@c"}
    request = Request(text, settings, "mini", overrides, uploads, extra, (caption, "-a"), commercial_use=True)
    assert asked_by(request.command, tmp_path, monkeypatch) == request


def test_a_run_that_is_worked_on_is_refused_to_others_until_its_program_ends(runs):
    run = Run.create(REQUEST)
    code = "import sys, time; from redream.runs.run import Run\n"
    code += "with Run.open(sys.argv[1]).working(): print(1, flush=True); time.sleep(60)"
    words, here = [sys.executable, "-c", code, run.folder], Path(__file__).parents[2]
    other = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=here)
    try:
        assert other.stdout.readline() == b"1\n"
        with pytest.raises(RunError, match="worked on by another program; wait for it or stop it"), run.working():
            pass
        with pytest.raises(RunError, match="worked on"):
            run.extend(1)
        run.log(events.Failed("of nobody's interest"))
        assert Run.open(run.folder).request.extra == 0 and not list(run.events())
    finally:
        other.kill()
        other.communicate()
    with run.working():
        run.log(events.Warned("mine"))
        with pytest.raises(RunError), Run.open(run.folder).working():
            pass
    assert list(run.events()) == [events.Warned("mine")]
    assert sorted(p.name for p in run.folder.iterdir()) == [LOCK, "events.jsonl", "settings.json"]


@pytest.mark.parametrize("error", [OSError("no locks here"), NotImplementedError])
def test_on_a_file_system_without_locks_a_run_is_worked_on_all_the_same(monkeypatch, error):
    run = Run.create(REQUEST)
    (run.folder / LOCK).touch()
    monkeypatch.setattr("redream.runs.locks.FileLock.acquire", lambda self: (_ for _ in ()).throw(error))
    with run.working(), Run.open(run.folder).working():
        run.log(events.Warned("mine"))
    assert list(run.events()) == [events.Warned("mine")]


def test_a_folder_that_was_removed_is_not_taken_for_one_without_locks():
    run = Run.create(REQUEST)
    shutil.rmtree(run.folder)
    with pytest.raises(FileNotFoundError), run.working():
        pass
    assert not run.folder.exists()


def test_a_lock_that_another_thread_releases_is_free():
    run = Run.create(REQUEST)
    working = run.working()
    working.__enter__()
    with ThreadPoolExecutor(1) as thread:
        with pytest.raises(RunError, match="worked on"):
            thread.submit(run.extend, 1).result()
        thread.submit(working.__exit__, None, None, None).result()
    with run.working():
        pass


def test_the_lock_file_is_no_content_of_a_new_folder(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / LOCK).touch()
    assert Run.create(REQUEST, tmp_path / "new").folder == tmp_path / "new"


def test_incomplete_files_of_killed_programs_are_removed_and_no_others():
    run = Run.create(REQUEST)
    for name in ("checkpoint/.100-0a1b2c3d/state.json", "checkpoint/000100/state.json", ".mine/note", "mesh-0.glb"):
        (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (run.folder / name).write_text("")
    (run.folder / "preview").mkdir()
    for name in (".mesh-0-0a1b2c3d.glb", ".settings-ffffffff.json", "preview/.000010-12345678.png", ".DS_Store"):
        (run.folder / name).write_text("")
    with run.working():
        left = {p.relative_to(run.folder).as_posix() for p in run.folder.rglob("*") if p.is_file()}
    assert left == {"checkpoint/000100/state.json", ".mine/note", "mesh-0.glb", ".DS_Store"} | {
        "settings.json",
        LOCK,
    }
    assert not (run.folder / "checkpoint" / ".100-0a1b2c3d").exists()


def test_old_runs_are_pruned_later_if_they_broke_off(runs, tmp_path):
    def made(last, days=8.0, out=None):
        run = Run.create(REQUEST, out)
        run.log(events.Started(str(run.folder), "an owl", REQUEST.settings, 0, 20))
        if last:
            run.log(last)
        for path in run.folder.iterdir():
            os.utime(path, (time.time() - days * 86_400,) * 2)
        return run

    over = events.Finished(False)
    gone = [made(over), made(events.Finished(True)), made(None, days=29.0), made(events.Failed("It broke."), days=29.0)]
    kept = [made(None), made(events.Failed("It broke.")), made(over, days=6.0), made(over, out=runs / "run-mine")]
    kept += [made(over, out=tmp_path / "run-0123456789abcdef"), made(over, out=runs / "0123456789abcdef")]
    kept.append(Run.create(REQUEST))  # waits for its turn
    (runs / "run-linked0123456789").symlink_to(tmp_path / "run-0123456789abcdef")
    (runs / "run-foreign012345678").mkdir()
    (runs / "run-foreign012345678" / "letter.txt").write_text("dear")
    locked = made(over)
    with locked.working():
        prune(7.0)
    assert not any(run.folder.exists() for run in gone) and all(run.folder.is_dir() for run in [*kept, locked])
    assert (runs / "run-foreign012345678" / "letter.txt").is_file() and (runs / "run-linked0123456789").is_symlink()
    assert not (kept[-1].folder / "events.jsonl").exists()
    prune(7.0)
    assert not locked.folder.exists()


def test_a_run_that_is_resumed_while_runs_are_pruned_is_kept(runs, monkeypatch):
    run = Run.create(REQUEST)
    run.log(events.Finished(False))
    for path in run.folder.iterdir():
        os.utime(path, (0, 0))
    taken = Run.working

    def touched(self):
        (self.folder / "settings.json").touch()
        return taken(self)

    monkeypatch.setattr(Run, "working", touched)
    prune(7.0)
    assert run.folder.is_dir()


@pytest.mark.parametrize(
    ("value", "space", "days"), [("", "", None), ("0", "x", None), ("", "x", 2.0), ("7.5", "", 7.5)]
)
def test_the_environment_sets_how_many_days_runs_are_kept(value, space, days, monkeypatch):
    monkeypatch.setenv("REDREAM_KEEP_DAYS", value)
    monkeypatch.setenv("SPACE_ID", space) if space else monkeypatch.delenv("SPACE_ID", raising=False)
    assert days_kept() == days


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "a week"])
def test_a_number_of_days_that_is_none_is_refused(value, monkeypatch):
    monkeypatch.setenv("REDREAM_KEEP_DAYS", value)
    with pytest.raises(RunError, match="REDREAM_KEEP_DAYS"):
        days_kept()


def test_there_is_nothing_to_prune_where_no_run_was_made(runs):
    prune(0.0)
    assert not runs.exists()


def test_every_run_has_a_folder_of_its_own_whose_name_is_hard_to_guess(runs):
    folders = {Run.create(REQUEST).folder for _ in range(20)}
    assert len(folders) == 20 and {f.parent for f in folders} == {runs}
    assert all(len(f.name) >= len("run-") + 16 for f in folders)


def test_a_run_is_found_by_its_folder_and_by_its_id(runs):
    run = Run.create(REQUEST, files={"upload-0.glb": b"glb"})
    for name in (run.folder, str(run.folder), run.folder.name):
        assert Run.open(name).folder == run.folder
    assert Run.open(run.folder).request == REQUEST
    assert sorted(p.name for p in run.folder.iterdir()) == ["settings.json", "upload-0.glb"]


def test_only_a_new_or_an_empty_folder_becomes_a_run(tmp_path):
    (tmp_path / "empty").mkdir()
    assert Run.create(REQUEST, tmp_path / "empty").folder == tmp_path / "empty"
    with pytest.raises(RunError, match="not empty"):
        Run.create(REQUEST, tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        Run.create(REQUEST, tmp_path / "file")


def test_a_folder_that_is_no_run_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(RunError, match="no run nothing"):
        Run.open("nothing")
    for text in ("{", "[]", "{}", REQUEST.to_json().replace('"seed"', '"sed"')):
        (tmp_path / "settings.json").write_text(text)
        with pytest.raises(RunError, match="damaged"):
            Run.open(tmp_path)


def test_a_file_that_could_not_be_written_leaves_the_old_one(monkeypatch):
    run = Run.create(REQUEST)
    run.write_json("scores.json", {"a": 1.0, "b": float("nan")})
    assert run.read_json("scores.json") == {"a": 1.0, "b": None}
    with pytest.raises(TypeError):
        run.write_json("scores.json", {"a": object()})
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        run.write_json("scores.json", {"a": 2.0})
    assert run.read_json("scores.json")["a"] == 1.0
    assert not [path for path in run.folder.glob(".*") if path.name != LOCK]


def test_events_are_read_as_they_were_logged():
    run = Run.create(REQUEST)
    history = [
        events.Started(str(run.folder), "an owl", REQUEST.settings, 0, 20),
        events.Retrieved(({"uid": "u", "similarity": 0.5},), ("asset-0.png",)),
        events.Oriented(0, 90.0, 0.5, True, "asset-0-turned.png"),
        events.Progress("warm-up", 1, 20, 3.5, {"score": 1.0, "asset": None}),
        events.Preview("preview/000001.png", 1, 0, 30.0, 0.25),
        events.Artefact("mesh", 0, "mesh-0.glb"),
        events.Scored({"objects": [{"clip_a": 0.5}]}),
        events.Warned("Ä sentence."),
        events.Failed("A sentence."),
        events.Paused(),
        events.Fetching(1000, 2000),
        events.Finished(False),
    ]
    assert {type(event) for event in history} == set(events.KINDS.values())
    for event in history:
        assert run.log(event) is event
    assert list(run.events()) == history


def test_a_line_of_events_that_was_cut_off_harms_no_other():
    run = Run.create(REQUEST)
    run.log(events.Warned("first"))
    with (run.folder / "events.jsonl").open("a") as file:
        file.write('{"event": "warned", "sent')
    assert list(run.events()) == [events.Warned("first")]
    run.log(events.Warned("second"))
    assert list(run.events()) == [events.Warned("first"), events.Warned("second")]


def test_a_line_of_events_cut_off_within_a_letter_and_unusual_line_ends_harm_no_other():
    run = Run.create(REQUEST)
    run.log(events.Warned("a caption\u2028of two lines\x85"))
    with (run.folder / "events.jsonl").open("ab") as file:
        file.write('{"event": "warned", "sentence": "Ä'.encode()[:-1])
    assert list(run.events()) == [events.Warned("a caption\u2028of two lines\x85")]


def test_the_last_two_checkpoints_are_kept_in_the_order_of_their_numbers():
    run = Run.create(REQUEST)
    for iteration in (2, 999_999, 1_000_000, 10, 1_000_001):
        with run.checkpoint(iteration) as folder:
            (folder / "state.json").write_text(str(iteration))
    assert [int(path.name) for path in run.checkpoints()] == [1_000_000, 1_000_001]
    assert [(path / "state.json").read_text() for path in run.checkpoints()] == ["1000000", "1000001"]


def test_an_old_checkpoint_whose_removal_was_interrupted_is_none_and_is_removed_later(monkeypatch):
    run = Run.create(REQUEST)

    def killed(path, **options):
        if Path(path).exists():
            (Path(path) / "state.json").unlink()
            raise KeyboardInterrupt

    def save(iteration):
        with run.checkpoint(iteration) as folder:
            (folder / "state.json").write_text(str(iteration))

    save(1)
    save(2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("redream.runs.run.shutil.rmtree", killed)
        save(3)
    assert [(path / "state.json").read_text() for path in run.checkpoints()] == ["2", "3"]
    with run.working():
        assert len(list((run.folder / "checkpoint").iterdir())) == 2


def test_a_checkpoint_that_was_not_written_completely_is_none():
    run = Run.create(REQUEST)
    with run.checkpoint(1) as folder:
        (folder / "state.json").write_text("whole")
    with pytest.raises(OSError), run.checkpoint(2) as folder:
        (folder / "state.json").write_text("half")
        raise OSError("disk full")
    with pytest.raises(OSError), run.checkpoint(1) as folder:
        raise OSError("disk full")
    assert [path.name for path in run.checkpoints()] == ["000001"]
    assert (run.checkpoints()[0] / "state.json").read_text() == "whole"
    assert len(list((run.folder / "checkpoint").iterdir())) == 1


def test_a_run_is_finished_when_all_that_is_planned_is_recorded():
    run = Run.create(REQUEST)
    assert not run.finished
    run.write_json("record.json", {"done": 19})
    assert not run.finished
    run.write_json("record.json", {"done": 20})
    assert run.finished
    run.extend(1)
    assert not run.finished and Run.open(run.folder).request.extra == 1
    assert json.loads((run.folder / "settings.json").read_text())["settings"]["iterations"] == 10
