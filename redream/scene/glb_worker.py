"""The process in which strangers' GLBs are read: it has limits of its own, opens nothing, and answers with plain arrays.

It imports neither torch nor trimesh, so it starts in a fraction of a second, and says when it has. A request is JSON and a
file's bytes; an answer is JSON, and a GLB's or a safetensors file's bytes (`redream.scene.glb_reader` is the other end).
"""

import json
import signal
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection

import numpy as np
from PIL import Image, MpoImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401 - later nothing can be imported
from safetensors.numpy import load, save

from redream.errors import RedreamError
from redream.scene.glb import AssetError, unpack
from redream.scene.glb_validation import Limits, reduced, validate
from redream.scene.gltf import Model, read
from redream.scene.materials import Appearance, Material, Sampler, Wrap

UNREADABLE = "This GLB cannot be read. Export it again."
TOO_LARGE = "This GLB takes too much memory or time to read. Simplify it and try again."
READY = b"ready"
ARRAYS = ("vertices", "faces", "colours", "uv", "face_texture")


def serve(connection: Connection, memory: int, cpu_seconds: int) -> None:
    """Answer requests until the other end closes the connection; each may take so many bytes and seconds."""
    Image.preinit()  # Pillow would import these decoders with the first picture
    warnings.simplefilter("ignore")  # to show one, its line would be read
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, and that this process
    _limit(memory)
    connection.send_bytes(READY)
    while True:
        try:
            request, data = json.loads(connection.recv_bytes()), connection.recv_bytes()
        except (EOFError, OSError):
            return
        _limit_time(cpu_seconds)
        answer, content = _answer(request, data)
        connection.send_bytes(json.dumps(answer).encode())
        connection.send_bytes(content)
        del request, data, content


def _answer(request: dict, data: bytes) -> tuple[dict, bytes]:
    limits = Limits(**request["limits"])
    try:
        if request["task"] == "validate":
            return {}, validate(data, limits)
        document, binary = unpack(data, len(data)) if request["task"] == "read validated" else reduced(data, limits)
        return {}, encode(read(document, binary))
    except RedreamError as error:
        return {"error": type(error).__name__, "sentence": str(error)}, b""
    except MemoryError:
        return {"error": "AssetError", "sentence": TOO_LARGE}, b""
    except Exception:  # noqa: BLE001 - whatever the bytes provoke
        return {"error": "AssetError", "sentence": UNREADABLE}, b""


def _limit(memory: int) -> None:
    """From here on this process has `memory` bytes, opens no file and no socket, and writes no file."""
    import resource

    with suppress(ValueError, OSError):  # macOS limits no memory
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))


def _limit_time(cpu_seconds: int) -> None:
    import resource

    seconds = int(time.process_time()) + 1 + cpu_seconds
    _, most = resource.getrlimit(resource.RLIMIT_CPU)  # of whoever started the program: it cannot be raised
    resource.setrlimit(resource.RLIMIT_CPU, (seconds if most == resource.RLIM_INFINITY else min(seconds, most), most))


def encode(model: Model) -> bytes:
    """A model as a safetensors file: its arrays, and the rest as JSON in one more."""
    arrays = {name: getattr(model, name) for name in ARRAYS}
    arrays |= {f"texture {number}": texture for number, texture in enumerate(model.textures)}
    described: dict = {"samplers": [asdict(sampler) for sampler in model.samplers]}
    if (appearance := model.appearance) is not None:
        described["materials"] = [asdict(material) for material in appearance.materials]
        arrays |= {"face_material": appearance.face_material, "alpha": appearance.alpha}
        arrays |= {f"uv {slot}": uv for slot, uv in appearance.uv.items()}
    arrays["json"] = np.frombuffer(json.dumps(described).encode(), np.uint8)
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def decode(content: bytes) -> Model:
    """The model that `encode` wrote. Raises `AssetError` if its parts do not fit together."""
    arrays = load(content)
    described = json.loads(arrays["json"].tobytes())
    textures = tuple(arrays[f"texture {number}"] for number in range(len(described["samplers"])))
    samplers = tuple(
        Sampler(Wrap(s["wrap_u"]), Wrap(s["wrap_v"]), nearest=bool(s["nearest"])) for s in described["samplers"]
    )
    materials = tuple(Material(**(m | {"emission": tuple(m["emission"])})) for m in described.get("materials", []))
    if not _fits(arrays, textures, materials):
        raise AssetError(UNREADABLE)
    appearance = None
    if materials:
        slots = {name[3:]: array for name, array in arrays.items() if name.startswith("uv ")}
        appearance = Appearance(materials, arrays["face_material"], arrays["alpha"], slots)
    return Model(*(arrays[n] for n in ARRAYS[:4]), textures, samplers, arrays["face_texture"], appearance)


def _fits(arrays: dict[str, np.ndarray], textures: tuple[np.ndarray, ...], materials: tuple[Material, ...]) -> bool:
    """Whether no number in a model leads beyond one of its arrays."""
    vertices, faces = len(arrays["vertices"]), len(arrays["faces"])
    shapes = {"vertices": (vertices, 3), "colours": (vertices, 3), "faces": (faces, 3), "alpha": (vertices,)}
    below = {"faces": vertices, "face_texture": len(textures), "face_material": len(materials)}
    for name, array in arrays.items():
        if name in below and not _within(array, -1 if name == "face_texture" else 0, below[name]):
            return False
        default = (vertices, 2) if name.startswith("uv") else (faces,) if name.startswith("face_") else array.shape
        if array.shape != shapes.get(name, default):
            return False
    for m in materials:
        for slot, number in (("uv emission", m.emission_texture), ("uv transmission", m.transmission_texture)):
            if not (number == -1 or 0 <= number < len(textures) and slot in arrays):
                return False
    return all(t.ndim == 3 and t.dtype == np.uint8 and t.size and t.shape[2] in (3, 4) for t in textures)


def _within(numbers: np.ndarray, least: int, below: int) -> bool:
    return numbers.dtype.kind in "iu" and numbers.size > 0 and bool(least <= numbers.min() and numbers.max() < below)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
