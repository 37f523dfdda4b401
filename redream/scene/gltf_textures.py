"""The textures of a validated GLB (glTF 2.0, 3.8): pictures decoded, how they are looked up, and where."""

import io
import math

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from redream.scene.glb import AssetError
from redream.scene.materials import Sampler, Wrap

TEXTURE_SIDE = 1024  # pixels; larger textures are made smaller
NEAREST = 9728  # the filter of 3.8.4 that does not mix texels


class Textures:
    """The distinct textures that are drawn; each picture is decoded once for each number of channels."""

    def __init__(self, document: dict, binary: bytes) -> None:
        self._document, self._binary = document, binary
        self.pictures: list[UInt8[np.ndarray, "_ _ _"]] = []
        self.samplers: list[Sampler] = []
        self._numbers: dict[tuple, int] = {}
        self._decoded: dict[tuple[int, int], UInt8[np.ndarray, "_ _ _"]] = {}

    def number(self, texture: int, channels: int) -> int:
        """The number among `pictures` of a texture with 3 channels, or with 4, of which the last is alpha."""
        stated = self._document["textures"][texture]
        sampler = _sampler(self._document["samplers"][stated["sampler"]] if "sampler" in stated else {})
        key = (stated["source"], channels, sampler)
        if key not in self._numbers:
            if key[:2] not in self._decoded:
                view = self._document["bufferViews"][self._document["images"][stated["source"]]["bufferView"]]
                data = self._binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
                self._decoded[key[:2]] = _decoded(data, "RGB" if channels == 3 else "RGBA")
            self._numbers[key] = len(self.pictures)
            self.pictures.append(self._decoded[key[:2]])
            self.samplers.append(sampler)
        return self._numbers[key]

    def is_opaque(self, number: int) -> bool:
        """Whether alpha is 1 everywhere in a picture; of none (−1) it is."""
        return number < 0 or bool((self.pictures[number][..., 3:] == 255).all())


def _decoded(data: bytes, mode: str) -> UInt8[np.ndarray, "_ _ _"]:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as picture:
            picture.draft(mode, (TEXTURE_SIDE, TEXTURE_SIDE))  # a JPEG can be decoded at a lower resolution
            if picture.mode.startswith("I"):  # 16 bits of grey, which conversion would clip
                small = Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).astype(np.uint8)).convert(mode)
            else:
                small = picture.convert(mode)
        small.thumbnail((TEXTURE_SIDE, TEXTURE_SIDE), reducing_gap=2.0)
    except Exception as error:  # a decoder raises whatever the bytes provoke
        raise AssetError("A picture in this GLB is damaged. Export it again.") from error
    return np.asarray(small).copy()


def _sampler(stated: dict) -> Sampler:
    wrap_u, wrap_v = (Wrap(stated.get(key, Wrap.REPEAT)) for key in ("wrapS", "wrapT"))
    return Sampler(wrap_u, wrap_v, stated.get("magFilter") == NEAREST)


def coordinates(uv: Float[np.ndarray, "v 2"], texture: dict) -> Float[np.ndarray, "v 2"]:
    """KHR_texture_transform, then v = 0 at the bottom edge: glTF has it at the top.

    u′ = t_u + s_u u cos r + s_v v sin r,    v′ = t_v + s_v v cos r − s_u u sin r
    """
    transform = texture.get("extensions", {}).get("KHR_texture_transform")
    if transform:
        (u, v), (cos, sin) = (uv * transform["scale"]).T, (f(transform["rotation"]) for f in (math.cos, math.sin))
        uv = np.column_stack([u * cos + v * sin, v * cos - u * sin]) + transform["offset"]
    return np.column_stack([uv[:, 0], 1 - uv[:, 1]])
