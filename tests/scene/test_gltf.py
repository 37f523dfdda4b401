"""The reader against a second route: vertices baked by hand, colours from closed forms."""

import base64
import math

import numpy as np
import pytest
import torch
from glb_files import GlbFile
from PIL import Image
from scipy.spatial.transform import Rotation

from redream.scene import assets, glb
from redream.scene.assets import GLTF_TO_WORLD, Asset, AssetError
from redream.scene.cameras import Camera
from redream.scene.materials import GLASS_OPACITY

GENERATOR = np.random.default_rng(0)
FACES = np.array([[0, 1, 2], [1, 3, 2], [2, 3, 4]])
POINTS = GENERATOR.uniform(-1, 1, (5, 3)).astype(np.float32)
TURN = Rotation.from_euler("xyz", [20, 50, -70], degrees=True)
OTHER_TURN = Rotation.from_euler("zyx", [75, -10, 33], degrees=True)
SQUARE = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
SQUARE_UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)
TWO_TRIANGLES, OTHER_DIAGONAL = [[0, 1, 2], [0, 2, 3]], [[0, 1, 3], [1, 2, 3]]
FRONT, BACK = (0.0, 0.0, -1.0), (0.0, 0.0, 1.0)


def placed(file: GlbFile) -> Asset:
    return assets.load(file.bytes(), normalise=False)


def soup(file: GlbFile) -> np.ndarray:
    """The corners (f, 3, 3) of all triangles in glTF's axes."""
    return placed(file).mesh.triangles @ GLTF_TO_WORLD[:3, :3]


def baked(points: object, faces: object = FACES) -> np.ndarray:
    return np.asarray(points)[np.asarray(faces)]


def same_triangles(found: np.ndarray, expected: np.ndarray) -> bool:
    """The same triangles in any order, each of them facing the same way."""

    def ordered(triangles: np.ndarray) -> np.ndarray:
        first = np.lexsort(triangles.transpose(2, 0, 1).round(4), axis=-1)[:, 0]
        turned = np.stack([np.roll(t, -k, axis=0) for t, k in zip(triangles, first, strict=True)]).reshape(-1, 9)
        return turned[np.lexsort(turned.round(4).T)]

    return found.shape == expected.shape and np.allclose(ordered(found), ordered(expected), atol=1e-4)


def shown(file: GlbFile | Asset, x: float, y: float, direction: tuple = FRONT) -> np.ndarray:
    """RGB in [0, 1], premultiplied, and opacity along a ray through (x, y, 0) of the file."""
    asset = placed(file) if isinstance(file, GlbFile) else file
    origin = np.array([[x, y, 0.0]]) - 5 * np.array([direction])
    ray = ((v @ GLTF_TO_WORLD[:3, :3].T).astype(np.float32) for v in (origin, np.array([direction])))
    colour, opacity = asset.cast(*ray)
    return np.append(colour[0], opacity[0])


def square(file: GlbFile, material: int, z: float = 0.0, attributes: dict | None = None, **node: object) -> int:
    """A square of side 2 at height z, facing +z."""
    points = SQUARE + np.float32([0, 0, z])
    uv = {"TEXCOORD_0": SQUARE_UV}
    mesh = file.mesh(
        {"POSITION": points} | (uv if attributes is None else attributes), TWO_TRIANGLES, material=material
    )
    return file.node(mesh=mesh, **node)


def srgb(light: float) -> float:
    return 12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055


# Skins


def joint_matrix(turn: Rotation, place: list[float], scale: float = 1.0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn.as_matrix() * scale, place
    return matrix


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.array([(matrix @ [*p, 1])[:3] for p in points])


JOINTS = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]], np.uint8)
INFLUENCE = np.array([[0.25, 0.75, 0, 0], [1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.9, 0.1, 0, 0], [0.3, 0.7, 0, 0]])
BIND = [joint_matrix(Rotation.identity(), [0.1, 0.2, 0.3]), joint_matrix(OTHER_TURN, [-1, 0, 1], 2.0)]


