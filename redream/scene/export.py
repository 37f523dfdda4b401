"""A GLB in the formats of other programs: OBJ with its texture, USDZ, and STL in millimetres for a 3D printer.

OBJ and USDZ keep glTF's axes and unit: y up, front towards +z, metres. Seams of the texture cut their coordinates only, not
the surface: vertices at the same place are one. Neither format multiplies a texture by vertex colours, so where faces have
vertex colours alone these become a texture. Objects are unlit as GLBs; a program that lights a USDZ shades them further.
"""

import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import manifold3d
import numpy as np
import trimesh
from jaxtyping import Float, Float32, Int, UInt8
from PIL import Image

from redream.errors import RedreamError
from redream.files import replacing
from redream.scene.assets import GLTF_TO_WORLD, Asset, to_linear, to_srgb
from redream.scene.glb_reader import GlbReader

FORMATS = {"obj": ".zip", "usdz": ".usdz", "stl": ".stl"}  # with the suffixes of their files
HEIGHTS_MM = (1.0, 10_000.0)  # least and greatest of an STL
GLTF_TO_PRINTER = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # z up, front towards −y
THINNEST = 1e-3  # mm³; a piece with less volume is a sheet, which nothing can print
MATERIAL = "newmtl {0}\nKd 1 1 1\nKs 0 0 0\nillum 0\nmap_Kd {0}.png\n"  # illum 0: unlit


class ExportError(RedreamError):
    """A model that cannot be written in a format; the message says why and what to do."""


@dataclass(frozen=True)
class Part:
    """The faces of one texture, in glTF's axes, in metres."""

    vertices: Float32[np.ndarray, "v 3"]  # each place once
    faces: Int[np.ndarray, "f 3"]
    uv: Float32[np.ndarray, "f 3 2"]  # of each corner; v = 0 at the bottom edge; coordinates beyond [0, 1] repeat
    texture: UInt8[np.ndarray, "h w 3"]

    def png(self) -> bytes:
        """The texture as a PNG file."""
        file = io.BytesIO()
        Image.fromarray(self.texture).save(file, "PNG")
        return file.getvalue()


def export(glb: Path, file_format: str, out: Path | None = None, height_mm: float = 100.0) -> tuple[Path, str]:
    """Write a GLB in one of `FORMATS`; return the file and a sentence on what is in it.

    `out`: by default `default_file`. `height_mm` is that of an STL. Raises `ExportError`; `GlbError` or `AssetError` for a
    GLB that cannot be used; `ReaderUnavailable`.
    """
    if file_format not in FORMATS:
        raise ExportError(f"There is no format {file_format!r}; choose one of {', '.join(FORMATS)}.")
    if not HEIGHTS_MM[0] <= height_mm <= HEIGHTS_MM[1]:
        raise ExportError(f"A height is between {HEIGHTS_MM[0]:g} and {HEIGHTS_MM[1]:,.0f} millimetres.")
    out = out or default_file(glb, file_format)
    if out.suffix.lower() != FORMATS[file_format]:
        raise ExportError(f"The name of this file must end in {FORMATS[file_format]}; {out.name} does not.")
    with GlbReader() as reader:
        asset = reader.load(glb, normalise=False)
    try:
        with replacing(out) as temporary:
            if file_format == "stl":
                mesh, sentence = printable(asset, height_mm)
                temporary.write_bytes(mesh.export(file_type="stl"))
            else:
                {"obj": write_obj, "usdz": write_usdz}[file_format](parts_of(asset), temporary)
                width, depth, height = asset.mesh.extents[[1, 0, 2]]
                sentence = f"{len(asset.mesh.faces):,} faces, {width:.2f} × {height:.2f} × {depth:.2f} m, y up."
    except OSError as error:
        raise ExportError(f"{out.name} cannot be written. Name a folder that exists and has room.") from error
    return out, sentence


def default_file(glb: Path, file_format: str) -> Path:
    """The file beside a GLB that `export` writes by default."""
    return glb.with_suffix(FORMATS[file_format])


