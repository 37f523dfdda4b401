"""Meshes: from field to GLB and back, the object looks the same."""

import json
import math
import struct

import numpy as np
import pytest
import torch
import trimesh
from torch.nn.functional import avg_pool2d

from redream.scene import assets, glb, glb_validation, mesh
from redream.scene.assets import Asset
from redream.scene.cameras import Camera, ring
from redream.scene.mesh import MeshError
from redream.scene.volume import OccupancyGrid, render

WHITE = torch.ones(3)
BOX = 0.52


def ball(points: torch.Tensor, density: float = 150.0, radius: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    """A solid ball, grey-green; its front is red and its top blue, with soft borders between."""
    x, y, z = (points / radius).unbind(-1)
    front, top = torch.sigmoid((x - 0.6) * 20), torch.sigmoid((z - 0.6) * 20)
    rgb = torch.stack([0.3 + 0.6 * front, 0.5 - 0.3 * y * (1 - front), 0.3 + 0.6 * top], dim=-1).clamp(0, 1)
    return rgb, density * torch.sigmoid((radius - points.norm(dim=-1)) / 0.004)


@pytest.fixture(scope="module")
def grid() -> OccupancyGrid:
    return OccupancyGrid(32, BOX)


@pytest.fixture(scope="module")
def extracted(grid) -> Asset:
    return mesh.extract(ball, grid, resolution=48, texture_size=256)


@pytest.fixture(scope="module")
def path(extracted, tmp_path_factory):
    path = tmp_path_factory.mktemp("mesh") / "ball.glb"
    mesh.save(extracted, path)
    return path


def outline_overlap(first: torch.Tensor, second: torch.Tensor) -> float:
    first, second = first > 0.5, second > 0.5
    return ((first & second).sum() / (first | second).sum()).item()


def test_a_field_written_and_loaded_looks_as_it_was_rendered(path, grid):
    asset = assets.load(path, normalise=False)
    for camera in ring(8, 15.0, 1.6, 40.0):
        field = render(ball, camera, 128, WHITE, grid, 128)
        image, opacity = asset.render(camera, 64, WHITE)
        assert outline_overlap(avg_pool2d(field.opacity, 2), opacity) >= 0.95
        error = (avg_pool2d(field.image, 2) - image).square().mean().item()
        assert -10 * math.log10(error) >= 22


def test_what_shines_through_a_soft_field_is_in_the_texture(grid):
    """Inside a mist of one colour lies a hard ball of another: seen from anywhere the middle is a mixture, and only
    pictures know in which shares: a line straight inwards through the mist's edge is too short to show it."""

    def misty(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        r = points.norm(dim=-1)
        core = (r < 0.3).float()[:, None]
        rgb = core * torch.tensor([1.0, 0.0, 0.0]) + (1 - core) * torch.tensor([0.0, 0.0, 1.0])
        return rgb, 200 * core[:, 0] + 7.0 * (r < 0.4)

    asset = mesh.extract(misty, grid, resolution=48, texture_size=128)
    camera = Camera(30.0, 15.0, 1.6, 40.0)
    field, (image, _) = render(misty, camera, 64, WHITE, grid, 128), asset.render(camera, 64, WHITE)
    middle = slice(28, 36)
    mixed = field.image[0, :, middle, middle].mean(dim=(1, 2))  # (3,)
    assert 0.3 < mixed[0] < 0.7 and 0.3 < mixed[2] < 0.7
    assert torch.allclose(image[0, :, middle, middle].mean(dim=(1, 2)), mixed, atol=0.15)


def test_a_corner_that_has_diverged_does_not_spoil_the_texture(grid):
    def broken(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rgb, density = ball(points)
        nowhere = torch.where((points > 0.3).all(dim=-1), torch.nan, 0.0)
        return rgb + nowhere[:, None], density + nowhere

    with np.errstate(invalid="raise"):
        asset = mesh.extract(broken, grid, resolution=32, texture_size=64)
    camera = Camera(180.0, 15.0, 1.6, 40.0)
    whole, _ = mesh.extract(ball, grid, resolution=32, texture_size=64).render(camera, 64, WHITE)
    assert (asset.render(camera, 64, WHITE)[0] - whole).abs().mean() < 0.02


def test_the_front_is_red_and_the_top_blue(path):
    asset = assets.load(path)
    front = asset.render(Camera(0.0, 0.0, 1.6, 40.0), 33, WHITE)[0][0]
    assert front[0, 16, 16] > 0.8 and front[2, 16, 16] < 0.5
    back = asset.render(Camera(180.0, 0.0, 1.6, 40.0), 33, WHITE)[0][0]
    assert back[0, 16, 16] < 0.4
    above = asset.render(Camera(0.0, 89.0, 1.6, 40.0), 33, WHITE)[0][0]
    assert above[2, 16, 16] > 0.8 and above[0, 16, 16] < 0.4


def test_the_file_is_y_up_faces_z_and_is_unlit(path):
    data = path.read_bytes()
    document = json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])
    assert all("KHR_materials_unlit" in m["extensions"] and m["doubleSided"] for m in document["materials"])
    assert document["extensionsUsed"] == ["KHR_materials_unlit"]
    glb_validation.validate(path)
    # As another program reads it: the texel at the vertex farthest along +z is red, along +y blue.
    read = trimesh.load_scene(path, process=False).to_geometry()
    colours = read.visual.to_color().vertex_colors
    assert colours[read.vertices[:, 2].argmax(), 0] > 200 and colours[read.vertices[:, 2].argmin(), 0] < 130
    assert colours[read.vertices[:, 1].argmax(), 2] > 200 and colours[read.vertices[:, 1].argmin(), 2] < 130


def test_the_surface_is_closed_turned_outwards_and_where_the_ball_is(extracted):
    welded = trimesh.Trimesh(extracted.mesh.vertices, extracted.mesh.faces)
    welded.merge_vertices(merge_tex=True, merge_norm=True)
    assert welded.is_watertight
    radius = 0.412  # where a ray past the ball loses half its light: ∫ σ = ln 2
    assert welded.volume == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.03)
    assert np.abs(np.linalg.norm(welded.vertices, axis=1) - radius).max() < BOX / 47  # half a cell


