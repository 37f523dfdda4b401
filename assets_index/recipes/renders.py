"""The pictures everything is trained on: renders with opacity, put on varied backgrounds when they are used."""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from assets_index import world
from redream.scene.cameras import CameraRange, view_name
from redream.settings import Settings

SIZE = 64


@dataclass
class Renders:
    """`rgba` (n, 64, 64, 4) uint8, colour premultiplied by opacity; kind, colour and azimuth of each picture."""

    rgba: np.ndarray
    kind: np.ndarray  # (n,) index into world.KINDS
    colour: np.ndarray  # (n,) index into world.COLOURS
    azimuth_deg: np.ndarray  # (n,)

    @property
    def view(self) -> np.ndarray:
        """(n,) 0 front, 1 side, 2 back."""
        return np.array([("front", "side", "back").index(view_name(a)) for a in self.azimuth_deg])

    def pictures(self, rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        """(b, 3, 64, 64) float pictures in [0, 1] of these rows on random backgrounds."""
        return composed(self.floats(rows), rng)

    def floats(self, rows: np.ndarray) -> Tensor:
        """(b, 4, 64, 64) of these rows in [0, 1], colour premultiplied by opacity."""
        return torch.from_numpy(self.rgba[rows]).float().permute(0, 3, 1, 2) / 255


def composed(rgba: Tensor, rng: np.random.Generator) -> Tensor:
    """(b, 3, 64, 64) pictures in [0, 1]: (b, 4, 64, 64), premultiplied, on random backgrounds."""
    return rgba[:, :3] + (1 - rgba[:, 3:]) * backgrounds(len(rgba), rng)


def backgrounds(count: int, rng: np.random.Generator) -> Tensor:
    """(count, 3, 64, 64): white (15 %), pale (45 %) or of any colour (40 %); a quarter fade to another tone below."""
    pale = rng.uniform(0.75, 1.0, (count, 3))
    any_colour = rng.uniform(0.0, 1.0, (count, 3))
    pick = rng.random((count, 1))
    first = np.where(pick < 0.15, 1.0, np.where(pick < 0.6, pale, any_colour))
    second = np.where(rng.random((count, 1)) < 0.75, first, np.clip(first + rng.uniform(-0.3, 0.3, (count, 3)), 0, 1))
    ramp = torch.linspace(0, 1, SIZE)[None, None, :, None]
    first, second = (torch.from_numpy(c).float()[:, :, None, None] for c in (first, second))
    return (first + (second - first) * ramp).expand(-1, -1, -1, SIZE)


def degrade(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur, lower resolution, noise or a shift of tint on half of the pictures: scoring models must not mind them."""
    out = pictures.clone()
    for i in range(len(out)):
        choice = rng.random()
        if choice < 0.2:
            size = int(rng.integers(20, 56))
            small = torch.nn.functional.interpolate(out[i : i + 1], size=(size, size), mode="area")
            out[i] = torch.nn.functional.interpolate(small, size=(SIZE, SIZE), mode="bilinear")[0]
        elif choice < 0.35:
            noise = torch.from_numpy(rng.standard_normal((3, SIZE, SIZE))).float()
            out[i] = out[i] + noise * rng.uniform(0.01, 0.08)
        elif choice < 0.5:
            contrast, tint = rng.uniform(0.8, 1.1), torch.from_numpy(rng.uniform(-0.04, 0.04, (3, 1, 1))).float()
            out[i] = (out[i] - 0.5) * contrast + 0.5 + tint
    return out.clamp(0, 1)


def spoil(rgba: Tensor, others: Tensor, rng: np.random.Generator) -> Tensor:
    """The things (b, 4, 64, 64), premultiplied, as bad models of them look, each with one to three of five faults: bent
    out of shape, rendered from two sides at once (`others` are the same things from elsewhere), mottled, thinned to a
    haze with holes, blurred.

    Unlike what `degrade` does, these are faults of the object, not of its picture: a scoring model must notice them.
    """
    out = torch.empty_like(rgba)
    for i, (one, other) in enumerate(zip(rgba[:, None], others[:, None])):
        faults = set(rng.choice(5, rng.integers(1, 4), replace=False).tolist())
        if 0 in faults:
            bend = _cloud(2, rng.uniform(3, 7), rng) * rng.uniform(0.12, 0.3)  # in units of half the picture
            identity = torch.eye(2, 3)[None]
            grid = nn.functional.affine_grid(identity, [1, 1, SIZE, SIZE], align_corners=False)
            one = nn.functional.grid_sample(one, grid + bend.permute(0, 2, 3, 1), align_corners=False)
        if 1 in faults:
            weight = rng.uniform(0.35, 0.65)
            one = weight * one + (1 - weight) * other
        if 2 in faults:
            blots = _cloud(3, rng.uniform(6, 16), rng) * rng.uniform(0.15, 0.4)
            colour = one[:, :3] + blots * one[:, 3:]
            one = torch.cat([colour.clamp(min=0).minimum(one[:, 3:]), one[:, 3:]], dim=1)
        if 3 in faults:
            one = one * (rng.uniform(0.5, 0.9) + 0.6 * _cloud(1, rng.uniform(4, 12), rng)).clamp(0, 1)
        if 4 in faults:
            one = gaussian_blur(one, kernel_size=25, sigma=rng.uniform(2, 4))
        out[i] = one[0]
    return out


def _cloud(channels: int, cells: float, rng: np.random.Generator) -> Tensor:
    """(1, channels, 64, 64) of smooth noise, about `cells` bumps across, mostly within ±1."""
    coarse = torch.from_numpy(rng.uniform(-1, 1, (1, channels, round(cells) + 1, round(cells) + 1))).float()
    return nn.functional.interpolate(coarse, size=SIZE, mode="bicubic", align_corners=True)


def _render_thing(job: tuple[world.Thing, int, int]) -> tuple[np.ndarray, list[float]]:
    thing, views, seed = job
    torch.set_num_threads(1)
    settings = Settings()
    generator = torch.Generator().manual_seed(int(thing.uid[:12], 16) + seed)
    ranges = CameraRange.of(settings.cameras)
    asset = thing.asset()
    pictures, azimuths = [], []
    for i in range(views):
        jitter = torch.rand(1, generator=generator).item()
        camera = ranges.sample(generator, azimuth_deg=360 * (i + jitter) / views - 180)
        rgb, opacity = asset.render(camera, SIZE, torch.zeros(3))
        rgba = torch.cat([rgb, opacity], dim=1)[0].permute(1, 2, 0)
        pictures.append((rgba * 255).round().to(torch.uint8).numpy())
        azimuths.append(camera.azimuth_deg)
    return np.stack(pictures), azimuths


def render_things(things: list[world.Thing], views: int, file: Path, workers: int = 2) -> Renders:
    """Renders of all things from `views` azimuths each, spread over the circle; kept in `file` (.npz)."""
    if not file.exists():
        with ProcessPoolExecutor(workers) as pool:
            results = list(pool.map(_render_thing, [(t, views, 0) for t in things], chunksize=8))
        kinds, colours = list(world.KINDS), list(world.COLOURS)
        temporary = file.with_suffix(".tmp.npz")
        np.savez(
            temporary,
            rgba=np.concatenate([r[0] for r in results]),
            kind=np.repeat([kinds.index(t.kind) for t in things], views),
            colour=np.repeat([colours.index(t.colour) for t in things], views),
            azimuth_deg=np.concatenate([r[1] for r in results]),
        )
        os.replace(temporary, file)
    data = np.load(file)
    return Renders(data["rgba"], data["kind"], data["colour"], data["azimuth_deg"])
