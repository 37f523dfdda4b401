"""One object's scores are those of its views and silhouettes, and the true objects are those of the world."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_stack import TINY, tiny_glb

from redream.evaluation import scorer
from redream.evaluation.scorer import EvaluationError
from redream.runs import outputs
from redream.scene import assets
from redream.scene.cameras import Camera, ring
from redream.stack.stack import STACKS, Stack
from redream.stack.vocabulary import parse_prompt


def scorer_of(models, truth=None) -> scorer.Scorer:
    """The scorer of purple owls, with their true objects or others."""
    parsed = parse_prompt("a purple owl", models.stack.vocabulary)
    variants, _ = scorer.true_objects(models.stack, parsed)
    return scorer.Scorer(models, TINY, parsed, variants if truth is None else truth)


def test_the_truth_overlaps_itself_wholly_and_the_best_variant_counts(models_with_truth):
    owls = scorer_of(models_with_truth)
    ball, box = (owls.silhouettes(scorer.RenderableAsset(asset, TINY)) for asset in owls.truth)
    assert scorer.best_overlap(ball, [box, ball]) == 1.0
    assert scorer.best_overlap(ball, [box]) < 1.0 and scorer.best_overlap(ball, []) is None


def test_there_is_no_truth_for_other_colours_or_in_other_stacks_and_a_changed_file_is_refused(
    models_with_truth, tiny_stack, tmp_path
):
    def truth(stack, prompt):
        return scorer.true_objects(stack, parse_prompt(prompt, stack.vocabulary))

    assert len(truth(models_with_truth.stack, "a purple owl")[0]) == 2
    assert truth(models_with_truth.stack, "a red owl") == truth(models_with_truth.stack, "an owl") == ((), ())
    assert truth(Stack.load(tiny_stack, environ={}), "a purple owl") == ((), ())
    shutil.copytree(models_with_truth.stack.base, tmp_path / "copy")
    (tmp_path / "copy/truth/1.glb").write_bytes(tiny_glb((1, 2, 3)))
    with pytest.raises(EvaluationError, match="not the one"):
        truth(Stack.load(tmp_path / "copy", environ={}), "a purple owl")


def test_a_variant_of_the_truth_is_compared_with_the_others_only(models_with_truth, tmp_path):
    """With two variants the mean of the others is the other one: the error of both is their whole difference."""
    owls = scorer_of(models_with_truth)
    first, second = (owls._score_views(scorer.RenderableAsset(asset, TINY))["a_lpips_a"] for asset in owls.truth)
    scores = scorer.rounded(owls.score_truth(tmp_path))
    assert scores["a_lpips_error_a"] == pytest.approx(abs(first - second), abs=2e-6) and first != second
    assert str(scores["a_lpips_difference_a"]) == "0.0"
    alone = scorer_of(models_with_truth, owls.truth[:1]).score_truth(tmp_path)
    assert alone["a_lpips_error_a"] is alone["silhouette_iou"] is None


def test_less_change_between_views_than_the_truth_has_is_a_negative_difference_and_an_error():
    scores, true = {"a_lpips_a": 0.01, "a_lpips_b": None}, {"a_lpips_a": 0.03, "a_lpips_b": 0.1}
    compared = scorer.rounded(scorer.truth_differences(scores, true))
    assert compared["a_lpips_difference_a"] == -0.02 and compared["a_lpips_error_a"] == 0.02
    assert compared["a_lpips_difference_b"] is compared["a_lpips_error_b"] is None


def test_the_sprites_of_an_asset_are_its_views_once_around_in_rows(models_with_truth, tmp_path):
    owls = scorer_of(models_with_truth)
    owls._save_sprites(scorer.RenderableAsset(owls.truth[0], TINY), tmp_path)
    sheet = np.asarray(Image.open(tmp_path / "sprite.jpg")).astype(int)
    side, columns = outputs.SPRITE_SIDE, outputs.SPRITE_COLUMNS
    assert sheet.shape == (columns * side, columns * side, 3)
    camera = ring(outputs.SPRITE_FRAMES, 15.0, 1.6, 40.0)[columns + 2]  # second row, third view
    view = outputs.as_bytes(owls.truth[0].render(camera, side, torch.ones(3))[0][0]).astype(int)
    assert np.abs(sheet[side : 2 * side, 2 * side : 3 * side] - view).mean() < 4  # JPEG


def test_images_of_an_asset_are_made_in_the_steps_of_those_of_a_particle(models_with_truth):
    """Through `CachedViews`, an asset's opacity at the scores' size is that of casting its rays and resizing them."""
    asset = scorer_of(models_with_truth).truth[0]
    camera, rays = Camera(30.0, 15.0, 1.6, 40.0), TINY.output.turntable_rays
    image, opacity = outputs.CachedViews(scorer.RenderableAsset(asset, TINY), TINY, rays).for_scores(camera)
    expected = asset.render(camera, rays, torch.ones(3))
    assert torch.equal(image, expected[0]) and torch.equal(opacity, expected[1])


def test_the_true_objects_of_the_miniature_are_those_of_its_world_with_the_front_at_azimuth_0():
    from assets_index import make_mini, world

    others = {t.variant for t in world.training_things() + world.test_things() + world.index_things()}
    assert not others & set(make_mini.TRUTH_VARIANTS)
    with (STACKS / "mini/truth/truth.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum((STACKS / "mini/truth" / row["file"]).stat().st_size for row in rows) < 30e3 * len(rows)
    row = next(row for row in rows if (row["kind"], row["colour"]) == ("owl", "purple"))
    stored = assets.load(STACKS / "mini/truth" / row["file"], normalise=False)
    thing = world.Thing("owl", "purple", int(row["variant"])).asset()
    assert np.allclose(stored.mesh.vertices, thing.mesh.vertices, atol=1e-6) and len(stored.mesh.faces) > 100
    assert np.abs(stored.colours - thing.colours).max() < 1e-3
