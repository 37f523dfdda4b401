"""What a session does when something goes wrong: results that exist are kept, and a warning says what happened."""

import itertools
import json
import re
import shutil
import threading
import time
from dataclasses import asdict

import pytest
import torch
from hub_server import Fault
from hub_stack import publish
from tiny_stack import TINY, make_tiny_prior

from redream import pipeline
from redream.distillation.checkpoint import CheckpointError
from redream.distillation.loop import Distillation
from redream.errors import RedreamError
from redream.files import sha256
from redream.hub import HubError
from redream.retrieval.clip import ClipError
from redream.runs import events, outputs, retrieved, session
from redream.runs.faults import MachineError, explained, smaller
from redream.runs.results import CONTINUE
from redream.runs.run import Run, RunError
from redream.runs.session import Session
from redream.settings import PRESETS, setting_names
from redream.stack.models import Models
from redream.stack.stack import Stack

PROMPT = "a purple owl"
SETTINGS = TINY.with_(
    method="sds", output={"preview_every": 1, "checkpoint_every": 1}
)  # SDS needs no assets: that is faster


def begin(models, folder, until=None, settings=SETTINGS):
    """A run that is left after so many iterations, as if it had been killed; without `until`, a whole one."""
    run_events = pipeline.generate(PROMPT, settings=settings, out=folder, models=models)
    for event in run_events:
        if until and isinstance(event, events.Progress) and event.iteration > until:
            break
    run_events.close()
    return Run.open(folder)


def warnings(run_events):
    return [event.sentence for event in run_events if isinstance(event, events.Warned)]


def same_results(one, other):
    """Whether two runs' folders have equal scores and last states."""
    states = [(Run.open(folder).checkpoints()[-1] / "state.safetensors").read_bytes() for folder in (one, other)]
    return states[0] == states[1] and (one / "scores.json").read_bytes() == (other / "scores.json").read_bytes()


def damage(checkpoint):
    file = checkpoint / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("method", ["sds", "redream"])
def test_a_run_with_a_damaged_checkpoint_goes_on_from_the_one_before(models, tmp_path, method):
    settings = SETTINGS.with_(method=method)
    whole, run = begin(models, tmp_path / "a", settings=settings), begin(models, tmp_path / "b", 3, settings)
    assert [path.name for path in run.checkpoints()] == ["000002", "000003"]
    damage(run.checkpoints()[-1])
    run_events = list(pipeline.resume(run.folder, models=models))
    assert warnings(run_events) == ["The checkpoint of iteration 3 is damaged; the run goes on from iteration 2."]
    assert run_events[-1] == events.Finished(stopped=False)
    last = [(r.checkpoints()[-1] / "state.safetensors").read_bytes() for r in (whole, run)]
    assert last[0] == last[1] and whole.read_json("scores.json") == run.read_json("scores.json")
    assert (run.folder / "checkpoint" / "damaged-000003").is_dir()


def test_a_run_without_an_intact_checkpoint_is_refused_and_its_files_stay(models, tmp_path):
    run = begin(models, tmp_path)
    for checkpoint in run.checkpoints():
        damage(checkpoint)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="start the run anew"):
        list(pipeline.resume(tmp_path, 1, models=models))
    changed = [path.name for path, data in before.items() if path.read_bytes() != data]
    assert sorted(changed) == ["events.jsonl", "settings.json"]
    assert isinstance(list(run.events())[-1], events.Failed)


@pytest.mark.parametrize("error", [HubError("The Hub did not answer."), ClipError("It cannot be read.")])
def test_a_run_that_cannot_be_scored_warns_and_keeps_its_other_results(models, tmp_path, monkeypatch, error):
    run = begin(models, tmp_path)
    assert (tmp_path / "scores.json").is_file()

    def fail(*arguments):
        raise error

    monkeypatch.setattr(outputs, "scores_of", fail)
    run_events = list(pipeline.resume(tmp_path, 1, models=models))
    assert warnings(run_events) == [f"There are no scores. {error} {CONTINUE}"]
    assert run_events[-1] == events.Finished(stopped=False)
    assert run.read_json("record.json")["done"] == 5 and not (tmp_path / "scores.json").exists()
    assert [event.kind for event in run_events if isinstance(event, events.Artefact)] == ["turntable", "mesh"]


