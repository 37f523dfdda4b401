"""Cameras: poses, intrinsics, rays and view names. The only place that knows angles.

World: right-handed, z up; an object's semantic front faces +x. Azimuth 0° is a camera on +x that looks at the
front; it grows counter-clockwise seen from above, so 90° is a camera on +y (the object's left).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from redream.settings import VIEWS, CameraSettings, OutputSettings  # noqa: F401 - VIEWS: for all that render


@dataclass(frozen=True)
class Camera:
    """A pinhole camera on a sphere around the origin, looking at the origin, with z up.

    Degrees for angles, world units for the distance. `fovy_deg` is the vertical field of view.
    """

    azimuth_deg: float
    elevation_deg: float
    distance: float
    fovy_deg: float

    @property
    def view(self) -> str:
        """`front` for |azimuth| < 45°, `back` for |azimuth| > 135°, `side` between."""
        return view_name(self.azimuth_deg)

    @property
    def visible_area(self) -> float:
        """Area (square world units) that a square image shows of the plane through the origin that is parallel to it."""
        return (2 * self.distance * math.tan(math.radians(self.fovy_deg) / 2)) ** 2

    @property
    def pose(self) -> Float[Tensor, "4 4"]:
        """Camera-to-world matrix; the columns are right, up, backward and position (OpenGL's axes)."""
        azimuth, elevation = math.radians(self.azimuth_deg), math.radians(self.elevation_deg)
        backward = torch.tensor(
            [
                math.cos(elevation) * math.cos(azimuth),
                math.cos(elevation) * math.sin(azimuth),
                math.sin(elevation),
            ]
        )
        right = torch.tensor([-math.sin(azimuth), math.cos(azimuth), 0.0])
        up = torch.linalg.cross(backward, right)
        pose = torch.eye(4)
        pose[:3, 0], pose[:3, 1], pose[:3, 2] = right, up, backward
        pose[:3, 3] = backward * self.distance
        return pose

    def rays(
        self, size: int, samples: int = 1, device: torch.device | str = "cpu"
    ) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
        """Origins and unit directions of a square image's rays, row by row from the top left, made on the device.

        With `samples` = k every pixel has a regular grid of k × k rays and n = (size·k)², ordered as the pixels of
        an image k times as large, so that average pooling by k gives the anti-aliased image.
        """
        pose = self.pose.to(device, non_blocking=True)
        side = size * samples
        half = math.tan(math.radians(self.fovy_deg) / 2)
        centres = ((torch.arange(side, device=device) + 0.5) / side * 2 - 1) * half  # (side,)
        down, across = torch.meshgrid(centres, centres, indexing="ij")
        local = torch.stack([across, -down, -torch.ones_like(across)], dim=-1).reshape(-1, 3)  # (n, 3)
        directions = torch.nn.functional.normalize(local @ pose[:3, :3].T, dim=-1)
        return pose[:3, 3].expand_as(directions), directions


def view_prompt(prompt: str, view: str) -> str:
    """c_ψ: a prompt with the name of a view, "a purple owl, front view"."""
    return f"{prompt}, {view} view"


def view_name(azimuth_deg: float) -> str:
    """The view that a camera at this azimuth sees: `front`, `side` or `back`."""
    angle = abs((azimuth_deg + 180) % 360 - 180)
    return "front" if angle < 45 else "back" if angle > 135 else "side"


@dataclass(frozen=True)
class CameraRange:
    """Uniform ranges from which training cameras are drawn (degrees and world units)."""

    elevation_deg: tuple[float, float]
    distance: tuple[float, float]
    fovy_deg: tuple[float, float]

    @staticmethod
    def of(settings: CameraSettings) -> "CameraRange":
        """The ranges of a run's settings."""
        return CameraRange(settings.elevation_deg, settings.distance, settings.fovy_deg)

    def sample(self, generator: torch.Generator, azimuth_deg: float | None = None) -> Camera:
        """One camera; its azimuth is uniform over the circle unless it is given."""
        u = torch.rand(4, generator=generator, device=generator.device).tolist()
        ranges = (self.elevation_deg, self.distance, self.fovy_deg)
        drawn = [low + (high - low) * share for (low, high), share in zip(ranges, u[1:], strict=True)]
        return Camera(u[0] * 360 - 180 if azimuth_deg is None else azimuth_deg, *drawn)

    def uniform(self, count: int, generator: torch.Generator) -> list[Camera]:
        """`count` cameras with equally spaced azimuths from 0° on; the rest is drawn."""
        return [self.sample(generator, azimuth_deg=360 * i / count) for i in range(count)]


def ring(count: int, elevation_deg: float, distance: float, fovy_deg: float) -> list[Camera]:
    """`count` cameras once around the object, the first one looking at its front."""
    return [Camera(360 * i / count, elevation_deg, distance, fovy_deg) for i in range(count)]


def score_camera(azimuth_deg: float, settings: OutputSettings) -> Camera:
    """The camera at this azimuth that scores, turntables and previews share."""
    return Camera(azimuth_deg, settings.score_elevation_deg, settings.score_distance, settings.score_fovy_deg)


def score_ring(count: int, settings: OutputSettings) -> list[Camera]:
    """`count` of the cameras of `score_camera` once around the object, the first one looking at its front."""
    return [score_camera(360 * i / count, settings) for i in range(count)]
