"""A GLB's container (glTF 2.0, 4.4): a header, a chunk of JSON that describes, a chunk of bytes that is described."""

import json
import struct
from collections.abc import Iterator

from redream.errors import RedreamError


class GlbError(RedreamError):
    """A file that is refused before it is parsed; the message says why and what to do."""


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
