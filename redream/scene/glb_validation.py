"""Validation of a stranger's GLB before anything reads it; only what is drawn is kept.

A GLB is JSON that describes and bytes that are described (`redream.scene.glb`). Every size the JSON states is
compared with the bytes that are there, so that memory stays within a small multiple of the file. What comes back is the
same model with nothing but its scene tree, triangles and surfaces: no cameras, animations or extras.

The format: https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html (section numbers here and beside are its).
"""

from pathlib import Path

import numpy as np

from redream.files import encodable
from redream.scene.glb import GlbError, malformed, pack, too_many, unpack
from redream.scene.glb_buffers import INDEX, UNREAD, Buffers, Limits, unread
from redream.scene.glb_json import entries, indices, numbers, section, whole
from redream.scene.glb_materials import Materials

TRIANGLES, TRIANGLE_STRIP, TRIANGLE_FAN = 4, 5, 6
FLOAT, BYTE, UNSIGNED_BYTE, SHORT, UNSIGNED_SHORT = 5126, 5120, 5121, 5122, 5123
ANY = (FLOAT, BYTE, UNSIGNED_BYTE, SHORT, UNSIGNED_SHORT)  # with KHR_mesh_quantization
INSTANCING = "EXT_mesh_gpu_instancing"
# What each drawn attribute may be made of.
POSITION, COORDINATES = (ANY, ("VEC3",)), (ANY, ("VEC2",))
COLOUR = ((FLOAT, UNSIGNED_BYTE, UNSIGNED_SHORT), ("VEC3", "VEC4"))
JOINTS, WEIGHTS = ((UNSIGNED_BYTE, UNSIGNED_SHORT), ("VEC4",)), (COLOUR[0], ("VEC4",))
INSTANCES = {
    "TRANSLATION": ((FLOAT,), ("VEC3",)),
    "ROTATION": ((FLOAT, BYTE, SHORT), ("VEC4",)),
    "SCALE": ((FLOAT,), ("VEC3",)),
}
INFLUENCES = 4  # sets of joints and weights, of four each
# Extensions that are drawn, and those that change light and shine only, which an unlit picture does not show.
DRAWN = ("KHR_texture_transform", "KHR_mesh_quantization", "EXT_texture_webp", "KHR_node_visibility", INSTANCING)
HARMLESS = ("KHR_materials_", "KHR_lights_punctual", "KHR_animation_pointer", "KHR_xmp_json_ld")
DRACO = "KHR_draco_mesh_compression"
LIMITS = Limits()


def validate(source: Path | bytes, limits: Limits = LIMITS) -> bytes:
    """The GLB at `source` reduced to what is drawn of it and safe to read, as the bytes of another GLB.

    Raises `GlbError`. Whether the indices are within range is left to whoever reads the arrays.
    """
    return pack(*reduced(source, limits))


def reduced(source: Path | bytes, limits: Limits = LIMITS) -> tuple[dict, bytes]:
    """As `validate`, the document and the binary chunk."""
    document, binary = unpack(read(source, limits), limits.json_size)
    for name in map(str, document.get("extensionsRequired", [])):
        if name in UNREAD or not (name in DRAWN or name.startswith(HARMLESS)):
            raise unread(name)
    reduction = _Reduction(document, binary, limits)
    return reduction.document_drawn(), reduction.buffers.binary


def read(source: Path | bytes, limits: Limits = LIMITS) -> bytes:
    """A file's bytes, if they are not too many. Raises `GlbError`."""
    try:
        if isinstance(source, Path):
            with open(source, "rb") as file:
                source = file.read(limits.size + 1)
    except OSError as error:
        name = encodable(source.name)
        raise GlbError(f"The file {name} cannot be read ({error.strerror}); choose it again.") from None
    if len(source) > limits.size:
        raise GlbError(f"This file is larger than {limits.size / 1e6:,.0f} MB. Simplify the model and try again.")
    return source


