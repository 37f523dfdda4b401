"""Validation of what a GLB's surfaces show (glTF 2.0, 3.8 and 3.9): materials, textures and pictures."""

import io

from PIL import Image

from redream.scene.glb import GlbError, too_many
from redream.scene.glb_buffers import UNREAD, Buffers, from_data_uri, unread
from redream.scene.glb_json import entries, number, numbers, section, whole

FORMATS = ("PNG", "JPEG", "WEBP")
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp")
SPECULAR_GLOSSINESS = "KHR_materials_pbrSpecularGlossiness"  # the older way to state a colour
FILTERS, WRAPS = (9728, 9729), (10497, 33071, 33648)  # 3.8.4: OpenGL's numbers


class Materials:
    """The materials of a document, reduced to what an unlit picture shows of them."""

    def __init__(self, document: dict, buffers: Buffers) -> None:
        self._buffers, self._document = buffers, document
        self._images, limit = entries(document, "images"), buffers.limits.images
        if len(self._images) > limit:
            raise GlbError(too_many("images", len(self._images), limit, "Merge some of them"))
        self._stated = entries(document, "textures")
        self._numbers: dict[int, int | None] = {}  # of drawn textures, by their number in the file; None: no picture
        self._image_numbers: dict[int, int] = {}
        self.textures: list[dict] = []
        self.images: list[dict] = []
        self.samplers = [self._sampler(s) for s in entries(document, "samplers")]
        self.materials = [self._material(m) for m in entries(document, "materials")]

    def texture_sets(self, material: int) -> set[int]:
        """The sets of texture coordinates, TEXCOORD_n, that a material uses."""
        reduced = self.materials[material]
        transmission = section(reduced, "extensions", "KHR_materials_transmission")
        maps = (
            reduced["pbrMetallicRoughness"].get("baseColorTexture"),
            reduced.get("emissiveTexture"),
            transmission.get("transmissionTexture"),
        )
        return {m["texCoord"] for m in maps if m}

    def _material(self, material: dict) -> dict:
        """3.9: base colour, emission unless unlit, and what makes a surface partly transparent or one-sided."""
        extensions = section(material, "extensions")
        model, factor, texture = section(material, "pbrMetallicRoughness"), "baseColorFactor", "baseColorTexture"
        if SPECULAR_GLOSSINESS in extensions:
            model, factor, texture = section(extensions, SPECULAR_GLOSSINESS), "diffuseFactor", "diffuseTexture"
        base = {"baseColorFactor": numbers(model[factor], 4)} if factor in model else {}
        base |= self._map(model, texture, "baseColorTexture")
        reduced = {"pbrMetallicRoughness": base, "doubleSided": material.get("doubleSided") is True}
        if material.get("alphaMode") in ("MASK", "BLEND"):
            reduced["alphaMode"] = material["alphaMode"]
            reduced["alphaCutoff"] = number(material, "alphaCutoff", 0.5)
        strength = number(section(extensions, "KHR_materials_emissive_strength"), "emissiveStrength", 1.0)
        emission = [strength * v for v in numbers(material.get("emissiveFactor", [0, 0, 0]), 3)]
        if any(emission) and "KHR_materials_unlit" not in extensions:
            reduced |= {"emissiveFactor": numbers(emission, 3)} | self._map(material, "emissiveTexture")
        glass = section(extensions, "KHR_materials_transmission")
        if factor := number(glass, "transmissionFactor", 0.0):
            glass = {"transmissionFactor": factor} | self._map(glass, "transmissionTexture")
            reduced["extensions"] = {"KHR_materials_transmission": glass}
        return reduced

    def _map(self, owner: dict, key: str, name: str = "") -> dict:
        """3.9.1, KHR_texture_transform: {name: a texture and how its coordinates are found}; nothing without a picture."""
        if key not in owner:
            return {}
        stated = section(owner, key)
        texture = self._texture(whole(stated, "index", below=len(self._stated)))
        if texture is None:
            return {}
        transform = section(stated, "extensions", "KHR_texture_transform")
        coordinates = whole(transform, "texCoord", below=64, default=whole(stated, "texCoord", below=64, default=0))
        reduced = {"index": texture, "texCoord": coordinates}
        if transform:
            reduced["extensions"] = {
                "KHR_texture_transform": {
                    "offset": numbers(transform.get("offset", [0, 0]), 2),
                    "rotation": number(transform, "rotation", 0.0),
                    "scale": numbers(transform.get("scale", [1, 1]), 2),
                }
            }
        return {name or key: reduced}

    def _texture(self, stated: int) -> int | None:
        """3.8.2: the new number of a texture; None for one without a picture."""
        if stated not in self._numbers:
            texture = self._stated[stated]
            extensions = section(texture, "extensions")
            owner = texture if "source" in texture else section(extensions, "EXT_texture_webp")
            self._numbers[stated] = None
            if "source" in owner:
                reduced = {"source": self._image(whole(owner, "source", below=len(self._images)))}
                if "sampler" in texture:
                    reduced["sampler"] = whole(texture, "sampler", below=len(self.samplers))
                self._numbers[stated] = len(self.textures)
                self.textures.append(reduced)
            elif named := [n for n, e in extensions.items() if n in UNREAD or (isinstance(e, dict) and "source" in e)]:
                raise unread(named[0])
        return self._numbers[stated]

    def _sampler(self, sampler: dict) -> dict:
        """3.8.4: how coordinates beyond [0, 1] and between texels are looked up."""
        allowed = {"wrapS": WRAPS, "wrapT": WRAPS, "magFilter": FILTERS}
        return {key: sampler[key] for key, values in allowed.items() if sampler.get(key) in values}

    def _image(self, number: int) -> int:
        """3.8.1: the new number of an embedded picture. Its dimensions are read from its header, nothing is decoded."""
        if number in self._image_numbers:
            return self._image_numbers[number]
        image = self._images[number]
        if "uri" in image:
            view = self._buffers.view_of(from_data_uri(image["uri"], MEDIA_TYPES, "pictures"))
        else:
            view = whole(image, "bufferView", below=len(self._buffers.views))
        width, height = _picture_size(self._buffers.bytes_of(view))
        side = self._buffers.limits.image_side
        if max(width, height) > side:
            raise GlbError(
                f"A picture in this GLB has {width} × {height} pixels; the limit is {side} × {side}. "
                "Make it smaller and try again."
            )
        self._buffers.spend("pixels", width * height, self._buffers.limits.pixels, "Make its textures smaller")
        self._image_numbers[number] = len(self.images)
        self.images.append({"bufferView": view})
        return self._image_numbers[number]


def _picture_size(data: bytes) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return picture.size
    except Image.DecompressionBombError:
        raise GlbError("A picture in this GLB has too many pixels. Make it smaller and try again.") from None
    except Exception:  # noqa: BLE001 - Pillow raises whatever the bytes provoke
        raise GlbError(
            "A picture in this GLB is not a readable PNG, JPEG or WebP. Export it with PNG pictures."
        ) from None
