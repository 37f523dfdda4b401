"""Validation of a stranger's GLB before anything parses it; only what is drawn is kept.

A GLB is JSON that describes and bytes that are described (`redream.scene.glb`). Every size the JSON states is
compared with the bytes that are there, so that memory stays within a small multiple of the file. What comes back is the
same model with nothing but its scene tree, triangles and base colours: no extensions, cameras, animations or extras.

The format: https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html (section numbers below are its).
"""

import base64
import binascii
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from redream.scene.glb import GlbError, malformed, pack, too_many, unpack

TRIANGLES, TRIANGLE_STRIP = 4, 5
COMPONENT_BYTES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}  # 3.6.2.2
COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
FLOAT, INDEX, COLOUR = (5126,), (5121, 5123, 5125), (5126, 5121, 5123)
# What each drawn attribute may be made of; anything else (quantised meshes) would be read wrongly.
ATTRIBUTES = {"POSITION": (FLOAT, ("VEC3",)), "TEXCOORD_0": (FLOAT, ("VEC2",)), "COLOR_0": (COLOUR, ("VEC3", "VEC4"))}
# Extensions that change light and shine only, which an unlit picture does not show.
HARMLESS = ("KHR_materials_", "KHR_lights_punctual", "KHR_animation_pointer", "KHR_xmp_json_ld")


@dataclass(frozen=True)
class Limits:
    """How much a stranger's file may ask for."""

    size: int = 100_000_000  # bytes of the file
    json_size: int = 4_000_000  # bytes of its JSON: parsed, JSON takes up to forty times its size
    faces: int = 500_000  # drawn, so a mesh that two nodes place counts twice
    vertices: int = 1_500_000
    nodes: int = 5_000  # and parts of meshes
    depth: int = 100  # of the scene tree
    entries: int = 20_000  # of every other list
    images: int = 64
    image_side: int = 4096  # pixels
    pixels: int = 150_000_000  # of all pictures


LIMITS = Limits()


def validate(source: Path | bytes, limits: Limits = LIMITS) -> bytes:
    """The GLB at `source` reduced to what is drawn of it and safe to parse, as the bytes of another GLB.

    Raises `GlbError`. Whether the indices are within range is left to whoever reads the arrays.
    """
    data = source if isinstance(source, bytes) else _read(source, limits)
    if len(data) > limits.size:
        raise GlbError(f"This file is larger than {limits.size / 1e6:,.0f} MB. Simplify the model and try again.")
    document, binary = unpack(data, limits.json_size)
    for name in document.get("extensionsRequired", []):
        if not str(name).startswith(HARMLESS) and name != "KHR_materials_pbrSpecularGlossiness":
            raise GlbError(
                f"This GLB needs the extension {str(name)[:60]!r}, which is not read here. "
                "Export it again without compression or quantisation."
            )
    return pack(_Reduction(document, binary, limits).reduced(), binary)


