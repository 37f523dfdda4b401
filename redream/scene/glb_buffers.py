"""Validation of a GLB's bytes (glTF 2.0, 3.6): buffers, the views of them, and the arrays (accessors) in the views."""

import base64
import binascii
from dataclasses import dataclass

from redream.files import encodable
from redream.scene.glb import GlbError, malformed, too_many
from redream.scene.glb_json import entries, section, whole

COMPONENT_BYTES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}  # 3.6.2.2
COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
INDEX = (5121, 5123, 5125)
ELSEWHERE = "This GLB keeps {} elsewhere. Export it as one file with everything embedded."
MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")
UNREAD = {  # what is not drawn: what the file is like then, and what helps
    "KHR_draco_mesh_compression": ("is compressed with Draco", "without compression"),
    MESHOPT[0]: ("is compressed with meshopt", "without compression"),
    MESHOPT[1]: ("is compressed with meshopt", "without compression"),
    "KHR_texture_basisu": ("keeps its pictures as KTX2", "with PNG or JPEG pictures"),
    "EXT_texture_avif": ("keeps its pictures as AVIF", "with PNG or JPEG pictures"),
    "MSFT_texture_dds": ("keeps its pictures as DDS", "with PNG or JPEG pictures"),
}


@dataclass(frozen=True)
class Limits:
    """How much a stranger's file may ask for."""

    size: int = 100_000_000  # bytes of the file
    json_size: int = 4_000_000  # bytes of its JSON: parsed, JSON takes up to forty times its size
    faces: int = 500_000  # drawn, so a mesh that two nodes place counts twice
    vertices: int = 1_500_000  # drawn, and again for each morph target
    nodes: int = 5_000  # and parts of meshes
    depth: int = 100  # of the scene tree
    entries: int = 20_000  # of every other list
    images: int = 64
    image_side: int = 4096  # pixels
    pixels: int = 150_000_000  # of all pictures


def unread(name: str) -> GlbError:
    """The error for an extension that a file needs and that is not drawn."""
    what, way_out = UNREAD.get(name, ("needs an extension", "without it"))
    return GlbError(f"This GLB {what} ({encodable(name[:60])}), which is not read here. Export it again {way_out}.")


def from_data_uri(uri: object, kinds: tuple[str, ...], what: str) -> bytes:
    """The bytes of a base64 data URI of one of the media types `kinds`."""
    kind, _, text = uri.partition(";base64,") if isinstance(uri, str) else ("", "", "")
    if kind not in ["data:" + k for k in kinds]:
        raise GlbError(ELSEWHERE.format(what))
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise malformed(f"some of {what} in it cannot be decoded") from None