def test_without_the_scoring_clips_a_run_lacks_scores_alone(models, tmp_path, monkeypatch):
    real = Models.clip

    def clip(self, name):
        if name in "ab":
            raise HubError("The Hub did not answer.")
        return real(self, name)

    monkeypatch.setattr(Models, "clip", clip)
    run_events = list(pipeline.generate(PROMPT, settings=SETTINGS, out=tmp_path, models=models))
    assert warnings(run_events) == [
        "Previews have no score. The Hub did not answer.",
        f"There are no scores. The Hub did not answer. {CONTINUE}",
    ]
    previews = [event for event in run_events if isinstance(event, events.Preview)]
    assert [preview.clip_score for preview in previews] == [None] * 4
    names = {path.name for path in tmp_path.iterdir()}
    assert {"turntable-0.mp4", "mesh-0.glb", "record.json"} <= names and "scores.json" not in names


def test_the_time_left_falls_while_turntables_are_rendered(models, tmp_path):
    run_events = list(pipeline.generate(PROMPT, settings=SETTINGS.with_(particles=2), out=tmp_path, models=models))
    filming = [event for event in run_events if isinstance(event, events.Progress) and event.stage == "filming"]
    left = [event.seconds_left for event in filming]
    assert len(left) == 2 * TINY.output.turntable_frames and left == sorted(left, reverse=True) and left[-1] > 0


def test_previews_come_early_and_then_evenly():
    assert [n for n in range(1, 31) if session.is_previewed(n, 10)] == [1, 2, 4, 8, 10, 20, 30]
    assert all(session.is_previewed(n, 1) for n in range(1, 9))


def test_iterations_whose_score_is_not_finite_are_counted_in_a_warning(models, tmp_path, monkeypatch):
    real = Distillation._score_gradient

    def score(self, *arguments):
        gradient, loss = real(self, *arguments)
        return gradient * (float("nan") if self.iteration in (1, 2) else 1), loss

    monkeypatch.setattr(Distillation, "_score_gradient", score)
    run_events = list(pipeline.generate(PROMPT, settings=SETTINGS, out=tmp_path, models=models))
    assert warnings(run_events) == ["Iterations whose score was not a number, and counted as zero: 2."]
    losses = [event.losses["score"] for event in Run.open(tmp_path).events() if getattr(event, "losses", None)]
    assert losses and None not in losses  # means of the finite ones


def test_a_run_is_locked_from_its_first_event_until_its_iterator_ends_or_is_closed(models, tmp_path):
    (tmp_path / "run").mkdir()
    first = pipeline.generate(PROMPT, settings=SETTINGS, out=tmp_path / "run", models=models)
    next(first)
    history = (tmp_path / "run" / "events.jsonl").read_bytes()
    with pytest.raises(RunError, match="worked on by another program"):
        next(pipeline.resume(tmp_path / "run", models=models))
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == history  # its own, to the letter
    first.close()
    assert list(pipeline.resume(tmp_path / "run", models=models))[-1] == events.Finished(stopped=False)
    with Run.open(tmp_path / "run").working():
        pass


def test_sessions_that_pause_when_their_time_is_over_make_what_one_makes(models, tmp_path, monkeypatch):
    """The first one only finds and orients the assets, the next two have time for two iterations each."""
    settings = SETTINGS.with_(method="redream")
    whole = begin(models, tmp_path / "whole", settings=settings)
    prepared = list(pipeline.generate(PROMPT, settings=settings, out=tmp_path / "run", models=models, deadline=0.0))
    assert isinstance(prepared[-2], events.Oriented) and prepared[-1] == events.Paused()
    monkeypatch.setattr(retrieved, "align", None)  # the fronts are known

    def is_over(self, seconds=0.0):
        return sum(self.clock._count.values()) >= 2 if hasattr(self, "clock") else False

    monkeypatch.setattr(Session, "_time_is_over", is_over)
    assert list(pipeline.resume(tmp_path / "run", models=models))[-1] == events.Paused()
    run = Run.open(tmp_path / "run")
    assert run.checkpoints()[-1].name == "000002" and not run.finished
    assert run.read_json("record.json")["seconds_per_iteration"]
    assert list(pipeline.resume(run.folder, models=models))[-1] == events.Paused()  # no time for the results
    assert not run.finished
    assert list(pipeline.resume(run.folder, models=models))[-1] == events.Finished(stopped=False)
    last = [(r.checkpoints()[-1] / "state.safetensors").read_bytes() for r in (whole, run)]
    assert last[0] == last[1] and whole.read_json("scores.json") == run.read_json("scores.json")