class _Reduction:
    """One walk over a document that checks what is drawn and copies it into a smaller document."""

    def __init__(self, document: dict, binary: bytes, limits: Limits) -> None:
        self.document, self.binary, self.limits = document, binary, limits
        self.stated = self._list("accessors")
        self.accessors: dict[int, dict] = {}  # those that are drawn, validated, by their number in the file
        self.textures: dict[int, int] = {}  # those that are drawn: the number of their image
        self.spent = {"bytes of arrays": 0, "bytes of buffer views": 0, "pixels": 0, "parts": 0}
        self.views = [self._view(v) for v in self._list("bufferViews")]

    def reduced(self) -> dict:
        """The smaller document; raises `GlbError` at the first thing that is wrong."""
        buffers = self._list("buffers")
        if len(buffers) > 1 or any("uri" in b for b in buffers):
            raise GlbError("This GLB keeps data in other files. Export it as one file with everything embedded.")
        images = self._list("images", self.limits.images)
        textures = self._list("textures")
        materials = [self._material(m, textures, len(images)) for m in self._list("materials")]
        meshes = [self._mesh(m, len(materials)) for m in self._list("meshes")]
        if any(p["material"] == len(materials) for m in meshes for p in m["primitives"]):
            materials.append({"pbrMetallicRoughness": {}})  # for primitives without a material
        nodes = [self._node(n, len(meshes)) for n in self._list("nodes", self.limits.nodes)]
        roots = self._roots(len(nodes))
        self._follow(roots, nodes, meshes)
        drawn = set(self.textures.values())
        numbers = {old: new for new, old in enumerate(self.accessors)}  # unused accessors are left out
        for primitive in (p for m in meshes for p in m["primitives"]):
            primitive["attributes"] = {k: numbers[v] for k, v in primitive["attributes"].items()}
            if "indices" in primitive:
                primitive["indices"] = numbers[primitive["indices"]]
        return {
            "asset": {"version": "2.0"},
            "scene": 0,
            "scenes": [{"nodes": roots}],
            "nodes": nodes,
            "meshes": meshes,
            "materials": materials,
            "textures": [{"source": self.textures[i]} if i in self.textures else {} for i in range(len(textures))],
            "images": [self._image(image) if i in drawn else {} for i, image in enumerate(images)],
            "accessors": list(self.accessors.values()),
            "bufferViews": self.views,
            "buffers": [{"byteLength": len(self.binary)}],
        }

    def _list(self, name: str, limit: int | None = None) -> list[dict]:
        entries = self.document.get(name, [])
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise malformed(f"its list of {name} is not a list")
        limit = limit or self.limits.entries
        if len(entries) > limit:
            raise GlbError(too_many(name, len(entries), limit, "Merge some of them"))
        return entries

    def _spend(self, what: str, amount: int, limit: int) -> None:
        """Keep the total of what a file asks for in proportion, however often it names the same bytes."""
        self.spent[what] += amount
        if self.spent[what] > limit:
            raise GlbError(too_many(what + " in all", self.spent[what], limit, "Simplify it"))

    def _view(self, view: dict) -> dict:
        """3.6.1: a slice of the binary chunk."""
        length = _whole(view, "byteLength", below=len(self.binary) + 1, least=1)
        validated = {
            "buffer": _whole(view, "buffer", below=1),
            "byteOffset": _whole(view, "byteOffset", below=len(self.binary) - length + 1, default=0),
            "byteLength": length,
        }
        self._spend("bytes of buffer views", length, 4 * len(self.binary))
        if "byteStride" in view:
            validated["byteStride"] = _whole(view, "byteStride", below=253, least=1)
        return validated

    def _accessor(self, number: int, components: tuple[int, ...], types: tuple[str, ...]) -> dict:
        """3.6.2: an array in a buffer view. Its stated length must lie within that view."""
        accessor = self.stated[number]
        if "sparse" in accessor or "bufferView" not in accessor:
            raise GlbError("This GLB stores its shape as sparse data. Export it again without sparse accessors.")
        view = self.views[_whole(accessor, "bufferView", below=len(self.views))]
        component = _whole(accessor, "componentType", below=5127)
        kind = accessor.get("type")
        if component not in components or kind not in types:
            raise GlbError("This GLB holds quantised or unusual data. Export it again with plain floats.")
        size = COMPONENT_BYTES[component] * COMPONENTS[kind]
        stride = view.get("byteStride", size)
        offset = _whole(accessor, "byteOffset", below=view["byteLength"], default=0)
        count = _whole(accessor, "count", below=2**32, least=1)
        if stride < size or offset + (count - 1) * stride + size > view["byteLength"]:
            raise malformed("an array in it is longer than the data that is there")
        if number not in self.accessors:
            self._spend("bytes of arrays", count * size, 4 * len(self.binary))
        self.accessors[number] = {
            "bufferView": int(accessor["bufferView"]),
            "byteOffset": offset,
            "componentType": component,
            "count": count,
            "type": kind,
        }
        return self.accessors[number]

    def _mesh(self, mesh: dict, materials: int) -> dict:
        """3.7.2: the primitives that are triangles, with the attributes that are drawn."""
        primitives = mesh.get("primitives", [])
        if not isinstance(primitives, list):
            raise malformed("a mesh has no list of primitives")
        self._spend("parts", len(primitives), self.limits.nodes)
        return {"primitives": [c for p in primitives if (c := self._primitive(p, materials)) is not None]}

    def _primitive(self, primitive: object, materials: int) -> dict | None:
        attributes = primitive.get("attributes") if isinstance(primitive, dict) else None
        if not isinstance(attributes, dict):
            raise malformed("a mesh has no attributes")
        mode = _whole(primitive, "mode", below=7, default=TRIANGLES)
        if mode not in (TRIANGLES, TRIANGLE_STRIP) or "POSITION" not in attributes:
            return None
        validated, counts = {}, set()
        for name, (components, types) in ATTRIBUTES.items():
            if name in attributes:
                validated[name] = _whole(attributes, name, below=len(self.stated))
                counts.add(self._accessor(validated[name], components, types)["count"])
        if len(counts) > 1:
            raise malformed("its colours do not belong to its vertices")
        material = _whole(primitive, "material", below=materials, default=materials)
        reduced = {"attributes": validated, "mode": mode, "material": material}
        corners = counts.pop()
        if "indices" in primitive:
            reduced["indices"] = _whole(primitive, "indices", below=len(self.stated))
            corners = self._accessor(reduced["indices"], INDEX, ("SCALAR",))["count"]
        if corners < 3 or (mode == TRIANGLES and corners % 3):
            raise malformed("its corners do not make whole triangles")
        return reduced

    def _material(self, material: dict, textures: list[dict], images: int) -> dict:
        """3.9.2: the base colour, or the diffuse colour of the older specular-glossiness extension."""
        model = material.get("pbrMetallicRoughness", {})
        factor, texture = "baseColorFactor", "baseColorTexture"
        extensions = material.get("extensions", {})
        if isinstance(extensions, dict) and "KHR_materials_pbrSpecularGlossiness" in extensions:
            model = extensions["KHR_materials_pbrSpecularGlossiness"]
            factor, texture = "diffuseFactor", "diffuseTexture"
        if not isinstance(model, dict):
            raise malformed("a material is not readable")
        reduced = {"baseColorFactor": _numbers(model[factor], 4)} if factor in model else {}
        if texture in model:
            if not isinstance(model[texture], dict):
                raise malformed("a material is not readable")
            number = _whole(model[texture], "index", below=len(textures))
            if "source" in textures[number]:
                self.textures[number] = _whole(textures[number], "source", below=images)
                reduced["baseColorTexture"] = {"index": number}
        return {"pbrMetallicRoughness": reduced}

    def _image(self, image: dict) -> dict:
        """3.9: an embedded PNG or JPEG. Its dimensions are read from its header, nothing is decoded."""
        uri = image.get("uri")
        if uri is None:
            number = _whole(image, "bufferView", below=len(self.views))
            view = self.views[number]
            data = self.binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
            reduced = {"bufferView": number}
        else:
            if not isinstance(uri, str) or not uri.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")):
                raise GlbError("This GLB keeps pictures elsewhere. Export it as one file with everything embedded.")
            try:
                data = base64.b64decode(uri.split(",", 1)[1], validate=True)
            except (binascii.Error, ValueError):
                raise malformed("a picture in it is not readable") from None
            reduced = {"uri": uri}
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
                width, height = picture.size
        except Exception:  # noqa: BLE001 - Pillow raises whatever the bytes provoke
            raise GlbError(
                "A picture in this GLB is not a readable PNG or JPEG. Export it with PNG pictures."
            ) from None
        if max(width, height) > self.limits.image_side:
            side = self.limits.image_side
            raise GlbError(
                f"A picture in this GLB has {width} × {height} pixels; the limit is {side} × {side}. "
                "Make it smaller and try again."
            )
        self._spend("pixels", width * height, self.limits.pixels)
        return reduced

    def _node(self, node: dict, meshes: int) -> dict:
        """3.5: children, a mesh, and a matrix or its parts."""
        reduced = {}
        if "mesh" in node:
            reduced["mesh"] = _whole(node, "mesh", below=meshes)
        for name, length in (("matrix", 16), ("translation", 3), ("rotation", 4), ("scale", 3)):
            if name in node:
                reduced[name] = _numbers(node[name], length)
        if "children" in node:
            reduced["children"] = node["children"]  # followed, and so validated, by `_follow`
        return reduced

    def _roots(self, nodes: int) -> list[int]:
        scenes = self._list("scenes")
        if not scenes:
            raise GlbError("This GLB has no scene, so there is nothing to see in it.")
        scene = scenes[_whole(self.document, "scene", below=len(scenes), default=0)]
        return _indices(scene.get("nodes", []), nodes)

    def _follow(self, roots: list[int], nodes: list[dict], meshes: list[dict]) -> None:
        """Follow the scene tree; refuse what is no tree, and count the faces and vertices that it places."""
        sizes = np.array([self._size(m) for m in meshes]).reshape(-1, 3)  # (meshes, 3)
        total = np.zeros(3, int)
        reached: set[int] = set()
        waiting = [(root, 0) for root in roots]
        while waiting:
            number, depth = waiting.pop()
            if number in reached:
                raise malformed("a part of its scene belongs to two others, or to itself")
            if depth > self.limits.depth:
                raise GlbError(too_many("levels in its scene", depth, self.limits.depth, "Flatten it"))
            reached.add(number)
            if "mesh" in nodes[number]:
                total += sizes[nodes[number]["mesh"]]
            if "children" in nodes[number]:
                nodes[number]["children"] = _indices(nodes[number]["children"], len(nodes))
                waiting += [(child, depth + 1) for child in nodes[number]["children"]]
        limits = (self.limits.faces, self.limits.vertices, self.limits.nodes)
        # In this order: many faces are the likeliest reason.
        for name, count, limit in zip(("faces", "vertices", "parts"), total.tolist(), limits, strict=True):
            if count > limit:
                raise GlbError(too_many(name, count, limit, "Simplify it"))
        if not total[0]:
            raise GlbError("This GLB has no triangles, so there is nothing to see in it.")
        for number in set(range(len(nodes))) - reached:
            nodes[number].clear()  # placed by no scene

    def _size(self, mesh: dict) -> tuple[int, int, int]:
        """Faces, vertices and parts of a validated mesh."""
        faces = vertices = 0
        for primitive in mesh["primitives"]:
            points = self.accessors[primitive["attributes"]["POSITION"]]["count"]
            corners = self.accessors[primitive["indices"]]["count"] if "indices" in primitive else points
            faces += corners // 3 if primitive["mode"] == TRIANGLES else corners - 2
            vertices += points
        return faces, vertices, len(mesh["primitives"])


def _read(path: Path, limits: Limits) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(limits.size + 1)
    except OSError:
        raise GlbError("This file cannot be read. Choose it again.") from None


def _whole(owner: dict, key: str, below: int, default: int | None = None, least: int = 0) -> int:
    """The whole number owner[key] in [least, below); `default` where there is none, which may be `below` itself."""
    if key not in owner and default is not None:
        return default
    value = owner.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < below:
        raise malformed(f"its number {key} is missing or out of range")
    return value


def _indices(values: object, below: int) -> list[int]:
    if not isinstance(values, list) or not all(type(v) is int and 0 <= v < below for v in values):
        raise malformed("its scene names parts that do not exist")
    return values


def _numbers(values: object, length: int) -> list[float]:
    right = isinstance(values, list) and len(values) == length
    # Far below the largest float, so that products stay finite.
    if not right or not all(type(v) in (int, float) and -1e12 < v < 1e12 for v in values):
        raise malformed("it holds numbers that are missing or not finite")
    return [float(v) for v in values]
