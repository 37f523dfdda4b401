"""The public functions: runs are complete, repeatable, can be stopped and resumed; bad inputs are refused in sentences."""

import os
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import pytest
import torch
from PIL import Image
from tiny_stack import TINY, make_stack_with_licences, tiny_glb

from redream import pipeline
from redream.retrieval.index import AssetUnavailable, Index
from redream.retrieval.licences import LicenceError
from redream.runs import events, outputs
from redream.runs.locks import LOCK
from redream.runs.run import Run, RunError
from redream.scene import assets, glb_reader
from redream.scene.glb import GlbError
from redream.scene.glb_reader import GlbReader, ReaderUnavailable
from redream.settings import DISTILLATION, PRESETS, WARM_UP
from redream.stack.models import Models
from redream.stack.stack import Stack, StackError
from redream.stack.vocabulary import PromptError

PROMPT = "a purple owl"
STAGES = WARM_UP, DISTILLATION  # of iterations


@pytest.fixture(scope="module")
def models_v(tiny_stack_v):
    return Models.load(Stack.load(tiny_stack_v, environ={}), "cpu")


def follow(run_events) -> list[events.Event]:
    return list(run_events)


def kinds(run_events) -> list[str]:
    return [type(event).__name__ for event in run_events if not isinstance(event, events.Progress)]


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """A run that nothing interrupted, and its events."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run_events = follow(pipeline.generate(PROMPT, settings=TINY, out=folder, models=models))
    return folder, run_events


def result(folder: Path) -> tuple[bytes, bytes]:
    """What equal runs share: scores and the last state."""
    state = Run.open(folder).checkpoints()[-1]
    return (folder / "scores.json").read_bytes(), (state / "state.safetensors").read_bytes()


def check_files(folder: Path, particles: int = 1) -> None:
    for number in range(particles):
        frames, _ = imageio_ffmpeg.count_frames_and_secs(folder / f"turntable-{number}.mp4")
        assert frames == TINY.output.turntable_frames
        assert len(assets.load(folder / f"mesh-{number}.glb", normalise=False).mesh.faces) > 0
    assert len(Run.open(folder).read_json("scores.json")["objects"]) == particles
    assert not [path for path in folder.rglob("*") if path.name.startswith(".") and path.name != LOCK]


def test_a_prompt_becomes_a_turntable_a_mesh_scores_and_a_record(whole):
    folder, run_events = whole
    expected = ["Started", "Retrieved", *["Oriented"] * 3, *["Preview"] * 3, "Artefact", "Artefact", "Scored"]
    assert kinds(run_events) == [*expected, "Finished"]
    check_files(folder)
    for event in run_events:
        for file in (getattr(event, "file", None), getattr(event, "strip", None), *getattr(event, "strips", ())):
            assert file is None or (folder / file).is_file()
    iterations = [
        event.iteration for event in run_events if isinstance(event, events.Progress) and event.stage in STAGES
    ]
    assert iterations == [1, 2, 3, 4]
    assert run_events[-1] == events.Finished(stopped=False)


def test_events_jsonl_has_the_events_that_were_yielded(whole):
    folder, run_events = whole
    assert list(Run.open(folder).events()) == run_events


def test_a_prior_with_v_prediction_and_a_stack_without_a_vocabulary_work(models_v, tmp_path):
    run_events = follow(pipeline.generate("Ironman!", settings=TINY, out=tmp_path, models=models_v))
    assert run_events[-1] == events.Finished(stopped=False)
    check_files(tmp_path)


def test_a_run_has_sprites_of_its_first_turntable(whole):
    folder, _ = whole
    side = outputs.SPRITE_COLUMNS * outputs.SPRITE_SIDE
    with Image.open(folder / "sprite.jpg") as sheet:
        assert sheet.format == "JPEG" and sheet.size == (side, side)


def test_a_record_holds_all_that_reproduces_the_run_and_scores_hold_no_path(whole):
    folder, _ = whole
    run = Run.open(folder)
    record, retrieved = run.read_json("record.json"), run.read_json("retrieved.json")
    assert record["prompt"] == retrieved["prompt"] == PROMPT
    assert [asset["uid"] for asset in record["assets"]] == [asset["uid"] for asset in retrieved["assets"]]
    assert set(retrieved["assets"][0]) == {"uid", "caption", "author", "license", "similarity", "source", "sha256"}
    assert {"prior", "index", "clips.retrieval", "clips.a", "clips.b"} <= set(record["models"])
    assert all(len(digest) == 64 for digest in record["models"]["index"]["files"].values())
    assert record["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert record["done"] == TINY.iterations and not record["stopped"]
    assert set(record["seconds_per_iteration"]) == {"redream/warm-up/16", "redream/distillation/16"}
    assert {"retrieval", "orientation", "turntables", "meshes", "scores"} <= set(record["seconds"])
    assert str(folder) not in (folder / "scores.json").read_text() + (folder / "record.json").read_text()


def test_the_same_seed_gives_the_same_scores_and_the_same_state(whole, models, tmp_path):
    follow(pipeline.generate(PROMPT, settings=TINY, out=tmp_path / "again", models=models))
    assert result(tmp_path / "again") == result(whole[0])
    follow(pipeline.generate(PROMPT, settings=TINY.with_(seed=1), out=tmp_path / "other", models=models))
    assert result(tmp_path / "other")[1] != result(whole[0])[1]


def test_a_resumed_run_has_the_scores_of_an_uninterrupted_one(whole, models, tmp_path):
    run_events = pipeline.generate(PROMPT, settings=TINY, out=tmp_path, models=models)
    for event in run_events:
        if isinstance(event, events.Progress) and event.iteration == 3:
            break  # the last checkpoint is of iteration 2
    run_events.close()
    assert not (tmp_path / "scores.json").exists() and len(Run.open(tmp_path).checkpoints()) == 1
    run_events = follow(pipeline.resume(tmp_path, models=models))
    assert (run_events[0].iteration, run_events[0].total) == (2, 4)
    assert result(tmp_path) == result(whole[0])
    check_files(tmp_path)


def test_a_stopped_run_has_results_and_can_be_resumed_to_the_same_end(whole, models, tmp_path, monkeypatch):
    iterations_done = []
    run_events = pipeline.generate(
        PROMPT, settings=TINY, out=tmp_path, models=models, stop=lambda: len(iterations_done) >= 1
    )
    for event in run_events:
        if isinstance(event, events.Progress) and event.stage in STAGES:
            iterations_done.append(event.iteration)
    assert iterations_done == [1] and event == events.Finished(stopped=True)
    check_files(tmp_path)
    (tmp_path / "turntable-0.mp4").unlink()
    monkeypatch.setattr(glb_reader, "POLL_SECONDS", 0.0)
    list(
        pipeline.resume(tmp_path, models=models, stop=lambda: True)
    )  # its assets are read for the results of what there is
    check_files(tmp_path)
    follow(pipeline.resume(tmp_path, models=models))
    assert result(tmp_path) == result(whole[0])


def test_a_run_stopped_before_its_first_iteration_has_no_results(models, tmp_path, monkeypatch):
    monkeypatch.setattr(glb_reader, "POLL_SECONDS", 0.0)
    run_events = follow(pipeline.generate(PROMPT, settings=TINY, out=tmp_path, models=models, stop=lambda: True))
    assert kinds(run_events) == ["Started", "Finished"] and run_events[-1].stopped
    assert not list(tmp_path.glob("*.mp4")) and not Run.open(tmp_path).finished


def test_a_finished_run_has_no_further_events_unless_iterations_are_added(models, tmp_path):
    settings = TINY.with_(method="vsd", iterations=2)
    run_events = follow(pipeline.generate(PROMPT, settings=settings, out=tmp_path, models=models))
    assert "Retrieved" not in kinds(run_events) and not (tmp_path / "retrieved.json").exists()
    before = result(tmp_path)
    assert follow(pipeline.resume(tmp_path, models=models)) == []
    run_events = follow(pipeline.resume(tmp_path, 1, models=models))
    assert (run_events[0].iteration, run_events[0].total) == (2, 3) and not run_events[-1].stopped
    assert result(tmp_path)[1] != before[1]
    assert follow(pipeline.resume(tmp_path, models=models)) == []
    with pytest.raises(RunError, match="out of range"):
        pipeline.resume(tmp_path, 50_000)


def test_several_particles_have_a_turntable_a_mesh_and_scores_each(models, tmp_path):
    settings = TINY.with_(particles=2, iterations=1)
    run_events = follow(pipeline.generate(PROMPT, settings=settings, out=tmp_path, models=models))
    assert [event.particle for event in run_events if isinstance(event, events.Artefact)] == [0, 0, 1, 1]
    check_files(tmp_path, particles=2)


def test_an_object_without_a_surface_is_warned_of_and_has_its_other_results(models, tmp_path):
    settings = TINY.with_(method="sds", iterations=1, field={"density_scale": -50.0, "density_radius": 5.0})
    run_events = follow(pipeline.generate(PROMPT, settings=settings, out=tmp_path, models=models))
    assert kinds(run_events) == ["Started", "Preview", "Artefact", "Warned", "Scored", "Finished"]
    assert "no surface" in next(event.sentence for event in run_events if isinstance(event, events.Warned))
    assert not (tmp_path / "mesh-0.glb").exists()


def test_assets_are_shown_before_the_prior_is_loaded(tiny_stack, tmp_path):
    fresh = Models.load(Stack.load(tiny_stack, environ={}), "cpu")
    for event in pipeline.generate(PROMPT, settings=TINY, out=tmp_path, models=fresh):
        if isinstance(event, events.Retrieved):
            break
    assert set(fresh.origins) == {"index", "clips.retrieval"}
    assert all((tmp_path / strip).is_file() for strip in event.strips)


def test_settings_are_written_before_anything_large_is_imported(tiny_stack, tmp_path):
    code = f"""