def test_the_record_of_a_resumed_run_names_the_models_that_oriented_its_assets(models, tiny_stack, tmp_path):
    """The session that ends the run knows the fronts, and loads no CLIP to find them."""
    settings = SETTINGS.with_(method="redream", iterations=2)
    whole = begin(models, tmp_path / "whole", settings=settings)
    run = begin(models, tmp_path / "run", 1, settings)
    fresh = Models.load(Stack.load(tiny_stack, environ={}), "cpu")
    assert list(pipeline.resume(run.folder, models=fresh))[-1] == events.Finished(stopped=False)
    assert "clips.retrieval" not in fresh.origins
    assert run.read_json("record.json")["models"] == whole.read_json("record.json")["models"]
    assert (run.folder / "orientation.json").read_bytes() == (whole.folder / "orientation.json").read_bytes()


def test_results_that_would_end_after_the_deadline_are_left_to_the_next_session(models, tmp_path, monkeypatch):
    monkeypatch.setattr(Session, "_seconds_of_results", lambda self: 3600.0)
    deadline = time.monotonic() + 600
    *_, last = pipeline.generate(PROMPT, settings=SETTINGS, out=tmp_path, models=models, deadline=deadline)
    assert last == events.Paused() and Run.open(tmp_path).checkpoints()[-1].name == "000004"
    *_, last = pipeline.resume(tmp_path, models=models, deadline=deadline)  # nothing else is left: it tries
    assert last == events.Finished(stopped=False) and (tmp_path / "scores.json").is_file()


def test_a_run_that_is_stopped_while_it_is_prepared_ends(models, tmp_path):
    *_, last = pipeline.generate(
        PROMPT, settings=SETTINGS, out=tmp_path, models=models, deadline=0.0, stop=lambda: True
    )
    assert last == events.Finished(stopped=True)


def test_a_missing_encoder_costs_the_turntable_alone_and_a_resumed_run_makes_it(models, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
        run_events = list(pipeline.generate(PROMPT, settings=SETTINGS, out=tmp_path, models=models))
    (sentence,) = warnings(run_events)
    assert sentence.startswith("There is no turntable. The video encoder, ffmpeg, cannot be started")
    assert sentence.endswith(CONTINUE)
    assert {"mesh-0.glb", "scores.json", "record.json", "sprite.jpg"} <= {path.name for path in tmp_path.iterdir()}
    scores = (tmp_path / "scores.json").read_bytes()
    run_events = list(pipeline.resume(tmp_path, models=models))
    assert warnings(run_events) == [] and (tmp_path / "turntable-0.mp4").is_file()
    assert scores == (tmp_path / "scores.json").read_bytes()
    assert list(pipeline.resume(tmp_path, models=models)) == []


@pytest.mark.parametrize(
    "error, sentence",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "The memory of the GPU ran out. "),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "The memory of the computer ran out",
        ),
        (MemoryError(), "The memory of the computer ran out"),
    ],
)
def test_a_run_whose_memory_runs_out_names_smaller_settings_and_goes_on(models, tmp_path, monkeypatch, error, sentence):
    real = Distillation._score_gradient

    def score(self, *arguments):
        if self.iteration == 3:
            raise error
        return real(self, *arguments)

    settings = SETTINGS.with_(particles=2)
    with monkeypatch.context() as patch, pytest.raises(MachineError) as failed:
        patch.setattr(Distillation, "_score_gradient", score)
        list(pipeline.generate(PROMPT, settings=settings, out=tmp_path / "broken", models=models))
    said = str(failed.value)
    assert (
        said.startswith(sentence)
        and "goes on from iteration 3; or start a new one with fewer objects at once (particles, now 2)" in said
    )
    assert list(Run.open(tmp_path / "broken").events())[-1] == events.Failed(said)
    assert list(pipeline.resume(tmp_path / "broken", models=models))[-1] == events.Finished(stopped=False)
    assert same_results(tmp_path / "broken", begin(models, tmp_path / "whole", settings=settings).folder)