def skinned_file(parent: dict, influence: object = INFLUENCE, bind: object = BIND, **more: object) -> tuple:
    """A mesh under a turned and scaled node of its own, with two joints, one below the other, below `parent`.

    Returns the file and the world matrices of the two joints below a parent that does not move."""
    file = GlbFile()
    attributes = {"POSITION": POINTS, "JOINTS_0": JOINTS, "WEIGHTS_0": influence} | more.pop("attributes", {})
    mesh = file.mesh(attributes, FACES, **more)
    file.node(mesh=mesh, skin=0, rotation=TURN.as_quat().tolist(), scale=[9, 9, 9], translation=[5, 5, 5])
    upper = file.node(root=False, rotation=TURN.as_quat().tolist(), translation=[0, 1, 0], children=[2])
    lower = file.node(root=False, rotation=OTHER_TURN.as_quat().tolist(), scale=[0.5] * 3, translation=[2, 0, 0])
    file.node(children=[upper], **parent)
    skin = {"joints": [lower, upper]}
    if bind is not None:
        skin["inverseBindMatrices"] = file.array([np.asarray(m).T.ravel() for m in bind])
    file.add("skins", skin)
    above = joint_matrix(TURN, [0, 1, 0])
    return file, [above @ joint_matrix(OTHER_TURN, [2, 0, 0], 0.5), above]


def skinned_by_hand(points: np.ndarray, matrices: list[np.ndarray], influence: np.ndarray = INFLUENCE) -> np.ndarray:
    return np.array(
        [
            sum(w * moved(matrices[j], [p])[0] for j, w in zip(joints, weights, strict=True))
            for p, joints, weights in zip(points, JOINTS, influence, strict=True)
        ]
    )


def test_two_levels_of_joints_move_a_skin_and_its_own_node_does_not():
    file, world = skinned_file({})
    expected = skinned_by_hand(POINTS, [w @ b for w, b in zip(world, BIND, strict=True)])
    assert same_triangles(soup(file), baked(expected))


def test_joints_hang_on_turned_scaled_and_mirrored_parents():
    for scale in ([2.0, 2.0, 2.0], [-3.0, 1.0, 1.0]):
        file, world = skinned_file(
            {"rotation": OTHER_TURN.as_quat().tolist(), "scale": scale, "translation": [1, 2, 3]}
        )
        parent = np.eye(4)
        parent[:3, :3], parent[:3, 3] = OTHER_TURN.as_matrix() * scale, [1, 2, 3]
        expected = skinned_by_hand(POINTS, [parent @ w @ b for w, b in zip(world, BIND, strict=True)])
        faces = FACES[:, ::-1] if np.prod(scale) < 0 else FACES  # what is mirrored is turned over
        assert same_triangles(soup(file), baked(expected, faces))


def test_weights_of_a_skin_in_bytes_and_off_one_are_fractions():
    file, world = skinned_file({}, influence=np.round(INFLUENCE * 200).astype(np.uint8))
    expected = skinned_by_hand(POINTS, [w @ b for w, b in zip(world, BIND, strict=True)])
    assert same_triangles(soup(file), baked(expected))


def test_a_skin_without_bind_matrices_takes_the_joints_as_they_are():
    file, world = skinned_file({}, bind=None)
    assert same_triangles(soup(file), baked(skinned_by_hand(POINTS, world)))


def test_eight_influences_count_and_joints_without_weight_may_be_anything():
    more = {"JOINTS_1": np.uint16([[1, 500, 500, 500]] * 5), "WEIGHTS_1": np.float32([[1, 0, 0, 0]] * 5)}
    file, world = skinned_file({}, attributes=more)
    matrices = [w @ b for w, b in zip(world, BIND, strict=True)]
    expected = (skinned_by_hand(POINTS, matrices) + moved(matrices[1], POINTS)) / 2
    assert same_triangles(soup(file), baked(expected))


