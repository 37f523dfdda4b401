"""Whether the bytes of a run's file are a whole file of its kind."""

import io
import json
import struct

from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load


def fault_of(name: str, data: bytes) -> str | None:
    """What is wrong with a file's bytes; None if they are whole. The last line of a .jsonl may still be written."""
    try:
        match name.rpartition(".")[2]:
            case "json":
                json.loads(data)
            case "jsonl":
                _check_lines(data)
            case "safetensors":
                load(data)
            case "glb":
                _check_glb(data)
            case "png" | "jpg":
                Image.open(io.BytesIO(data)).load()
            case "mp4":
                _check_mp4(data)
            case kind:
                return f"a file of an unknown kind, {kind}"
    except (ValueError, KeyError, OSError, SyntaxError, struct.error, SafetensorError) as error:
        return f"{len(data)} bytes, {type(error).__name__}: {error}"
    return None


def _check_lines(data: bytes) -> None:
    for line in data.split(b"\n")[:-1]:
        if line and not (line.startswith(b'{"event"') and line.endswith(b"}")):
            raise ValueError(f"a line that is no event: {line[:60]!r}")


def _check_glb(data: bytes) -> None:
    """Its length, its chunks one after the other, and its buffer views within the binary one."""
    magic, version, length = struct.unpack_from("<4sII", data)
    if (magic, version, length) != (b"glTF", 2, len(data)):
        raise ValueError(f"its header says {length} bytes")
    chunks, at = {}, 12
    while at < length:
        size, kind = struct.unpack_from("<I4s", data, at)
        chunks[kind], at = data[at + 8 : at + 8 + size], at + 8 + size
    if at != length:
        raise ValueError("its chunks end beyond the file")
    for view in json.loads(chunks[b"JSON"])["bufferViews"]:
        if view.get("byteOffset", 0) + view["byteLength"] > len(chunks[b"BIN\0"]):
            raise ValueError("a buffer view ends beyond the buffer")


def _check_mp4(data: bytes) -> None:
    """Its boxes fill the file exactly, and there is an index (moov) with media (mdat)."""
    kinds, at = set(), 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
        if size < 8:
            raise ValueError(f"a box of {size} bytes")
        kinds.add(kind)
        at += size
    if at != len(data) or not {b"ftyp", b"moov", b"mdat"} <= kinds:
        raise ValueError(f"boxes {sorted(kinds)} end at {at}")
