"""Assets: ray-casting against closed forms, and GLBs read as the format means them."""

import base64
import io
import pickle

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from redream.scene import assets, glb
from redream.scene.assets import STEEP, Asset, AssetError
from redream.scene.cameras import Camera, ring
from redream.scene.materials import to_linear, to_srgb


def at(azimuth: float, elevation: float = 0.0) -> Camera:
    return Camera(float(azimuth), float(elevation), 1.6, 40.0)


FRONT, LEFT = at(0), at(90)
WHITE = torch.ones(3)


def coloured_box() -> Asset:
    """A cube whose six sides have colours of their own: +x red, −x cyan, +y green, −y magenta, +z blue, −z yellow."""
    box = trimesh.creation.box(extents=[0.5] * 3)
    box = trimesh.Trimesh(box.triangles.reshape(-1, 3), np.arange(36).reshape(12, 3), process=False)
    normals = box.face_normals.repeat(3, axis=0)
    linear = np.where(normals > 0.5, 1.0, 0.0) + np.where(normals.sum(axis=1, keepdims=True) < 0, 1 + normals, 0)
    box.visual.vertex_colors = np.column_stack([linear * 255, np.full(36, 255)]).astype(np.uint8)
    return assets.from_mesh(box)


def middle(image: torch.Tensor) -> list[float]:
    side = image.shape[-1]
    return image[0, :, side // 2, side // 2].tolist()


def triangle_glb(**changes) -> bytes:
    """One textured triangle in the plane z = 0 of glTF's axes; `changes` replace parts of the document."""
    corners = np.array([[-1, -1, 0], [1, -1, 0], [-1, 1, 0]], np.float32)
    uv = np.array([[0, 1], [1, 1], [0, 0]], np.float32)  # v downwards: the picture stands upright
    colours = np.array([[32768, 65535, 0, 65535]] * 3, np.uint16)
    picture = io.BytesIO()
    Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)).save(
        picture, "PNG"
    )
    parts = [corners.tobytes(), uv.tobytes(), colours.tobytes(), picture.getvalue()]
    starts = np.cumsum([0, *(len(p) for p in parts)])
    views = [{"buffer": 0, "byteOffset": int(s), "byteLength": len(p)} for s, p in zip(starts, parts, strict=False)]
    document = {
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
        "textures": [{"source": 0}],
        "images": [{"bufferView": 3}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5126, "count": 3, "type": "VEC2"},
            {"bufferView": 2, "componentType": 5123, "count": 3, "type": "VEC4", "normalized": True},
        ],
        "bufferViews": views,
        "buffers": [{"byteLength": int(starts[-1])}],
    }
    return glb.pack(document | changes, b"".join(parts))


def test_a_sphere_has_the_outline_that_geometry_says():
    """A sphere of radius r at distance d is seen under sin α = r/d: a disc of radius tan α / tan(fovy/2) half-heights."""
    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.5)
    for camera in ring(3, 20.0, 1.6, 50.0):
        _, opacity = assets.from_mesh(ball).render(camera, 128, WHITE)
        radius = np.tan(np.arcsin(0.5 / 1.6)) / np.tan(np.radians(25)) * 64
        assert opacity.sum().item() == pytest.approx(np.pi * radius**2, rel=5e-3)


def test_each_camera_sees_the_side_it_stands_on():
    box = coloured_box()
    views = {0: [1, 0, 0], 90: [0, 1, 0], 180: [0, 1, 1], 270: [1, 0, 1]}
    for azimuth, colour in views.items():
        assert middle(box.render(at(azimuth), 16, WHITE)[0]) == pytest.approx(colour)
    assert middle(box.render(at(0, 89), 16, WHITE)[0]) == pytest.approx([0, 0, 1])


def test_rotating_the_asset_is_moving_the_camera_the_other_way():
    box = coloured_box()
    for yaw in (30.0, 90.0, 215.0):
        rotated, _ = box.rotated(yaw).render(at(50, 15), 32, WHITE)
        walked, _ = box.render(at(50 - yaw, 15), 32, WHITE)
        assert (rotated - walked).abs().mean() < 2e-3
    assert box.rotated(200.0).rotated(200.0).yaw_deg == 40
    assert box.rotated(200.0).tree is box.tree


def test_rays_that_miss_show_the_background_and_edge_pixels_a_mixture():
    background = torch.tensor([0.2, 0.4, 0.6])
    image, opacity = coloured_box().render(FRONT, 30, background, samples=4)
    assert image.shape == (1, 3, 30, 30) and opacity.shape == (1, 1, 30, 30)
    empty = opacity[0, 0] == 0
    assert torch.allclose(image[0, :, empty].T, background)
    assert ((opacity > 0) & (opacity < 1)).any() and 0 <= image.min() and image.max() <= 1