def test_morph_targets_come_before_the_skin():
    change = GENERATOR.normal(size=(5, 3)).astype(np.float32)
    file, world = skinned_file({}, weights=[0.5])
    file.document["meshes"][0]["primitives"][0]["targets"] = [{"POSITION": file.array(change)}]
    expected = skinned_by_hand(POINTS + 0.5 * change, [w @ b for w, b in zip(world, BIND, strict=True)])
    assert same_triangles(soup(file), baked(expected))


def test_a_skin_that_names_missing_joints_or_holds_nothing_is_refused():
    for attributes, sentence in (
        ({"JOINTS_0": np.full((5, 4), 7, np.uint8)}, "joints that do not exist"),
        ({"WEIGHTS_0": np.zeros((5, 4), np.float32)}, "holds no vertex"),
    ):
        with pytest.raises(AssetError, match=sentence):
            placed(skinned_file({}, attributes=attributes)[0])


# Morph targets


def test_a_nodes_weights_replace_its_meshs_and_each_node_has_its_own():
    first, second = GENERATOR.normal(size=(2, 5, 3)).astype(np.float32)
    file = GlbFile()
    targets = [{"POSITION": file.array(first)}, {"NORMAL": 99}, {"POSITION": file.array(second)}]
    mesh = file.mesh({"POSITION": POINTS}, FACES, targets=targets, weights=[1.0, 0.0, 0.0])
    file.node(mesh=mesh)
    file.node(mesh=mesh, weights=[0.25, 0.0, -2.0], translation=[9, 0, 0])
    expected = [baked(POINTS + first), baked(POINTS + 0.25 * first - 2 * second + [9, 0, 0])]
    assert same_triangles(soup(file), np.concatenate(expected))


def test_morph_targets_in_bytes_are_fractions():
    change = GENERATOR.integers(-127, 128, (5, 3)).astype(np.int8)
    file = GlbFile()
    targets = [{"POSITION": file.array(change, normalized=True)}]
    file.node(mesh=file.mesh({"POSITION": POINTS}, FACES, targets=targets, weights=[2.0]))
    assert same_triangles(soup(file), baked(POINTS + 2 * change.astype(float) / 127))


def test_morph_targets_move_texture_coordinates_and_colours():
    file = GlbFile()
    targets = [{"COLOR_0": file.array([[0.5, 0, -0.25]] * 4), "TEXCOORD_0": file.array([[0.5, 0]] * 4)}]
    picture = np.uint8([[[255, 255, 255], [255, 0, 255]]])
    material = file.material(texture={"index": file.texture(picture, {"magFilter": 9728})})
    attributes = {"POSITION": SQUARE, "TEXCOORD_0": SQUARE_UV * [0.5, 1], "COLOR_0": [[0.25, 1, 0.5]] * 4}
    file.node(mesh=file.mesh(attributes, TWO_TRIANGLES, targets=targets, weights=[1.0], material=material))
    assert np.allclose(shown(file, 0.3, 0.2), [srgb(0.75), 0, srgb(0.25), 1], atol=2e-3)


# Instances and nodes


def test_instances_stand_within_their_turned_and_scaled_node():
    file = GlbFile()
    places, scales = GENERATOR.normal(size=(2, 3, 3)).astype(np.float32)
    quaternions = np.round(Rotation.random(3, random_state=0).as_quat() * 32767).astype(np.int16)
    turns = Rotation.from_quat(quaternions)
    extensions = file.instances(TRANSLATION=places, SCALE=scales, ROTATION=file.array(quaternions, normalized=True))
    mesh = file.mesh({"POSITION": POINTS}, FACES)
    inner = file.node(root=False, mesh=mesh, extensions=extensions, rotation=TURN.as_quat().tolist(), scale=[2, 2, 2])
    file.node(children=[inner], translation=[1, 2, 3], scale=[1, 1, 3])
    expected = []
    for place, scale, turn in zip(places, scales, turns, strict=True):
        points = TURN.apply(2 * (turn.apply(POINTS * scale) + place)) * [1, 1, 3] + [1, 2, 3]
        expected.append(baked(points, FACES[:, ::-1] if scale.prod() < 0 else FACES))
    assert same_triangles(soup(file), np.concatenate(expected))


