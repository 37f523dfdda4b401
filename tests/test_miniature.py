"""The main job on the shipped stack: a sentence the library has no asset for becomes an object with one face."""

import json

import pytest
import torch

from redream import pipeline
from redream.distillation.checkpoint import load_particles
from redream.runs.events import Artefact, Retrieved
from redream.runs.run import Run
from redream.scene import assets
from redream.scene.cameras import ring
from redream.scoring.metrics import silhouette_iou
from redream.settings import PRESETS

PROMPT = "a purple owl"
FAST = PRESETS["mini-fast"]["redream"].with_(
    iterations=60, adaptation={"steps": 20}, output={"turntable_rays": 64}
)  # enough for one face


@pytest.fixture(scope="module")
def made(mini, full_outputs, tmp_path_factory):
    """The run's folder and its events: preset mini-fast, but shorter."""
    folder = tmp_path_factory.mktemp("miniature") / "run"
    events = list(pipeline.generate(PROMPT, stack=mini, settings=FAST, out=folder))
    return Run.open(folder), events


def test_three_owls_are_retrieved_none_of_them_purple(made):
    _, events = made
    (retrieved,) = (e for e in events if isinstance(e, Retrieved))
    captions = [entry["caption"] for entry in retrieved.assets]
    assert len(captions) == 3 and all("owl" in caption for caption in captions)
    assert not any("purple" in caption or "violet" in caption for caption in captions)


def test_the_object_fits_its_prompt_and_has_one_face(made):
    run, _ = made
    (scores,) = json.loads((run.folder / "scores.json").read_text())["objects"]
    assert min(scores["clip_a"], scores["clip_b"]) > 0.65  # true objects have 0.78 and 0.84
    assert min(scores["view_accuracy_a"], scores["view_accuracy_b"]) > 0.7


def test_the_mesh_and_the_field_agree_from_eight_sides(made):
    """Silhouettes overlap by 0.9, and colours differ by less than 22 dB PSNR allows, both cast from the same rays."""
    run, events = made
    (particle,) = load_particles(run.checkpoints()[-1], FAST)
    (file,) = (e.file for e in events if isinstance(e, Artefact) and e.kind == "mesh")
    mesh = assets.load(run.folder / file, normalise=False)
    assert len(mesh.mesh.faces) <= FAST.output.mesh_faces
    overlaps, errors = [], []
    for camera in ring(8, 15.0, 1.6, 40.0):
        rendering = particle.render(camera, 128, torch.ones(3))
        image, opacity = mesh.render(camera, 128, torch.ones(3))
        overlaps.append(silhouette_iou(rendering.opacity, opacity))
        errors.append((rendering.image - image).square().mean())
    psnr = -10 * torch.stack(errors).mean().log10()
    assert sum(overlaps) / 8 >= 0.9
    assert psnr >= 22
