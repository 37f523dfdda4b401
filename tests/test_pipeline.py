"""A run from prompt to files: complete, repeatable, stoppable, resumable, and refused in sentences."""

import os
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import pytest
import torch
from PIL import Image
from tiny_stack import TINY, tiny_glb

from redream import pipeline
from redream.retrieval.index import AssetUnavailable, Index
from redream.runs import events, outputs
from redream.runs.run import LOCK, Run, RunError
from redream.scene import assets
from redream.scene.glb_validation import GlbError
from redream.settings import PRESETS
from redream.stack.models import Models
from redream.stack.stack import Stack, StackError
from redream.stack.vocabulary import PromptError

PROMPT = "a purple owl"


@pytest.fixture(scope="module")
def models_v(tiny_stack_v):
    return Models.load(Stack.load(tiny_stack_v, environ={}), "cpu")


def follow(told) -> list[events.Event]:
    return list(told)


def kinds(told) -> list[str]:
    return [type(event).__name__ for event in told if not isinstance(event, events.Progress)]


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """A run that nothing interrupted, and its events."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    told = follow(pipeline.generate(PROMPT, settings=TINY, out=folder, models=models))
    return folder, told


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
    folder, told = whole
    expected = ["Started", "Retrieved", *["Oriented"] * 3, *["Preview"] * 3, "Artefact", "Artefact", "Scored"]
    assert kinds(told) == [*expected, "Finished"]
    check_files(folder)
    for event in told:
        for file in (getattr(event, "file", None), getattr(event, "strip", None), *getattr(event, "strips", ())):
            assert file is None or (folder / file).is_file()
    iterations = [event.iteration for event in told if isinstance(event, events.Progress) and event.losses]
    assert iterations == [1, 2, 3, 4]
    assert told[-1] == events.Finished(stopped=False)


def test_the_history_is_what_was_told(whole):
    folder, told = whole
    assert list(Run.open(folder).events()) == told


def test_v_prediction_and_a_stack_without_a_vocabulary_work_alike(models_v, tmp_path):
    told = follow(pipeline.generate("Ironman!", settings=TINY, out=tmp_path, models=models_v))
    assert told[-1] == events.Finished(stopped=False)
    check_files(tmp_path)


def test_a_run_has_sprites_of_its_first_turntable(whole):
    folder, _ = whole
    side = outputs.SPRITE_COLUMNS * outputs.SPRITE_SIDE
    with Image.open(folder / "sprite.jpg") as sheet:
        assert sheet.format == "JPEG" and sheet.size == (side, side)


def test_a_record_says_all_that_reproduces_the_run_and_scores_no_time_or_path(whole):
    folder, _ = whole
    run = Run.open(folder)
    record, retrieved = run.read_json("record.json"), run.read_json("retrieved.json")
    assert record["prompt"] == retrieved["prompt"] == PROMPT
    assert [asset["uid"] for asset in record["assets"]] == [asset["uid"] for asset in retrieved["assets"]]
    assert set(retrieved["assets"][0]) == {"uid", "caption", "author", "license", "similarity", "source"}
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


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(whole, models, tmp_path):
    told = pipeline.generate(PROMPT, settings=TINY, out=tmp_path, models=models)
    for event in told:
        if isinstance(event, events.Progress) and event.iteration == 3:
            break  # the last checkpoint is of iteration 2
    told.close()
    assert not (tmp_path / "scores.json").exists() and len(Run.open(tmp_path).checkpoints()) == 1
    told = follow(pipeline.resume(tmp_path, models=models))
    assert (told[0].iteration, told[0].total) == (2, 4)
    assert result(tmp_path) == result(whole[0])
    check_files(tmp_path)


def test_stopping_keeps_what_there_is_and_the_rest_can_follow(whole, models, tmp_path):
    seen = []
    told = pipeline.generate(PROMPT, settings=TINY, out=tmp_path, models=models, stop=lambda: len(seen) >= 1)
    for event in told:
        if isinstance(event, events.Progress) and event.losses:
            seen.append(event.iteration)
    assert seen == [1] and event == events.Finished(stopped=True)
    check_files(tmp_path)
    follow(pipeline.resume(tmp_path, models=models))
    assert result(tmp_path) == result(whole[0])


def test_stopping_before_the_first_iteration_makes_nothing(models, tmp_path):
    told = follow(pipeline.generate(PROMPT, settings=TINY, out=tmp_path, models=models, stop=lambda: True))
    assert kinds(told)[-2:] == ["Oriented", "Finished"] and told[-1].stopped
    assert not list(tmp_path.glob("*.mp4")) and not Run.open(tmp_path).finished


def test_a_finished_run_has_nothing_to_do_unless_more_is_asked_for(models, tmp_path):
    settings = TINY.with_(method="vsd", iterations=2)
    told = follow(pipeline.generate(PROMPT, settings=settings, out=tmp_path, models=models))
    assert "Retrieved" not in kinds(told) and not (tmp_path / "retrieved.json").exists()
    before = result(tmp_path)
    assert follow(pipeline.resume(tmp_path, models=models)) == []
    told = follow(pipeline.resume(tmp_path, 1, models=models))
    assert (told[0].iteration, told[0].total) == (2, 3) and not told[-1].stopped
    assert result(tmp_path)[1] != before[1]
    assert follow(pipeline.resume(tmp_path, models=models)) == []
    with pytest.raises(RunError, match="out of range"):
        pipeline.resume(tmp_path, 50_000)


def test_several_particles_have_a_turntable_a_mesh_and_scores_each(models, tmp_path):
    settings = TINY.with_(particles=2, iterations=1)
    told = follow(pipeline.generate(PROMPT, settings=settings, out=tmp_path, models=models))
    assert [event.particle for event in told if isinstance(event, events.Artefact)] == [0, 0, 1, 1]
    check_files(tmp_path, particles=2)


def test_an_object_without_a_surface_is_said_and_the_rest_is_made(models, tmp_path):
    settings = TINY.with_(method="sds", iterations=1, field={"density_scale": -50.0, "density_radius": 5.0})
    told = follow(pipeline.generate(PROMPT, settings=settings, out=tmp_path, models=models))
    assert kinds(told) == ["Started", "Preview", "Artefact", "Warned", "Scored", "Finished"]
    assert "no surface" in next(event.sentence for event in told if isinstance(event, events.Warned))
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


def test_what_the_environment_replaced_in_a_stack_is_remembered(tiny_stack, tiny_stack_v, tmp_path):
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


def test_words_that_are_not_known_are_warned_of(models, tmp_path):
    told = pipeline.generate("a glittering owl", settings=TINY, out=tmp_path, models=models)
    assert next(told).prompt == "a owl" and "glittering" in next(told).sentence


def test_a_stack_or_a_folder_that_cannot_be_used_is_refused(models, tmp_path):
    with pytest.raises(StackError):
        pipeline.generate(PROMPT, stack=tmp_path)
    (tmp_path / "mine.txt").write_text("dear")
    with pytest.raises(RunError, match="not empty"):
        pipeline.generate(PROMPT, out=tmp_path, models=models)


def test_given_assets_are_used_instead_and_kept_with_the_run(models, tmp_path):
    mine = tmp_path / "my owl.glb"
    mine.write_bytes(tiny_glb((90, 20, 160)))
    run = tmp_path / "run"
    settings = TINY.with_(iterations=1)
    told = pipeline.generate(PROMPT, settings=settings, assets=[(mine, "an owl"), (mine, "")], out=run, models=models)
    mine.unlink()
    follow(told)
    first, second = Run.open(run).read_json("retrieved.json")["assets"]
    assert (first["source"], first["caption"], second["caption"]) == ("my owl.glb", "an owl", PROMPT)
    assert -1 <= first["similarity"] <= 1 and first["uid"] != second["uid"]
    check_files(run)


def test_assets_chosen_from_the_library_are_used_instead_and_recorded_with_their_licence(models, tmp_path):
    uids, run = ["tiny-vase", "tiny-mug"], tmp_path / "run"
    follow(pipeline.generate(PROMPT, settings=TINY.with_(iterations=1), uids=uids, out=run, models=models))
    record = Run.open(run).read_json("record.json")
    assert [(asset["uid"], asset["license"]) for asset in record["assets"]] == [(uid, "CC0") for uid in uids]
    for wrong, said in ((["no-such"], "no asset no-such"), (uids * 2, "limit is 3")):
        with pytest.raises(ValueError, match=said):
            pipeline.generate(PROMPT, settings=TINY, uids=wrong, out=tmp_path / "other", models=models)
    with pytest.raises(pipeline.PipelineError, match="not both"):
        pipeline.generate(
            PROMPT, settings=TINY, uids=uids, assets=[("x.glb", "")], out=tmp_path / "other", models=models
        )
    assert not (tmp_path / "other").exists()


def test_given_assets_are_refused_where_they_are_not_used_or_not_fit(models, tmp_path):
    file = tmp_path / "bad.glb"
    file.write_bytes(b"not a glb")
    for settings in (TINY.with_(method="vsd"), TINY.with_(initialise=False, adapt=False)):
        with pytest.raises(pipeline.PipelineError, match="initialisation"):
            pipeline.generate(PROMPT, settings=settings, assets=[(file, "")], out=tmp_path / "run", models=models)
    with pytest.raises(pipeline.PipelineError, match="limit is 3"):
        pipeline.generate(PROMPT, settings=TINY, assets=[(file, "")] * 4, out=tmp_path / "run", models=models)
    with pytest.raises(GlbError):
        pipeline.generate(PROMPT, settings=TINY, assets=[(file, "")], out=tmp_path / "run", models=models)
    assert not (tmp_path / "run").exists()


def test_an_asset_that_cannot_be_had_is_left_out_with_a_warning(models, tmp_path, monkeypatch):
    best = pipeline.retrieve(PROMPT, k=4, models=models)
    path_of = Index.asset_path

    def without_the_best(index: Index, uid: str) -> Path:
        if uid == best[0].uid:
            raise AssetUnavailable("Objaverse did not answer.")
        return path_of(index, uid)

    monkeypatch.setattr(Index, "asset_path", without_the_best)
    settings = TINY.with_(retrieval={"candidates": PRESETS["mini"]["redream"].retrieval.candidates})
    told = pipeline.generate(PROMPT, settings=settings, out=tmp_path, models=models)
    _, warned, retrieved = next(told), next(told), next(told)
    assert "Objaverse did not answer" in warned.sentence
    assert [asset["uid"] for asset in retrieved.assets] == [hit.uid for hit in best[1:4]]


def test_a_fault_ends_the_history_with_a_sentence(models, tmp_path, monkeypatch):
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


def test_retrieval_gives_as_many_as_asked_for_best_first(models):
    hits = pipeline.retrieve(PROMPT, k=5, models=models)
    assert len({hit.uid for hit in hits}) == 5
    assert [hit.similarity for hit in hits] == sorted((hit.similarity for hit in hits), reverse=True)


def test_samples_differ_by_view_and_adaptation_and_by_nothing_else(models):
    told = []
    pictures = [
        pipeline.sample(PROMPT, view, adapt, 2, models=models, settings=TINY, progress=lambda *at: told.append(at))
        for view, adapt in [("front", False), ("front", False), ("back", False), ("front", True), (None, True)]
    ]
    assert all(p.shape == (2, 3, 64, 64) and 0 <= p.min() and p.max() <= 1 for p in pictures)
    assert torch.equal(pictures[0], pictures[1])
    assert len({p.sum().item() for p in pictures}) == 4
    assert told == [(1, 2), (2, 2)] * 2
