"""The two perceptual nets: small classifiers of kind, colour and view, of which only the features are kept."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from assets_index import world
from assets_index.recipes.renders import Renders, degrade
from assets_index.recipes.training import train
from redream.scene.cameras import VIEWS
from redream.scoring.perceptual import Block, PerceptualNet

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
NETS = {
    "perceptual-a": (  # like VGG: small kernels, stacked
        Block(16, convs=2, pool=2),
        Block(32, convs=2, pool=2),
        Block(64, convs=2, pool=2),
        Block(128, convs=2, pool=2),
    ),
    "perceptual-b": (  # like AlexNet: a large first kernel with stride, fewer layers
        Block(48, kernel=7, stride=2, pool=2),
        Block(96, kernel=5, pool=2),
        Block(128),
        Block(96),
    ),
}


class Classifier(nn.Module):
    """A perceptual net with one linear head per task on its globally averaged last features."""

    def __init__(self, net: PerceptualNet):
        super().__init__()
        self.net = net
        width = net.blocks[-1].channels
        sizes = {"kind": len(world.KINDS), "colour": len(world.COLOURS), "view": len(VIEWS)}
        self.heads = nn.ModuleDict({task: nn.Linear(width, size) for task, size in sizes.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Pictures (b, 3, 64, 64) in [0, 1] → logits (b, classes) of each task."""
        *_, last = self.net.features(pictures)
        pooled = last.mean(dim=(2, 3))  # (b, channels)
        return {task: head(pooled) for task, head in self.heads.items()}


def train_perceptual(name: str, renders: Renders, build: Path, out: Path, steps: int, batch: int = 64) -> Classifier:
    """Train NETS[name] on half-degraded pictures, write its net without the heads, and return it with them."""
    torch.manual_seed(5)
    model = Classifier(PerceptualNet(NETS[name], MEAN, STD))
    labels = _labels(renders)

    def loss(step: int, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        rows = rng.integers(0, len(renders.kind), batch)
        pictures = degrade(renders.pictures(rows, rng), rng)  # (b, 3, 64, 64)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(pictures)
        return {task: cross_entropy(logits[task].float(), labels[task][rows], ignore_index=-1) for task in logits}

    model = train(name, model, loss, steps=steps, learning_rate=2e-3, build=build, average=0.99)
    model.net.save(out)
    return model


def _labels(renders: Renders) -> dict[str, Tensor]:
    """Class numbers (n,) of each task; −1 for the view of a kind without a front."""
    symmetric = np.isin(renders.kind, [list(world.KINDS).index(kind) for kind in world.SYMMETRIC])
    views = np.where(symmetric, -1, renders.view)
    return {
        "kind": torch.from_numpy(renders.kind).long(),
        "colour": torch.from_numpy(renders.colour).long(),
        "view": torch.from_numpy(views).long(),
    }
