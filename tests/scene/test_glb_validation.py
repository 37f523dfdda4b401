"""Intake: what is refused, in words; what is let through, without anything but what is drawn."""

import base64
import io
import json
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from redream.scene import assets, glb, glb_validation, mesh
from redream.scene.assets import Asset, AssetError
from redream.scene.glb_validation import LIMITS, GlbError


def picture(width: int, height: int, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(data, kind)
    return data.getvalue()


@pytest.fixture(scope="module")
def box(tmp_path_factory) -> bytes:
    """A textured cube of 12 faces."""
    cube = trimesh.creation.box()
    uv, texture = np.random.default_rng(0).random((8, 2)), np.zeros((8, 8, 3), np.uint8)
    asset = Asset(cube, np.full((8, 3), 0.5, np.float32), uv, (texture,), np.zeros(12, int))
    path = tmp_path_factory.mktemp("glb") / "box.glb"
    mesh.save(asset, path)
    return path.read_bytes()


def unpacked(data: bytes) -> tuple[dict, bytes]:
    length = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[20 : 20 + length]), data[20 + length + 8 :]


def changed(data: bytes, change: Callable[[dict], object]) -> bytes:
    document, binary = unpacked(data)
    change(document)
    return glb.pack(document, binary)


def set_at(*path_and_value: object) -> Callable[[dict], None]:
    """A change that puts the last argument where the others lead to."""
    *path, last, value = path_and_value

    def change(document: dict) -> None:
        owner = document
        for key in path:
            owner = owner[key]
        if isinstance(owner, list) and last == len(owner):
            owner.append(value)
        else:
            owner[last] = value

    return change


def sparse(count: int, start: int) -> dict:
    """Replacements of the first array's elements; `start` is the offset of the replaced places."""
    places = {"bufferView": 0, "byteOffset": start, "componentType": 5125}
    return {"count": count, "indices": places, "values": {"bufferView": 0}}


def without_positions_but_draco(document: dict) -> None:
    document["accessors"][0].pop("bufferView")
    document["meshes"][0]["primitives"][0]["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": 0}}


def skinned(joints: list[int], **skin: object) -> Callable[[dict], None]:
    def change(document: dict) -> None:
        document["skins"] = [{"joints": joints, **skin}]
        document["nodes"][0]["skin"] = 0

    return change


def skin_outside_of_the_scene(document: dict) -> None:
    document["nodes"].append({})
    skinned([1])(document)


def instanced(**attributes: int) -> Callable[[dict], None]:
    return set_at("nodes", 0, "extensions", {"EXT_mesh_gpu_instancing": {"attributes": attributes}})


def morphed(weight: float, *targets: dict) -> Callable[[dict], None]:
    def change(document: dict) -> None:
        document["meshes"][0]["weights"] = [weight] * len(targets)
        document["meshes"][0]["primitives"][0]["targets"] = list(targets)

    return change


def test_a_sound_file_keeps_its_shape_and_loses_everything_else(box):
    def burden(document: dict) -> None:
        document |= {
            "extras": {"a": 1},
            "animations": [{"junk": 5}],
            "cameras": [{"type": "x"}],
            "extensionsUsed": ["A"],
        }
        document["nodes"][0] |= {"camera": 0, "name": "../../name", "extras": {"units": 1}}
        document["meshes"][0]["primitives"][0]["attributes"]["NORMAL"] = 99
        document["accessors"].append({"count": 10**9, "componentType": 5126, "type": "VEC3"})  # drawn by nobody

    reduced, _ = unpacked(glb_validation.validate(changed(box, burden)))
    assert set(reduced["nodes"][0]) == {"mesh"}
    assert set(reduced) == set(unpacked(glb_validation.validate(box))[0]) and "extras" not in reduced
    assert set(reduced["meshes"][0]["primitives"][0]["attributes"]) == {"POSITION", "TEXCOORD_0", "COLOR_0"}
    assert len(reduced["accessors"]) == 4
    assert glb_validation.validate(glb_validation.validate(box)) == glb_validation.validate(box)


