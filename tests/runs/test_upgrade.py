"""Run folders of format 1: one that the program wrote in that format opens, is shown and goes on."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_stack import TINY, make_tiny_stack

from redream import pipeline
from redream.runs import events
from redream.runs.run import Run
from redream.runs.upgrade import FORMAT, upgrade
from redream.scoring.scores import SCORES
from redream.settings import Settings

pytestmark = pytest.mark.usefixtures("full_outputs")  # as the stored scores are
DATA = Path(__file__).parent / "data"
SETTINGS = TINY.with_(
    adapt=False, variational={"rank": 1, "shared_noise": False}
)  # of the run in DATA, stopped after 3 of 4 iterations


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Path:
    """The tiny stack as it was: its U-Net had four levels."""
    return make_tiny_stack(tmp_path_factory.mktemp("tiny"), levels=4)


@pytest.fixture
def run(stack, tmp_path) -> Run:
    """A copy of the run folder of format 1, of the tiny stack."""
    folder = shutil.copytree(DATA / "run-format-1", tmp_path / "run")
    request = folder / "settings.json"
    request.write_text(request.read_text().replace("STACK", stack.as_posix()))
    return Run.open(folder)


def test_a_request_of_format_1_has_its_settings_in_groups(run):
    assert run.request.settings == SETTINGS and run.request.assets[0].file == "given-0.glb"
    assert json.loads(run.request.to_json())["format"] == FORMAT
    assert run.request.is_same("a purple owl", SETTINGS, assets=True)


def test_the_events_of_format_1_are_read_with_present_names(run):
    history = list(run.events())
    assert len(history) == len((run.folder / "events.jsonl").read_text().splitlines())
    started, scored = history[0], next(event for event in history if isinstance(event, events.Scored))
    assert started.settings == SETTINGS and scored.scores == run.read_json("scores.json")
    stages = {event.stage for event in history if isinstance(event, events.Progress)}
    assert stages == {"loading", "warm-up", "distillation", "filming", "meshing", "scoring"}


def test_the_scores_of_format_1_have_present_keys_and_equal_values(run):
    (scores,), (stored,) = (
        read["objects"] for read in (run.read_json("scores.json"), json.loads((run.folder / "scores.json").read_text()))
    )
    assert list(scores.values()) == list(stored.values())
    named = set(scores) - {"version", "not_available"}
    assert named <= set(SCORES) and {"view_accuracy_a", "janus_rate_a", "janus_count_b"} <= named


def test_a_record_of_format_1_has_its_settings_in_groups(run):
    record = run.read_json("record.json")
    assert record["format"] == FORMAT and Settings.from_json(json.dumps(record["settings"])) == SETTINGS
    assert not run.finished


def test_a_run_of_format_1_goes_on_to_the_scores_that_it_would_have_had(run):
    history = list(pipeline.resume(run.folder))
    assert (history[0].iteration, history[0].total) == (3, 4) and history[-1] == events.Finished(stopped=False)
    (scores,) = Run.open(run.folder).read_json("scores.json")["objects"]
    (expected,) = upgrade(json.loads((DATA / "run-format-1-resumed-scores.json").read_text()))["objects"]
    assert scores == {
        name: value if name in ("version", "not_available") else pytest.approx(value, abs=1e-3)
        for name, value in expected.items()
    }


@pytest.mark.parametrize("document", [{}, {"prompt": "an owl", "objects": []}, [], 1, "text", None])
def test_what_has_no_old_names_comes_back_equal(document):
    assert upgrade(document) == document
    assert upgrade({"event": "started", "settings": json.loads(TINY.to_json())})["settings"] == json.loads(
        TINY.to_json()
    )


@pytest.mark.parametrize("method, guidance", [("redream", 15.0), ("vsd", 15.0), ("sds", 100.0)])
def test_of_the_two_guidances_of_format_1_that_of_the_method_is_kept(method, guidance):
    flat = json.loads((DATA / "run-format-1" / "settings.json").read_text())["settings"] | {"method": method}
    assert upgrade({"settings": flat})["settings"]["distillation"]["guidance"] == guidance
