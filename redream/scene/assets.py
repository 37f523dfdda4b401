"""Assets: load a GLB, normalise it, and ray-cast it (Embree) to RGB and opacity with any `Camera`.

Assets are rendered unlit, like fields, from the very rays a field is rendered from. A surface's colour is its vertex
colour times its texture, as in glTF; both are kept as the screen shows them (sRGB). Most assets are opaque and seen from
both sides, so that the nearest surface is all a ray meets; what others have beyond that is their `Appearance`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import trimesh
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from redream.scene import glb, glb_validation, gltf
from redream.scene.cameras import Camera
from redream.scene.glb import AssetError
from redream.scene.materials import GLASS_OPACITY, Appearance, Material, Sampler, look_up, to_linear, to_srgb

RADIUS = 0.5  # objects are centred and scaled into a sphere of this radius
LAYERS = 32  # that a ray goes through at most: panes, leaves, and faces seen from behind
CLEARANCE = 2e-5  # of an asset's size: how far behind one layer the next may begin
FACING = 4e-6  # of an asset's size: how far a one-sided face lies before one that faces the other way

STEEP = 0.1  # by so much corners' colours differ where it shows that what glTF interpolates is light (3 of 255 levels)

# glTF is y up, front +z; the world is z up, front +x.
GLTF_TO_WORLD = np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


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
    textures: tuple[UInt8[np.ndarray, "_ _ _"], ...] = ()  # RGB, or RGBA where alpha counts
    face_texture: Int[np.ndarray, "f"] | None = None  # the number of each face's texture; −1: none
    yaw_deg: float = 0.0
    samplers: tuple[Sampler, ...] = ()  # one per texture; none: all repeat and are bilinear
    appearance: Appearance | None = None  # None: opaque, without emission, seen from both sides
    tree: Tree | None = field(default=None, repr=False, compare=False)  # made here; turned copies share it

    def __post_init__(self) -> None:
        if self.tree is None:
            object.__setattr__(self, "tree", Tree(self._facing_vertices(), np.asarray(self.mesh.faces)))

    def _facing_vertices(self) -> Float[np.ndarray, "v 3"]:
        """The vertices; those of one-sided faces a trace along their normals. So of two faces at one place that face
        opposite ways, rays meet the one that they see first."""
        vertices = np.asarray(self.mesh.vertices)
        if self.appearance is None:
            return vertices
        one_sided = np.array([not m.double_sided for m in self.appearance.materials])[self.appearance.face_material]
        moved = np.zeros(len(vertices))
        moved[self.mesh.faces[one_sided]] = FACING * np.abs(vertices).max()
        return vertices + self.mesh.vertex_normals * moved[:, None] if moved.any() else vertices

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
        """Colour seen along each ray, premultiplied by opacity, and opacity: 0 where nothing is hit, 1 where it is opaque."""
        # Turning the rays by −yaw is turning the asset by yaw, and keeps Embree's tree.
        turn = trimesh.transformations.rotation_matrix(np.radians(self.yaw_deg), [0, 0, 1])[:3, :3].astype(np.float32)
        origins, directions = origins @ turn, directions @ turn
        if self.appearance is not None:
            return self._cast_through(origins, directions)
        rays, triangles, weights = self.tree.cast(origins, directions)
        colour = np.zeros((len(origins), 3), np.float32)
        hit = np.zeros(len(origins), np.float32)
        colour[rays] = self.colour_at(triangles, weights)
        hit[rays] = 1
        return colour, hit

    def _cast_through(
        self, origins: Float[np.ndarray, "n 3"], directions: Float[np.ndarray, "n 3"]
    ) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n"]]:
        """As `cast`, layer by layer from the front: colour = Σ Tᵢ αᵢ cᵢ and opacity = 1 − T, with Tᵢ = Π_{j<i} (1 − αⱼ)."""
        colour = np.zeros((len(origins), 3), np.float32)
        transmittance = np.ones(len(origins), np.float32)
        waiting, last = np.arange(len(origins)), np.full(len(origins), -1)
        clearance = CLEARANCE * np.abs(self.mesh.vertices).max()
        for _ in range(LAYERS):
            hit, triangles, weights = self.tree.cast(origins, directions[waiting])
            waiting = waiting[hit]  # (m,)
            alpha = self.opacity_at(triangles, weights, directions[waiting])
            alpha[last[waiting] == triangles] = 0  # at grazing angles a ray may meet the same face again
            last[waiting] = triangles
            seen = np.flatnonzero(alpha)
            rays, share = waiting[seen], transmittance[waiting[seen]] * alpha[seen]
            colour[rays] += share[:, None] * self.colour_at(triangles[seen], weights[seen])
            transmittance[rays] -= share
            through = transmittance[waiting] > 1e-3
            if not through.any():
                break
            waiting = waiting[through]
            points = (self.mesh.triangles[triangles[through]] * weights[through, :, None]).sum(axis=1)
            origins = points + clearance * directions[waiting]
        return colour, 1 - transmittance

    def colour_at(self, triangles: Int[np.ndarray, "m"], weights: Float[np.ndarray, "m 3"]) -> Float[np.ndarray, "m 3"]:
        """Colour in [0, 1] at barycentric `weights` of the given triangles: base colour and emission, added as light."""
        corners = self.mesh.faces[triangles]  # (m, 3)
        weights = np.clip(weights, 0, 1)[:, :, None]  # (m, 3, 1)
        colour = (self.colours[corners] * weights).sum(axis=1)  # (m, 3)
        if len(steep := np.flatnonzero(self._steep[triangles])):
            colour[steep] = to_srgb((to_linear(self.colours[corners[steep]]) * weights[steep]).sum(axis=1))
        for number in self._drawn_textures(triangles):
            here = np.flatnonzero(self.face_texture[triangles] == number)
            texel = self._texel(number, self.uv, corners[here], weights[here])
            if (self.colours[corners[here]] == 1).all():
                colour[here] *= texel
            else:
                colour[here] = to_srgb(to_linear(colour[here]) * to_linear(texel))
        for here, material in self._drawn_materials(triangles):
            if any(material.emission):
                light = np.array(material.emission, np.float32)
                if material.emission_texture >= 0:
                    uv = self.appearance.uv["emission"]
                    light = light * to_linear(self._texel(material.emission_texture, uv, corners[here], weights[here]))
                colour[here] = to_srgb(to_linear(colour[here]) + light)
        return colour.astype(np.float32)

    @cached_property
    def _steep(self) -> Bool[np.ndarray, "f"]:
        """Faces whose corners differ in colour by more than `STEEP`."""
        first, second, third = self.colours[self.mesh.faces.T]  # (f, 3) each
        largest, smallest = (extreme(extreme(first, second), third) for extreme in (np.maximum, np.minimum))
        return (largest - smallest > STEEP).any(axis=1)

    def opacity_at(
        self,
        triangles: Int[np.ndarray, "m"],
        weights: Float[np.ndarray, "m 3"],
        directions: Float[np.ndarray, "m 3"],
    ) -> Float[np.ndarray, "m"]:
        """Opacity in [0, 1] of the given triangles, seen along `directions`: 0 from behind where a face has one side."""
        corners = self.mesh.faces[triangles]  # (m, 3)
        weights = np.clip(weights, 0, 1)[:, :, None]  # (m, 3, 1)
        opacity = np.ones(len(triangles), np.float32)
        for here, material in self._drawn_materials(triangles):
            if material.alpha_mode != "OPAQUE":
                alpha = (self.appearance.alpha[corners[here]] * weights[here, :, 0]).sum(axis=1)  # (k,)
                textured = np.flatnonzero(self.face_texture[triangles[here]] >= 0)
                for number in self._drawn_textures(triangles[here]):  # one: a material has one
                    places = here[textured]
                    alpha[textured] *= self._texel(number, self.uv, corners[places], weights[places], alpha=True)[:, 0]
                opacity[here] = alpha if material.alpha_mode == "BLEND" else alpha >= material.alpha_cutoff
            if material.transmission:
                through = material.transmission
                if material.transmission_texture >= 0:
                    uv = self.appearance.uv["transmission"]
                    texel = self._texel(material.transmission_texture, uv, corners[here], weights[here])
                    through = through * texel[:, 0]
                opacity[here] *= 1 - through * (1 - GLASS_OPACITY)
            if not material.double_sided:
                first, second, third = np.moveaxis(self.mesh.vertices[corners[here]], 1, 0)  # (k, 3) each
                normals = np.cross(second - first, third - first)
                opacity[here[(normals * directions[here]).sum(axis=1) > 0]] = 0
        return opacity

    def _drawn_textures(self, triangles: Int[np.ndarray, "m"]) -> list[int]:
        """The numbers of the base colour textures of the given triangles."""
        return [int(n) for n in np.unique(self.face_texture[triangles]) if n >= 0] if self.textures else []

    def _drawn_materials(self, triangles: Int[np.ndarray, "m"]) -> Iterator[tuple[Int[np.ndarray, "k"], Material]]:
        """Each material of the given triangles, and which of them have it."""
        if self.appearance is not None:
            numbers = self.appearance.face_material[triangles]  # (m,)
            for number in np.unique(numbers):
                yield np.flatnonzero(numbers == number), self.appearance.materials[number]

    def _texel(
        self,
        number: int,
        uv: Float[np.ndarray, "v 2"],
        corners: Int[np.ndarray, "k 3"],
        weights: Float[np.ndarray, "k 3 1"],
        alpha: bool = False,
    ) -> Float[np.ndarray, "k c"]:
        """RGB in [0, 1] of a texture on the given corners, or `alpha` alone."""
        channels = slice(3, 4) if alpha else slice(3)
        sampler = self.samplers[number] if self.samplers else Sampler()
        return look_up(self.textures[number][..., channels], (uv[corners] * weights).sum(axis=1), sampler)


def from_mesh(mesh: trimesh.Trimesh) -> Asset:
    """An asset from a mesh with vertex colours that already is in world axes and inside the sphere."""
    return Asset(mesh, np.asarray(mesh.visual.vertex_colors)[:, :3].astype(np.float32) / 255)


def load(
    source: str | Path | bytes, *, normalise: bool = True, limits: glb_validation.Limits = glb_validation.LIMITS
) -> Asset:
    """The GLB at `source` as an asset: its scene in one mesh, in world axes, centred and scaled into radius 0.5.

    With `normalise` off it keeps its place and size. Raises `GlbError` for a file
    that is refused unread, `AssetError` for one that turns out unusable.
    """
    reduced = glb_validation.reduced(Path(source) if isinstance(source, str) else source, limits)
    return from_model(gltf.read(*reduced), normalise=normalise)


def load_validated(data: bytes, *, normalise: bool = True) -> Asset:
    """As `load`, of bytes that `glb_validation` returned: they are not validated again. Raises `AssetError`."""
    return from_model(gltf.read(*glb.unpack(data, len(data))), normalise=normalise)


def from_model(model: gltf.Model, *, normalise: bool = True) -> Asset:
    """The asset of what was read from a GLB. Raises `AssetError`."""
    if not np.isfinite(model.vertices).all():
        raise AssetError("This GLB is damaged: it has vertices without a place. Export it again.")
    vertices = model.vertices @ GLTF_TO_WORLD[:3, :3].T
    return Asset(
        mesh=trimesh.Trimesh(_normalised(vertices, normalise), model.faces, process=False),
        colours=model.colours,
        uv=model.uv,
        textures=model.textures,
        face_texture=model.face_texture,
        samplers=model.samplers,
        appearance=model.appearance,
    )


def _normalised(vertices: Float[np.ndarray, "v 3"], normalise: bool) -> Float[np.ndarray, "v 3"]:
    """Vertices moved so that their box is centred, and scaled so that the farthest lies at radius 0.5."""
    with np.errstate(over="ignore"):
        middle = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
        radius = np.linalg.norm(vertices - middle, axis=1).max()
    if not np.isfinite(radius) or radius < 1e-12:
        raise AssetError("This GLB has no size: all of it is one point, or it has no end. Export it again.")
    return (vertices - middle) * (RADIUS / radius) if normalise else vertices