def remove_exports(glb: Path) -> None:
    """Remove the files that `export` wrote beside a GLB: it is made anew."""
    for file_format in FORMATS:
        default_file(glb, file_format).unlink(missing_ok=True)


# OBJ and USDZ


def parts_of(asset: Asset) -> list[Part]:
    """The parts of an asset. Raises `ExportError` where vertex colours vary over a texture."""
    vertices = trimesh.transform_points(asset.mesh.vertices, GLTF_TO_WORLD.T).astype(np.float32)
    faces, colours = np.asarray(asset.mesh.faces), asset.colours[asset.mesh.faces]  # (f, 3), (f, 3, 3)
    kinds = np.full(len(faces), -1) if asset.face_texture is None else asset.face_texture
    parts = []
    for kind in np.unique(kinds):
        here = kinds == kind
        if kind < 0:
            texture, uv = colour_texture(np.round(colours[here] * 255).astype(np.uint8))
        else:
            texture, uv = _tinted(asset.textures[kind], colours[here]), asset.uv[faces[here]].astype(np.float32)
        places, merged = np.unique(vertices[faces[here].ravel()], axis=0, return_inverse=True)
        parts.append(Part(places, merged.reshape(-1, 3), uv, texture))
    return parts


def colour_texture(
    colours: UInt8[np.ndarray, "f 3 3"],
) -> tuple[UInt8[np.ndarray, "h w 3"], Float32[np.ndarray, "f 3 2"]]:
    """A texture that shows vertex colours, one per corner of each face, and the corners' coordinates in it.

    The corners of a face lie on the centres of three texels of a 2 × 2 cell. Bilinear look-up then is linear interpolation,
    if the fourth texel is the plane through the three: c₃ = c₁ + c₂ − c₀. Faces of the same three colours share a cell.
    """
    cells, cell_of_face = np.unique(colours.reshape(-1, 9), axis=0, return_inverse=True)
    columns = math.ceil(math.sqrt(len(cells)))
    row, column = np.divmod(np.arange(len(cells)), columns)
    corners = cells.reshape(-1, 3, 3).astype(int).transpose(1, 0, 2)  # (3, c, 3)
    texture = np.zeros((2 * (row[-1] + 1), 2 * columns, 3), np.uint8)
    fourth = (corners[1] + corners[2] - corners[0]).clip(0, 255)
    for (down, right), colour in zip([(0, 0), (0, 1), (1, 0), (1, 1)], [*corners, fourth], strict=True):
        texture[2 * row + down, 2 * column + right] = colour
    texels = np.stack([2 * column, 2 * row], axis=1)[:, None] + [[0, 0], [1, 0], [0, 1]] + np.array(0.5)  # (c, 3, 2)
    uv = texels / [texture.shape[1], -texture.shape[0]] + [0, 1]
    return texture, uv[cell_of_face].astype(np.float32)