def test_faces_stay_below_the_limit(grid):
    few = mesh.extract(ball, grid, resolution=64, max_faces=3000, texture_size=128)
    assert 1000 < len(few.mesh.faces) <= 3000
    assert max(few.textures[0].shape[:2]) < 300


def test_floaters_go_and_large_pieces_stay(grid):
    def three(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A ball of radius 0.2, one of half its radius (an eighth of its volume) and one of a tenth."""
        places = [((-0.2, 0, 0), 0.2), ((0.3, 0, 0), 0.1), ((0, 0.4, 0.3), 0.02)]
        near = torch.stack([r - (points - torch.tensor(c)).norm(dim=-1) for c, r in places]).amax(dim=0)
        return torch.full_like(points, 0.5), 200 * torch.sigmoid(near / 0.004)

    welded = trimesh.Trimesh(**_arrays(mesh.extract(three, grid, resolution=48, texture_size=64)))
    assert len(welded.split()) == 2
    assert welded.bounds[1, 0] > 0.35 and welded.bounds[1, 2] < 0.25


def test_cavities_get_no_walls(grid):
    def shell(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rgb, density = ball(points)
        return rgb, density - ball(points, radius=0.25)[1]

    welded = trimesh.Trimesh(**_arrays(mesh.extract(shell, grid, resolution=32, texture_size=64)))
    assert len(welded.split()) == 1
    assert np.linalg.norm(welded.vertices, axis=1).min() > 0.35


def _arrays(asset: Asset) -> dict:
    welded = trimesh.Trimesh(asset.mesh.vertices, asset.mesh.faces)
    welded.merge_vertices(merge_tex=True, merge_norm=True)
    return {"vertices": welded.vertices, "faces": welded.faces}


def test_what_touches_the_box_is_closed_and_the_grid_hides_what_it_holds_empty():
    grid = OccupancyGrid(16, BOX)

    def everywhere(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full_like(points, 0.5), torch.full((len(points),), 50.0)

    full = trimesh.Trimesh(**_arrays(mesh.extract(everywhere, grid, resolution=24, texture_size=64)))
    assert full.is_watertight and full.volume == pytest.approx((2 * BOX) ** 3, rel=0.15)
    grid.mask[:8] = False  # the half x < 0
    half = trimesh.Trimesh(**_arrays(mesh.extract(everywhere, grid, resolution=24, texture_size=64)))
    assert half.bounds[0, 0] == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("softness", [0.002, 0.02, 0.05])
def test_the_level_gives_the_outline_of_volume_rendering_however_soft_the_field(softness, grid):
    """Along an axis a ball of density σ(r) is opaque where ∫ σ > ln 2; the mesh must reach just as far."""

    def soft(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full_like(points, 0.5), 60 * torch.sigmoid((0.3 - points.norm(dim=-1)) / softness)

    line = torch.linspace(-BOX, BOX, 400)
    points = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    depth = soft(torch.cat([points, torch.zeros(len(points), 1)], 1))[1].view(400, 400).sum(1) * (2 * BOX / 400)
    radius = line[depth > math.log(2)].max().item()
    bounds = mesh.extract(soft, grid, resolution=40, texture_size=64).mesh.bounds
    assert np.abs(bounds).mean() == pytest.approx(radius, abs=0.5 * 2 * BOX / 39)  # half a cell


@pytest.mark.parametrize("density", [0.0, 0.1])
def test_a_field_without_a_surface_is_an_error_in_words(density, grid):
    def faint(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full_like(points, 0.5), torch.full((len(points),), density)

    with pytest.raises(MeshError, match="transparent from every side"):
        mesh.extract(faint, grid, resolution=16)
    with pytest.raises(MeshError, match="Lower it"):
        mesh.extract(faint, grid, resolution=16, threshold=5.0)


def test_vertex_colours_yaw_and_several_textures_survive_the_file(tmp_path):
    """Two triangles, one textured and one not, coloured and rotated: the saved file shows the same."""
    generator = np.random.default_rng(0)
    corners = generator.uniform(-0.4, 0.4, (12, 3))
    shape = trimesh.Trimesh(corners, np.arange(12).reshape(4, 3), process=False)
    textures = tuple(generator.integers(0, 256, (4, 6, 3), dtype=np.uint8) for _ in range(2))
    colours = generator.random((12, 3)).astype(np.float32)
    asset = Asset(shape, colours, generator.uniform(-1, 2, (12, 2)), textures, np.array([0, -1, 1, 0]), yaw_deg=70.0)
    mesh.save(asset, tmp_path / "a.glb")
    loaded = assets.load(tmp_path / "a.glb", normalise=False)
    assert len(loaded.textures) == 2 and loaded.yaw_deg == 0
    for camera in ring(4, 20.0, 1.6, 40.0):
        (image, opacity), (reloaded, cover) = asset.render(camera, 48, WHITE), loaded.render(camera, 48, WHITE)
        assert (opacity - cover).abs().mean() < 1e-3
        assert (image - reloaded).abs().mean() < 2e-3


def _document(path) -> dict:
    """The JSON chunk of a GLB."""
    return glb.unpack(path.read_bytes(), 10**6)[0]


def _triangles(asset: Asset) -> tuple[np.ndarray, np.ndarray]:
    """Corners and their colours, (f, 3, 3) each, in the order of the faces."""
    return np.asarray(asset.mesh.vertices)[asset.mesh.faces], asset.colours[asset.mesh.faces]


def test_equal_vertices_are_written_once_and_every_triangle_and_render_stays_the_same(tmp_path):
    """A ball with one colour a half, with shared vertices and as a soup in which every face has its own: after the file
    both have as many vertices as the ball has different ones, and are the same triangles in the same order."""
    shape = trimesh.creation.icosphere(subdivisions=2, radius=0.4)  # 162 vertices, 320 faces
    colours = np.where(shape.vertices[:, :1] > 0, [0.8, 0.3, 0.1], [0.1, 0.3, 0.8]).astype(np.float32)
    soup = trimesh.Trimesh(shape.vertices[shape.faces].reshape(-1, 3), np.arange(960).reshape(-1, 3), process=False)
    shared, split = Asset(shape, colours, yaw_deg=33.0), Asset(soup, colours[shape.faces].reshape(-1, 3), yaw_deg=33.0)
    for name, asset in (("shared", shared), ("own", split)):
        mesh.save(asset, tmp_path / f"{name}.glb")
        assert {a["count"] for a in _document(tmp_path / f"{name}.glb")["accessors"]} == {162, 960}
    first, second = (assets.load(tmp_path / f"{name}.glb", normalise=False) for name in ("shared", "own"))
    for one, other in zip(_triangles(first), _triangles(second), strict=True):
        assert np.array_equal(one.view(np.uint8), other.view(np.uint8))
    rotated = trimesh.transform_points(
        shape.vertices, trimesh.transformations.rotation_matrix(math.radians(33), [0, 0, 1])
    )
    assert np.abs(_triangles(first)[0] - rotated[shape.faces]).max() < 1e-7  # as float32 holds them
    for camera in ring(3, 20.0, 1.6, 40.0):
        for one, other in zip(first.render(camera, 48, WHITE), second.render(camera, 48, WHITE), strict=True):
            assert torch.equal(one, other)


def test_vertices_that_differ_in_anything_are_kept_apart(tmp_path):
    """Six corners at three places: three differ by their colour; and 0 is not −0, as every bit of a place is kept."""
    corners = np.array([[0, 0, 0.1], [0.1, 0, 0], [0, 0.1, 0]] * 2)
    colours = np.repeat([[1, 0, 0], [0, 0, 1]], 3, axis=0).astype(np.float32)
    faces = np.arange(6).reshape(2, 3)
    mesh.save(Asset(trimesh.Trimesh(corners, faces, process=False), colours), tmp_path / "colours.glb")
    assert [a["count"] for a in _document(tmp_path / "colours.glb")["accessors"]] == [6, 6, 6]
    kept, group = glb.distinct_vertices(
        [np.array([[0.0], [-0.0], [0.0]], np.float32), np.array([[1], [1], [1]], np.uint16)]
    )
    assert kept.tolist() == [0, 1] and group.tolist() == [0, 1, 0]


@pytest.mark.parametrize("vertices, kind", [(65535, np.uint16), (65536, np.uint32)])
def test_indices_have_16_bits_while_the_largest_is_none_that_restarts_a_primitive(vertices, kind, tmp_path):
    """A fan of triangles around its first vertex, which uses all of them."""
    angles = np.linspace(0, 6, vertices - 1)
    corners = np.concatenate([[[0, 0, 0]], np.column_stack([np.cos(angles), np.sin(angles), 0 * angles])])
    rim = np.arange(1, vertices - 1)
    faces = np.column_stack([0 * rim, rim, rim + 1])
    asset = Asset(trimesh.Trimesh(corners, faces, process=False), np.ones((vertices, 3), np.float32))
    mesh.save(asset, tmp_path / "fan.glb")
    accessors = _document(tmp_path / "fan.glb")["accessors"]
    assert [a["count"] for a in accessors] == [vertices, 3 * len(faces)]
    assert accessors[1]["componentType"] == {np.uint16: 5123, np.uint32: 5125}[kind]
    glb_validation.validate(tmp_path / "fan.glb")
    assert np.array_equal(assets.load(tmp_path / "fan.glb", normalise=False).mesh.faces, faces)


def test_equal_fields_make_equal_files_and_a_failed_save_leaves_none(grid, tmp_path, monkeypatch):
    for name in ("a.glb", "b.glb"):
        mesh.save(mesh.extract(ball, grid, resolution=24, texture_size=64), tmp_path / name)
    assert (tmp_path / "a.glb").read_bytes() == (tmp_path / "b.glb").read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        mesh.save(mesh.extract(ball, grid, resolution=16, texture_size=64), tmp_path / "c.glb")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.glb", "b.glb"]