import sys, redream
run = redream.generate({PROMPT!r}, stack={str(tiny_stack)!r}, out={str(tmp_path / "run")!r})
large = [name for name in ("torch", "numpy", "open_clip", "diffusers", "trimesh", "faiss") if name in sys.modules]
assert not large, large
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    request = Run.open(tmp_path / "run").request
    assert (request.prompt, request.stack, request.settings) == (PROMPT, str(tiny_stack), PRESETS["mini"]["redream"])


def test_a_request_keeps_what_the_environment_replaced_in_its_stack(tiny_stack, tiny_stack_v, tmp_path):
    stack = Stack.load(tiny_stack, environ={"REDREAM_PRIOR": str(tiny_stack_v / "prior"), "REDREAM_INDEX": "a/b@c"})
    pipeline.generate(PROMPT, stack=stack, settings=TINY, out=tmp_path / "run")
    request = Run.open(tmp_path / "run").request
    assert Stack.load(request.stack, request.overrides) == stack


@pytest.mark.parametrize(
    "prompt, sentence",
    [("  ", "empty"), ("owl " * 2500, "10,000 characters"), ("an ironman", "6 kinds of things: car, cat, dog, mug")],
)
def test_a_prompt_that_cannot_be_used_is_refused_before_there_is_a_folder(prompt, sentence, models, tmp_path):
    with pytest.raises(PromptError, match=sentence):
        pipeline.generate(prompt, out=tmp_path / "run", models=models)
    assert not (tmp_path / "run").exists()