def _tinted(texture: UInt8[np.ndarray, "h w c"], colours: Float[np.ndarray, "f 3 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The texture's RGB times the one colour that its faces have, as light."""
    if np.ptp(colours, axis=(0, 1)).max() > 1 / 255:
        raise ExportError("This GLB has vertex colours that vary over a texture. Bake them into it and try again.")
    light = to_linear(texture[..., :3] / 255) * to_linear(colours.mean(axis=(0, 1)))
    return np.round(to_srgb(light) * 255).astype(np.uint8)


def write_obj(parts: Sequence[Part], path: Path) -> None:
    """Write a ZIP of an OBJ, its MTL and its textures as PNG."""
    lines, first, first_uv = ["mtllib object.mtl", "o object"], 1, 1
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, data: str | bytes) -> None:
            archive.writestr(
                zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED
            )  # without a time: equal parts, equal files

        for number, part in enumerate(parts):
            uv, uv_of_corner = np.unique(part.uv.reshape(-1, 2), axis=0, return_inverse=True)
            lines += [f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in part.vertices.tolist()]
            lines += [f"vt {u:.9g} {v:.9g}" for u, v in uv.tolist()]
            corners = np.stack([part.faces + first, uv_of_corner.reshape(-1, 3) + first_uv], axis=-1)  # (f, 3, 2)
            lines += [f"usemtl texture-{number}"]
            lines += ["f {}/{} {}/{} {}/{}".format(*face) for face in corners.reshape(-1, 6).tolist()]
            first, first_uv = first + len(part.vertices), first_uv + len(uv)
            add(f"texture-{number}.png", part.png())
        add("object.mtl", "\n".join(MATERIAL.format(f"texture-{number}") for number in range(len(parts))))
        add("object.obj", "\n".join(lines) + "\n")


def write_usdz(parts: Sequence[Part], path: Path) -> None:
    """Write a USDZ with a mesh for each texture under one default prim. Raises `OSError` where it cannot."""
    from pxr import Sdf, Tf, Usd, UsdGeom, UsdUtils  # half a second

    with TemporaryDirectory() as folder:
        layer = Path(folder) / "object.usdc"
        stage = Usd.Stage.CreateNew(str(layer))
        UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
        UsdGeom.SetStageMetersPerUnit(stage, 1.0)
        stage.SetDefaultPrim(UsdGeom.Xform.Define(stage, "/object").GetPrim())
        for number, part in enumerate(parts):
            (Path(folder) / f"texture-{number}.png").write_bytes(part.png())
            _add_mesh(stage, number, part)
        package = Path(folder) / "object.usdz"
        try:
            stage.GetRootLayer().Save()
            if not UsdUtils.CreateNewUsdzPackage(Sdf.AssetPath(str(layer)), str(package)):
                raise OSError("no package was made")
        except Tf.ErrorException as error:
            raise OSError("the disk is full") from error
        path.write_bytes(package.read_bytes())


def _add_mesh(stage, number: int, part: Part) -> None:
    """Add a part and its material to a `Usd.Stage`."""
    from pxr import Sdf, UsdGeom, UsdShade, Vt

    mesh = UsdGeom.Mesh.Define(stage, f"/object/mesh_{number}")
    mesh.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(part.vertices))
    mesh.CreateFaceVertexCountsAttr(Vt.IntArray(len(part.faces), 3))
    mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(part.faces.ravel().astype(np.int32)))
    mesh.CreateExtentAttr(
        [tuple(map(float, corner)) for corner in (part.vertices.min(axis=0), part.vertices.max(axis=0))]
    )
    mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    mesh.CreateDoubleSidedAttr(True)
    coordinates = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar(
        "st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.faceVarying
    )
    coordinates.Set(Vt.Vec2fArray.FromNumpy(part.uv.reshape(-1, 2)))

    material = UsdShade.Material.Define(stage, f"/object/material_{number}")

    def shader(name: str, kind: str) -> UsdShade.Shader:
        made = UsdShade.Shader.Define(stage, material.GetPath().AppendChild(name))
        made.CreateIdAttr(kind)
        return made

    types = Sdf.ValueTypeNames
    reader, texture = shader("reader", "UsdPrimvarReader_float2"), shader("texture", "UsdUVTexture")
    surface = shader("surface", "UsdPreviewSurface")
    reader.CreateInput("varname", types.String).Set("st")
    texture.CreateInput("file", types.Asset).Set(f"./texture-{number}.png")
    texture.CreateInput("sourceColorSpace", types.Token).Set("sRGB")
    for axis in ("wrapS", "wrapT"):
        texture.CreateInput(axis, types.Token).Set("repeat")
    texture.CreateInput("st", types.Float2).ConnectToSource(reader.CreateOutput("result", types.Float2))
    surface.CreateInput("diffuseColor", types.Color3f).ConnectToSource(texture.CreateOutput("rgb", types.Float3))
    surface.CreateInput("roughness", types.Float).Set(1.0)
    surface.CreateInput("metallic", types.Float).Set(0.0)
    material.CreateSurfaceOutput().ConnectToSource(surface.CreateOutput("surface", types.Token))
    UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(material)


