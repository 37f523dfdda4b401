"""From particles and assets to images, meshes and scores: strips, previews, turntables, sprites, GLBs."""

from collections.abc import Iterator, Sequence
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
from redream.scene.cameras import Camera, score_camera, score_ring
from redream.scene.turntable import as_bytes
from redream.scene.volume import FieldFunction, OccupancyGrid, Rendering, render
from redream.scoring.metrics import score
from redream.scoring.scores import MODELS
from redream.settings import Settings
from redream.stack.models import Models

STRIP_VIEWS, STRIP_SIZE = 8, 96  # views, pixels
PREVIEW_SIZE = 128  # pixels
PREVIEW_STEP_DEG = 30.0  # between one preview and the next
SPRITE_COLUMNS = 6  # of a sprite sheet, which has as many rows
SPRITE_FRAMES = SPRITE_COLUMNS**2  # views once around, 10° apart
SPRITE_SIDE = 96  # pixels of each
SPRITE_QUALITY = 75  # of JPEG, 0 to 100
MESH_TEXTURE = 512  # texels along a side
SOLID = 1e4  # density per world unit


@runtime_checkable
class Renderable(Protocol):
    """What can be rendered and meshed: distillation's particles are."""

    field: FieldFunction
    grid: OccupancyGrid

    def render(self, camera: Camera, size: int, background: Float[Tensor, "3"]) -> Rendering: ...


def save_png(image: Float[Tensor, "3 h w"], path: Path) -> None:
    """Write an image in [0, 1] as a PNG, and the folder it is in; the file is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        Image.fromarray(as_bytes(image)).save(temporary, "PNG")


def grid(images: Float[Tensor, "b 3 h w"], columns: int = 4) -> Float[Tensor, "3 gh gw"]:
    """Images side by side in rows of `columns`; places that are left over are white."""
    columns = min(columns, len(images))
    empty = -len(images) % columns
    images = torch.cat([images, torch.ones_like(images[:1]).expand(empty, -1, -1, -1)])
    rows = images.unflatten(0, (-1, columns))  # (rows, columns, 3, h, w)
    return rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def save_strip(asset: Asset, settings: Settings, path: Path) -> None:
    """Write `STRIP_VIEWS` views of an asset, once around it in one row, as a PNG; the first one is from +x."""
    cameras = score_ring(STRIP_VIEWS, settings.output)
    save_png(grid(pictures(asset, cameras, STRIP_SIZE), columns=STRIP_VIEWS), path)


def save_sprites(frames: Sequence[UInt8[np.ndarray, "h w 3"]], path: Path) -> None:
    """Write `SPRITE_FRAMES` of a turntable's frames, evenly chosen, row by row on one JPEG sheet for galleries."""
    sheet = Image.new("RGB", (SPRITE_COLUMNS * SPRITE_SIDE,) * 2, "white")
    for place in range(SPRITE_FRAMES):
        frame = Image.fromarray(frames[place * len(frames) // SPRITE_FRAMES])
        row, column = divmod(place, SPRITE_COLUMNS)
        small = frame.resize((SPRITE_SIDE, SPRITE_SIDE), Image.Resampling.LANCZOS)
        sheet.paste(small, (column * SPRITE_SIDE, row * SPRITE_SIDE))
    with replacing(path) as file:
        sheet.save(file, "JPEG", quality=SPRITE_QUALITY)


class CachedViews:
    """Renders a particle over white for its turntable and its scores; views of the turntable are kept for the scores."""

    def __init__(self, particle: Renderable, settings: Settings, score_size: int) -> None:
        self.particle, self.settings, self.score_size = particle, settings, score_size
        self._views: dict[Camera, Tensor] = {}  # (1, 4, s, s) colour and opacity, s = score_size

    def render(self, camera: Camera) -> Float[Tensor, "1 3 h w"]:
        """Render a view at the turntable's size, and keep it for the scores."""
        white = torch.ones(3, device=self.particle.grid.density.device)
        rendering = self.particle.render(camera, self.settings.output.turntable_rays, white)
        rgba = torch.cat([rendering.image, rendering.opacity], dim=1)  # (1, 4, h, w)
        self._views[camera] = _resized(rgba, self.score_size)
        return _resized(rendering.image, self.settings.output.turntable_size)

    def for_scores(self, camera: Camera) -> tuple[Float[Tensor, "1 3 s s"], Float[Tensor, "1 1 s s"]]:
        """Colour and opacity of a view at the size that scores are computed at, `score_size`."""
        if camera not in self._views:
            self.render(camera)
        rgba = self._views[camera]
        return rgba[:, :3], rgba[:, 3:]

    def frames(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """The frames of the turntable, rendered one after the other."""
        output = self.settings.output
        return turntable.frames_of(self.render, score_ring(output.turntable_frames, output))


def _resized(images: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "b c s s"]:
    """Square images in [0, 1] at another size, anti-aliased."""
    if images.shape[-1] == size:
        return images
    return torch.nn.functional.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


def preview_camera(settings: Settings, number: int) -> Camera:
    """The camera of the `number`-th preview, `PREVIEW_STEP_DEG` further around each time."""
    return score_camera(number * PREVIEW_STEP_DEG % 360, settings.output)


def preview(particle: Renderable, camera: Camera) -> Float[Tensor, "1 3 h w"]:
    """Render a particle small, over white."""
    return particle.render(camera, PREVIEW_SIZE, torch.ones(3, device=particle.grid.density.device)).image


def fills_its_box(particle: Renderable, settings: Settings) -> bool:
    """Whether an object is about as opaque as a solid box, its own, from four sides."""
    grid, rays, samples = particle.grid, min(32, settings.output.turntable_rays), settings.rendering.samples_per_ray
    cameras, black = score_ring(4, settings.output), torch.zeros(3, device=grid.density.device)
    box = OccupancyGrid(2, grid.bound).to(black.device)

    def solid(points: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(points), torch.full_like(points[:, 0], SOLID)

    with torch.no_grad():
        filled = sum(render(solid, camera, rays, black, box, samples).opacity.mean() for camera in cameras)
        opaque = sum(particle.render(camera, rays, black).opacity.mean() for camera in cameras)
    return bool(opaque > 0.97 * filled)


def save_mesh(particle: Renderable, settings: Settings, path: Path) -> None:
    """Write the particle's surface as a textured GLB. Raises `mesh.MeshError` if there is none."""
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


def scores_of(views: CachedViews, prompt: str, models: Models, has_front: bool | None) -> dict:
    """Return all scores of one particle, an object of scores.json. Raises `ClipError`, `HubError`, `MetricsError` or
    `StackError` if a scoring model cannot be used."""
    clips = {name: models.clip(name) for name in MODELS}
    nets = {name: models.perceptual(name) for name in MODELS}
    return score(views.for_scores, prompt, clips, nets, views.settings, has_front)
