"""OBJ, USDZ and STL: other libraries read back the places, faces and colours of the GLB, and true millimetres."""

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from redream.scene import assets, export, mesh
from redream.scene.assets import Asset
from redream.scene.export import ExportError
from redream.scene.glb import GlbError

MINI = Path(__file__).parents[2] / "assets_index/mini/assets"


def head(textures: int = 1) -> Asset:
    """A closed head, taller than wide, with a nose towards +x, in world axes; each face is a chart of its own on a noisy
    texture, the faces taking turns where there are several."""
    ball, nose = trimesh.creation.icosphere(2), trimesh.creation.icosphere(1)
    places = [ball.vertices * [0.2, 0.25, 0.4], nose.vertices * 0.08 + [0.3, 0.0, 0.1]]
    corners = np.concatenate([places[0][ball.faces], places[1][nose.faces]]).reshape(-1, 3)  # (3f, 3)
    random = np.random.default_rng(0)
    faces = np.arange(len(corners)).reshape(-1, 3)
    return Asset(
        mesh=trimesh.Trimesh(corners, faces, process=False),
        colours=np.ones((len(corners), 3), np.float32),
        uv=random.random((len(corners), 2), np.float32),
        textures=tuple(random.integers(0, 256, (16, 24, 3), np.uint8) for _ in range(textures)),
        face_texture=np.arange(len(faces)) % textures,
    )


@pytest.fixture(scope="module")
def glbs(tmp_path_factory) -> dict[str, Path]:
    """GLBs by what is in them: a texture, two of them, vertex colours."""
    folder = tmp_path_factory.mktemp("glbs")
    for name, count in (("a texture", 1), ("two textures", 2)):
        mesh.save(head(count), folder / f"{name}.glb")
    (folder / "vertex colours.glb").write_bytes(min(MINI.glob("*.glb")).read_bytes())
    return {path.stem: path for path in folder.glob("*.glb")}


# What a reader finds: the places (f, 3, 3) of the faces' corners, and a function from barycentric weights (f, 3) to colours.
Read = tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]


def textured(pieces: list[tuple[np.ndarray, np.ndarray, Image.Image]]) -> Read:
    """What was read of pieces with places (f, 3, 3), coordinates (f, 3, 2) and a texture each."""

    def colour_at(weights: np.ndarray) -> np.ndarray:
        colours, start = [], 0
        for corners, uv, picture in pieces:
            at = (uv * weights[start : start + len(corners), :, None]).sum(axis=1)
            colours.append(assets.look_up(np.asarray(picture.convert("RGB")), at))
            start += len(corners)
        return np.concatenate(colours)

    return np.concatenate([corners for corners, _, _ in pieces]), colour_at


def read_obj(path: Path, folder: Path) -> Read:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    scene = trimesh.load_scene(folder / "object.obj", process=False)
    pieces = sorted(scene.geometry.values(), key=lambda piece: piece.visual.material.name)
    return textured([(p.vertices[p.faces], p.visual.uv[p.faces], p.visual.material.image) for p in pieces])


def read_usdz(path: Path, folder: Path) -> Read:
    from pxr import Usd, UsdGeom, UsdShade

    stage, pieces = Usd.Stage.Open(str(path)), []
    for prim in stage.Traverse():
        if prim.IsA(UsdGeom.Mesh):
            geometry = UsdGeom.Mesh(prim)
            faces = np.array(geometry.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3)
            uv = np.array(UsdGeom.PrimvarsAPI(prim).GetPrimvar("st").ComputeFlattened()).reshape(-1, 3, 2)
            material, _ = UsdShade.MaterialBindingAPI(prim).ComputeBoundMaterial()
            source = material.ComputeSurfaceSource()[0].GetInput("diffuseColor").GetConnectedSources()[0][0].source
            name = UsdShade.Shader(source.GetPrim()).GetInput("file").Get().path.removeprefix("./")
            with zipfile.ZipFile(path) as archive:
                picture = Image.open(io.BytesIO(archive.read(name)))
            pieces.append((np.array(geometry.GetPointsAttr().Get())[faces], uv, picture))
    return textured(pieces)