def test_unknown_words_of_a_prompt_are_warned_of(models, tmp_path):
    run_events = pipeline.generate("a glittering owl", settings=TINY, out=tmp_path, models=models)
    assert next(run_events).prompt == "a owl" and "glittering" in next(run_events).sentence


def test_a_stack_or_a_folder_that_cannot_be_used_is_refused(models, tmp_path):
    with pytest.raises(StackError):
        pipeline.generate(PROMPT, stack=tmp_path)
    (tmp_path / "mine.txt").write_text("dear")
    with pytest.raises(RunError, match="not empty"):
        pipeline.generate(PROMPT, out=tmp_path, models=models)


def test_uploaded_assets_replace_retrieved_ones_and_are_kept_with_the_run(models, tmp_path):
    mine = tmp_path / "my owl \udce9.glb"  # not UTF-8
    mine.write_bytes(tiny_glb((90, 20, 160)))
    run = tmp_path / "run"
    settings = TINY.with_(iterations=1)
    run_events = pipeline.generate(
        PROMPT, settings=settings, assets=[(mine, "an owl \udce9"), (mine, "")], out=run, models=models
    )
    mine.unlink()
    follow(run_events)
    first, second = Run.open(run).read_json("retrieved.json")["assets"]
    assert (first["source"], first["caption"], second["caption"]) == ("my owl ?.glb", "an owl ?", PROMPT)
    assert -1 <= first["similarity"] <= 1 and first["uid"] != second["uid"]
    check_files(run)


def test_assets_named_by_uid_replace_retrieved_ones_and_are_recorded_with_their_licence(models, tmp_path):
    uids, run = ["tiny-vase", "tiny-mug"], tmp_path / "run"
    follow(pipeline.generate(PROMPT, settings=TINY.with_(iterations=1), uids=uids, out=run, models=models))
    record = Run.open(run).read_json("record.json")
    assert [(asset["uid"], asset["license"]) for asset in record["assets"]] == [(uid, "CC0") for uid in uids]
    for wrong, sentence in ((["no-such"], "no asset no-such"), (uids * 2, "limit is 3")):
        with pytest.raises(ValueError, match=sentence):
            pipeline.generate(PROMPT, settings=TINY, uids=wrong, out=tmp_path / "other", models=models)
    assert not (tmp_path / "other").exists()