def test_a_path_and_its_bytes_are_checked_alike(box, tmp_path):
    (tmp_path / "a.glb").write_bytes(box)
    assert glb_validation.validate(tmp_path / "a.glb") == glb_validation.validate(box)
    with pytest.raises(GlbError, match="cannot be read") as caught:
        glb_validation.validate(tmp_path / "absent.glb")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (set_at("extensionsRequired", ["KHR_draco_mesh_compression"]), "compressed with Draco .*without compression"),
        (set_at("extensionsRequired", ["EXT_meshopt_compression"]), "compressed with meshopt .*without compression"),
        (set_at("extensionsRequired", ["KHR_texture_basisu"]), "pictures as KTX2 .*with PNG or JPEG pictures"),
        (set_at("extensionsRequired", ["FB_geometry_metadata"]), r"needs an extension \(FB_geometry_metadata\)"),
        (set_at("textures", 0, {"extensions": {"KHR_texture_basisu": {"source": 0}}}), "pictures as KTX2"),
        (set_at("textures", 0, {"extensions": {"EXT_texture_avif": {"source": 0}}}), "pictures as AVIF"),
        (set_at("textures", 0, {"extensions": {"MY_texture_new": {"source": 0}}}), r"an extension \(MY_texture_new\)"),
        (set_at("buffers", 1, {"byteLength": 4, "extensions": {"EXT_meshopt_compression": {}}}), "with meshopt"),
        (without_positions_but_draco, "compressed with Draco"),
        (set_at("extensionsRequired", ["\ud800_of_mine"]), r"needs an extension \(\?_of_mine\)"),
        (set_at("extensionsRequired", 5), "not readable"),
        (set_at("extensionsRequired", [{}]), "needs an extension"),
        (set_at("buffers", 0, "uri", "https://example.org/a.bin"), "everything embedded"),
        (set_at("buffers", 1, {"byteLength": 4}), "everything embedded"),
        (set_at("images", 0, {"uri": "../../../etc/passwd"}), "everything embedded"),
        (set_at("images", 0, {"uri": "data:image/svg+xml;base64,AAAA"}), "everything embedded"),
        (set_at("images", 0, {"uri": "data:image/png;base64,###"}), "cannot be decoded"),
        (set_at("images", 0, "bufferView", 0), "not a readable PNG, JPEG or WebP"),
        (set_at("accessors", 0, "count", 8_000_000), "longer than the data"),
        (set_at("accessors", 0, "count", -1), "out of range"),
        (set_at("accessors", 0, "count", True), "out of range"),
        (set_at("accessors", 0, "byteOffset", 1), "longer than the data"),
        (set_at("accessors", 0, "componentType", 5125), "has no meaning"),
        (set_at("accessors", 0, "sparse", {"count": 9}), "out of range"),
        (set_at("accessors", 0, "sparse", {"count": 1, "indices": {}, "values": {}}), "componentType"),
        (set_at("accessors", 0, "sparse", sparse(count=8, start=10**6)), "out of range"),
        (set_at("accessors", 0, "sparse", sparse(count=8, start=90)), "longer than the data"),
        (set_at("accessors", 0, {"componentType": 5126, "count": 10**7, "type": "VEC3"}), "not stored in all"),
        (set_at("bufferViews", 0, "byteLength", 10**9), "out of range"),
        (set_at("bufferViews", 0, "byteStride", 4), "longer than the data"),
        (set_at("bufferViews", 0, "buffer", 1), "out of range"),
        (set_at("nodes", 0, "children", [0]), "belongs to"),
        (set_at("nodes", 0, "children", [7]), "do not exist"),
        (set_at("nodes", 0, "matrix", [float("1e300")] * 16), "not finite"),
        (set_at("nodes", 0, "scale", ["a", 1, 1]), "not finite"),
        (set_at("nodes", 0, "scale", [10**400, 1, 1]), "not finite"),
        (set_at("meshes", 0, "primitives", [7]), "no attributes"),
        (set_at("nodes", 0, "mesh", 3), "out of range"),
        (set_at("scenes", [{"nodes": [0, 0]}]), "belongs to"),
        (set_at("scenes", [{}]), "no triangles"),
        (set_at("nodes", 5), "not a list"),
        (set_at("meshes", 0, "primitives", 0, "mode", 1), "no triangles"),
        (set_at("meshes", 0, "primitives", 0, "material", 9), "out of range"),
        (set_at("meshes", 0, "primitives", 0, "indices", 1), "has no meaning"),
        (set_at("nodes", 0, "skin", 0), "out of range"),
        (skinned([1]), "do not exist"),
        (skinned([0, 0], inverseBindMatrices=0), "has no meaning"),
        (skin_outside_of_the_scene, "not in its scene"),
        (instanced(TRANSLATION=0, SCALE=1), "has no meaning"),
        (instanced(), "no meaning"),
        (morphed(1.0, {"POSITION": 3}), "has no meaning"),
        (morphed(float(10**300), {"POSITION": 0}), "not finite"),
        (set_at("materials", 0, "emissiveFactor", [1, 1]), "not finite"),
        (set_at("materials", 0, "extensions", {"KHR_materials_transmission": 5}), "not readable"),
        (set_at("accessors", 3, "count", 35), "whole triangles"),
    ],
)
def test_a_malformed_glb_is_refused_in_a_sentence(box, change, sentence):
    with pytest.raises(GlbError, match=sentence):
        glb_validation.validate(changed(box, change))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda d: b"", "not a GLB"),
        (lambda d: b"solid ascii stl" * 9, "not a GLB"),
        (lambda d: d[:4] + struct.pack("<I", 1) + d[8:], "version 1"),
        (lambda d: d[:-4], "ends too early"),
        (lambda d: d[:12] + struct.pack("<I", 2**31) + d[16:], "ends too early"),
        (lambda d: d[:16] + b"ABCD" + d[20:], "description"),
        (lambda d: d.replace(b'{"asset"', b'{"asset ', 1), "description"),
        (lambda d: changed(d, set_at("extras", float("nan"))), "description"),
    ],
)
def test_a_broken_container_is_refused(box, damage, sentence):
    with pytest.raises(GlbError, match=sentence):
        glb_validation.validate(damage(box))


