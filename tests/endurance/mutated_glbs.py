"""Thousands of spoiled GLBs are read as strangers' files are: each is drawn, or refused in a sentence, within 5 s of CPU and 1 GB.

    python tests/endurance/mutated_glbs.py [--count 2000] [--seed 0]

The seeds are tests/scene/glb_cases, all of which must load unspoiled. An audit hook in the process that reads them reports
whatever it opens once it serves: files, sockets, processes. The exit status is 1 if anything is not as said.
"""

import argparse
import base64
import copy
import io
import json
import math
import os
import random
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from redream.errors import RedreamError
from redream.scene import glb
from redream.scene.cameras import Camera
from redream.scene.glb_reader import GlbReader

SECONDS, MEMORY_KB = 5.0, 1_000_000
CASES = ROOT / "tests/scene/glb_cases"
CAMERA = Camera(20.0, 15.0, 1.6, 40.0)
# Reports what the process opens after it has limited itself. A pipe may still be written to.
HOOK = """
import os, sys
report = os.open({pipe!r}, os.O_WRONLY)
serving = False
def hook(event, arguments):
    global serving
    if serving and event.startswith(("open", "socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.system", "import")):
        os.write(report, (event + " " + repr(arguments)[:80] + "\\n").encode())
    serving = serving or event == "resource.setrlimit"
sys.addaudithook(hook)
"""
JUNK = [
    None,
    [],
    {},
    "x",
    "",
    -1,
    0,
    1,
    2**31,
    2**32 - 1,
    2**53,
    10**30,
    0.5,
    1e300,
    -1e-300,
    True,
    [0] * 50,
    [[[]]],
    "é" * 99,
]
HUGE = [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 10**18, -1, -(2**31), 1e300]

Parts = tuple[dict, bytes]


def png(width: int, height: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG of one bit a pixel whatever its rows are."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def large_png(side: int) -> bytes:
    return png(side, side, (b"\0" + b"\xaa" * math.ceil(side / 8)) * side)


def text_bomb() -> bytes:
    data = b"Comment\0\0" + zlib.compress(b"a" * 20_000_000)
    return png(
        8,
        8,
        b"\0\xaa" * 8,
        struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data)),
    )


def large_webp(width: int, height: int) -> bytes:
    """A small lossless WebP whose header claims other dimensions."""
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, "WEBP", lossless=True)
    content = bytearray(data.getvalue())
    content[21:25] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return bytes(content)


def webp_bomb() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4096, 4096), "red").save(data, "WEBP", lossless=True, method=0)
    return data.getvalue()


PICTURES = [
    lambda: large_png(10_000),  # 100 megapixels in 13 kB
    lambda: large_png(4096),
    lambda: png(10_000, 10_000, b""),
    lambda: png(2**31 - 1, 1, b""),
    text_bomb,
    webp_bomb,
    lambda: large_webp(16_383, 16_383),
    lambda: large_webp(4096, 4096),
    lambda: b"\xff\xd8\xff\xe0" + b"\0" * 40,
    lambda: b"GIF89a" + b"\0" * 40,
    lambda: b"",
]


