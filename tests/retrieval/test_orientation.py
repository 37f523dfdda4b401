"""Orientation alignment, with a fake CLIP that sees nothing but colour: red fronts, green sides, blue backs."""

import numpy as np
import pytest
import torch
import trimesh

from redream.retrieval.clip import Clip
from redream.retrieval.orientation import VIEWS, align, best_yaw, pictures
from redream.scene.assets import Asset
from redream.scene.cameras import Camera, ring, view_name
from redream.settings import Settings

SETTINGS = Settings()
RED, GREEN, BLUE, GRAY = (1, 0, 0), (0, 1, 0), (0, 0, 1), (0.93, 0.93, 0.93)


class ColourClip(Clip):
    """Maps a picture's amounts of red, green and blue to the axes of "front", "side" and "back"."""

    size, scale = 32, 20.0

    def __init__(self, bias: float = 0.0) -> None:
        self.bias = bias  # how much it takes anything for a front

    def embed_texts(self, texts):
        return torch.stack([torch.eye(4)[[view in text for view in VIEWS].index(True)] for text in texts])

    def embed_images(self, images):
        others = torch.stack([images.roll(1, 1), images.roll(2, 1)]).amax(0)
        amount = (images - others).clamp(min=0).mean(dim=(2, 3))  # (b, 3)
        amount = torch.cat([amount, torch.full((len(images), 1), 0.05)], dim=1)
        amount[:, 0] += self.bias
        return torch.nn.functional.normalize(amount, dim=1)


def painted_box(front=RED, side=GREEN, back=BLUE) -> Asset:
    mesh = trimesh.creation.box((0.5, 0.5, 0.5))
    mesh.unmerge_vertices()
    x, y = np.repeat(mesh.face_normals, 3, axis=0)[:, :2].round().T
    colours = np.full((len(mesh.vertices), 3), GRAY, np.float32)
    for hit, colour in ((x > 0, front), (x < 0, back), (y != 0, side)):
        colours[hit] = colour
    return Asset(mesh, colours)


def apart(a: float, b: float) -> float:
    return abs((a - b + 180) % 360 - 180)


@pytest.mark.parametrize("true_deg", [0, 15, 40, 77, 90, 123, 180, 200, 270, 301, 352])
def test_alignment_undoes_the_rotation_of_an_asset(true_deg):
    rotated = painted_box().rotated(float(true_deg))
    alignment = align(rotated, "box", ColourClip(), SETTINGS)
    assert alignment.clear and -180 < alignment.yaw_deg <= 180
    assert apart(rotated.rotated(alignment.yaw_deg).yaw_deg, 0) <= 15


def test_after_alignment_the_front_camera_sees_the_front():
    asset = painted_box().rotated(110.0)
    aligned = asset.rotated(align(asset, "box", ColourClip(), SETTINGS).yaw_deg)
    image, _ = aligned.render(Camera(0.0, 0.0, 1.6, 40.0), 16, torch.zeros(3))
    assert image[0, 0].mean() > 4 * image[0, 1:].amax(dim=0).mean()


def test_a_clip_biased_towards_front_still_finds_the_front():
    alignment = align(painted_box().rotated(-60.0), "box", ColourClip(bias=0.3), SETTINGS)
    assert alignment.clear and apart(alignment.yaw_deg, 60) <= 15


@pytest.mark.parametrize("colour", [RED, GREEN, BLUE])
def test_a_symmetric_object_has_no_clear_front_and_stays_as_it_is(colour):
    mesh = trimesh.creation.icosphere(3, 0.5)
    sphere = Asset(mesh, np.tile(np.float32(colour), (len(mesh.vertices), 1)))
    alignment = align(sphere, "ball", ColourClip(), SETTINGS)
    assert not alignment.clear and alignment.yaw_deg == 0


def test_an_object_with_two_fronts_has_no_clear_one():
    alignment = align(painted_box(back=RED), "box", ColourClip(), SETTINGS)
    assert not alignment.clear and alignment.margin == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("count", [8, 24, 36])
def test_certainty_has_margin_one_wherever_the_front_is(count):
    for place in range(count):
        names = [VIEWS.index(view_name(c.azimuth_deg - 360 * place / count)) for c in ring(count, 15.0, 1.6, 40.0)]
        alignment = best_yaw(torch.eye(3)[names])
        assert alignment.margin == pytest.approx(1) and apart(alignment.yaw_deg, -360 * place / count) < 1e-6


def test_ignorance_has_margin_zero():
    assert best_yaw(torch.full((24, 3), 1 / 3)).margin == pytest.approx(0, abs=1e-6)


def test_pictures_have_the_requested_size_and_a_light_background():
    images = pictures(painted_box(), ring(3, 15.0, 1.6, 40.0), 20)
    assert images.shape == (3, 3, 20, 20)
    assert torch.allclose(images[:, :, 0, 0], torch.tensor(0.93))