def test_json_nested_without_end_is_refused(box):
    text = b'{"nodes":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIIII", b"glTF", 2, 20 + len(text), len(text), 0x4E4F534A)
    with pytest.raises(GlbError, match="description"):
        glb_validation.validate(head + text)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"size": 1000}, "larger than 0 MB"),
        ({"json_size": 100}, "description"),
        ({"faces": 11}, r"This GLB has 12 faces; the limit is 11\. Simplify it and try again\."),
        ({"vertices": 7}, "8 vertices"),
        ({"image_side": 7}, "8 × 8 pixels; the limit is 7 × 7"),
        ({"pixels": 63}, "64 pixels in all"),
        ({"entries": 3}, "the limit is 3"),
    ],
)
def test_a_glb_over_a_limit_is_refused_in_a_sentence(box, limits, sentence):
    with pytest.raises(GlbError, match=sentence):
        glb_validation.validate(box, replace(LIMITS, **limits))


def test_counts_over_a_million_are_written_as_4_1_million(box):
    """342 copies of 12 faces, placed 1000 times, are 4.1 million faces in a file of some 100 kB."""

    def place(document: dict) -> None:
        document["meshes"][0]["primitives"] *= 342
        document["nodes"] = [{"mesh": 0}] * 1000
        document["scenes"] = [{"nodes": list(range(1000))}]

    sentence = r"^This GLB has 4\.1 million faces; the limit is 500,000\. Simplify it and try again\.$"
    with pytest.raises(GlbError, match=sentence):
        glb_validation.validate(changed(box, place))


def test_too_many_nodes_or_parts_are_refused_however_few_faces_they_have(box):
    def nodes(document: dict) -> None:
        document["nodes"] *= 5001

    def parts(document: dict) -> None:
        document["meshes"][0]["primitives"] *= 10
        document["nodes"] = [{"mesh": 0}] * 1000
        document["scenes"] = [{"nodes": list(range(1000))}]

    for change, sentence in ((nodes, "5,001 nodes"), (parts, "10,000 parts")):
        with pytest.raises(GlbError, match=f"{sentence}; the limit is 5,000"):
            glb_validation.validate(changed(box, change))


def test_instances_and_morph_targets_count_towards_the_limits(box):
    """100 × 100 × 12 faces stand for 100 nodes of 100 instances; a drawn target counts as its 24 vertices once more."""

    def places(document: dict) -> None:
        document["accessors"].append({"componentType": 5126, "count": 100, "type": "VEC3"})
        instanced(TRANSLATION=len(document["accessors"]) - 1)(document)
        document["nodes"] *= 100
        document["scenes"] = [{"nodes": list(range(100))}]

    with pytest.raises(GlbError, match="120,000 faces; the limit is 100,000"):
        glb_validation.validate(changed(box, places), replace(LIMITS, faces=100_000))
    vertices = len(assets.load(box).mesh.vertices)
    for weight, count in ((0.0, vertices), (1.0, 3 * vertices)):
        change, just = morphed(weight, {"POSITION": 0}, {"POSITION": 0}), replace(LIMITS, vertices=count)
        glb_validation.validate(changed(box, change), just)
        with pytest.raises(GlbError, match="vertices"):
            glb_validation.validate(changed(box, change), replace(just, vertices=count - 1))


