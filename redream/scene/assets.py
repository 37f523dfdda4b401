"""Assets: load a GLB, normalise it, and ray-cast it (Embree) to RGB and opacity with any `Camera`.

Assets are rendered unlit, like fields, from the very rays a field is rendered from. A surface's colour is its vertex
colour times its texture, as in glTF; both are kept as the screen shows them (sRGB).
"""

import io
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import trimesh
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from redream.errors import RedreamError
from redream.scene import glb_validation
from redream.scene.cameras import Camera

RADIUS = 0.5  # objects are centred and scaled into a sphere of this radius
TEXTURE_SIDE = 1024  # pixels; larger textures are made smaller

# glTF is y up, front +z; the world is z up, front +x.
GLTF_TO_WORLD = np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


class AssetError(RedreamError):
    """A 3D file that cannot be used; the message says why and what to do."""


class Tree:
    """Embree's tree over a triangle mesh: finds the first triangle along a ray."""

    def __init__(self, vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]) -> None:
        self._mesh = (vertices, faces)
        self._scene = EmbreeScene()
        TriangleMesh(self._scene, np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32))

    def __reduce__(self):
        return Tree, self._mesh  # Embree's memory cannot be pickled: build it anew

    def cast(
        self, origins: Float[np.ndarray, "n 3"], directions: Float[np.ndarray, "n 3"]
    ) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"], Float[np.ndarray, "m 3"]]:
        """Which rays hit something, the triangle each of them hits first, and the barycentric weights there."""
        hits = self._scene.run(
            np.ascontiguousarray(origins, np.float32), np.ascontiguousarray(directions, np.float32), output=True
        )
        rays = np.flatnonzero(hits["primID"] >= 0)  # (m,)
        u, v = hits["u"][rays], hits["v"][rays]
        return rays, hits["primID"][rays], np.stack([1 - u - v, u, v], axis=1)


@dataclass(frozen=True)
class Asset:
    """A triangle mesh with unlit colours, in world axes, inside the sphere of radius 0.5.

    `yaw_deg` turns it about z when it is looked at: orientation alignment changes only this number.
    """

    mesh: trimesh.Trimesh  # world axes, before the turn by yaw
    colours: Float[np.ndarray, "v 3"]  # in [0, 1], one per vertex; times the texture where a face has one
    uv: Float[np.ndarray, "v 2"] | None = None  # v = 0 at the bottom edge; coordinates beyond [0, 1] repeat
    textures: tuple[UInt8[np.ndarray, "_ _ 3"], ...] = ()
    face_texture: Int[np.ndarray, "f"] | None = None  # the number of each face's texture; −1: none
    yaw_deg: float = 0.0
    tree: Tree | None = field(default=None, repr=False, compare=False)  # made here; turned copies share it

    def __post_init__(self) -> None:
        if self.tree is None:
            object.__setattr__(self, "tree", Tree(np.asarray(self.mesh.vertices), np.asarray(self.mesh.faces)))

    def rotated(self, yaw_deg: float) -> "Asset":
        """The same asset rotated by a further `yaw_deg` counter-clockwise about z."""
        return replace(self, yaw_deg=(self.yaw_deg + yaw_deg) % 360)

    def render(
        self, camera: Camera, size: int, background: Float[Tensor, "3"], samples: int = 2
    ) -> tuple[Float[Tensor, "1 3 h w"], Float[Tensor, "1 1 h w"]]:
        """RGB over `background` and opacity, both in [0, 1]; `samples`² rays a pixel."""
        origins, directions = camera.rays(size, samples)
        colour, hit = self.cast(origins.numpy(), directions.numpy())
        side = size * samples
        image = torch.from_numpy(np.concatenate([colour, hit[:, None]], axis=1))  # (n, 4); black where nothing is hit
        image = image.T.reshape(1, 4, side, side)
        image = torch.nn.functional.avg_pool2d(image, samples)  # (1, 4, h, w), premultiplied
        if background.is_cuda:
            image = image.pin_memory()  # only from there a GPU takes it without making the CPU wait
        image = image.to(background.device, non_blocking=True)
        rgb, opacity = image[:, :3], image[:, 3:]
        return rgb + (1 - opacity) * background[None, :, None, None], opacity

    def cast(
        self, origins: Float[np.ndarray, "n 3"], directions: Float[np.ndarray, "n 3"]
    ) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n"]]:
        """Colour of the nearest surface along each ray (black where there is none), and 1.0 where there is one."""
        # Turning the rays by −yaw is turning the asset by yaw, and keeps Embree's tree.
        turn = trimesh.transformations.rotation_matrix(np.radians(self.yaw_deg), [0, 0, 1])[:3, :3].astype(np.float32)
        rays, triangles, weights = self.tree.cast(origins @ turn, directions @ turn)
        colour = np.zeros((len(origins), 3), np.float32)
        hit = np.zeros(len(origins), np.float32)
        colour[rays] = self.colour_at(triangles, weights)
        hit[rays] = 1
        return colour, hit

    def colour_at(self, triangles: Int[np.ndarray, "m"], weights: Float[np.ndarray, "m 3"]) -> Float[np.ndarray, "m 3"]:
        """Colour in [0, 1] at barycentric `weights` of the given triangles."""
        corners = self.mesh.faces[triangles]  # (m, 3)
        weights = np.clip(weights, 0, 1)[:, :, None]  # (m, 3, 1)
        colour = (self.colours[corners] * weights).sum(axis=1)  # (m, 3)
        for number, texture in enumerate(self.textures):
            here = np.flatnonzero(self.face_texture[triangles] == number)
            uv = (self.uv[corners[here]] * weights[here]).sum(axis=1)  # (k, 2)
            colour[here] *= look_up(texture, uv)
        return colour.astype(np.float32)