def test_matrices_and_parts_nest_with_shears():
    shear = np.eye(4)
    shear[:3] = GENERATOR.normal(size=(3, 4))
    file = GlbFile()
    inner = file.node(root=False, mesh=file.mesh({"POSITION": POINTS}, FACES), matrix=shear.T.ravel().tolist())
    file.node(children=[inner], rotation=TURN.as_quat().tolist(), scale=[1, 2, 3], translation=[4, 5, 6])
    expected = TURN.apply(moved(shear, POINTS) * [1, 2, 3]) + [4, 5, 6]
    faces = FACES[:, ::-1] if np.linalg.det(shear[:3, :3]) < 0 else FACES
    assert same_triangles(soup(file), baked(expected, faces))


def test_hidden_nodes_and_those_below_are_not_drawn():
    file = GlbFile()
    mesh = file.mesh({"POSITION": POINTS}, FACES)
    below = file.node(root=False, mesh=mesh, translation=[0, 0, 7])
    file.node(mesh=mesh, children=[below], extensions={"KHR_node_visibility": {"visible": False}})
    file.node(mesh=mesh, translation=[9, 0, 0])
    assert same_triangles(soup(file), baked(POINTS + [9, 0, 0]))


def test_without_scenes_all_roots_are_drawn():
    file = GlbFile()
    mesh = file.mesh({"POSITION": POINTS}, FACES)
    below = file.node(root=False, mesh=mesh, translation=[1, 0, 0])
    file.node(mesh=mesh, children=[below], translation=[9, 0, 0])
    del file.document["scenes"], file.document["scene"]
    assert same_triangles(soup(file), np.concatenate([baked(POINTS + [9, 0, 0]), baked(POINTS + [10, 0, 0])]))


# Arrays


@pytest.mark.parametrize(
    ("dtype", "normalized", "fraction"),
    [("uint16", False, 1), ("int16", True, 32767), ("int8", True, 127), ("uint8", True, 255), ("int16", False, 1)],
)
def test_quantised_positions(dtype, normalized, fraction):
    limits = np.iinfo(dtype)
    values = GENERATOR.integers(limits.min, limits.max + 1, (5, 3)).astype(dtype)
    values[0, 0] = limits.min  # −128 / 127 counts as −1
    file = GlbFile()
    padded = np.zeros((5, 4), dtype)  # rows of a vertex begin at multiples of four bytes
    padded[:, :3] = values
    view = file.view(padded.tobytes(), byteStride=padded.strides[0])
    positions = file.array(values, view=view, normalized=normalized)
    file.node(mesh=file.mesh({"POSITION": positions}, FACES), scale=[0.01] * 3, translation=[1, 2, 3])
    expected = np.maximum(values / fraction, -1) if normalized else values
    assert same_triangles(soup(file), baked(expected * 0.01 + [1, 2, 3]))


def test_sparse_arrays_with_and_without_a_base():
    changed = GENERATOR.normal(size=(2, 3)).astype(np.float32)
    for base in (POINTS, None):
        file = GlbFile()
        places, values = file.view(np.uint16([1, 4]).tobytes()), file.view(changed.tobytes())
        number = file.array(POINTS)
        sparse = {
            "count": 2,
            "indices": {"bufferView": places, "componentType": 5123},
            "values": {"bufferView": values},
        }
        file.document["accessors"][number]["sparse"] = sparse
        if base is None:
            del file.document["accessors"][number]["bufferView"]
        file.node(mesh=file.mesh({"POSITION": number}, FACES))
        expected = np.zeros((5, 3)) if base is None else POINTS.copy()
        expected[1], expected[4] = changed
        assert same_triangles(soup(file), baked(expected))
        file.binary = file.binary.replace(np.uint16([1, 4]).tobytes(), np.uint16([1, 5]).tobytes())
        with pytest.raises(AssetError, match="do not exist"):
            placed(file)


