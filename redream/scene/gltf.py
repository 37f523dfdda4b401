"""Reads a validated GLB (`redream.scene.glb_validation`): its scene in one triangle mesh, as its author placed it.

Nodes, skins, morph weights and instances stand as the file has them; animations are not played. Numbers of sections are
those of the glTF 2.0 specification. This module needs neither torch nor trimesh, so that a small process can run it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, UInt8

from redream.scene.glb import AssetError
from redream.scene.gltf_textures import Textures, coordinates
from redream.scene.materials import Appearance, Material, Sampler, to_srgb

DTYPES = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
TRIANGLES, STRIP = 4, 5
FARTHEST_UV = 1e6  # beyond, 32 bits hold no place within a texture
NO_END = "This GLB is damaged: its triangles name vertices that do not exist. Export it again."


@dataclass(frozen=True)
class Model:
    """The triangles of a scene in glTF's axes, y up and front +z, in the file's unit; as `assets.Asset` has them."""

    vertices: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]  # counter-clockwise seen from their front
    colours: Float[np.ndarray, "v 3"]
    uv: Float[np.ndarray, "v 2"]
    textures: tuple[UInt8[np.ndarray, "_ _ _"], ...]
    samplers: tuple[Sampler, ...]
    face_texture: Int[np.ndarray, "f"]
    appearance: Appearance | None


@dataclass
class _Part:
    """One primitive where a node placed it."""

    vertices: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    light: Float[np.ndarray, "v 4"]  # factor × vertex colour, and alpha
    uv: dict[str, Float[np.ndarray, "v 2"]]  # of "base", "emission" and "transmission" textures
    texture: int
    material: Material


def read(document: dict, binary: bytes) -> Model:
    """The scene of a GLB's document and binary chunk, which `glb_validation` returned. Raises `AssetError`."""
    with np.errstate(all="ignore"):  # what overflows is found by its result
        return _joined(_Reader(document, binary))


def _joined(reader: "_Reader") -> Model:
    parts = list(reader.parts())
    starts = np.cumsum([0, *(len(p.vertices) for p in parts)])
    faces = np.concatenate([p.faces + start for p, start in zip(parts, starts, strict=False)])
    used = np.zeros(starts[-1], bool)
    used[faces] = True  # bounds are of what is drawn
    light = np.concatenate([p.light for p in parts])[used]  # (v, 4)
    sizes = [len(p.faces) for p in parts]

    materials = list(dict.fromkeys(p.material for p in parts))
    appearance = None
    if materials != [Material()]:
        slots = {slot for p in parts for slot in p.uv} - {"base"}
        appearance = Appearance(
            tuple(materials),
            np.repeat([materials.index(p.material) for p in parts], sizes),
            np.clip(light[:, 3], 0, 1).astype(np.float32),
            {slot: _uv_of(parts, slot)[used] for slot in sorted(slots)},
        )
    return Model(
        vertices=np.concatenate([p.vertices for p in parts])[used],
        faces=(np.cumsum(used) - 1)[faces],
        colours=to_srgb(light[:, :3]).astype(np.float32),
        uv=_uv_of(parts, "base")[used],
        textures=tuple(reader.textures.pictures),
        samplers=tuple(reader.textures.samplers),
        face_texture=np.repeat([p.texture for p in parts], sizes),
        appearance=appearance,
    )


def _uv_of(parts: list[_Part], slot: str) -> Float[np.ndarray, "v 2"]:
    """Texture coordinates of all parts, 0 where a part has none, or none that say where in a texture."""
    uv = np.concatenate([p.uv[slot] if slot in p.uv else np.zeros((len(p.vertices), 2)) for p in parts])
    return np.where(np.abs(uv) < FARTHEST_UV, uv, 0).astype(np.float32)