class Mutations:
    """Ways to spoil a file, each of them seeded."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.pictures = [make() for make in PICTURES]

    def every(self) -> list[Callable[[bytes], bytes]]:
        return [
            self.cut, self.flip_bits, self.flip_bits_of_arrays, self.lengths, self.huge_numbers, self.junk, self.missing,
            self.deep, self.cyclic, self.not_numbers, self.picture, self.elsewhere, self.multiplied, self.sparse,
        ]  # fmt: skip

    def cut(self, data: bytes) -> bytes:
        """Truncated at a structural border, or a byte beside it."""
        document, _ = glb.unpack(data, len(data))
        size = struct.unpack_from("<I", data, 12)[0]
        start = 28 + size
        borders = [0, 4, 8, 12, 16, 20, 20 + size, 24 + size, start, len(data)]
        for view in document.get("bufferViews", []):
            first = start + view.get("byteOffset", 0)
            borders += [first, first + view["byteLength"]]
        return data[: max(0, self.chance.choice(borders) + self.chance.choice([-4, -1, 0, 1]))]

    def flip_bits(self, data: bytes) -> bytes:
        spoiled = bytearray(data)
        for _ in range(self.chance.choice([1, 3, 20, 200])):
            spoiled[self.chance.randrange(len(spoiled))] ^= 1 << self.chance.randrange(8)
        return bytes(spoiled)

    def flip_bits_of_arrays(self, data: bytes) -> bytes:
        document, binary = glb.unpack(data, len(data))
        return glb.pack(document, self.flip_bits(binary)) if binary else self.flip_bits(data)

    def lengths(self, data: bytes) -> bytes:
        spoiled = bytearray(data)
        place = self.chance.choice([8, 12, 20 + struct.unpack_from("<I", data, 12)[0]])
        if place + 4 <= len(spoiled):
            number = struct.unpack_from("<I", spoiled, place)[0]
            number = self.chance.choice([0, 1, number - 4, number + 4, number * 2, 2**31, 2**32 - 1])
            struct.pack_into("<I", spoiled, place, number % 2**32)
        return bytes(spoiled)

    def huge_numbers(self, data: bytes) -> bytes:
        return self.replaced(data, lambda value: type(value) in (int, float), HUGE)

    def junk(self, data: bytes) -> bytes:
        return self.replaced(data, lambda value: True, JUNK)

    def missing(self, data: bytes) -> bytes:
        document, binary = glb.unpack(data, len(data))
        owner, key, _ = self.chance.choice(list(places(document)))
        del owner[key]
        return glb.pack(document, binary)

    def replaced(self, data: bytes, suits: Callable[[object], bool], values: list) -> bytes:
        document, binary = glb.unpack(data, len(data))
        for _ in range(self.chance.choice([1, 1, 2, 5])):
            if found := [place for place in places(document) if suits(place[2])]:
                owner, key, _ = self.chance.choice(found)
                owner[key] = copy.deepcopy(self.chance.choice(values))
        return glb.pack(document, binary)

    def deep(self, data: bytes) -> bytes:
        document, binary = glb.unpack(data, len(data))
        levels = self.chance.choice([90, 150, 4000, 30_000])
        if self.chance.random() < 0.5:
            document["extras"] = 0
            text = json.dumps(document).replace('"extras": 0', '"extras": ' + "[" * levels + "]" * levels).encode()
            return packed(text, binary)
        first = len(document["nodes"])
        roots = document.get("scenes", [{}])[document.get("scene", 0)].get("nodes", [0])
        document["nodes"] += [{"children": [first + i + 1]} for i in range(levels)] + [{"children": roots}]
        document["scenes"], document["scene"] = [{"nodes": [first]}], 0
        return glb.pack(document, binary)

    def cyclic(self, data: bytes) -> bytes:
        document, binary = glb.unpack(data, len(data))
        nodes = document["nodes"]
        one, other = self.chance.randrange(len(nodes)), self.chance.randrange(len(nodes))
        nodes[one]["children"] = [*nodes[one].get("children", []), other]
        if self.chance.random() < 0.5:
            nodes[other]["children"] = [*nodes[other].get("children", []), one]
        if self.chance.random() < 0.5:
            document["skins"] = [{"joints": [self.chance.randrange(len(nodes) + 1)] * self.chance.choice([1, 500])}]
            nodes[one] |= {"mesh": 0, "skin": 0}
        return glb.pack(document, binary)

    def not_numbers(self, data: bytes) -> bytes:
        document, binary = glb.unpack(data, len(data))
        if not binary or self.chance.random() < 0.2:
            word = self.chance.choice(["NaN", "Infinity", "-Infinity", "1e999"])
            return packed(json.dumps(document | {"extras": "word"}).replace('"word"', word).encode(), binary)
        spoiled = bytearray(binary)
        for _ in range(self.chance.choice([1, 5])):
            value = self.chance.choice([math.nan, math.inf, -math.inf, 3e38, 1e-45])
            struct.pack_into("<f", spoiled, self.chance.randrange(0, max(len(spoiled) - 3, 1), 4), value)
        return glb.pack(document, bytes(spoiled))

    def picture(self, data: bytes) -> bytes:
        document, binary = glb.unpack(data, len(data))
        copies = self.chance.choice([1, 1, 1, 5, 9, 64, 65])
        picture = self.chance.choice(self.pictures)
        kind = "webp" if picture[8:12] == b"WEBP" else "png"
        views = document.setdefault("bufferViews", [])
        binary += b"\0" * (-len(binary) % 4)
        if copies == 1 and self.chance.random() < 0.3:
            image = {"uri": f"data:image/{kind};base64," + base64.b64encode(picture).decode()}
        else:
            views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(picture)})
            image = {"bufferView": len(views) - 1, "mimeType": f"image/{kind}"}
            binary += picture
        document["images"] = [dict(image) for _ in range(copies)]
        document["textures"] = [{"source": i} for i in range(copies)]
        materials = document["materials"] = [
            {"alphaMode": "BLEND", "pbrMetallicRoughness": {"baseColorTexture": {"index": i}}} for i in range(copies)
        ]
        for mesh in document["meshes"]:
            mesh["primitives"] = [p | {"material": i} for p in mesh["primitives"] for i in range(len(materials))]
        document["buffers"] = [{"byteLength": len(binary)}]
        return glb.pack(document, binary)

    def elsewhere(self, data: bytes) -> bytes:
        document, binary = glb.unpack(data, len(data))
        uris = [
            "file:///etc/passwd",
            "/etc/passwd",
            "../../../etc/hosts",
            "https://example.org/a.bin",
            "//host/a",
            "data:,",
        ]
        uri = self.chance.choice(
            [*uris, "data:application/octet-stream;base64,####", "data:image/png;base64,AAAA", "\0"]
        )
        target = self.chance.choice(["buffers", "images", "both"])
        if target != "images":
            document["buffers"] = [entry | {"uri": uri} for entry in document["buffers"]]
        if target != "buffers":
            document["images"] = [{"uri": uri}]
            document["textures"] = [{"source": 0}]
            document["materials"] = [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}]
        return glb.pack(document, binary)

    def multiplied(self, data: bytes) -> bytes:
        document, binary = glb.unpack(data, len(data))
        count = self.chance.choice([40, 4000, 19_000])
        mesh, node = document["meshes"][0], document["nodes"][0]
        way = self.chance.randrange(5)
        if way == 0:
            mesh["primitives"] *= count
        elif way == 1:
            document["nodes"] += [{"mesh": 0}] * count
            document["scenes"], document["scene"] = [{"nodes": list(range(len(document["nodes"]) - count, count))}], 0
        elif way == 2:
            for primitive in mesh["primitives"]:
                primitive["targets"] = [{"POSITION": primitive["attributes"]["POSITION"]}] * count
            mesh["weights"] = [1.0] * count
        elif way == 3:
            document["accessors"].append({"componentType": 5126, "type": "VEC3", "count": count * 50})
            placed = {"TRANSLATION": len(document["accessors"]) - 1}
            node |= {"mesh": 0, "extensions": {"EXT_mesh_gpu_instancing": {"attributes": placed}}}
        else:
            document["bufferViews"] = document.get("bufferViews", []) * count
        return glb.pack(document, binary)

    def sparse(self, data: bytes) -> bytes:
        document, binary = glb.unpack(data, len(data))
        accessor = self.chance.choice(document["accessors"])
        views = len(document.get("bufferViews", [])) + 1
        accessor["sparse"] = {
            "count": self.chance.choice([1, 2, accessor["count"], accessor["count"] + 1, 10**6, 2**32]),
            "indices": {
                "bufferView": self.chance.randrange(views),
                "byteOffset": self.chance.choice([0, 1, 4, 10**9]),
                "componentType": self.chance.choice([5121, 5123, 5125, 5126]),
            },
            "values": {"bufferView": self.chance.randrange(views), "byteOffset": self.chance.choice([0, 4, 10**9])},
        }
        if self.chance.random() < 0.3:
            accessor.pop("bufferView", None)
            accessor["count"] = self.chance.choice([accessor["count"], 10**6, 10**9])
        return glb.pack(document, binary)


def places(owner: object) -> Iterator[tuple[object, object, object]]:
    """Every value in a document: (what holds it, its key, it)."""
    pairs = owner.items() if isinstance(owner, dict) else enumerate(owner) if isinstance(owner, list) else ()
    for key, value in list(pairs):
        yield owner, key, value
        yield from places(value)


def packed(text: bytes, binary: bytes) -> bytes:
    """A GLB of any text, valid or not."""
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


class Audit:
    """What the reading processes report, by a named pipe that their `sitecustomize` opens."""

    def __init__(self, folder: Path) -> None:
        pipe = folder / "report"
        os.mkfifo(pipe)
        self._file = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        (folder / "sitecustomize.py").write_text(HOOK.format(pipe=str(pipe)))
        os.environ["PYTHONPATH"] = str(folder)

    def events(self) -> list[str]:
        try:
            return os.read(self._file, 1_000_000).decode().splitlines()
        except BlockingIOError:
            return []


def peak_kb(process: int) -> int:
    """The most memory that a process has held so far."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def cpu_seconds(reader: GlbReader) -> float:
    """What the reading process has computed so far."""
    try:
        fields = Path(f"/proc/{reader._child.pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, AttributeError):  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what became of the files; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    seeds = [path.read_bytes() for path in sorted(CASES.glob("*.glb"))]
    outcomes, faults, slowest, peak = Counter(), [], 0.0, 0
    chance, started = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, GlbReader() as reader:
        audit = Audit(Path(folder))
        for data in seeds:
            reader.load(data)
        opened = audit.events()  # nothing yet, or the hook reports what is no fault
        mutations = Mutations(options.seed)
        ways = mutations.every()
        for number in range(options.count):
            way = ways[number % len(ways)]
            data = way(chance.choice(seeds))
            start, before = time.process_time(), cpu_seconds(reader)
            try:
                asset = reader.load(data)
                image, _ = asset.render(CAMERA, 8, torch.ones(3), samples=1)
                result = "drawn" if np.isfinite(image.numpy()).all() else "FAULT"
            except RedreamError as error:
                sentence = str(error)
                result = "refused" if sentence.endswith(".") and len(sentence) < 300 else "FAULT"
                result = "ended by its limits" if "too much memory or time" in sentence else result
            except Exception as error:  # noqa: BLE001 - what is looked for
                result = f"FAULT {error!r}"[:200]
            seconds = time.process_time() - start + max(cpu_seconds(reader) - before, 0)
            slowest = max(slowest, seconds)
            if reader._child is not None:
                peak = max(peak, peak_kb(reader._child.pid))
            if seconds > SECONDS or result.startswith("FAULT"):
                faults.append(f"{number} {way.__name__}: {result}, {seconds:.1f} s")
            outcomes[way.__name__, result.split()[0]] += 1
        opened += audit.events()
    for (way, result), count in sorted(outcomes.items()):
        print(f"{way:20} {result:8} {count}")
    totals = Counter()
    for (_, result), count in outcomes.items():
        totals[result] += count
    print(f"{len(seeds)} seeds load; of {options.count}: {dict(totals)}, in {time.monotonic() - started:.0f} s")
    print(f"slowest {slowest:.1f} s of CPU, most memory {peak / 1e6:.2f} GB, opened while serving: {len(opened)}")
    print(*faults, *opened, sep="\n")
    return int(bool(faults or opened or peak > MEMORY_KB))


if __name__ == "__main__":
    sys.exit(main())
