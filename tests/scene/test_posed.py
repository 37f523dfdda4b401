"""Stored views of an asset against views cast anew."""

import pytest
import torch

from assets_index.world import Thing
from redream.scene.cameras import ring
from redream.scene.posed import PosedAsset


@pytest.fixture(scope="module")
def asset():
    return Thing("owl", "purple", 0).asset()


CAMERAS = ring(3, 15.0, 1.6, 40.0)


def test_stored_views_are_the_assets_within_half_precision(asset):
    posed, background = PosedAsset(asset, CAMERAS, 32, torch.device("cpu")), torch.tensor([0.2, 0.5, 0.9])
    for camera in CAMERAS:
        for stored, cast in zip(
            posed.render(camera, 32, background), asset.render(camera, 32, background), strict=True
        ):
            torch.testing.assert_close(stored, cast, rtol=0, atol=2e-3)


def test_a_smaller_view_is_the_average_of_the_larger_one(asset):
    posed, black = PosedAsset(asset, CAMERAS[:1], 32, torch.device("cpu")), torch.zeros(3)
    (large, cover), (small, small_cover) = (posed.render(CAMERAS[0], size, black) for size in (32, 8))
    torch.testing.assert_close(small, torch.nn.functional.avg_pool2d(large, 4))
    torch.testing.assert_close(small_cover, torch.nn.functional.avg_pool2d(cover, 4))


def test_every_stored_pose_is_drawn(asset, generator):
    posed = PosedAsset(asset, CAMERAS, 8, torch.device("cpu"))
    assert {posed.sample(generator) for _ in range(40)} == set(CAMERAS)
