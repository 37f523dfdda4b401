"""One object's scores are those of its views, outlines and faces, and the truth is what the world says."""

import csv
import shutil

import numpy as np
import pytest
import torch
from tiny_stack import TINY, tiny_glb

from redream.evaluation import scorer
from redream.evaluation.scorer import EvaluationError
from redream.runs.outputs import CachedViews
from redream.scene import assets
from redream.scene.cameras import Camera
from redream.stack.stack import STACKS, Stack
from redream.stack.vocabulary import parse_prompt


def test_the_truth_overlaps_itself_wholly_and_the_best_variant_counts(models_with_truth):
    checked = parse_prompt("a purple owl", models_with_truth.stack.vocabulary)
    truth, _ = scorer.true_objects(models_with_truth.stack, checked)
    own = scorer.Scorer(models_with_truth, TINY, checked, truth)
    ball, box = (own.outlines(scorer.RenderableAsset(asset, TINY)) for asset in truth)
    assert scorer.best_overlap(ball, [box, ball]) == 1.0
    assert scorer.best_overlap(ball, [box]) < 1.0 and scorer.best_overlap(ball, []) is None


def test_there_is_no_truth_for_other_colours_or_in_other_stacks_and_a_changed_file_is_refused(
    models_with_truth, tiny_stack, tmp_path
):
    def found(stack, prompt):
        return scorer.true_objects(stack, parse_prompt(prompt, stack.vocabulary))

    assert len(found(models_with_truth.stack, "a purple owl")[0]) == 2
    assert found(models_with_truth.stack, "a red owl") == found(models_with_truth.stack, "an owl") == ((), ())
    assert found(Stack.load(tiny_stack, environ={}), "a purple owl") == ((), ())
    shutil.copytree(models_with_truth.stack.base, tmp_path / "copy")
    (tmp_path / "copy/truth/1.glb").write_bytes(tiny_glb((1, 2, 3)))
    with pytest.raises(EvaluationError, match="not the one"):
        found(Stack.load(tmp_path / "copy", environ={}), "a purple owl")


def test_a_variant_of_the_truth_is_compared_with_the_others_only(models_with_truth, tmp_path):
    """With two variants the mean of the others is the other one, so both are off by their whole difference."""
    checked = parse_prompt("a purple owl", models_with_truth.stack.vocabulary)
    truth, _ = scorer.true_objects(models_with_truth.stack, checked)
    own = scorer.Scorer(models_with_truth, TINY, checked, truth)
    first, second = (own._alone(scorer.RenderableAsset(asset, TINY))["a_lpips_a"] for asset in truth)
    scores = scorer.rounded(own.true_object(tmp_path))
    assert scores["a_lpips_error_a"] == pytest.approx(abs(first - second), abs=2e-6) and first != second
    assert str(scores["a_lpips_difference_a"]) == "0.0"
    alone = scorer.Scorer(models_with_truth, TINY, checked, truth[:1]).true_object(tmp_path)
    assert alone["a_lpips_error_a"] is alone["silhouette_iou"] is None


def test_less_change_than_the_truths_is_negative_and_as_far_off_as_more():
    own, true = {"a_lpips_a": 0.01, "a_lpips_b": None}, {"a_lpips_a": 0.03, "a_lpips_b": 0.1}
    found = scorer.rounded(scorer.beside_the_truth(own, true))
    assert found["a_lpips_difference_a"] == -0.02 and found["a_lpips_error_a"] == 0.02
    assert found["a_lpips_difference_b"] is found["a_lpips_error_b"] is None


def test_pictures_of_an_asset_are_made_by_the_steps_a_particles_are(models_with_truth):
    """Through `CachedViews`, an asset's opacity at the scores' size is that of casting its rays and resizing them."""
    checked = parse_prompt("a purple owl", models_with_truth.stack.vocabulary)
    (asset, _), _ = scorer.true_objects(models_with_truth.stack, checked)
    camera = Camera(30.0, 15.0, 1.6, 40.0)
    image, opacity = CachedViews(scorer.RenderableAsset(asset, TINY), TINY, TINY.output.turntable_rays).for_scores(
        camera
    )
    expected = asset.render(camera, TINY.output.turntable_rays, torch.ones(3))
    assert torch.equal(image, expected[0]) and torch.equal(opacity, expected[1])


def test_the_true_objects_are_what_the_world_models_front_to_the_camera_at_0():
    from assets_index import make_mini, world

    seen = {t.variant for t in world.training_things() + world.test_things() + world.index_things()}
    assert not seen & set(make_mini.TRUTH_VARIANTS)
    with (STACKS / "mini/truth/truth.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum((STACKS / "mini/truth" / row["file"]).stat().st_size for row in rows) < 30e3 * len(rows)
    row = next(row for row in rows if (row["kind"], row["colour"]) == ("owl", "purple"))
    stored = assets.load(STACKS / "mini/truth" / row["file"], normalise=False)
    thing = world.Thing("owl", "purple", int(row["variant"])).asset()
    assert np.allclose(stored.mesh.vertices, thing.mesh.vertices, atol=1e-6) and len(stored.mesh.faces) > 100
    assert np.abs(stored.colours - thing.colours).max() < 1e-3