class _Reader:
    """The parts of a validated document."""

    def __init__(self, document: dict, binary: bytes) -> None:
        self.document, self.binary = document, binary
        self.textures = Textures(document, binary)
        self._world: dict[int, Float[np.ndarray, "4 4"]] = {}
        waiting = [(root, np.eye(4)) for root in reversed(document["scenes"][0]["nodes"])]
        while waiting:  # depth first, in the file's order
            number, parent = waiting.pop()
            node = document["nodes"][number]
            self._world[number] = parent @ _local(node)
            waiting += [(child, self._world[number]) for child in reversed(node.get("children", []))]

    def parts(self) -> Iterator[_Part]:
        """The primitives of all placed nodes."""
        read: dict[tuple, _Part] = {}  # meshes that several nodes place are read once
        for number in self._world:
            node = self.document["nodes"][number]
            if "mesh" not in node:
                continue
            mesh = self.document["meshes"][node["mesh"]]
            weights = tuple(node.get("weights", mesh.get("weights", ())))
            for place, primitive in enumerate(mesh["primitives"]):
                key = (node["mesh"], place, weights)
                if key not in read:
                    read[key] = self._primitive(primitive, weights)
                if "skin" in node:
                    yield self._skinned(read[key], primitive, self.document["skins"][node["skin"]])
                else:
                    yield _placed(read[key], self._world[number] @ self._instances(node))

    def array(self, accessor: dict) -> np.ndarray:
        """3.6.2: the elements (n, components) of an accessor as they are stored."""
        dtype, width, count = DTYPES[accessor["componentType"]], COMPONENTS[accessor["type"]], accessor["count"]
        if "bufferView" in accessor:
            rows = self._slice(accessor, dtype, width, count)
        else:
            rows = np.zeros((count, width), dtype)
        if "sparse" in accessor:
            sparse, rows = accessor["sparse"], rows.copy()
            places = self._slice(sparse["indices"], DTYPES[sparse["indices"]["componentType"]], 1, sparse["count"])
            if places.max() >= count:
                raise AssetError(NO_END)
            rows[places[:, 0]] = self._slice(sparse["values"], dtype, width, sparse["count"])
        return rows

    def floats(self, number: int, *, normalized: bool = False) -> Float[np.ndarray, "n _"]:
        """3.6.2.2: the elements as numbers; integers are fractions of the greatest if they are `normalized`."""
        accessor = self.document["accessors"][number]
        stored = self.array(accessor)
        values = stored.astype(np.float64)
        if stored.dtype.kind != "f" and (normalized or accessor.get("normalized")):
            return np.maximum(values / np.iinfo(stored.dtype).max, -1)
        return values

    def _slice(self, place: dict, dtype: type, width: int, count: int) -> np.ndarray:
        view, size = self.document["bufferViews"][place["bufferView"]], np.dtype(dtype).itemsize
        offset, stride = view["byteOffset"] + place["byteOffset"], view.get("byteStride", width * size)
        return np.ndarray((count, width), np.dtype(dtype).newbyteorder("<"), self.binary, offset, (stride, size))

    def _primitive(self, primitive: dict, weights: tuple[float, ...]) -> _Part:
        """3.7.2: a primitive in its own coordinates."""
        vertices = self._attribute("POSITION", primitive, weights)
        corners = np.arange(len(vertices))
        if "indices" in primitive:
            corners = self.array(self.document["accessors"][primitive["indices"]])[:, 0].astype(np.int64)
            if corners.max() >= len(vertices):
                raise AssetError(NO_END)
        stated = self.document["materials"][primitive["material"]] if "material" in primitive else {}
        model, glass = stated.get("pbrMetallicRoughness", {}), stated.get("extensions", {})
        glass = glass.get("KHR_materials_transmission", {})
        light = np.ones((len(vertices), 4)) * model.get("baseColorFactor", [1.0] * 4)
        if (colours := self._attribute("COLOR_0", primitive, weights)) is not None:
            light[:, : colours.shape[1]] *= np.nan_to_num(colours)
        alpha_mode = stated.get("alphaMode", "OPAQUE")
        maps = {
            "base": (model.get("baseColorTexture"), 3 if alpha_mode == "OPAQUE" else 4),
            "emission": (stated.get("emissiveTexture"), 3),
            "transmission": (glass.get("transmissionTexture"), 3),
        }
        numbers, uv = dict.fromkeys(maps, -1), {}
        for slot, (texture, channels) in maps.items():
            stated_uv = texture and self._attribute(f"TEXCOORD_{texture['texCoord']}", primitive, weights)
            if stated_uv is not None:
                numbers[slot] = self.textures.number(texture["index"], channels)
                uv[slot] = coordinates(stated_uv, texture)
        if alpha_mode != "OPAQUE" and light[:, 3].min() >= 1 and self.textures.is_opaque(numbers["base"]):
            alpha_mode = "OPAQUE"  # as exporters often have it: nothing is to be blended
        material = Material(
            double_sided=stated.get("doubleSided", False),
            alpha_mode=alpha_mode,
            alpha_cutoff=stated["alphaCutoff"] if alpha_mode == "MASK" else Material.alpha_cutoff,
            emission=tuple(stated.get("emissiveFactor", Material.emission)),
            emission_texture=numbers["emission"],
            transmission=min(max(glass.get("transmissionFactor", 0.0), 0.0), 1.0),
            transmission_texture=numbers["transmission"],
        )
        return _Part(vertices, _triangles(corners, primitive["mode"]), light, uv, numbers["base"], material)

    def _attribute(self, name: str, primitive: dict, weights: tuple[float, ...]) -> Float[np.ndarray, "v _"] | None:
        """3.7.2.2: an attribute with its morph targets added: value + Σ weight · target; None if there is none."""
        if name not in primitive["attributes"]:
            return None
        values = self.floats(primitive["attributes"][name], normalized=name == "COLOR_0")
        for weight, target in zip(weights, primitive.get("targets", []), strict=False):
            if weight and name in target:
                change = self.floats(target[name], normalized=name == "COLOR_0")
                values = values + weight * change[:, : values.shape[1]]
        return values

    def _skinned(self, part: _Part, primitive: dict, skin: dict) -> _Part:
        """3.7.3.3: each vertex moved by the weighted mean of its joints' matrices; the node's own place does not count."""
        matrices = np.stack([self._world[joint] for joint in skin["joints"]])  # (j, 4, 4)
        if "inverseBindMatrices" in skin:
            bound = self.floats(skin["inverseBindMatrices"])[: len(matrices)]
            matrices = matrices @ bound.reshape(-1, 4, 4).transpose(0, 2, 1)
        moved, total = np.zeros_like(part.vertices), np.zeros((len(part.vertices), 1))
        points = np.column_stack([part.vertices, np.ones(len(part.vertices))])  # (v, 4)
        handedness, mirrored = np.linalg.det(matrices[:, :3, :3]), 0.0  # (j,)
        for n in range(4):
            attributes = primitive["attributes"]
            if f"JOINTS_{n}" not in attributes or f"WEIGHTS_{n}" not in attributes:
                break
            joints = self.array(self.document["accessors"][attributes[f"JOINTS_{n}"]]).astype(np.int64)
            weights = np.nan_to_num(self.floats(attributes[f"WEIGHTS_{n}"], normalized=True))
            joints[weights == 0] = 0
            if joints.max() >= len(matrices):
                raise AssetError("This GLB is damaged: its skin names joints that do not exist. Export it again.")
            for joint, weight in zip(joints.T, weights.T, strict=True):  # (v,), (v,)
                moved += weight[:, None] * np.einsum("vij,vj->vi", matrices[joint, :3], points)
                mirrored += weight @ handedness[joint]
            total += weights.sum(axis=1, keepdims=True)
        if not total.any():
            raise AssetError("This GLB is damaged: its skin holds no vertex. Export it again.")
        faces = part.faces[:, ::-1] if mirrored < 0 else part.faces
        return replace(part, vertices=moved / np.where(total > 0, total, 1), faces=faces)

    def _instances(self, node: dict) -> Float[np.ndarray, "i 4 4"]:
        """EXT_mesh_gpu_instancing: where a node places its mesh, in its own coordinates."""
        stated = node.get("extensions", {}).get("EXT_mesh_gpu_instancing", {}).get("attributes")
        if not stated:
            return np.eye(4)[None]
        placed = {name: self.floats(number, normalized=True) for name, number in stated.items()}
        count = len(next(iter(placed.values())))
        return _matrices(
            placed.get("TRANSLATION", np.zeros((count, 3))),
            placed.get("ROTATION", np.tile([0.0, 0, 0, 1], (count, 1))),
            placed.get("SCALE", np.ones((count, 3))),
        )