def test_casting_agrees_with_trimesh():
    generator = np.random.default_rng(0)
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=0.4)
    mesh.visual.vertex_colors = generator.integers(0, 256, (len(mesh.vertices), 4))
    asset = assets.from_mesh(mesh)
    origins, directions = (x.numpy() for x in at(20, 15).rays(48))
    colour, hit = asset.cast(origins, directions)
    triangles, rays, points = mesh.ray.intersects_id(origins, directions, multiple_hits=False, return_locations=True)
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[triangles], points)
    expected = to_srgb((to_linear(asset.colours[mesh.faces[triangles]]) * weights[:, :, None]).sum(axis=1))
    assert set(rays) == set(np.flatnonzero(hit))
    assert np.allclose(colour[rays], expected, atol=1e-3)


@pytest.mark.parametrize("difference", [0.0, 0.05, 0.099, 0.101, 0.5, 1.0])
def test_between_corners_light_is_interpolated_within_three_levels(difference):
    """Half way from red to green is a bright yellow, (188, 188, 0), as glTF's viewers show it, not (128, 128, 0)."""
    mesh = trimesh.Trimesh([[0, -1, -1], [0, 1, -1], [0, 0, 1]], [[0, 1, 2]], process=False)
    for low in np.linspace(0, 1 - difference, 20):
        colours = np.array([[low + difference, low, 0], [low, low + difference, 0], [low, low, 0]], np.float32)
        colour = Asset(mesh, colours).colour_at(np.array([0]), np.array([[0.5, 0.5, 0.0]], np.float32))
        middle = to_srgb(to_linear(colours[:2]).mean(axis=0))
        assert np.abs(colour[0] - middle).max() < (1e-5 if difference > STEEP else 3.2 / 255)
    if difference == 1.0:
        assert np.round(colour[0] * 255).tolist() == [188, 188, 0]


def test_an_asset_survives_pickling():
    box = coloured_box().rotated(30.0)
    copy = pickle.loads(pickle.dumps(box))
    assert torch.equal(copy.render(LEFT, 16, WHITE)[0], box.render(LEFT, 16, WHITE)[0])


def test_texture_look_up_is_bilinear_and_repeats():
    texture = np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    rows, columns = np.mgrid[0:4, 0:8]
    centres = np.stack([(columns + 0.5) / 8, 1 - (rows + 0.5) / 4], axis=-1).reshape(-1, 2)
    for shift in ([0, 0], [3, -2], [-1, 7]):
        assert np.allclose(assets.look_up(texture, centres + shift), texture.reshape(-1, 3) / 255, atol=1e-5)
    between = assets.look_up(texture, np.array([[2 / 8, 1 - 0.5 / 4], [0.0, 1 - 0.5 / 4]]))
    assert np.allclose(between[0], (texture[0, 1] / 255 + texture[0, 2] / 255) / 2, atol=1e-6)
    assert np.allclose(between[1], (texture[0, 7] / 255 + texture[0, 0] / 255) / 2, atol=1e-6)


def test_srgb_and_linear_values_are_inverse_to_each_other():
    values = np.linspace(0, 1, 256)
    assert np.allclose(assets.to_srgb(assets.to_linear(values)), values, atol=1e-6)
    assert assets.to_srgb(np.array(0.214)) == pytest.approx(0.5, abs=1e-3)


def test_gltf_up_and_front_become_the_worlds():
    """The picture on the triangle faces glTF's +z, so the front camera sees it upright and unmirrored."""
    asset = assets.load(triangle_glb())
    assert np.allclose(asset.mesh.vertices[:, 0], 0, atol=1e-9)
    image, _ = asset.render(FRONT, 64, WHITE, samples=1)
    # A 2 × 2 picture: red green / blue white. Its lower left half is on the triangle.
    assert image[0, :, 22, 20].tolist() == pytest.approx([1, 0, 0], abs=0.3)
    assert image[0, :, 44, 20].tolist() == pytest.approx([0, 0, 1], abs=0.3)
    assert image[0, :, 44, 40].min() > 0.5


def test_the_product_of_factor_and_vertex_colour_is_linear():
    primitive = {"attributes": {"POSITION": 0, "COLOR_0": 2}, "material": 0}
    material = {"pbrMetallicRoughness": {"baseColorFactor": [0.5, 0.2, 1, 0.1]}}
    asset = assets.load(triangle_glb(meshes=[{"primitives": [primitive]}], materials=[material]))
    expected = assets.to_srgb(np.array([0.25, 0.2, 0]))
    assert np.allclose(asset.colours, expected, atol=5e-3)
    plain = assets.load(triangle_glb(meshes=[{"primitives": [{"attributes": {"POSITION": 0}}]}]))
    assert (plain.colours == 1).all() and not plain.textures