def test_interleaved_arrays_at_odd_offsets():
    row = np.dtype([("colour", np.uint8, 4), ("position", np.float32, 3), ("uv", np.uint16, 2)])
    rows = np.zeros(5, row)
    rows["position"], rows["colour"] = POINTS, [[255, 128, 0, 255]] * 5
    file = GlbFile()
    view = file.view(b"\0" * 8 + rows.tobytes(), byteStride=row.itemsize)
    attributes = {
        "POSITION": file.array(POINTS, view=view, byteOffset=12),
        "COLOR_0": file.array(rows["colour"], view=view, byteOffset=8, normalized=True),
    }
    file.node(mesh=file.mesh(attributes, FACES))
    assert same_triangles(soup(file), baked(POINTS))
    assert np.allclose(placed(file).colours, [1, srgb(128 / 255), 0], atol=1e-6)


def test_buffers_in_data_uris_beside_the_binary_chunk():
    file = GlbFile()
    numbers = file.array(FACES.astype(np.uint8).ravel())
    data = POINTS.tobytes()
    view = file.add("bufferViews", {"buffer": 1, "byteLength": len(data)})
    positions = file.array(POINTS, view=view)
    file.node(mesh=file.mesh({"POSITION": positions}, indices=numbers))
    uri = "data:application/gltf-buffer;base64," + base64.b64encode(data).decode()
    buffers = [{"byteLength": len(file.binary)}, {"byteLength": len(data), "uri": uri}]
    asset = assets.load(glb.pack(file.document | {"buffers": buffers}, file.binary), normalise=False)
    assert same_triangles(asset.mesh.triangles @ GLTF_TO_WORLD[:3, :3], baked(POINTS))


def test_strips_and_fans_face_as_their_first_triangle():
    for mode, points in ((5, SQUARE[[0, 1, 3, 2]]), (6, SQUARE)):
        file = GlbFile()
        file.node(mesh=file.mesh({"POSITION": points}, mode=mode))
        diagonal = OTHER_DIAGONAL if mode == 5 else TWO_TRIANGLES
        assert same_triangles(soup(file), baked(SQUARE, diagonal))


# Textures


PICTURE = GENERATOR.integers(0, 256, (4, 4, 3)).astype(np.uint8)


def test_texture_transforms_turn_scale_and_move_the_second_set():
    """A transform as complex numbers, v downwards: u′ + i v′ = t + (s_u u + i s_v v) e^(−i r)."""
    transform = {"offset": [0.3, -0.2], "rotation": 0.7, "scale": [2.0, 0.5], "texCoord": 1}
    file = GlbFile()
    texture = file.texture(PICTURE, {"magFilter": 9728})
    extensions = {"KHR_texture_transform": transform}
    material = file.material(texture={"index": texture, "texCoord": 0, "extensions": extensions})
    square(file, material, attributes={"TEXCOORD_0": np.zeros((4, 2)), "TEXCOORD_1": SQUARE_UV})
    asset = placed(file)
    for x, y in GENERATOR.uniform(-0.95, 0.95, (40, 2)):
        u, v = (x + 1) / 2, (1 - y) / 2
        turned = complex(0.3, -0.2) + complex(2 * u, 0.5 * v) * np.exp(-0.7j)
        column, row = turned.real % 1 * 4, turned.imag % 1 * 4
        if min(abs(column - round(column)), abs(row - round(row))) > 0.02:  # not at a texel's edge
            assert np.allclose(shown(asset, x, y)[:3], PICTURE[int(row), int(column)] / 255, atol=2e-3)


