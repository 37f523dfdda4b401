"""What a surface shows, unlit: textures and how they are looked up, emission, and what lets light through (glTF 2.0, 3.9)."""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from jaxtyping import Float, Int, UInt8

GLASS_OPACITY = 0.15  # of a surface that transmits all light: its reflections, which keep it in sight


class Wrap(IntEnum):
    """How texture coordinates beyond [0, 1] are looked up (3.8.4)."""

    REPEAT = 10497
    CLAMP = 33071
    MIRROR = 33648


@dataclass(frozen=True)
class Sampler:
    """How a texture is looked up."""

    wrap_u: Wrap = Wrap.REPEAT
    wrap_v: Wrap = Wrap.REPEAT
    nearest: bool = False  # else bilinear


@dataclass(frozen=True)
class Material:
    """What a face shows beyond its base colour; textures are numbers among an asset's textures, −1: none."""

    double_sided: bool = True  # else it is not seen from behind
    alpha_mode: str = "OPAQUE"  # or MASK: seen where alpha ≥ alpha_cutoff; or BLEND: opacity is alpha
    alpha_cutoff: float = 0.5
    emission: tuple[float, float, float] = (0.0, 0.0, 0.0)  # light, times the texture's
    emission_texture: int = -1
    transmission: float = 0.0  # the part of light that goes through, times the texture's red
    transmission_texture: int = -1

    @property
    def is_opaque(self) -> bool:
        return self.alpha_mode == "OPAQUE" and not self.transmission


@dataclass(frozen=True)
class Appearance:
    """The materials of an asset's faces, where they are more than opaque base colours seen from both sides."""

    materials: tuple[Material, ...]
    face_material: Int[np.ndarray, "f"]  # the number of each face's material
    alpha: Float[np.ndarray, "v"]  # in [0, 1], times the base colour texture's
    uv: dict[str, Float[np.ndarray, "v 2"]] = field(default_factory=dict)  # of "emission" and "transmission" textures


def look_up(
    texture: UInt8[np.ndarray, "h w c"], uv: Float[np.ndarray, "n 2"], sampler: Sampler = Sampler()
) -> Float[np.ndarray, "n c"]:
    """Texture look-up in [0, 1]; texel centres lie at (i + ½)/side, v = 0 at the bottom."""
    height, width = texture.shape[:2]
    u, v = _wrapped(uv[:, 0], sampler.wrap_u), _wrapped(uv[:, 1], sampler.wrap_v)
    x, y = u * width - 0.5, (1 - v) * height - 0.5
    if sampler.nearest:
        x, y = np.round(x), np.round(y)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    across, down = (x - left)[:, None], (y - top)[:, None]
    left, right = (_texel(i, width, sampler.wrap_u) for i in (left, left + 1))
    top, bottom = (_texel(i, height, sampler.wrap_v) for i in (top, top + 1))
    upper = texture[top, left] * (1 - across) + texture[top, right] * across
    lower = texture[bottom, left] * (1 - across) + texture[bottom, right] * across
    return ((upper * (1 - down) + lower * down) / 255).astype(np.float32)


def _wrapped(u: Float[np.ndarray, "n"], wrap: Wrap) -> Float[np.ndarray, "n"]:
    """The coordinates in [0, 1] at which the same is seen."""
    if wrap == Wrap.REPEAT:
        return u - np.floor(u)
    return np.clip(u, 0, 1) if wrap == Wrap.CLAMP else 1 - np.abs(u - 2 * np.floor(u / 2) - 1)


def _texel(number: Int[np.ndarray, "n"], side: int, wrap: Wrap) -> Int[np.ndarray, "n"]:
    """The texel that stands for one beyond the texture's edge."""
    return number % side if wrap == Wrap.REPEAT else np.clip(number, 0, side - 1)


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """Light to screen values, both in [0, 1] (IEC 61966-2-1). glTF's vertex colours and factors are light."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """Screen values to light, the inverse of `to_srgb`."""
    srgb = np.clip(srgb, 0, 1)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