def test_settings_that_take_less_memory_are_named_with_what_they_are():
    assert smaller(PRESETS["sd21"]["redream"]) == (
        "a lower render resolution (rendering.resolutions, now up to 512 pixels), fewer samples of a ray "
        "(rendering.samples_per_ray, now 256) or a smaller batch of the adaptation (adaptation.batch, now 4)"
    )
    names = set(re.findall(r"[a-z]+\.[a-z_]+", smaller(TINY.with_(particles=2))))
    assert names <= setting_names(asdict(TINY)) and "adaptation.batch" not in smaller(TINY.with_(method="sds"))


def test_a_run_whose_folder_is_removed_meanwhile_says_so(models, tmp_path):
    run_events = pipeline.generate(PROMPT, settings=SETTINGS, out=tmp_path / "run", models=models)
    next(run_events)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(MachineError, match="was removed while the run was being made; start a new run"):
        list(run_events)


def test_a_fault_of_the_program_is_not_blamed_on_the_machine(models, tmp_path):
    run = begin(models, tmp_path, 1)
    for error in (
        ConnectionResetError(104, "reset"),
        FileNotFoundError(2, "gone", "/x"),
        RuntimeError("shape"),
        OSError(),
    ):
        assert explained(error, run) is None


@pytest.mark.parametrize("name", ["clip-score-a", "clip-score-b"])
def test_a_damaged_scoring_clip_costs_the_scores_alone(tiny_stack, tmp_path, name):
    stack = shutil.copytree(tiny_stack, tmp_path / "stack")
    weights = stack / name / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    run_events = list(pipeline.generate(PROMPT, stack=stack, settings=SETTINGS, out=tmp_path / "run"))
    said = warnings(run_events)
    assert said[-1].startswith(
        f"There are no scores. The file {name}/open_clip_model.safetensors cannot be used: cut off,"
    )
    assert [event.kind for event in run_events if isinstance(event, events.Artefact)] == ["turntable", "mesh"]
    scores = [event.clip_score for event in run_events if isinstance(event, events.Preview)]
    assert len(scores) == 4 and (None in scores) == (name == "clip-score-a")
    assert (tmp_path / "run/record.json").is_file() and not (tmp_path / "run/scores.json").exists()


def test_a_damaged_perceptual_net_is_said_and_the_other_scores_are_made(tiny_stack, tmp_path):
    stack = shutil.copytree(tiny_stack, tmp_path / "stack")
    (stack / "perceptual-a/config.json").write_text("<html>")
    run_events = list(pipeline.generate(PROMPT, stack=stack, settings=SETTINGS, out=tmp_path / "run"))
    said = "A-LPIPS lacks one of its networks. The file perceptual-a/config.json cannot be used: not JSON. Restore it."
    assert warnings(run_events) == [said]
    (scores,) = Run.open(tmp_path / "run").read_json("scores.json")["objects"]
    assert scores["a_lpips_a"] is None and scores["a_lpips_b"] is not None and scores["clip_a"] is not None


def test_a_stop_ends_a_run_whose_models_stall_and_a_resumed_run_fetches_them(
    hub_server, tiny_stack, tmp_path, monkeypatch
):
    stack, released = publish(hub_server, tiny_stack, tmp_path, monkeypatch), threading.Event()
    weights = "unet/diffusion_pytorch_model.safetensors"
    hub_server.faults[weights] = Fault(cut=30_000, pause=lambda: released.wait(20), times=99)
    asked, stopped = [], []

    def stop():  # a second after the weights were asked for
        asked.extend([time.monotonic()] * (not asked and any(weights in request for request in hub_server.requests)))
        stopped.extend([time.monotonic()] * (not stopped and bool(asked) and time.monotonic() > asked[0] + 1))
        return bool(stopped)

    run_events = list(pipeline.generate(PROMPT, stack=stack, settings=SETTINGS, out=tmp_path / "run", stop=stop))
    assert run_events[-1] == events.Finished(stopped=True) and time.monotonic() - stopped[0] < 2
    fetched = [event for event in run_events if isinstance(event, events.Fetching)]
    assert {event.what for event in fetched} == {"prior"} and fetched[-1].size > 30_000
    hub_server.faults.clear()
    released.set()
    assert list(pipeline.resume(tmp_path / "run"))[-1] == events.Finished(stopped=False)


