"""Perceptual nets with random weights, and pictures."""

import pytest
import torch
from torch import nn

from redream.scoring.perceptual import Block, PerceptualNet

VGG_LIKE = (Block(8, convs=2, pool=2), Block(16, convs=2, pool=2), Block(24, convs=2))
ALEX_LIKE = (Block(16, kernel=7, stride=2, pool=2), Block(24, kernel=5))


@pytest.fixture(autouse=True)
def _all_views(full_outputs):
    """Scores are those of 120 views here."""


def net_of(blocks, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PerceptualNet(blocks, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).requires_grad_(False)


@pytest.fixture(params=[VGG_LIKE, ALEX_LIKE], ids=["VGG-like", "AlexNet-like"])
def net(request):
    return net_of(request.param)


@pytest.fixture
def pictures():
    """Four pictures (4, 3, 64, 64) of smooth blobs, with edges."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(4, 3, 8, 8, generator=generator)
    return nn.functional.interpolate(coarse, size=64, mode="bicubic").clamp(0.1, 0.9).mul(6).round() / 6