def test_assets_of_the_library_come_before_uploaded_ones(models, tmp_path):
    (tmp_path / "owl.glb").write_bytes(tiny_glb((90, 20, 160)))
    inputs = {"uids": ["tiny-vase"], "assets": [(tmp_path / "owl.glb", "an owl")]}
    follow(pipeline.generate(PROMPT, settings=TINY.with_(iterations=1), **inputs, out=tmp_path / "run", models=models))
    record = Run.open(tmp_path / "run").read_json("record.json")
    assert [asset["uid"] for asset in record["assets"]] == ["tiny-vase", "upload-0"]
    vase, owl = record["attribution"].splitlines()[1:]
    assert "by Redream (vase.glb), CC0 1.0 (https://" in vase and owl == "“an owl” (owl.glb), no licence given"


def test_for_commercial_use_only_assets_are_retrieved_whose_licence_is_known_to_allow_it(tiny_stack, tmp_path):
    """Those of the owl, the cat and the dog do not; a run that is made of one of these by uid is refused."""
    make_stack_with_licences(tiny_stack, tmp_path / "stack", ["by-nc", "", "own terms", "by", "cc0", "by-sa"])
    models = Models.load(Stack.load(tmp_path / "stack", environ={}), "cpu")
    allowed = {"tiny-car", "tiny-mug", "tiny-vase"}
    assert {hit.uid for hit in pipeline.retrieve("an owl", k=6, commercial_use=True, models=models)} == allowed
    assert len(pipeline.retrieve("an owl", k=6, models=models)) == 6
    inputs = {"settings": TINY.with_(iterations=1), "commercial_use": True, "models": models}
    follow(pipeline.generate(PROMPT, **inputs, out=tmp_path / "run"))
    assert {asset["uid"] for asset in Run.open(tmp_path / "run").read_json("retrieved.json")["assets"]} == allowed
    for uid, sentence in (("tiny-owl", "has the licence by-nc, which"), ("tiny-cat", "has no licence, which")):
        with pytest.raises(LicenceError, match=sentence):
            pipeline.generate(PROMPT, **inputs, uids=[uid], out=tmp_path / "other")


def test_without_any_asset_for_commercial_use_a_sentence_says_so(tiny_stack, tmp_path):
    make_stack_with_licences(tiny_stack, tmp_path / "stack", ["by-nc"] * 6)
    run_events = pipeline.generate(PROMPT, stack=tmp_path / "stack", settings=TINY, commercial_use=True)
    with pytest.raises(LicenceError, match="No asset of the library has a licence that allows commercial use"):
        follow(run_events)


def test_uploaded_assets_are_refused_if_the_method_uses_none_or_they_are_malformed(models, tmp_path):
    file = tmp_path / "bad.glb"
    file.write_bytes(b"not a glb")
    for settings in (TINY.with_(method="vsd"), TINY.with_(initialise=False, adapt=False)):
        with pytest.raises(pipeline.PipelineError, match="or leave them out"):
            pipeline.generate(PROMPT, settings=settings, assets=[(file, "")], out=tmp_path / "run", models=models)
    with pytest.raises(pipeline.PipelineError, match="limit is 3"):
        pipeline.generate(PROMPT, settings=TINY, assets=[(file, "")] * 4, out=tmp_path / "run", models=models)
    (tmp_path / "owl.glb").write_bytes(tiny_glb((90, 20, 160)))
    for others, sentence in (
        ([], "This file is not a GLB"),
        ([(tmp_path / "owl.glb", "")], "bad.glb: This file is not a GLB"),
    ):
        with pytest.raises(pipeline.UploadError, match=f"^{sentence}") as error:
            assets = [*others, (file, "")]
            pipeline.generate(PROMPT, settings=TINY, assets=assets, out=tmp_path / "run", models=models)
        assert error.value.file == file
    assert not (tmp_path / "run").exists()


