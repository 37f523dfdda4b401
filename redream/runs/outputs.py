"""From what is optimised to files and screens: strips, previews, turntables, meshes, scores."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from redream.files import replacing
from redream.retrieval.orientation import pictures
from redream.scene import mesh, turntable
from redream.scene.assets import Asset
from redream.scene.cameras import Camera, ring
from redream.scene.turntable import as_bytes
from redream.scene.volume import FieldFunction, OccupancyGrid, Rendering
from redream.scoring.metrics import score
from redream.settings import Settings
from redream.stack.models import Models

STRIP_VIEWS, STRIP_SIZE = 8, 96  # views, pixels
PREVIEW_SIZE = 128  # pixels
PREVIEW_STEP_DEG = 30.0  # between one preview and the next
MESH_TEXTURE = 512  # texels along a side


@runtime_checkable
class Renderable(Protocol):
    """What can be shown: distillation's particles are."""

    field: FieldFunction
    grid: OccupancyGrid

    def render(self, camera: Camera, size: int, background: Float[Tensor, "3"]) -> Rendering: ...


def save_png(image: Float[Tensor, "3 h w"], path: Path) -> None:
    """Write a picture in [0, 1]; the file is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        Image.fromarray(as_bytes(image)).save(temporary, "PNG")


def grid(images: Float[Tensor, "b 3 h w"], columns: int = 4) -> Float[Tensor, "3 gh gw"]:
    """Pictures in rows of `columns` beside each other; white where there is none."""
    columns = min(columns, len(images))
    empty = -len(images) % columns
    images = torch.cat([images, torch.ones_like(images[:1]).expand(empty, -1, -1, -1)])
    rows = images.unflatten(0, (-1, columns))  # (rows, columns, 3, h, w)
    return rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def save_strip(asset: Asset, settings: Settings, path: Path) -> None:
    """An asset's views once around it in a row, the one from +x first."""
    cameras = ring(
        STRIP_VIEWS, settings.output.score_elevation_deg, settings.output.score_distance, settings.output.score_fovy_deg
    )
    save_png(grid(pictures(asset, cameras, STRIP_SIZE), columns=STRIP_VIEWS), path)


class CachedViews:
    """Shows one particle over white, as turntables and scores want it; a view that was seen is not rendered again."""

    def __init__(self, particle: Renderable, settings: Settings, score_size: int) -> None:
        self.particle, self.settings, self.score_size = particle, settings, score_size
        self._seen: dict[Camera, Tensor] = {}  # (1, 4, s, s) colour and opacity, s = score_size

    def render(self, camera: Camera) -> Float[Tensor, "1 3 h w"]:
        """Colour at the turntable's size."""
        white = torch.ones(3, device=self.particle.grid.density.device)
        seen = self.particle.render(camera, self.settings.output.turntable_rays, white)
        both = torch.cat([seen.image, seen.opacity], dim=1)  # (1, 4, h, w)
        self._seen[camera] = _resized(both, self.score_size)
        return _resized(seen.image, self.settings.output.turntable_size)

    def for_scores(self, camera: Camera) -> tuple[Float[Tensor, "1 3 s s"], Float[Tensor, "1 1 s s"]]:
        """Colour and opacity, brought to the size that scores are made at."""
        if camera not in self._seen:
            self.render(camera)
        seen = self._seen[camera]
        return seen[:, :3], seen[:, 3:]

    def frames(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """Of the turntable, one after the other."""
        s = self.settings
        cameras = ring(
            s.output.turntable_frames, s.output.score_elevation_deg, s.output.score_distance, s.output.score_fovy_deg
        )
        return turntable.frames_of(self.render, cameras)


def _resized(images: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "b c s s"]:
    """Pictures in [0, 1] at another size, anti-aliased."""
    if images.shape[-1] == size:
        return images
    return torch.nn.functional.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


def preview_camera(settings: Settings, number: int) -> Camera:
    """Where the `number`-th preview is taken from: a little further around each time."""
    azimuth = number * PREVIEW_STEP_DEG % 360
    return Camera(
        azimuth, settings.output.score_elevation_deg, settings.output.score_distance, settings.output.score_fovy_deg
    )


def preview(particle: Renderable, camera: Camera) -> Float[Tensor, "1 3 h w"]:
    """A small picture over white."""
    return particle.render(camera, PREVIEW_SIZE, torch.ones(3, device=particle.grid.density.device)).image


def save_mesh(particle: Renderable, settings: Settings, path: Path) -> None:
    """Write the particle's surface as a GLB. Raises `mesh.MeshError` if there is none."""
    surface = mesh.extract(
        particle.field,
        particle.grid,
        resolution=settings.output.mesh_resolution,
        max_faces=settings.output.mesh_faces,
        texture_size=MESH_TEXTURE,
        picture_size=settings.output.turntable_rays,
        samples_per_ray=settings.rendering.samples_per_ray,
    )
    mesh.save(surface, path)


def scores_of(studio: CachedViews, prompt: str, models: Models, has_front: bool | None) -> dict:
    """All scores of one particle, for scores.json."""
    clips = {name: models.clip(name) for name in ("a", "b")}
    nets = {name: models.perceptual(name) for name in ("a", "b")}
    return score(studio.for_scores, prompt, clips, nets, studio.settings, has_front)