class Buffers:
    """All buffers in one, `binary`, and what was found valid in it: `views`, `accessors`."""

    def __init__(self, document: dict, chunk: bytes, limits: Limits) -> None:
        self.limits = limits
        self.binary, starts, sizes = self._joined(entries(document, "buffers"), chunk)
        self.spent: dict[str, int] = {}
        self.views = [self._view(v, starts, sizes) for v in self._within(entries(document, "bufferViews"))]
        self.accessors: list[dict] = []  # those that are drawn
        self._stated = self._within(entries(document, "accessors"))
        self._numbers: dict[int, int] = {}  # of the drawn ones, by their number in the file

    def spend(self, what: str, amount: int, limit: int, advice: str = "Simplify it") -> None:
        """Keep the total of what a file asks for in proportion, however often it names the same bytes."""
        self.spent[what] = self.spent.get(what, 0) + amount
        if self.spent[what] > limit:
            raise GlbError(too_many(what + " in all", self.spent[what], limit, advice))

    def view_of(self, data: bytes) -> int:
        """The number of a new view that holds `data`."""
        self.views.append({"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data)})
        self.binary += data
        return len(self.views) - 1

    def bytes_of(self, view: int) -> bytes:
        """The bytes of a view."""
        start = self.views[view]["byteOffset"]
        return self.binary[start : start + self.views[view]["byteLength"]]

    def is_stored(self, number: object) -> bool:
        """Whether the file has bytes for an accessor."""
        return type(number) is int and 0 <= number < len(self._stated) and "bufferView" in self._stated[number]

    def accessor(self, owner: dict, key: str, components: tuple[int, ...], types: tuple[str, ...]) -> int:
        """3.6.2: the number among `accessors` of the array owner[key], whose stated length lies within its view."""
        number = whole(owner, key, below=len(self._stated))
        accessor = self._stated[number]
        component = whole(accessor, "componentType", below=5127)
        kind, count = accessor.get("type"), whole(accessor, "count", below=2**32, least=1)
        if component not in components or kind not in types:
            raise malformed("it holds an array of a type that has no meaning there")
        if number not in self._numbers:
            self._numbers[number] = len(self.accessors)
            self.accessors.append(self._validated(accessor, component, kind, count))
        return self._numbers[number]

    def _validated(self, accessor: dict, component: int, kind: str, count: int) -> dict:
        size = COMPONENT_BYTES[component] * COMPONENTS[kind]
        validated = {"componentType": component, "count": count, "type": kind}
        if accessor.get("normalized") is True:
            validated["normalized"] = True
        if "bufferView" in accessor:
            validated |= self._slice(accessor, count, size)
            self.spend("bytes of arrays", count * size, 4 * len(self.binary))
        else:  # zeros, which no bytes in the file stand for
            self.spend("values that are not stored", count, self.limits.vertices)
        if "sparse" in accessor:
            sparse = section(accessor, "sparse")
            replaced = whole(sparse, "count", below=count + 1, least=1)
            places, values = section(sparse, "indices"), section(sparse, "values")
            index = whole(places, "componentType", below=5127)
            if index not in INDEX:
                raise malformed("it holds an array of a type that has no meaning there")
            validated["sparse"] = {
                "count": replaced,
                "indices": self._slice(places, replaced, COMPONENT_BYTES[index]) | {"componentType": index},
                "values": self._slice(values, replaced, size),
            }
        return validated

    def _slice(self, owner: dict, count: int, size: int) -> dict:
        """The view and offset of `count` elements of `size` bytes, all of which lie within the view."""
        number = whole(owner, "bufferView", below=len(self.views))
        view = self.views[number]
        stride = view.get("byteStride", size)
        offset = whole(owner, "byteOffset", below=view["byteLength"], default=0)
        if stride < size or offset + (count - 1) * stride + size > view["byteLength"]:
            raise malformed("an array in it is longer than the data that is there")
        return {"bufferView": number, "byteOffset": offset}

    def _joined(self, buffers: list[dict], chunk: bytes) -> tuple[bytes, list[int], list[int]]:
        """3.6.1: all buffers in one, and where each of them starts and how long it is."""
        parts, starts, at = [], [], 0
        for number, buffer in enumerate(self._within(buffers)):
            if "uri" in buffer:
                kinds = ("application/octet-stream", "application/gltf-buffer")
                parts.append(from_data_uri(buffer["uri"], kinds, "its data"))
            elif number == 0:
                parts.append(chunk)
            elif names := [name for name in MESHOPT if name in section(buffer, "extensions")]:
                raise unread(names[0])
            else:
                raise GlbError(ELSEWHERE.format("its data"))
            starts.append(at)
            at += len(parts[-1])
        return (parts[0] if len(parts) == 1 else b"".join(parts)), starts, [len(p) for p in parts]

    def _view(self, view: dict, starts: list[int], sizes: list[int]) -> dict:
        """3.6.1: a slice of a buffer."""
        buffer = whole(view, "buffer", below=len(sizes))
        length = whole(view, "byteLength", below=sizes[buffer] + 1, least=1)
        offset = whole(view, "byteOffset", below=sizes[buffer] - length + 1, default=0)
        validated = {"buffer": 0, "byteOffset": starts[buffer] + offset, "byteLength": length}
        self.spend("bytes of buffer views", length, 4 * len(self.binary))
        if "byteStride" in view:
            validated["byteStride"] = whole(view, "byteStride", below=253, least=1)
        return validated

    def _within(self, listed: list[dict]) -> list[dict]:
        if len(listed) > self.limits.entries:
            raise GlbError(
                too_many("entries in a list", len(listed), self.limits.entries, "Join its objects into fewer")
            )
        return listed
