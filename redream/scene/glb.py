"""A GLB's container (glTF 2.0, 4.4): a header, a chunk of JSON that describes, a chunk of bytes that is described."""

import io
import json
import struct
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int
from PIL import Image

from redream.errors import RedreamError


class GlbError(RedreamError):
    """A file that is refused before it is parsed; the message says why and what to do."""


class AssetError(RedreamError):
    """A 3D file that cannot be used; the message says why and what to do."""


def malformed(what: str) -> GlbError:
    """The error for a file that contradicts itself."""
    return GlbError(f"This GLB is damaged: {what}. Export it again.")


def too_many(what: str, count: int, limit: int, advice: str) -> str:
    """`This GLB has 4.1 million faces; the limit is 500,000. Simplify it and try again.`"""
    number = f"{count / 1e6:.1f} million" if count >= 1e6 else f"{count:,.0f}"
    return f"This GLB has {number} {what}; the limit is {limit:,.0f}. {advice} and try again."


def unpack(data: bytes, json_size: int) -> tuple[dict, bytes]:
    """The JSON document, which may have `json_size` bytes, and the binary chunk (which may be absent).

    Raises `GlbError`."""
    if len(data) < 20 or data[:4] != b"glTF":
        raise GlbError("This file is not a GLB. Export the model as glTF binary (.glb).")
    version, length = struct.unpack_from("<II", data, 4)
    if version != 2:
        raise GlbError(f"This GLB is of version {version}; only version 2 is read. Export it as glTF 2.0.")
    if length > len(data):
        raise malformed("it ends too early")
    chunks = list(_split(memoryview(data)[12:length]))
    if not chunks or chunks[0][0] != b"JSON":
        raise malformed("it does not start with its description")
    text = chunks[0][1]
    if len(text) > json_size:
        raise GlbError(too_many("bytes of description", len(text), json_size, "Simplify it"))
    try:
        document = json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise malformed("its description is not readable") from None
    if not isinstance(document, dict) or not isinstance(document.get("extensionsRequired", []), list):
        raise malformed("its description is not readable")
    binary = chunks[1][1] if len(chunks) > 1 and chunks[1][0] == b"BIN\0" else b""
    return document, binary


def _split(body: memoryview) -> Iterator[tuple[bytes, bytes]]:
    """The first two chunks, each a length, a type and as many bytes."""
    at = 0
    for _ in range(2):
        if at + 8 > len(body):
            return
        length = struct.unpack_from("<I", body, at)[0]
        if at + 8 + length > len(body):
            raise malformed("it ends too early")
        yield bytes(body[at + 4 : at + 8]), bytes(body[at + 8 : at + 8 + length])
        at += 8 + length


def pack(document: dict, binary: bytes) -> bytes:
    """A GLB from its document and its binary chunk."""
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    length = 12 + 8 + len(text) + 8 + len(binary)
    head = struct.pack("<4sII", b"glTF", 2, length)
    return head + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def distinct_vertices(attributes: Sequence[np.ndarray]) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "v"]]:
    """The first of each group of vertices whose attributes (v, ·) are equal in every bit, in the order of the vertices,
    and the number of its group for every vertex."""
    rows = np.concatenate([np.ascontiguousarray(a).view(np.uint8).reshape(len(a), -1) for a in attributes], axis=1)
    rows = np.ascontiguousarray(rows).view(f"V{rows.shape[1]}").ravel()  # (v,) all bytes of a vertex as one value
    _, first, group = np.unique(rows, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return first[order], np.argsort(order)[group]


def index_array(numbers: Int[np.ndarray, "n"], vertices: int) -> np.ndarray:
    """Vertex numbers as an array (n, 1) of 16 bits if there are few enough `vertices`, else of 32 bits.

    The largest number of either type is no index: it restarts a primitive (glTF 2.0, 3.7.2.1).
    """
    return numbers.reshape(-1, 1).astype(np.uint16 if vertices <= 65535 else np.uint32)


class GlbWriter:
    """A GLB under construction: one node with one mesh of several primitives, each with its own material."""

    def __init__(self) -> None:
        self.binary = b""
        self.primitives: list[dict] = []
        self.lists: dict[str, list[dict]] = {
            name: [] for name in ("bufferViews", "accessors", "materials", "textures", "images")
        }

    def array(self, values: np.ndarray, *, bounds: bool = False, normalized: bool = False) -> int:
        """Append an array (n, 1 to 4) and return its accessor's number; `bounds` and `normalized` as in glTF 2.0, 3.6.2."""
        accessor = {
            "bufferView": self._view(values.tobytes()),
            "componentType": {"float32": 5126, "uint16": 5123, "uint32": 5125}[values.dtype.name],
            "count": len(values),
            "type": ("SCALAR", "VEC2", "VEC3", "VEC4")[values.shape[1] - 1],
        }
        if bounds:
            accessor |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        if normalized:
            accessor["normalized"] = True
        return self._add("accessors", accessor)

    def primitive(self, attributes: dict[str, int], indices: int, texture: np.ndarray | None) -> None:
        """Append triangles with an unlit material of their own; `attributes` and `indices` are accessors' numbers."""
        colour = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
        if texture is not None:
            png = io.BytesIO()
            Image.fromarray(texture).save(png, "PNG")
            image = self._add("images", {"bufferView": self._view(png.getvalue()), "mimeType": "image/png"})
            colour["baseColorTexture"] = {"index": self._add("textures", {"source": image})}
        material = {"pbrMetallicRoughness": colour, "doubleSided": True, "extensions": {"KHR_materials_unlit": {}}}
        number = self._add("materials", material)
        self.primitives.append({"attributes": attributes, "indices": indices, "material": number})

    def packed(self) -> bytes:
        """The whole file."""
        document = {
            "asset": {"version": "2.0", "generator": "Redream"},
            "extensionsUsed": ["KHR_materials_unlit"],
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": self.primitives}],
            "buffers": [{"byteLength": len(self.binary)}],
        }
        return pack(document | {name: entries for name, entries in self.lists.items() if entries}, self.binary)

    def _view(self, data: bytes) -> int:
        self.binary += b"\0" * (-len(self.binary) % 4)  # arrays start at multiples of their component's size
        view = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data)}
        self.binary += data
        return self._add("bufferViews", view)

    def _add(self, name: str, entry: dict) -> int:
        self.lists[name].append(entry)
        return len(self.lists[name]) - 1