class _Reduction:
    """One walk over a document that checks what is drawn and copies it into a smaller document."""

    def __init__(self, document: dict, binary: bytes, limits: Limits) -> None:
        self.document, self.limits = document, limits
        for name in ("accessors", "bufferViews", "textures", "samplers", "materials", "meshes", "skins", "scenes"):
            self._list(name, limits.entries)
        self.buffers = Buffers(document, binary, limits)
        self.surfaces = Materials(document, self.buffers)

    def document_drawn(self) -> dict:
        """The smaller document; raises `GlbError` at the first thing that is wrong."""
        stated, stated_meshes = self._list("nodes", self.limits.nodes), entries(self.document, "meshes")
        targets = _drawn_targets(stated, stated_meshes)
        meshes = [self._mesh(m, t) for m, t in zip(stated_meshes, targets, strict=True)]
        skins = [self._skin(s, len(stated)) for s in entries(self.document, "skins")]
        nodes = [self._node(n, targets, len(skins)) for n in stated]
        roots = self._roots(stated)
        self._follow(roots, nodes, meshes, skins)
        return {
            "asset": {"version": "2.0"},
            "scene": 0,
            "scenes": [{"nodes": roots}],
            "nodes": nodes,
            "meshes": meshes,
            "skins": skins,
            "materials": self.surfaces.materials,
            "textures": self.surfaces.textures,
            "samplers": self.surfaces.samplers,
            "images": self.surfaces.images,
            "accessors": self.buffers.accessors,
            "bufferViews": self.buffers.views,
            "buffers": [{"byteLength": len(self.buffers.binary)}],
        }

    def _list(self, name: str, limit: int) -> list[dict]:
        found = entries(self.document, name)
        if len(found) > limit:
            raise GlbError(too_many(name, len(found), limit, "Join its objects into fewer"))
        return found

    def _mesh(self, mesh: dict, targets: list[int]) -> dict:
        """3.7.2: the primitives that are triangles, with the attributes and morph targets that are drawn."""
        primitives = mesh.get("primitives", [])
        if not isinstance(primitives, list):
            raise malformed("a mesh has no list of primitives")
        self.buffers.spend("parts", len(primitives), self.limits.nodes)
        reduced = {"primitives": [c for p in primitives if (c := self._primitive(p, targets)) is not None]}
        return reduced | ({"weights": _chosen(mesh.get("weights", []), targets)} if targets else {})

    def _primitive(self, primitive: object, targets: list[int]) -> dict | None:
        attributes = primitive.get("attributes") if isinstance(primitive, dict) else None
        if not isinstance(attributes, dict):
            raise malformed("a mesh has no attributes")
        mode = whole(primitive, "mode", below=7, default=TRIANGLES)
        if mode < TRIANGLES or "POSITION" not in attributes:
            return None
        if DRACO in section(primitive, "extensions") and not self.buffers.is_stored(attributes["POSITION"]):
            raise unread(DRACO)
        reduced, sets = {"mode": mode}, set()
        if "material" in primitive:
            reduced["material"] = whole(primitive, "material", below=len(self.surfaces.materials))
            sets = self.surfaces.texture_sets(reduced["material"])
        surface = {"POSITION": POSITION, "COLOR_0": COLOUR} | {f"TEXCOORD_{n}": COORDINATES for n in sorted(sets)}
        skin = {f"JOINTS_{n}": JOINTS for n in range(INFLUENCES)} | {f"WEIGHTS_{n}": WEIGHTS for n in range(INFLUENCES)}
        reduced["attributes"] = self._attributes(attributes, surface | skin)
        counts = {self._count(a) for a in reduced["attributes"].values()}
        if targets:
            stated = entries(primitive, "targets")
            moved = [self._attributes(stated[t], surface) if t < len(stated) else {} for t in targets]
            reduced["targets"] = moved
            counts |= {self._count(a) for target in moved for a in target.values()}
        if len(counts) > 1:
            raise malformed("its colours do not belong to its vertices")
        corners = counts.pop()
        if "indices" in primitive:
            reduced["indices"] = self.buffers.accessor(primitive, "indices", INDEX, ("SCALAR",))
            corners = self._count(reduced["indices"])
        if corners < 3 or (mode == TRIANGLES and corners % 3):
            raise malformed("its corners do not make whole triangles")
        return reduced

    def _attributes(self, stated: dict, allowed: dict[str, tuple]) -> dict[str, int]:
        return {name: self.buffers.accessor(stated, name, *kinds) for name, kinds in allowed.items() if name in stated}

    def _count(self, accessor: int) -> int:
        return self.buffers.accessors[accessor]["count"]

    def _skin(self, skin: dict, nodes: int) -> dict:
        """3.7.3.2: joints, and the inverse of each joint's matrix when the mesh was bound to it."""
        reduced = {"joints": indices(skin.get("joints"), nodes)}
        if "inverseBindMatrices" in skin:
            reduced["inverseBindMatrices"] = self.buffers.accessor(skin, "inverseBindMatrices", (FLOAT,), ("MAT4",))
            if self._count(reduced["inverseBindMatrices"]) < len(reduced["joints"]):
                raise malformed("its skin has fewer matrices than joints")
        self.buffers.spend("joints", len(reduced["joints"]), self.limits.entries)
        return reduced

    def _node(self, node: dict, targets: list[list[int]], skins: int) -> dict:
        """3.5: children, a mesh with its skin, weights or instances, and a matrix or its parts."""
        reduced = {}
        if "mesh" in node:
            reduced["mesh"] = whole(node, "mesh", below=len(targets))
            if "skin" in node:
                reduced["skin"] = whole(node, "skin", below=skins)
            if targets[reduced["mesh"]] and "weights" in node:
                reduced["weights"] = _chosen(node["weights"], targets[reduced["mesh"]])
            if INSTANCING in section(node, "extensions"):
                stated = section(node, "extensions", INSTANCING, "attributes")
                placed = self._attributes(stated, INSTANCES)
                if "skin" in node or len({self._count(a) for a in placed.values()}) != 1:
                    raise malformed("a part of it is repeated in a way that has no meaning")
                reduced["extensions"] = {INSTANCING: {"attributes": placed}}
        for name, length in (("matrix", 16), ("translation", 3), ("rotation", 4), ("scale", 3)):
            if name in node:
                reduced[name] = numbers(node[name], length)
        if "children" in node:
            reduced["children"] = node["children"]  # followed, and so validated, by `_follow`
        if section(node, "extensions", "KHR_node_visibility").get("visible") is False:
            reduced["hidden"] = True
        return reduced

    def _roots(self, nodes: list[dict]) -> list[int]:
        """3.5.1: the roots of the scene that is shown; without scenes, all nodes that are nobody's child."""
        scenes = entries(self.document, "scenes")
        if scenes:
            scene = scenes[whole(self.document, "scene", below=len(scenes), default=0)]
            return indices(scene.get("nodes", []), len(nodes))
        children = {c for node in nodes for c in indices(node.get("children", []), len(nodes))}
        return [number for number in range(len(nodes)) if number not in children]

    def _follow(self, roots: list[int], nodes: list[dict], meshes: list[dict], skins: list[dict]) -> None:
        """Follow the scene tree; refuse what is no tree, and count the faces and vertices that it places."""
        sizes = np.array([self._size(m) for m in meshes]).reshape(-1, 3)  # (meshes, 3)
        total = np.zeros(3, int)
        reached: set[int] = set()
        waiting = [(root, 0, False) for root in roots]
        while waiting:
            number, depth, hidden = waiting.pop()
            node = nodes[number]
            if number in reached:
                raise malformed("a part of its scene belongs to two others, or to itself")
            if depth > self.limits.depth:
                raise GlbError(too_many("levels in its scene", depth, self.limits.depth, "Flatten it"))
            reached.add(number)
            hidden = node.pop("hidden", False) or hidden
            if hidden:
                node.pop("mesh", None)
            if "mesh" in node:
                total += sizes[node["mesh"]] * [*[self._instances(node)] * 2, 1]
            if "children" in node:
                node["children"] = indices(node["children"], len(nodes))
                waiting += [(child, depth + 1, hidden) for child in node["children"]]
        limits = (self.limits.faces, self.limits.vertices, self.limits.nodes)
        # In this order: many faces are the likeliest reason.
        for name, count, limit in zip(("faces", "vertices", "parts"), total.tolist(), limits, strict=True):
            if count > limit:
                raise GlbError(too_many(name, count, limit, "Simplify it"))
        if not total[0]:
            raise GlbError("This GLB has no triangles, so there is nothing to see in it.")
        skinned = {nodes[n]["skin"] for n in reached if "skin" in nodes[n]}
        if not reached.issuperset(joint for skin in skinned for joint in skins[skin]["joints"]):
            raise malformed("its skin hangs on a part that is not in its scene")
        for number in set(range(len(nodes))) - reached:
            nodes[number].clear()  # placed by no scene

    def _instances(self, node: dict) -> int:
        """How often a node places its mesh."""
        placed = section(node, "extensions", INSTANCING, "attributes")
        return self._count(next(iter(placed.values()))) if placed else 1

    def _size(self, mesh: dict) -> tuple[int, int, int]:
        """Faces, vertices and parts of a validated mesh; each morph target counts as its vertices once more."""
        faces = vertices = 0
        for primitive in mesh["primitives"]:
            points = self._count(primitive["attributes"]["POSITION"])
            corners = self._count(primitive["indices"]) if "indices" in primitive else points
            faces += corners // 3 if primitive["mode"] == TRIANGLES else corners - 2
            vertices += points * (1 + len(primitive.get("targets", [])))
        return faces, vertices, len(mesh["primitives"])


def _drawn_targets(nodes: list[dict], meshes: list[dict]) -> list[list[int]]:
    """3.7.2.2: for each mesh the numbers of the morph targets that have a weight anywhere."""
    stated = [[mesh.get("weights", [])] for mesh in meshes]
    for node in nodes:
        if "mesh" in node and "weights" in node:
            stated[whole(node, "mesh", below=len(meshes))].append(node["weights"])
    return [sorted({i for weights in lists for i, w in enumerate(numbers(weights)) if w}) for lists in stated]


def _chosen(weights: object, targets: list[int]) -> list[float]:
    weights = numbers(weights)
    return [weights[t] if t < len(weights) else 0.0 for t in targets]