@pytest.mark.parametrize("far", [3e38, -3e38, np.inf, np.nan])
def test_coordinates_that_are_no_places_show_a_colour_of_the_texture(far):
    file = GlbFile()
    transform = {"extensions": {"KHR_texture_transform": {"scale": [2, 2]}}}
    texture = file.texture(np.full((2, 2, 3), 51, np.uint8))
    square(file, file.material(texture={"index": texture, **transform}), attributes={"TEXCOORD_0": [[0, far]] * 4})
    assert np.allclose(shown(file, 0.1, 0.2), [0.2, 0.2, 0.2, 1], atol=1e-6)


@pytest.mark.parametrize("wraps", [(33648, 33071), (33071, 33648), (10497, 33648), (33648, 10497)])
def test_coordinates_beyond_the_picture_are_looked_up_as_the_sampler_says(wraps):
    """Against the picture extended by NumPy: MIRROR is `symmetric`, CLAMP is `edge`, REPEAT is `wrap`."""
    modes = {33648: "symmetric", 33071: "edge", 10497: "wrap"}
    wide = np.pad(PICTURE, ((0, 0), (8, 8), (0, 0)), modes[wraps[0]])
    wide = np.pad(wide, ((8, 8), (0, 0), (0, 0)), modes[wraps[1]]) / 255  # (20, 20, 3), from −2 to 3
    file = GlbFile()
    texture = file.texture(PICTURE, {"wrapS": wraps[0], "wrapT": wraps[1]})
    square(file, file.material(texture={"index": texture}), attributes={"TEXCOORD_0": SQUARE_UV * 4 - 1.5})
    asset = placed(file)
    for x, y in GENERATOR.uniform(-0.95, 0.95, (40, 2)):
        column, row = ((x + 1) * 2 - 1.5 + 2) * 4 - 0.5, ((1 - y) * 2 - 1.5 + 2) * 4 - 0.5
        left, top = int(column), int(row)
        across, down = column - left, row - top
        weights = np.outer([1 - down, down], [1 - across, across])[:, :, None]
        expected = (wide[top : top + 2, left : left + 2] * weights).sum(axis=(0, 1))
        assert np.allclose(shown(asset, x, y)[:3], expected, atol=3e-3)


def test_sixteen_bits_of_grey_and_webp_with_alpha_are_read():
    file = GlbFile()
    grey = file.texture(Image.fromarray(np.full((2, 2), 0x8123, np.uint16)))
    square(file, file.material(texture={"index": grey}))
    assert np.allclose(shown(file, 0.1, 0.1)[:3], 0x81 / 255, atol=1e-6)
    file = GlbFile()
    leaf = file.texture(np.full((2, 2, 4), [10, 200, 30, 128], np.uint8), kind="WEBP")
    square(file, file.material(texture={"index": leaf}, alphaMode="BLEND"))
    alpha = 128 / 255
    assert np.allclose(shown(file, 0.1, 0.1), [*(np.array([10, 200, 30]) / 255 * alpha), alpha], atol=2e-3)


def test_texture_factor_and_vertex_colour_multiply_as_light():
    file = GlbFile()
    material = file.material([0.5, 1, 0.2, 1], {"index": file.texture(np.full((2, 2, 3), [100, 150, 200], np.uint8))})
    square(file, material, attributes={"TEXCOORD_0": SQUARE_UV, "COLOR_0": [[0.5, 0.3, 1]] * 4})
    light = [0.25, 0.3, 0.2] * np.array([((v / 255 + 0.055) / 1.055) ** 2.4 for v in (100, 150, 200)])
    assert np.allclose(shown(file, 0.1, 0.2)[:3], [srgb(v) for v in light], atol=1e-3)


# Emission, transparency, sides