def test_what_has_no_weight_is_not_read(box):
    """Morph targets of weight 0, textures of surfaces without emission: whatever they are, they spoil nothing."""
    assert glb_validation.validate(changed(box, morphed(0.0, {"POSITION": 99}))) == glb_validation.validate(box)
    dark = set_at("materials", 0, "emissiveTexture", {"index": 99})
    assert glb_validation.validate(changed(box, dark)) == glb_validation.validate(box)


def test_deep_scenes_are_refused(box):
    def chain(document: dict) -> None:
        document["nodes"] = [{"children": [i + 1]} for i in range(150)] + [{"mesh": 0}]

    with pytest.raises(GlbError, match="levels in its scene"):
        glb_validation.validate(changed(box, chain))


def test_nodes_that_repeat_one_mesh_count_its_faces_each_time(box):
    """Ten thousand views of the whole buffer, or ten thousand arrays in one view, would multiply the file in memory."""

    def views(document: dict) -> None:
        document["bufferViews"] += [{"buffer": 0, "byteLength": document["buffers"][0]["byteLength"]}] * 10_000

    def arrays(document: dict) -> None:
        document["accessors"] += [document["accessors"][0]] * 1000
        primitive = document["meshes"][0]["primitives"][0]
        more = [{**primitive, "attributes": {"POSITION": 4 + i}} for i in range(1000)]
        document["meshes"][0]["primitives"] += more

    for change in (views, arrays):
        with pytest.raises(GlbError, match="in all"):
            glb_validation.validate(changed(box, change))


def test_embedded_pictures_may_be_png_jpeg_or_webp_data_and_no_larger_than_the_limit(box):
    for kind in ("png", "jpeg", "webp"):
        uri = f"data:image/{kind};base64," + base64.b64encode(picture(16, 4, kind.upper())).decode()
        assert assets.load(changed(box, set_at("images", 0, {"uri": uri}))).textures[0].shape == (4, 16, 3)
    bomb = "data:image/png;base64," + base64.b64encode(picture(5000, 1)).decode()
    with pytest.raises(GlbError, match="5000 × 1 pixels; the limit is 4096 × 4096"):
        glb_validation.validate(changed(box, set_at("images", 0, {"uri": bomb})))


def test_a_picture_cut_short_is_an_asset_error(box):
    whole = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(whole).save(data, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(data.getvalue()[:2000]).decode()
    with pytest.raises(AssetError, match="picture"):
        assets.load(changed(box, set_at("images", 0, {"uri": uri})))


def test_mutated_files_load_or_are_refused_and_never_take_much_memory(box):
    """Random bytes, cuts and numbers: nothing but the two named errors comes out, in bounded memory."""
    chance = random.Random(0)
    outcomes = {"loaded": 0, "refused": 0}
    tracemalloc.start()
    for trial in range(600):
        data = bytearray(box)
        if trial % 3 == 0:  # anywhere
            for _ in range(chance.choice([1, 3, 20])):
                data[chance.randrange(len(data))] = chance.randrange(256)
        elif trial % 3 == 1:  # a digit of the description
            digits = [i for i in range(20, 20 + struct.unpack_from("<I", box, 12)[0]) if chr(data[i]).isdigit()]
            for _ in range(chance.choice([1, 2])):
                data[chance.choice(digits)] = ord(chance.choice("0123456789-.e"))
        else:
            del data[chance.randrange(len(data)) :]
        try:
            assets.load(bytes(data))
            outcomes["loaded"] += 1
        except (GlbError, AssetError) as error:
            outcomes["refused"] += 1
            assert len(str(error)) < 300 and str(error).endswith(".")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20
    assert min(outcomes.values()) > 20


def test_many_small_parts_are_read_in_reasonable_time(box):
    def many(document: dict) -> None:
        document["nodes"] = [{"mesh": 0} for _ in range(2000)]
        document["scenes"] = [{"nodes": list(range(2000))}]

    start = time.perf_counter()
    assert len(assets.load(changed(box, many)).mesh.faces) == 24_000
    assert time.perf_counter() - start < 5


def test_a_file_over_the_size_limit_is_not_read_whole(tmp_path: Path):
    path = tmp_path / "large.glb"
    with open(path, "wb") as file:
        file.truncate(LIMITS.size + 1)
    with pytest.raises(GlbError, match="larger than 100 MB"):
        glb_validation.validate(path)
