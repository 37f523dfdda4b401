"""GLBs made array by array, for tests."""

import io

import numpy as np
from PIL import Image

from redream.scene import glb

COMPONENT_TYPES = {"int8": 5120, "uint8": 5121, "int16": 5122, "uint16": 5123, "uint32": 5125, "float32": 5126}
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


class GlbFile:
    """A document under construction. Arrays are float32 unless they have another type that glTF knows."""

    def __init__(self) -> None:
        self.binary = b""
        self.document: dict = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": []}]}

    def add(self, name: str, entry: dict) -> int:
        """Append to one of the document's lists; the entry's number."""
        entries = self.document.setdefault(name, [])
        entries.append(entry)
        return len(entries) - 1

    def view(self, data: bytes, **entries: object) -> int:
        self.binary += b"\0" * (-len(self.binary) % 4)
        view = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data), **entries}
        self.binary += data
        return self.add("bufferViews", view)

    def array(self, values: object, *, view: int | None = None, **entries: object) -> int:
        """An accessor of (n, components) or (n,) values, in a view of its own or at a place in `view`."""
        values = np.asarray(values)
        values = values if values.dtype.name in COMPONENT_TYPES else values.astype(np.float32)
        values = values.reshape(len(values), -1)
        return self.add(
            "accessors",
            {
                "bufferView": self.view(values.tobytes()) if view is None else view,
                "componentType": COMPONENT_TYPES[values.dtype.name],
                "count": len(values),
                "type": TYPES[values.shape[1]],
                **entries,
            },
        )

    def texture(self, picture: Image.Image | np.ndarray, sampler: dict | None = None, kind: str = "PNG") -> int:
        data = io.BytesIO()
        picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        picture.save(data, kind, **({"lossless": True} if kind == "WEBP" else {}))
        texture = {"source": self.add("images", {"bufferView": self.view(data.getvalue())})}
        if sampler is not None:
            texture["sampler"] = self.add("samplers", sampler)
        return self.add("textures", texture)

    def material(self, colour: object = (1, 1, 1, 1), texture: dict | None = None, **entries: object) -> int:
        model = {"baseColorFactor": list(colour)} | ({"baseColorTexture": texture} if texture else {})
        return self.add("materials", {"pbrMetallicRoughness": model, "doubleSided": True, **entries})

    def mesh(self, attributes: dict[str, object], faces: object = None, *, weights=None, **primitive: object) -> int:
        """A mesh of one primitive; values that are arrays become accessors."""
        numbers = {name: v if isinstance(v, int) else self.array(v) for name, v in attributes.items()}
        entry = {"attributes": numbers, **primitive}
        if faces is not None:
            entry["indices"] = self.array(np.asarray(faces, np.uint16).ravel())
        return self.add("meshes", {"primitives": [entry]} | ({} if weights is None else {"weights": weights}))

    def node(self, *, root: bool = True, **entries: object) -> int:
        number = self.add("nodes", entries)
        if root:
            self.document["scenes"][0]["nodes"].append(number)
        return number

    def instances(self, **attributes: object) -> dict:
        """The extension that places a node's mesh several times."""
        numbers = {n: v if isinstance(v, int) else self.array(v) for n, v in attributes.items()}
        return {"EXT_mesh_gpu_instancing": {"attributes": numbers}}

    def bytes(self) -> bytes:
        return glb.pack(self.document | {"buffers": [{"byteLength": len(self.binary)}]}, self.binary)