def test_emission_is_factor_times_strength_times_its_own_texture_and_is_added_as_light():
    file = GlbFile()
    lamp = file.texture(np.uint8([[[255, 255, 0], [0, 0, 0]]]), {"magFilter": 9728})
    strong = {"KHR_materials_emissive_strength": {"emissiveStrength": 4.0}}
    emission = {"emissiveFactor": [0.1, 0.05, 1], "emissiveTexture": {"index": lamp, "texCoord": 1}}
    uv = {"TEXCOORD_1": SQUARE_UV}
    square(file, file.material([0.2, 0.2, 0.2, 1], **emission, extensions=strong), attributes=uv)
    asset = placed(file)
    assert np.allclose(shown(asset, -0.5, 0)[:3], [srgb(0.6), srgb(0.4), srgb(0.2)], atol=2e-3)
    assert np.allclose(shown(asset, 0.5, 0)[:3], srgb(0.2), atol=2e-3)
    file.document["materials"][0]["extensions"] = {"KHR_materials_unlit": {}}
    assert np.allclose(shown(file, -0.5, 0)[:3], srgb(0.2), atol=2e-3)


@pytest.mark.parametrize(("cutoff", "is_cut"), [(0.3, (True, False)), (0.19, (False, False)), (0.8, (True, True))])
def test_mask_cuts_where_alpha_of_texture_factor_and_vertex_is_below_the_cutoff(cutoff, is_cut):
    """Alpha is 0.8 × 0.5 × (0.5 left, 1 right): 0.2 and 0.4."""
    file = GlbFile()
    picture = np.full((1, 2, 4), 255, np.uint8)
    picture[0, 0, 3] = 128
    leaf = {"index": file.texture(picture, {"magFilter": 9728})}
    material = file.material([1, 0, 0, 0.8], leaf, alphaMode="MASK", alphaCutoff=cutoff)
    colours = np.full((4, 4), 255, np.uint8)
    colours[:, 3] = 128
    square(file, material, attributes={"TEXCOORD_0": SQUARE_UV, "COLOR_0": file.array(colours, normalized=True)})
    square(file, file.material([0, 0, 1, 1]), z=-1)
    asset = placed(file)
    for x, cut in zip((-0.5, 0.5), is_cut, strict=True):
        assert np.allclose(shown(asset, x, 0.1), [0, 0, 1, 1] if cut else [1, 0, 0, 1])


def test_three_panes_blend_from_back_to_front_in_whatever_order_the_file_has_them():
    panes = {1.0: ([1, 0, 0], 0.5), 0.0: ([0, 1, 0], 0.25), -1.0: ([0, 0, 1], 0.8)}
    for order in ([1.0, 0.0, -1.0], [0.0, -1.0, 1.0]):
        file = GlbFile()
        for z in order:
            square(file, file.material([*panes[z][0], panes[z][1]], alphaMode="BLEND"), z=z)
        asset = placed(file)
        for direction, depths in ((FRONT, [-1.0, 0.0, 1.0]), (BACK, [1.0, 0.0, -1.0])):
            expected = np.zeros(4)
            for z in depths:
                colour, alpha = panes[z]
                expected = expected * (1 - alpha) + np.array([*colour, 1]) * alpha
            assert np.allclose(shown(asset, 0.3, 0.2, direction), expected, atol=1e-5)


def test_opacity_goes_through_rendering():
    file = GlbFile()
    square(file, file.material([1, 0, 0, 0.25], alphaMode="BLEND"))
    background = torch.tensor([0.0, 0.5, 1.0])
    image, opacity = assets.load(file.bytes()).render(Camera(0.0, 0.0, 1.6, 40.0), 9, background)
    assert opacity[0, 0, 4, 4] == pytest.approx(0.25)
    assert image[0, :, 4, 4].tolist() == pytest.approx([0.25, 0.375, 0.75])
    assert image[0, :, 0, 0].tolist() == pytest.approx(background.tolist())


def test_light_goes_through_glass_as_its_factor_and_texture_say():
    file = GlbFile()
    pane = {
        "transmissionFactor": 0.5,
        "transmissionTexture": {"index": file.texture(np.uint8([[[255, 0, 0], [0, 9, 9]]]))},
    }
    square(file, file.material([1, 1, 1, 1], extensions={"KHR_materials_transmission": pane}))
    asset = placed(file)
    assert shown(asset, -0.5, 0)[3] == pytest.approx(1 - 0.5 * (1 - GLASS_OPACITY))
    assert shown(asset, 0.5, 0)[3] == pytest.approx(1)