def look_up(texture: UInt8[np.ndarray, "h w 3"], uv: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
    """Bilinear texture look-up in [0, 1]; the texture repeats, texel centres lie at (i + ½)/side, v = 0 at the bottom."""
    height, width = texture.shape[:2]
    uv = uv - np.floor(uv)
    x, y = uv[:, 0] * width - 0.5, (1 - uv[:, 1]) * height - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    across, down = (x - left)[:, None], (y - top)[:, None]
    right, bottom = (left + 1) % width, (top + 1) % height
    left, top = left % width, top % height
    upper = texture[top, left] * (1 - across) + texture[top, right] * across
    lower = texture[bottom, left] * (1 - across) + texture[bottom, right] * across
    return ((upper * (1 - down) + lower * down) / 255).astype(np.float32)


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """Light to screen values, both in [0, 1] (IEC 61966-2-1). glTF's vertex colours and factors are light."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """Screen values to light, the inverse of `to_srgb`."""
    srgb = np.clip(srgb, 0, 1)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def from_mesh(mesh: trimesh.Trimesh) -> Asset:
    """An asset from a mesh with vertex colours that already is in world axes and inside the sphere."""
    return Asset(mesh, np.asarray(mesh.visual.vertex_colors)[:, :3].astype(np.float32) / 255)


def load(
    source: str | Path | bytes, *, normalise: bool = True, limits: glb_validation.Limits = glb_validation.LIMITS
) -> Asset:
    """The GLB at `source` as an asset: its scene in one mesh, in world axes, centred and scaled into radius 0.5.

    With `normalise` off it keeps its place and size. Transparency is taken as opaque. Raises `GlbError` for a file
    that is refused unread, `AssetError` for one that turns out unusable.
    """
    data = glb_validation.validate(Path(source) if isinstance(source, str) else source, limits)
    return load_validated(data, normalise=normalise)


def load_validated(data: bytes, *, normalise: bool = True) -> Asset:
    """As `load`, of bytes that `glb_validation` returned: they are not validated again. Raises `AssetError`."""
    try:
        scene = trimesh.load_scene(io.BytesIO(data), file_type="glb", process=False)
        placed = [scene.graph[node] for node in scene.graph.nodes_geometry]
    except Exception as error:  # a parser raises whatever the bytes provoke
        raise AssetError("This GLB cannot be read. Export it again.") from error

    textures = _Textures()
    vertices, faces, colours, uv, face_texture = [], [], [], [], []
    start = 0
    for matrix, name in placed:
        part = scene.geometry[name]
        _check_part(part)
        vertices.append(trimesh.transform_points(part.vertices, GLTF_TO_WORLD @ matrix))
        faces.append(np.asarray(part.faces) + start)
        colours.append(_vertex_colours(part))
        number = textures.number(part)
        uv.append(
            np.zeros((len(part.vertices), 2)) if number < 0 else np.nan_to_num(part.visual.uv, posinf=0, neginf=0)
        )
        face_texture.append(np.full(len(part.faces), number))
        start += len(part.vertices)

    used, faces = np.unique(np.concatenate(faces), return_inverse=True)
    vertices = np.concatenate(vertices)[used]  # (v, 3)
    return Asset(
        mesh=trimesh.Trimesh(_normalised(vertices, normalise), faces.reshape(-1, 3), process=False),
        colours=np.concatenate(colours)[used].astype(np.float32),
        uv=np.concatenate(uv)[used].astype(np.float32),
        textures=tuple(textures.images),
        face_texture=np.concatenate(face_texture),
    )


class _Textures:
    """The distinct base colour textures of a scene, each decoded once and let go of."""

    def __init__(self) -> None:
        self.images: list[UInt8[np.ndarray, "_ _ 3"]] = []
        self._numbers: dict[int, int] = {}  # by the identity of trimesh's picture

    def number(self, part: trimesh.Trimesh) -> int:
        """The number of this part's texture; −1 if it has none."""
        picture = part.visual.material.baseColorTexture
        if picture is None or part.visual.uv is None:
            return -1
        if id(picture) not in self._numbers:
            self._numbers[id(picture)] = len(self.images)
            self.images.append(_decoded(picture))
        return self._numbers[id(picture)]


def _decoded(picture: Image.Image) -> UInt8[np.ndarray, "_ _ 3"]:
    try:
        picture.draft("RGB", (TEXTURE_SIDE, TEXTURE_SIDE))  # a JPEG can be decoded at a lower resolution
        small = picture.convert("RGB")
        picture.close()
    except Exception as error:  # a decoder raises whatever the bytes provoke
        raise AssetError("A picture in this GLB is damaged. Export it again.") from error
    small.thumbnail((TEXTURE_SIDE, TEXTURE_SIDE), reducing_gap=2.0)
    return np.asarray(small).copy()


def _check_part(part: trimesh.Trimesh) -> None:
    if not len(part.faces):
        raise AssetError("This GLB is damaged: a part of it has no triangles. Export it again.")
    if part.faces.min() < 0 or part.faces.max() >= len(part.vertices):
        raise AssetError("This GLB is damaged: its triangles name vertices that do not exist. Export it again.")
    if not np.isfinite(part.vertices).all():
        raise AssetError("This GLB is damaged: it has vertices without a place. Export it again.")


def _vertex_colours(part: trimesh.Trimesh) -> Float[np.ndarray, "v 3"]:
    """Vertex colour × the material's factor: the light that glTF multiplies the texture with, as screen values.

    Screen values are nearly a power of light, so the product with a texture may be taken after the conversion.
    """
    linear = np.ones((len(part.vertices), 3))
    if part.visual.material.baseColorFactor is not None:
        linear = linear * part.visual.material.baseColorFactor[:3] / 255
    stated = part.visual.vertex_attributes.get("color")
    if stated is not None:
        scale = np.iinfo(stated.dtype).max if stated.dtype.kind == "u" else 1
        linear = linear * np.nan_to_num(stated[:, :3]) / scale
    return to_srgb(linear)


def _normalised(vertices: Float[np.ndarray, "v 3"], normalise: bool) -> Float[np.ndarray, "v 3"]:
    """Vertices moved so that their box is centred, and scaled so that the farthest lies at radius 0.5."""
    middle = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    radius = np.linalg.norm(vertices - middle, axis=1).max()
    if not np.isfinite(radius) or radius < 1e-12:
        raise AssetError("This GLB has no size: all of it is one point, or it has no end. Export it again.")
    return (vertices - middle) * (RADIUS / radius) if normalise else vertices