def _triangles(corners: Int[np.ndarray, "n"], mode: int) -> Int[np.ndarray, "f 3"]:
    """3.7.2.1: the triangles of a list, a strip or a fan."""
    if mode == TRIANGLES:
        return corners.reshape(-1, 3)
    if mode == STRIP:
        faces = np.stack([corners[:-2], corners[1:-1], corners[2:]], axis=1)
        faces[1::2] = faces[1::2, [0, 2, 1]]  # every other one would be turned over
        return faces
    return np.stack([np.full(len(corners) - 2, corners[0]), corners[1:-1], corners[2:]], axis=1)


def _placed(part: _Part, matrices: Float[np.ndarray, "i 4 4"]) -> _Part:
    """The part once for each matrix; mirrored faces are turned over, so that their front stays it (3.7.4)."""
    count, size = len(matrices), len(part.vertices)
    vertices = part.vertices @ matrices[:, :3, :3].transpose(0, 2, 1) + matrices[:, None, :3, 3]  # (i, v, 3)
    faces = part.faces + (np.arange(count) * size)[:, None, None]  # (i, f, 3)
    mirrored = np.linalg.det(matrices[:, :3, :3]) < 0  # (i,)
    faces[mirrored] = faces[mirrored][:, :, ::-1]
    return replace(
        part,
        vertices=vertices.reshape(-1, 3),
        faces=faces.reshape(-1, 3),
        light=np.tile(part.light, (count, 1)),
        uv={slot: np.tile(uv, (count, 1)) for slot, uv in part.uv.items()},
    )


def _local(node: dict) -> Float[np.ndarray, "4 4"]:
    """3.5.3: a node's matrix, or T R S."""
    if "matrix" in node:
        return np.array(node["matrix"]).reshape(4, 4).T
    parts = (("translation", [0, 0, 0]), ("rotation", [0, 0, 0, 1]), ("scale", [1, 1, 1]))
    return _matrices(*(np.array([node.get(name, default)], float) for name, default in parts))[0]


def _matrices(
    translation: Float[np.ndarray, "i 3"], rotation: Float[np.ndarray, "i 4"], scale: Float[np.ndarray, "i 3"]
) -> Float[np.ndarray, "i 4 4"]:
    """T R S of translations, unit quaternions (x, y, z, w) and scales."""
    length = np.linalg.norm(rotation, axis=1, keepdims=True)
    x, y, z, w = (rotation / np.where(length > 0, length, 1)).T
    matrices = np.zeros((len(translation), 4, 4))
    rotations = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrices[:, :3, :3] = np.moveaxis(np.array(rotations), 2, 0) * scale[:, None, :]
    matrices[:, :3, 3] = translation
    matrices[:, 3, 3] = 1
    return matrices
