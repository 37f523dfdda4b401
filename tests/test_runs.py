"""A run's folder: complete or absent files, a history that survives a kill, checkpoints, and how it is found again."""

import dataclasses
import json
import shlex
from itertools import pairwise

import pytest

from redream import events
from redream.runs import GivenAsset, Request, Run, RunError
from redream.settings import PRESETS, Settings


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


REQUEST = Request("a purple owl", Settings(iterations=10, particles=2), "mini", {})


def test_a_request_is_read_as_it_was_written():
    given = (GivenAsset("given-0.glb", "my owl.glb", "an owl"),)
    request = dataclasses.replace(REQUEST, assets=given, overrides={"REDREAM_PRIOR": "a/b@c"}, extra=3)
    assert Request.from_json(request.to_json()) == request
    assert request.total == (10 + 3) * 2


def test_the_command_says_all_that_differs_from_a_preset():
    settings = PRESETS["mini-fast"].with_(seed=7, initialise=False, particles=2)
    request = Request("it's an owl", settings, "mini", {"REDREAM_PRIOR": "a/b"})
    words = shlex.split(request.command)
    assert words[:6] == ["REDREAM_PRIOR=a/b", "python", "-m", "redream", "generate", "it's an owl"]
    said = dict(pairwise(words))
    assert (said["--preset"], said["--seed"], said["--particles"]) == ("mini-fast", "7", "2")
    assert "--no-init" in words and "--no-adapt" not in words
    assert "settings.json" in Request("an owl", settings.with_(t_min=0.3), "mini", {}).command


def test_every_run_has_a_folder_of_its_own_that_nobody_can_guess(runs):
    folders = {Run.create(REQUEST).folder for _ in range(20)}
    assert len(folders) == 20 and {f.parent for f in folders} == {runs}
    assert all(len(f.name) >= len("run-") + 16 for f in folders)


def test_a_run_is_found_by_its_folder_and_by_its_id(runs):
    run = Run.create(REQUEST, files={"given-0.glb": b"glb"})
    for name in (run.folder, str(run.folder), run.folder.name):
        assert Run.open(name).folder == run.folder
    assert Run.open(run.folder).request == REQUEST
    assert sorted(p.name for p in run.folder.iterdir()) == ["given-0.glb", "settings.json"]


def test_only_a_new_or_an_empty_folder_becomes_a_run(tmp_path):
    (tmp_path / "empty").mkdir()
    assert Run.create(REQUEST, tmp_path / "empty").folder == tmp_path / "empty"
    with pytest.raises(RunError, match="not empty"):
        Run.create(REQUEST, tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        Run.create(REQUEST, tmp_path / "file")


def test_what_is_no_run_is_said_in_a_sentence(tmp_path):
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
    assert not list(run.folder.glob(".*"))


def test_the_history_gives_back_the_events_that_were_logged():
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
        events.Finished(False),
    ]
    assert {type(event) for event in history} == set(events.KINDS.values())
    for event in history:
        assert run.log(event) is event
    assert list(run.events()) == history


def test_a_line_that_was_cut_off_harms_no_other():
    run = Run.create(REQUEST)
    run.log(events.Warned("first"))
    with (run.folder / "events.jsonl").open("a") as file:
        file.write('{"event": "warned", "sent')
    assert list(run.events()) == [events.Warned("first")]
    run.log(events.Warned("second"))
    assert list(run.events()) == [events.Warned("first"), events.Warned("second")]


def test_a_line_that_was_cut_off_within_a_letter_and_unusual_line_ends_harm_no_other():
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


def test_a_checkpoint_that_breaks_off_does_not_count():
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