@pytest.mark.parametrize(
    "density, sentence",
    [
        (
            {"density_scale": -1e4, "density_radius": 1e3},
            "The object has no mesh. There is no surface yet: the object is transparent from every side.",
        ),
        ({"density_scale": 1e4, "density_radius": 1e3}, "The object fills its whole box: no shape was found."),
        ({}, None),
    ],
)
def test_an_empty_and_a_full_scene_are_said_with_a_hint(models, tmp_path, density, sentence):
    settings = SETTINGS.with_(iterations=1, field=density)
    run_events = list(pipeline.generate(PROMPT, settings=settings, out=tmp_path, models=models))
    hint = "Try another seed, more iterations, or ReDream with its initialisation."
    assert warnings(run_events) == ([f"{sentence} {hint}"] if sentence else [])
    assert run_events[-1] == events.Finished(stopped=False) and (tmp_path / "scores.json").is_file()


def test_a_run_is_not_continued_by_another_prior_nor_from_assets_that_the_library_lacks(tiny_stack, tmp_path):
    stack = shutil.copytree(tiny_stack, tmp_path / "stack")
    settings = SETTINGS.with_(method="redream", adapt=False)

    def begun(until, **values):
        run_events = pipeline.generate(PROMPT, stack=stack, settings=settings, out=tmp_path / "run", **values)
        next(event for event in run_events if getattr(event, "iteration", 0) == until)
        run_events.close()

    begun(2)
    make_tiny_prior(stack / "prior", seed=1)
    with pytest.raises(
        RunError, match=r"began with another prior \(prior\), whose files are different now. Restore them"
    ):
        list(pipeline.resume(tmp_path / "run"))
    shutil.copytree(tiny_stack / "prior", stack / "prior", dirs_exist_ok=True)
    retrieved_json = tmp_path / "run/retrieved.json"
    whole = retrieved_json.read_text()
    retrieved_json.write_text(whole.replace(json.loads(whole)["assets"][0]["uid"], "tiny-elk"))
    with pytest.raises(RedreamError, match="no asset tiny-elk"):
        list(pipeline.resume(tmp_path / "run"))
    retrieved_json.write_text(whole)
    assert list(pipeline.resume(tmp_path / "run"))[-1] == events.Finished(stopped=False)


@pytest.mark.parametrize("uids", [(), ("tiny-vase", "tiny-mug")])
def test_a_run_is_not_continued_from_an_asset_that_is_another_file_now(models, tmp_path, uids):
    settings, prepares = SETTINGS.with_(method="redream"), {"models": models, "deadline": 0.0}
    list(pipeline.generate(PROMPT, settings=settings, uids=uids, out=tmp_path, **prepares))
    run = Run.open(tmp_path)
    began = run.read_json("retrieved.json")
    *others, last = began["assets"]
    assert last["sha256"] == sha256(models.index.asset_path(last["uid"]))
    run.write_json("retrieved.json", began | {"assets": [*others, last | {"sha256": "0" * 64}]})
    with pytest.raises(RunError, match=rf"\({last['uid']}\) is another file than when this run began. Restore it"):
        list(pipeline.resume(tmp_path, **prepares))
    earlier = [{key: value for key, value in asset.items() if key != "sha256"} for asset in began["assets"]]
    run.write_json("retrieved.json", began | {"assets": earlier})  # of an earlier version
    assert list(pipeline.resume(tmp_path, **prepares))[-1] == events.Paused()
    assert run.read_json("retrieved.json") == began


def test_a_clock_that_jumps_back_changes_no_duration_and_no_estimate(models, tmp_path, monkeypatch):
    real, asked = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: real() - 3600 * (next(asked) > 12))
    run_events = list(pipeline.generate(PROMPT, settings=SETTINGS, out=tmp_path, models=models))
    times = [json.loads(line)["time"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert min(b - a for a, b in itertools.pairwise(times)) < -3000 and run_events[-1] == events.Finished(stopped=False)
    left = [event.seconds_left for event in run_events if isinstance(event, events.Progress)]
    assert all(seconds is None or 0 <= seconds < 60 for seconds in left) and any(left)
    record = Run.open(tmp_path).read_json("record.json")
    seconds = [*record["seconds"].values(), *record["seconds_per_iteration"].values()]
    assert seconds and all(0 <= second < 60 for second in seconds)