def test_an_upload_that_cannot_be_read_now_is_no_bad_one(models, tmp_path, monkeypatch):
    (tmp_path / "owl.glb").write_bytes(tiny_glb((90, 20, 160)))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: (_ for _ in ()).throw(BlockingIOError()))
    with pytest.raises(ReaderUnavailable, match="the computer starts no more processes"):
        pipeline.generate(PROMPT, settings=TINY, assets=[(tmp_path / "owl.glb", "")], models=models)


def test_an_upload_is_validated_once_and_again_when_the_run_is_resumed(models, tmp_path, monkeypatch):
    tasks, asked = [], GlbReader._asked
    monkeypatch.setattr(GlbReader, "_asked", lambda self, task, *rest: tasks.append(task) or asked(self, task, *rest))
    (tmp_path / "owl.glb").write_bytes(tiny_glb((90, 20, 160)))
    uploads, run = [(tmp_path / "owl.glb", "an owl")], tmp_path / "run"
    settings = TINY.with_(iterations=1, adapt=False)
    follow(pipeline.generate(PROMPT, settings=settings, assets=uploads, out=run, models=models))
    assert tasks == ["validate", "read validated"]
    (run / "upload-0.glb").write_bytes(b"changed by hand")
    with pytest.raises(GlbError):
        follow(pipeline.resume(run, 1, models=models))
    assert tasks[2:] == ["read"]


def test_the_index_is_loaded_once_for_a_request_by_uid(tiny_stack, tmp_path, monkeypatch):
    loaded, load = [], Index.load
    monkeypatch.setattr(Index, "load", lambda folder, *rest: loaded.append(folder) or load(folder, *rest))
    run_events = pipeline.generate(PROMPT, stack=tiny_stack, settings=TINY, uids=["tiny-vase"], out=tmp_path / "run")
    assert next(event for event in run_events if isinstance(event, events.Retrieved)).assets[0]["uid"] == "tiny-vase"
    assert len(loaded) == 1


def test_an_asset_whose_file_is_unavailable_is_left_out_with_a_warning(models, tmp_path, monkeypatch):
    best = pipeline.retrieve(PROMPT, k=4, models=models)
    path_of = Index.asset_path

    def without_the_best(index: Index, uid: str) -> Path:
        if uid == best[0].uid:
            raise AssetUnavailable("Objaverse did not answer.")
        return path_of(index, uid)

    monkeypatch.setattr(Index, "asset_path", without_the_best)
    settings = TINY.with_(retrieval={"candidates": PRESETS["mini"]["redream"].retrieval.candidates})
    run_events = pipeline.generate(PROMPT, settings=settings, out=tmp_path, models=models)
    _, warned, retrieved = next(run_events), next(run_events), next(run_events)
    assert "Objaverse did not answer" in warned.sentence
    assert [asset["uid"] for asset in retrieved.assets] == [hit.uid for hit in best[1:4]]


def test_the_last_event_of_a_run_that_broke_off_is_a_sentence(models, tmp_path, monkeypatch):
    def gone(index: Index, uid: str) -> Path:
        raise AssetUnavailable(f"The file of asset {uid} is missing.")

    with monkeypatch.context() as patch:
        patch.setattr(Index, "asset_path", gone)
        with pytest.raises(AssetUnavailable):
            follow(pipeline.generate(PROMPT, settings=TINY, out=tmp_path / "a", models=models))
    last = list(Run.open(tmp_path / "a").events())[-1]
    assert isinstance(last, events.Failed) and "is missing" in last.sentence
    monkeypatch.setattr(Index, "search", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        follow(pipeline.generate(PROMPT, settings=TINY, out=tmp_path / "b", models=models))
    assert "fault of this program" in list(Run.open(tmp_path / "b").events())[-1].sentence


def test_retrieval_returns_k_assets_best_first(models):
    hits = pipeline.retrieve(PROMPT, k=5, models=models)
    assert len({hit.uid for hit in hits}) == 5
    assert [hit.similarity for hit in hits] == sorted((hit.similarity for hit in hits), reverse=True)


def test_samples_differ_by_view_and_adaptation_and_by_nothing_else(models):
    steps = []
    pictures = [
        pipeline.sample(PROMPT, view, adapt, 2, models=models, settings=TINY, progress=lambda *at: steps.append(at))
        for view, adapt in [("front", False), ("front", False), ("back", False), ("front", True), (None, True)]
    ]
    assert all(p.shape == (2, 3, 64, 64) and 0 <= p.min() and p.max() <= 1 for p in pictures)
    assert torch.equal(pictures[0], pictures[1])
    assert len({p.sum().item() for p in pictures}) == 4
    assert steps == [(1, 2), (2, 2)] * 2
