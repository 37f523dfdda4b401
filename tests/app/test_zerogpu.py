"""ZeroGPU's calls: what `zerogpu_space.py` tries out with the package `spaces`, and the sentences for its errors."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gradio as gr
import pytest

from redream import pipeline
from redream.app import zerogpu
from redream.app.run_page import PAUSED
from redream.runs.run import Run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def space(tiny_stack, tmp_path_factory) -> dict:
    """The outcomes of all scenarios."""
    runs = tmp_path_factory.mktemp("runs")
    command = [sys.executable, str(Path(__file__).with_name("zerogpu_space.py")), str(tiny_stack), str(runs)]
    # One thread, as in these tests: sums are equal then.
    environ = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, check=False, env=environ, cwd=runs, capture_output=True, text=True, timeout=300)
    outcomes = [line for line in result.stdout.splitlines() if line.startswith("OUTCOME ")]
    assert outcomes, result.stdout[-3000:] + result.stderr[-6000:]
    return json.loads(outcomes[0].removeprefix("OUTCOME "))


def test_a_space_finds_decorated_functions_at_its_start_and_reports_to_zerogpu(space):
    """Without any it would be stopped."""
    assert space["tasks"] > 0 and space["reported"] == 1


def test_a_run_of_three_calls_equals_one_in_one_go(space, models, tmp_path):
    chunked = space["chunked"]
    assert [state["done"] for state in chunked["states"]] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [state["paused"] for state in chunked["states"]] == [True, True, False]
    assert chunked["states"][0]["status"] == PAUSED and chunked["states"][-1]["status"] == "Done."
    run = Run.open(chunked["folder"])
    list(pipeline.generate(run.request.prompt, settings=run.request.settings, out=tmp_path, models=models))
    for file in ("scores.json", "retrieved.json", "orientation.json", "checkpoint/000006/state.safetensors"):
        assert (run.folder / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_each_call_is_forked_asks_for_its_time_in_the_name_of_its_visitor_and_yields_events(space):
    chunked = space["chunked"]
    assert chunked["processes"] == 3 and chunked["released"] == 3
    assert chunked["tokens"] == ["a.b.c"] * 3
    assert chunked["durations"][0] == zerogpu.MAX_SECONDS  # nothing was known of this device
    assert all(zerogpu.MIN_SECONDS <= seconds <= zerogpu.MAX_SECONDS for seconds in chunked["durations"][1:])
    for name in ("Progress", "Preview", "Artefact", "Scored"):
        assert name in chunked["names"]


def test_stop_ends_the_call_and_keeps_the_results(space):
    stopped = space["stopped"]
    assert stopped["status"] == "Stopped. These are the results so far." and stopped["files"] == 2
    assert stopped["stopped"] and not stopped["marker"]


def test_stop_between_two_calls_keeps_the_results_in_the_next_one(space):
    stopped = space["stopped_between"]
    assert stopped["was_paused"] and stopped["iterations"] == 2
    assert stopped["status"] == "Stopped. These are the results so far." and stopped["files"] == 2


def test_a_spent_quota_is_a_sentence_that_says_what_to_do(space):
    status = space["refused"]["sentence"]["status"]
    assert status.startswith(
        "20 s of your GPU quota are left, too little for the shortest call. Log in to Hugging Face"
    )
    assert "try again in 5:00:00" in status
    assert space["refused"]["nobody"]["status"].startswith("No GPU quota is left for this request. Log in")


def test_a_quota_that_is_enough_for_a_shorter_call_is_used(space):
    assert space["refused"]["durations"] == [75, 39]
    assert space["refused"]["shorter"]["paused"]


def test_a_call_that_was_killed_goes_on_from_its_last_checkpoint(space):
    overrun = space["overrun"]
    assert overrun["killed"]["paused"] and overrun["reached"] > 0
    assert overrun["begun"] == overrun["reached"] < overrun["after"]
    assert overrun["unsaved"]["status"] == zerogpu.OVERRUN


def test_a_call_pauses_before_its_time_is_over(space):
    assert space["deadline"]["paused"] and 0 < space["deadline"]["done"] < 1
    assert space["deadline"]["left"]  # the iteration times for the next call's duration


@pytest.mark.parametrize(
    ("fault", "sentence"), [("start", pipeline.FAULT), ("api", zerogpu.NO_CALL), ("run", pipeline.FAULT)]
)
def test_a_fault_ends_the_run_in_one_sentence_and_no_further_call_is_asked_for(space, fault, sentence):
    """A page that saw the run paused, as its preparation left it, would ask for call after call."""
    outcome = space["faulty"][fault]
    assert outcome["status"] == sentence and not outcome["paused"] and outcome["failures"] == 1


def test_the_samples_of_the_prior_come_from_a_call(space):
    assert space["samples"]["updates"] > 1 and space["samples"]["tensors"]
    assert space["samples"]["shapes"] == [[1, 3, 64, 64]] * 2


def test_models_are_moved_to_cuda_before_there_is_a_gpu_and_retrieval_stays_on_the_cpu(space):
    assert space["moved"]["devices"] == {"unet": "cuda:0", "vae": "cuda:0"} and space["moved"]["prior"] == "cuda"
    assert space["moved"]["retrieval"] == "cpu"


def test_a_stack_with_a_preset_for_zerogpu_takes_it(space):
    assert space["preset"] == "sd21-zerogpu"


def test_off_zerogpu_nothing_is_decorated_and_spaces_leaves_torch_alone():
    assert not zerogpu.ENABLED and not hasattr(zerogpu._iterate, "zerogpu")
    assert "spaces.zero.torch" not in sys.modules


@pytest.mark.parametrize("title", zerogpu.SENTENCES)
def test_each_refusal_of_zerogpu_has_a_sentence_that_says_what_to_do(title):
    sentence = zerogpu._sentence(gr.Error("Technical words", title=title))
    assert sentence == zerogpu.SENTENCES[title]
    assert any(advice in sentence for advice in ("Log in", "Try again", "Reload"))


@pytest.mark.skipif(not importlib.util.find_spec("spaces"), reason="needs the package spaces")
def test_the_titles_and_texts_that_are_told_apart_are_those_of_the_package_spaces():
    """It is read, not imported: it has no constants for them."""
    (folder,) = importlib.util.find_spec("spaces").submodule_search_locations
    code = "".join(path.read_text(encoding="utf-8") for path in Path(folder, "zero").glob("*.py"))
    titles = set(re.findall(r"""raise error\(\s*["']([^"']+)["']""", code))
    assert titles == {*zerogpu.SENTENCES, zerogpu.WORKER_ERROR}
    assert f'"{zerogpu.ABORTED}"' in code and "s requested vs. {res.left}s left). " in code  # as in `zerogpu.QUOTA`
