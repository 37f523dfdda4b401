"""Every score must see the fault that it is there for, on real things of the miniature world with its own models."""

import numpy as np
import pytest
import torch
import trimesh
from torch import nn

from assets_index.world import TEST_VARIANTS, Thing
from redream.retrieval.clip import Clip
from redream.scene.assets import Asset, from_mesh
from redream.scene.cameras import score_ring
from redream.scoring.metrics import FROM_VIEW_NAMES, a_lpips, clip_score, view_names
from redream.scoring.perceptual import PerceptualNet
from redream.settings import Settings

pytestmark = pytest.mark.slow

# Things with a front, and the colour that is wrong for them.
THINGS = [
    ("owl", "purple", "green"),
    ("cat", "orange", "blue"),
    ("dog", "brown", "pink"),
    ("car", "red", "turquoise"),
    ("robot", "blue", "yellow"),
    ("chair", "green", "red"),
]
VIEWS_AROUND = 24
SIZE = 64
WHITE = torch.ones(3)
CAMERAS = score_ring(VIEWS_AROUND, Settings().output)


def pictures(asset: Asset) -> torch.Tensor:
    return torch.cat([asset.render(camera, SIZE, WHITE)[0] for camera in CAMERAS])  # (24, 3, 64, 64)


def two_faced(asset: Asset) -> Asset:
    """The asset and itself turned by 180°, in one: a face on the back."""
    rotated = asset.mesh.copy()
    rotated.apply_transform(trimesh.transformations.rotation_matrix(np.pi, [0, 0, 1]))
    mesh = trimesh.util.concatenate([asset.mesh, rotated])
    return Asset(mesh, np.concatenate([asset.colours, asset.colours]))


def blob(asset: Asset) -> Asset:
    """A ball in the mean colour of what is seen of the asset."""
    views = [asset.render(camera, SIZE, torch.zeros(3)) for camera in CAMERAS]
    colour = sum(rgb.sum(dim=(2, 3))[0] for rgb, _ in views) / sum(opacity.sum() for _, opacity in views)  # (3,)
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.4)
    ball.visual.vertex_colors = [*(colour * 255).round().byte().tolist(), 255]
    return from_mesh(ball)


def blurred(images: torch.Tensor, width: int) -> torch.Tensor:
    """Brought to `width` pixels and back; the CLIPs were trained to bear no less than 20, and to mind a blurred thing."""
    small = nn.functional.interpolate(images, size=width, mode="area")
    return nn.functional.interpolate(small, size=SIZE, mode="bilinear")


def sieved(images: torch.Tensor) -> torch.Tensor:
    """Half of the pixels gone: a fault that no model was trained with."""
    gone = torch.rand(len(images), 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) < 0.5
    return torch.where(gone, 1.0, images)


def doubled(images: torch.Tensor) -> torch.Tensor:
    """Every view mixed with the one from a quarter of the circle further: a thing of two sides at once, which the CLIPs were
    trained to mind."""
    return (images + images.roll(VIEWS_AROUND // 4, dims=0)) / 2


@pytest.fixture(scope="module")
def means(mini) -> dict[str, dict[str, float]]:
    """{version: {score: mean over things}} of the true things and of every fault."""
    clips = {key: Clip.load(mini.folder(mini.clips[key])) for key in ("a", "b")}
    nets = {key: PerceptualNet.load(mini.folder(entry)) for key, entry in mini.perceptual.items()}
    rows: dict[str, list[dict[str, float]]] = {}
    for kind, colour, wrong in THINGS:
        prompt = f"a {colour} {kind}"
        asset = Thing(kind, colour, TEST_VARIANTS[0]).asset()
        true = pictures(asset)
        versions = {
            "true": true,
            "two-faced": pictures(two_faced(asset)),
            "wrong colour": pictures(Thing(kind, wrong, TEST_VARIANTS[0]).asset()),
            "blurred": blurred(true, 8),
            "less blurred": blurred(true, 12),
            "sieved": sieved(true),
            "doubled": doubled(true),
            "blob": pictures(blob(asset)),
        }
        for version, images in versions.items():
            values = {f"clip_{key}": clip_score(clip, images, prompt) for key, clip in clips.items()}
            names = {key: view_names(clip, clip.embed_images(images), prompt) for key, clip in clips.items()}
            for score, metric in FROM_VIEW_NAMES.items():
                values |= {f"{score}_{key}": float(metric(of_key, CAMERAS)) for key, of_key in names.items()}
            values |= {f"a_lpips_{key}": a_lpips(net, images) for key, net in nets.items()}
            rows.setdefault(version, []).append(values)
    return {
        version: {name: float(np.mean([v[name] for v in values])) for name in values[0]}
        for version, values in rows.items()
    }


@pytest.mark.parametrize("key", ["a", "b"])
def test_a_face_on_the_back_lowers_view_accuracy(means, key):
    assert means["two-faced"][f"view_accuracy_{key}"] < means["true"][f"view_accuracy_{key}"] - 0.1


@pytest.mark.parametrize("key", ["a", "b"])
def test_a_face_on_the_back_is_called_front_there_and_counted(means, key):
    """The true things have none; of the turned copies at least every third view from behind is called a front."""
    assert means["true"][f"janus_rate_{key}"] < 0.05 and means["true"][f"janus_count_{key}"] < 0.2
    assert means["two-faced"][f"janus_rate_{key}"] > 0.3 and means["two-faced"][f"janus_count_{key}"] > 0.5


@pytest.mark.parametrize("key", ["a", "b"])
def test_the_wrong_colour_lowers_the_clip_score(means, key):
    assert means["wrong colour"][f"clip_{key}"] < means["true"][f"clip_{key}"] - 0.05


@pytest.mark.parametrize("key", ["a", "b"])
def test_heavy_blur_lowers_the_clip_score(means, key):
    assert means["blurred"][f"clip_{key}"] < means["true"][f"clip_{key}"] - 0.05


@pytest.mark.parametrize("key", ["a", "b"])
def test_half_as_much_blur_lowers_the_clip_score_less(means, key):
    """To 12 pixels."""
    assert means["blurred"][f"clip_{key}"] < means["less blurred"][f"clip_{key}"] < means["true"][f"clip_{key}"] - 0.04


@pytest.mark.parametrize("key", ["a", "b"])
def test_missing_pixels_lower_the_clip_score(means, key):
    assert means["sieved"][f"clip_{key}"] < means["true"][f"clip_{key}"] - 0.05


@pytest.mark.parametrize("key", ["a", "b"])
def test_two_sides_at_once_lower_the_clip_score_a_little(means, key):
    """By 0.01 with CLIP b: it hardly distinguishes them."""
    assert means["doubled"][f"clip_{key}"] < means["true"][f"clip_{key}"] - 0.005


@pytest.mark.parametrize("key", ["a", "b"])
def test_a_blob_of_the_right_colour_lowers_clip_score_and_view_accuracy(means, key):
    assert means["blob"][f"clip_{key}"] < means["true"][f"clip_{key}"] - 0.05
    assert means["blob"][f"view_accuracy_{key}"] < means["true"][f"view_accuracy_{key}"] - 0.1


@pytest.mark.parametrize("key", ["a", "b"])
def test_a_lpips_alone_would_prefer_the_blob(means, key):
    assert means["blob"][f"a_lpips_{key}"] < 0.2 * means["true"][f"a_lpips_{key}"]