def read_glb(path: Path) -> Read:
    """The reference, in glTF's axes; its faces in the order of their textures."""
    asset = assets.load(path, normalise=False)
    order = np.argsort(asset.face_texture, kind="stable")
    corners = asset.mesh.vertices[asset.mesh.faces[order]] @ assets.GLTF_TO_WORLD[:3, :3]
    return corners, lambda weights: asset.colour_at(order, weights)


@pytest.mark.parametrize("content", ["a texture", "two textures", "vertex colours"])
@pytest.mark.parametrize(("file_format", "read"), [("obj", read_obj), ("usdz", read_usdz)])
def test_places_faces_and_colours_are_those_of_the_glb(glbs, tmp_path, content, file_format, read):
    file, sentence = export.export(glbs[content], file_format, tmp_path / f"head{export.FORMATS[file_format]}")
    corners, colour_at = read(file, tmp_path)
    expected, expected_colour_at = read_glb(glbs[content])
    assert f"{len(expected):,} faces" in sentence and "y up" in sentence
    assert np.allclose(corners, expected, atol=1e-7)
    for weights in (np.eye(3)[[0] * len(corners)], np.random.default_rng(1).dirichlet([1, 1, 1], len(corners))):
        assert np.abs(colour_at(weights) - expected_colour_at(weights)).max() < 2 / 255


@pytest.mark.parametrize("file_format", ["obj", "usdz"])
def test_the_seams_of_a_texture_do_not_cut_the_surface(glbs, tmp_path, file_format):
    file, _ = export.export(glbs["a texture"], file_format, tmp_path / f"head{export.FORMATS[file_format]}")
    if file_format == "obj":
        lines = zipfile.ZipFile(file).read("object.obj").decode().splitlines()
        vertices = [line.split()[1:] for line in lines if line.startswith("v ")]
        faces = [[int(corner.split("/")[0]) - 1 for corner in line.split()[1:]] for line in lines if line[0] == "f"]
    else:
        from pxr import Usd, UsdGeom

        stage = Usd.Stage.Open(str(file))
        geometry = UsdGeom.Mesh(stage.GetPrimAtPath("/object/mesh_0"))
        vertices = geometry.GetPointsAttr().Get()
        faces = np.array(geometry.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3)
    surface = trimesh.Trimesh(np.array(vertices, float), np.array(faces), process=False)
    assert surface.is_watertight and len(surface.faces) == len(head().mesh.faces)


def test_a_usdz_is_valid_y_up_in_metres_and_its_files_lie_uncompressed_at_multiples_of_64_bytes(glbs, tmp_path):
    from pxr import Usd, UsdGeom, UsdValidation

    file, _ = export.export(glbs["two textures"], "usdz", tmp_path / "head.usdz")
    stage = Usd.Stage.Open(str(file))
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 1
    assert stage.GetDefaultPrim().GetName() == "object"
    bounds = UsdGeom.BBoxCache(0, ["default"]).ComputeWorldBound(stage.GetDefaultPrim()).ComputeAlignedRange()
    corners, _ = read_glb(glbs["two textures"])
    assert np.allclose([bounds.GetMin(), bounds.GetMax()], [corners.min(axis=(0, 1)), corners.max(axis=(0, 1))])
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    assert len(validators) > 10 and not UsdValidation.ValidationContext(validators).Validate(stage)

    data, entries = file.read_bytes(), zipfile.ZipFile(file).infolist()
    assert [Path(entry.filename).suffix for entry in entries] == [".usdc", ".png", ".png"]
    for entry in entries:
        name, extra = struct.unpack_from("<HH", data, entry.header_offset + 26)
        assert entry.compress_type == zipfile.ZIP_STORED and (entry.header_offset + 30 + name + extra) % 64 == 0


