"""One object's scores are those of its views, outlines and faces, and the truth is what the world says."""

import csv
import shutil

import numpy as np
import pytest
import torch
from tiny_stack import TINY, tiny_glb

from redream import judging
from redream.judging import EvaluationError
from redream.results import Studio
from redream.scene import assets
from redream.scene.cameras import Camera
from redream.stack import STACKS, Stack, check_prompt


def test_the_truth_overlaps_itself_wholly_and_the_best_variant_counts(models_with_truth):
    checked = check_prompt("a purple owl", models_with_truth.stack.vocabulary)
    truth, _ = judging.true_objects(models_with_truth.stack, checked)
    judge = judging.Judge(models_with_truth, TINY, checked, truth)
    ball, box = (judge.outlines(judging.Still(asset, TINY)) for asset in truth)
    assert judging.best_overlap(ball, [box, ball]) == 1.0
    assert judging.best_overlap(ball, [box]) < 1.0 and judging.best_overlap(ball, []) is None


def test_there_is_no_truth_for_other_colours_or_in_other_stacks_and_a_changed_file_is_refused(
    models_with_truth, tiny_stack, tmp_path
):
    def found(stack, prompt):
        return judging.true_objects(stack, check_prompt(prompt, stack.vocabulary))

    assert len(found(models_with_truth.stack, "a purple owl")[0]) == 2
    assert found(models_with_truth.stack, "a red owl") == found(models_with_truth.stack, "an owl") == ((), ())
    assert found(Stack.load(tiny_stack, environ={}), "a purple owl") == ((), ())
    shutil.copytree(models_with_truth.stack.base, tmp_path / "copy")
    (tmp_path / "copy/truth/1.glb").write_bytes(tiny_glb((1, 2, 3)))
    with pytest.raises(EvaluationError, match="not the one"):
        found(Stack.load(tmp_path / "copy", environ={}), "a purple owl")


@pytest.mark.parametrize(
    ("fronts_deg", "faces"),
    [
        ([], 0),
        (range(-90, 91, 3), 0),  # the front half is where a face belongs
        ([180], 0),  # 3° are no face
        ([177, 180, 183], 1),
        ([-177, -180, 177], 1),
        ([120, 123, 126, 129, 180, 183, 186, -99, -96, -93], 3),
        (range(0, 360, 3), 1),
    ],
)
def test_faces_are_counted_where_they_should_not_be(fronts_deg, faces):
    fronts = {azimuth % 360 for azimuth in fronts_deg}
    assert judging.faces_behind(["front" if 3 * k in fronts else "back" for k in range(120)]) == faces


def test_pictures_of_an_asset_are_made_by_the_steps_a_particles_are(models_with_truth):
    """Through `Studio`, an asset's opacity at the scores' size is that of casting its rays and resizing them."""
    checked = check_prompt("a purple owl", models_with_truth.stack.vocabulary)
    (asset, _), _ = judging.true_objects(models_with_truth.stack, checked)
    camera = Camera(30.0, 15.0, 1.6, 40.0)
    image, opacity = Studio(judging.Still(asset, TINY), TINY, TINY.turntable_rays).for_scores(camera)
    expected = asset.render(camera, TINY.turntable_rays, torch.ones(3), samples=1)
    assert torch.equal(image, expected[0]) and torch.equal(opacity, expected[1])


def test_the_true_objects_are_what_the_world_models_front_to_the_camera_at_0():
    from assets_index import make_mini, world

    seen = {t.variant for t in world.training_things() + world.test_things() + world.index_things()}
    assert not seen & set(make_mini.TRUTH_VARIANTS)
    with (STACKS / "mini/truth/truth.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum((STACKS / "mini/truth" / row["file"]).stat().st_size for row in rows) < 4e6
    row = next(row for row in rows if (row["kind"], row["colour"]) == ("owl", "purple"))
    stored = assets.load(STACKS / "mini/truth" / row["file"], normalise=False)
    thing = world.Thing("owl", "purple", int(row["variant"])).asset()
    assert np.allclose(stored.mesh.vertices, thing.mesh.vertices, atol=1e-6) and len(stored.mesh.faces) > 100
    assert np.abs(stored.colours - thing.colours).max() < 1e-3