def test_the_scene_tree_places_its_parts():
    """Two triangles: one moved by its parent, one turned a quarter about y; both share one decoded picture."""
    half = 2**-0.5
    nodes = [
        {"children": [1, 2], "scale": [2, 2, 2]},
        {"mesh": 0, "translation": [5, 0, 0]},
        {"mesh": 0, "rotation": [0, half, 0, half]},
    ]
    asset = assets.load(triangle_glb(nodes=nodes), normalise=False)
    assert len(asset.mesh.faces) == 2 and len(asset.textures) == 1
    moved = np.array([[-1, -1, 0], [1, -1, 0], [-1, 1, 0]]) * 2 + [10, 0, 0]
    rotated = np.array([[0, -1, 1], [0, -1, -1], [0, 1, 1]]) * 2
    expected = np.concatenate([moved, rotated])[:, [2, 0, 1]]  # world x = glTF z, y = x, z = y
    hits = asset.mesh.triangles.reshape(-1, 3)
    assert np.allclose(np.sort(hits, axis=0), np.sort(expected, axis=0), atol=1e-6)


def test_a_strip_of_triangles_is_read_and_a_string_is_a_path(tmp_path):
    """Three corners, as a list and as a strip, are the same triangle."""
    strip = triangle_glb(meshes=[{"primitives": [{"attributes": {"POSITION": 0}, "mode": 5}]}])
    (tmp_path / "strip.glb").write_bytes(strip)
    hits = assets.load(str(tmp_path / "strip.glb")).mesh
    assert np.allclose(np.sort(hits.vertices, axis=0), np.sort(assets.load(triangle_glb()).mesh.vertices, axis=0))


def test_loading_centres_the_box_and_reaches_the_sphere():
    asset = assets.load(triangle_glb(nodes=[{"mesh": 0, "translation": [7, 8, 9], "scale": [1, 30, 1]}]))
    assert np.allclose(asset.mesh.bounds.sum(axis=0), 0, atol=1e-9)
    assert np.linalg.norm(asset.mesh.vertices, axis=1).max() == pytest.approx(0.5)


def test_large_textures_are_made_smaller():
    picture = io.BytesIO()
    Image.new("P", (3000, 1500)).save(picture, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
    assert assets.load(triangle_glb(images=[{"uri": uri}])).textures[0].shape == (512, 1024, 3)


@pytest.mark.parametrize(
    ("values", "sentence"), [([np.nan, 0, 0], "without a place"), ([np.inf, 0, 0], "without a place")]
)
def test_vertices_without_a_place_are_refused(values, sentence):
    data = bytearray(triangle_glb())
    start = bytes(data).index(np.array([-1, -1, 0], np.float32).tobytes())
    data[start : start + 12] = np.array(values, np.float32).tobytes()
    with pytest.raises(AssetError, match=sentence):
        assets.load(bytes(data))


def test_a_point_and_indices_out_of_range_are_refused():
    with pytest.raises(AssetError, match="no size"):
        assets.load(triangle_glb(nodes=[{"mesh": 0, "scale": [0, 0, 0]}]))
    document = {"attributes": {"POSITION": 0}, "indices": 3}
    accessors = [
        {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"},
        *[{"bufferView": 1, "componentType": 5126, "count": 3, "type": "VEC2"}] * 2,
        {"bufferView": 2, "componentType": 5123, "count": 3, "type": "SCALAR"},
    ]
    with pytest.raises(AssetError, match="do not exist"):
        assets.load(triangle_glb(meshes=[{"primitives": [document]}], accessors=accessors))


@pytest.mark.parametrize(("name", "textures"), [("BoxTextured", 1), ("CesiumMilkTruck", 1), ("Duck", 1), ("monkey", 0)])
def test_well_known_models_load(gltf, name, textures):
    asset = assets.load(gltf / f"{name}.glb")
    image, opacity = asset.render(at(20, 15), 48, WHITE)
    assert len(asset.textures) == textures and 0.1 < opacity.mean() < 0.7
    assert image.isfinite().all()


def test_the_ducks_beak_points_to_its_left_of_front(gltf):
    """Khronos's Duck looks along glTF's +x, the world's +y: the camera at 90° sees more orange than the one at −90°."""
    duck = assets.load(gltf / "Duck.glb")

    def orange(camera: Camera) -> int:
        image, _ = duck.render(camera, 64, WHITE)
        return ((image[0, 0] > 0.8) & (image[0, 1] < 0.6)).sum().item()

    assert orange(LEFT) > 30
    assert orange(at(-90)) < 5