def test_the_same_glb_gives_the_same_obj(glbs, tmp_path):
    files = [export.export(glbs["vertex colours"], "obj", tmp_path / name)[0] for name in ("a.zip", "b.zip")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_bilinear_look_up_in_a_colour_texture_is_linear_interpolation_over_each_face():
    """Where the plane through three colours stays among the colours that there are."""
    random = np.random.default_rng(0)
    colours = random.integers(64, 192, (200, 1, 3)) + random.integers(-20, 21, (200, 3, 3))
    texture, uv = export.colour_texture(np.concatenate([colours, colours[:50]]).astype(np.uint8))
    assert texture.shape[0] * texture.shape[1] < 4 * 230  # equal faces share a cell
    assert np.array_equal(uv[:50], uv[200:])
    weights = random.dirichlet([1, 1, 1], 200)
    found = assets.look_up(texture, (uv[:200] * weights[:, :, None]).sum(axis=1))
    assert np.allclose(found, (colours * weights[:, :, None]).sum(axis=1) / 255, atol=1e-4)


def test_a_material_s_factor_is_multiplied_into_its_texture():
    asset = head()
    tinted = Asset(asset.mesh, asset.colours * [0.5, 1.0, 0.0], asset.uv, asset.textures, asset.face_texture)
    (part,) = export.parts_of(tinted)
    light = assets.to_linear(asset.textures[0] / 255) * assets.to_linear(np.array([0.5, 1.0, 0.0]))
    assert np.abs(part.texture - assets.to_srgb(light) * 255).max() <= 0.5


# ---------------------------------------------------------------- STL


@pytest.mark.parametrize("height_mm", [100.0, 37.5])
def test_an_stl_stands_on_zero_with_the_height_in_millimetres_and_its_front_towards_minus_y(glbs, tmp_path, height_mm):
    file, sentence = export.export(glbs["a texture"], "stl", tmp_path / "head.stl", height_mm)
    read, asset = trimesh.load_mesh(file), head()
    assert sentence.startswith("The STL is watertight: ") and f"{height_mm:g} mm" in sentence
    assert read.is_volume and len(read.faces) == len(asset.mesh.faces)
    (left, front, bottom), (right, back, top) = read.bounds
    assert (bottom, top) == pytest.approx((0, height_mm), abs=1e-4)
    assert (left + right, front + back) == pytest.approx((0, 0), abs=1e-4)
    depth, width, height = asset.mesh.extents
    assert read.extents == pytest.approx(np.array([width, depth, height]) * height_mm / height, rel=1e-5)
    nose = read.vertices[read.vertices[:, 1].argmin()]
    assert nose[2] > height_mm / 2 and abs(nose[0]) < 1e-3 * height_mm


def boxes(*boxes: tuple[tuple[float, float, float], tuple[float, float, float], bool]) -> Asset:
    """Boxes between two corners each, in world axes; the last number of each is whether its top is open."""
    made = []
    for low, high, is_open in boxes:
        box = trimesh.creation.box(bounds=[low, high])
        box.update_faces(box.face_normals[:, 2] < 0.5 if is_open else np.ones(12, bool))
        made.append(box)
    joined = trimesh.util.concatenate(made)
    return Asset(joined, np.ones((len(joined.vertices), 3), np.float32))


def test_holes_are_closed_and_pieces_united():
    """A box of 1 × 1 × 1 without a top, and one of the same size that overlaps half of it along x: 1.5 in all; in
    millimetres a thousand times a thousand of these."""
    unit, further = (0.0, 0.0, 0.0), (0.5, 0.1, 0.1)
    asset = boxes((unit, (1.0, 1.0, 1.0), True), (further, (1.5, 0.9, 0.9), False))
    made, sentence = export.printable(asset, 100.0)
    assert "is watertight, since holes were closed" in sentence
    assert made.is_volume and made.body_count == 1
    assert made.volume == pytest.approx((1 + 0.5 * 0.8 * 0.8) * 1e6, rel=1e-5)


def test_a_shell_that_is_inside_out_is_turned():
    ball = trimesh.creation.icosphere(1)
    ball.invert()
    made, sentence = export.printable(Asset(ball, np.ones((len(ball.vertices), 3), np.float32)), 100.0)
    assert "is watertight" in sentence and made.volume > 0


def test_a_sheet_is_not_called_watertight_and_stays_as_it_is():
    sheet = trimesh.Trimesh([[0, 2, 0], [0, 3, 0], [0, 3, 1], [0, 2, 1]], [[0, 1, 2], [0, 2, 3]])
    joined = trimesh.util.concatenate([trimesh.creation.box(), sheet])
    made, sentence = export.printable(Asset(joined, np.ones((len(joined.vertices), 3), np.float32)), 100.0)
    assert "is not watertight" in sentence and "repair it" in sentence
    assert not made.is_watertight and len(made.faces) == 14


def test_a_pair_of_boxes_that_meet_in_an_edge_is_watertight_only_if_a_reader_finds_it_so():
    """Four faces along one edge: no reader can tell which two belong together."""
    asset = boxes(((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), False), ((1.0, 1.0, 0.0), (2.0, 2.0, 1.0), False))
    made, sentence = export.printable(asset, 100.0)
    read = trimesh.load_mesh(io.BytesIO(made.export(file_type="stl")), file_type="stl")
    assert read.is_watertight == made.is_watertight == ("is watertight" in sentence)


# ---------------------------------------------------------------- refusals and files


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"file_format": "fbx"}, "choose one of obj, usdz, stl"),
        ({"height_mm": 0.0}, "between 1 and 10,000 millimetres"),
        ({"height_mm": float("nan")}, "between 1 and 10,000 millimetres"),
        ({"height_mm": 1e9}, "between 1 and 10,000 millimetres"),
        ({"out": Path("head.obj")}, "must end in .stl"),
        ({"out": Path("/nowhere/head.stl")}, "cannot be written"),
        ({"out": Path("/nowhere/head.usdz"), "file_format": "usdz"}, "cannot be written"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_a_sentence(glbs, changes, sentence):
    with pytest.raises(ExportError, match=sentence):
        export.export(**{"glb": glbs["a texture"], "file_format": "stl"} | changes)


def test_a_glb_is_read_in_a_process_of_its_own(glbs, tmp_path, monkeypatch):
    """It may be anybody's."""
    monkeypatch.setattr(assets, "load", lambda *_, **__: pytest.fail("it was read here"))
    export.export(glbs["a texture"], "obj", tmp_path / "head.zip")


def test_a_file_that_is_no_glb_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "letter.glb").write_bytes(b"dear")
    with pytest.raises(GlbError, match="not a GLB"):
        export.export(tmp_path / "letter.glb", "obj")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.glb"]


def test_a_flat_model_has_no_stl_and_colours_that_vary_over_a_texture_no_obj():
    flat = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
    with pytest.raises(ExportError, match="flat"):
        export.printable(Asset(flat, np.ones((3, 3), np.float32)), 100.0)
    asset = head()
    colours = np.random.default_rng(0).random(asset.colours.shape, np.float32)
    with pytest.raises(ExportError, match="Bake them"):
        export.parts_of(Asset(asset.mesh, colours, asset.uv, asset.textures, asset.face_texture))


def test_files_beside_a_glb_are_removed_when_it_is_made_anew(glbs, tmp_path):
    glb = tmp_path / "mesh-0.glb"
    glb.write_bytes(glbs["vertex colours"].read_bytes())
    files = {export.export(glb, file_format)[0].name for file_format in export.FORMATS}
    assert files == {"mesh-0.zip", "mesh-0.usdz", "mesh-0.stl"}
    export.remove_exports(glb)
    assert [path.name for path in tmp_path.iterdir()] == ["mesh-0.glb"]