def test_faces_with_one_side_are_not_seen_from_behind_and_mirrors_keep_their_front():
    for scale, parent in (([1, 1, 1], [1, 1, 1]), ([-1, 1, 1], [1, 1, 1]), ([-1, 1, 1], [1, -2, 1])):
        file = GlbFile()
        inner = square(file, file.material([1, 0, 0, 1], doubleSided=False), root=False, scale=scale)
        file.node(children=[inner], scale=parent)
        assert np.allclose(shown(file, 0.3, 0.2, FRONT), [1, 0, 0, 1])
        assert np.allclose(shown(file, 0.3, 0.2, BACK), [0, 0, 0, 0])


def test_two_faces_at_one_place_are_each_seen_from_their_own_side():
    """A card of two one-sided faces, triangulated alike or along the other diagonal."""
    for diagonal in (TWO_TRIANGLES, OTHER_DIAGONAL):
        file = GlbFile()
        square(file, file.material([1, 0, 0, 1], doubleSided=False))
        behind = file.material([0, 0, 1, 1], doubleSided=False)
        file.node(mesh=file.mesh({"POSITION": SQUARE}, np.array(diagonal)[:, ::-1], material=behind))
        asset = placed(file)
        for x, y in GENERATOR.uniform(-0.9, 0.9, (20, 2)):
            assert np.allclose(shown(asset, x, y, FRONT), [1, 0, 0, 1])
            assert np.allclose(shown(asset, x, y, BACK), [0, 0, 1, 1])


def test_a_room_is_seen_from_outside_through_its_walls():
    """A box that faces inwards: its near wall is not seen, its far wall is."""
    file = GlbFile()
    for z, colour, turn in ((1, [1, 0, 0, 1], math.pi), (-1, [0, 1, 0, 1], 0.0)):
        quaternion = Rotation.from_euler("y", turn).as_quat().tolist()
        square(file, file.material(colour, doubleSided=False), rotation=quaternion, translation=[0, 0, z])
    assert np.allclose(shown(file, 0.3, 0.2, FRONT), [0, 1, 0, 1])
    assert np.allclose(shown(file, 0.3, 0.2, BACK), [1, 0, 0, 1])


def test_alpha_that_is_one_everywhere_costs_nothing():
    file = GlbFile()
    square(file, file.material(texture={"index": file.texture(np.full((2, 2, 4), 255, np.uint8))}, alphaMode="BLEND"))
    assert placed(file).appearance is None


def test_equal_materials_are_one_and_a_ray_ends_after_many_layers():
    file = GlbFile()
    for z in range(100):
        square(file, file.material([1, 1, 1, 0.01], alphaMode="BLEND"), z=0.1 * z)
    asset = placed(file)
    assert len(asset.appearance.materials) == 1
    assert shown(asset, 0.3, 0.2)[3] == pytest.approx(1 - 0.99**assets.LAYERS, abs=1e-3)


def test_a_ray_that_grazes_a_pane_meets_it_once():
    file = GlbFile()
    square(
        file, file.material([1, 1, 1, 0.3], alphaMode="BLEND"), rotation=TURN.as_quat().tolist(), translation=[1, 2, 3]
    )
    asset = assets.load(file.bytes())
    normal, points = asset.mesh.face_normals[0], asset.mesh.triangles.mean(axis=1).repeat(500, axis=0)  # (n, 3)
    directions = np.cross(GENERATOR.normal(size=points.shape), normal) * 1000 + normal
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    _, opacity = asset.cast((points - 1.6 * directions).astype(np.float32), directions.astype(np.float32))
    assert np.allclose(opacity, 0.3, atol=1e-6)