# STL


def printable(asset: Asset, height_mm: float) -> tuple[trimesh.Trimesh, str]:
    """The surface in millimetres, z up, front towards −y, standing on z = 0 above the origin; whether it is watertight, in a
    sentence.

    Watertight: every edge has two faces that run along it in opposite directions, and they enclose a volume, for a reader
    that merges the vertices of an STL (32-bit floats) by their places. A surface that is not is replaced by `solid` of it,
    if that is. Raises `ExportError` for a model without a height.
    """
    vertices = trimesh.transform_points(asset.mesh.vertices, GLTF_TO_PRINTER @ GLTF_TO_WORLD.T)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    if high[2] - low[2] < 1e-6 * np.linalg.norm(high - low):
        raise ExportError("This model is flat: it has no height that an STL could have.")
    vertices = (vertices - [*(low + high)[:2] / 2, low[2]]) * (height_mm / (high[2] - low[2]))
    surface = merged(vertices, asset.mesh.faces)
    repaired = None if surface.is_volume else solid(surface)
    mesh = surface if repaired is None else repaired
    size = f"{len(mesh.faces):,} faces, {' × '.join(f'{side:.4g}' for side in mesh.extents)} mm"
    if repaired is not None:
        return mesh, f"The STL is watertight, since holes were closed and pieces united: {size}."
    if mesh.is_volume:
        return mesh, f"The STL is watertight: {size}."
    return mesh, f"The STL is not watertight, so it may not print; repair it in your slicer: {size}."


def merged(vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]) -> trimesh.Trimesh:
    """The mesh that a reader of an STL gets: vertices in 32 bits, each place once, without faces that have become lines."""
    places, numbers = np.unique(vertices.astype(np.float32), axis=0, return_inverse=True)
    faces = numbers.reshape(-1)[faces]  # (f, 3)
    kept = (faces != np.roll(faces, 1, axis=1)).all(axis=1)
    return trimesh.Trimesh(places.astype(float), faces[kept], process=False)


def solid(surface: trimesh.Trimesh) -> trimesh.Trimesh | None:
    """The union of a surface's pieces with their holes closed; None if that is not watertight, as with sheets.

    Pieces hang together by edges of two faces. Where one lies inside another it is filled.
    """
    solids = []
    for piece in map(_closed, surface.split(only_watertight=False)):
        with np.errstate(invalid="ignore", divide="ignore"):  # a sheet has no centre of mass
            trimesh.repair.fix_normals(piece, multibody=False)
        mesh = manifold3d.Mesh(piece.vertices.astype(np.float32), piece.faces.astype(np.uint32))
        solids.append(manifold3d.Manifold(mesh))
    if any(one.status() != manifold3d.Error.NoError or one.volume() < THINNEST for one in solids):
        return None
    union = manifold3d.Manifold.batch_boolean(solids, manifold3d.OpType.Add).to_mesh()
    result = merged(union.vert_properties[:, :3], union.tri_verts)
    return result if result.is_volume else None


def _closed(piece: trimesh.Trimesh) -> trimesh.Trimesh:
    """The piece with a fan from the middle of each hole to its edge."""
    edges = piece.edges[trimesh.grouping.group_rows(piece.edges_sorted, require_count=1)]  # (e, 2)
    if not len(edges):
        return piece
    labels = trimesh.graph.connected_component_labels(edges, node_count=len(piece.vertices))
    _, hole = np.unique(labels[edges[:, 0]], return_inverse=True)  # (e,)
    middles = np.stack([np.bincount(hole, piece.vertices[edges[:, 0], axis]) for axis in range(3)], axis=1)
    middles /= np.bincount(hole)[:, None]
    fans = np.column_stack([edges[:, ::-1], len(piece.vertices) + hole])
    return trimesh.Trimesh(
        np.concatenate([piece.vertices, middles]), np.concatenate([piece.faces, fans]), process=False
    )
