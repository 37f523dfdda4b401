"""Meshes: from a field to a textured triangle mesh, and from any asset to a GLB that viewers show as it is."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import trimesh
import xatlas
from jaxtyping import Bool, Float
from scipy import ndimage
from skimage import measure

from redream.errors import RedreamError
from redream.files import replacing
from redream.scene import glb
from redream.scene.assets import GLTF_TO_WORLD, Asset, Tree, to_linear
from redream.scene.cameras import Camera, ring
from redream.scene.volume import FieldFunction, OccupancyGrid, render, volume_weights

POINTS_PER_CHUNK = 2**18
SMALLEST_PIECE = 0.02  # of the largest piece's volume; smaller ones are floaters
PADDING = 2  # texels between the charts of an atlas
DEPTHS = tuple(0.5 - 0.75 * i for i in range(8))  # where colour is sampled along the normal, in cells
BAKE_RINGS = tuple((elevation, 8) for elevation in (-40.0, 12.0, 55.0))  # degrees, pictures once around
RAYS_PER_CHUNK = 2**14


Picture = tuple[Camera, torch.Tensor]  # and (1, 4, h, w): colour over black, and opacity


class MeshError(RedreamError):
    """A field without a surface, or numbers that make no mesh; the message says which."""


@torch.no_grad()
def extract(
    field_fn: FieldFunction,
    grid: OccupancyGrid,
    *,
    resolution: int = 96,
    max_faces: int = 20_000,
    texture_size: int = 512,
    picture_size: int = 128,
    samples_per_ray: int = 48,
    threshold: float | None = None,
) -> Asset:
    """The surface of a field as a mesh with a texture, in world axes; box, device and empty space are the grid's.

    `resolution` is the number of density samples along an edge of the box; it is lowered until the mesh has at most
    `max_faces` faces. The texture is about `texture_size` texels wide and baked from pictures of `picture_size`
    pixels along a side with `samples_per_ray`, at best those that the field is shown with. `threshold` is the density
    of the surface per world unit; None: `surface_density`. Raises `MeshError` if nothing is opaque.
    """
    if resolution < 8 or max_faces < 500:
        raise MeshError("A mesh needs a resolution of at least 8 and at least 500 faces.")
    mesh = None
    while mesh is None or len(mesh.faces) > max_faces:
        if mesh is not None:  # the number of faces grows with the square of the resolution
            resolution = int(resolution * min(0.95, 0.97 * math.sqrt(max_faces / len(mesh.faces))))
        density = _density(field_fn, grid, resolution)  # (r, r, r)
        cell = 2 * grid.bound / (resolution - 1)  # world units
        level = surface_density(density, cell) if threshold is None else threshold
        mesh = _surface(density, level, cell, grid.bound)
    return _textured(
        mesh, field_fn, grid, cell, texture_size, list(_pictures(field_fn, grid, picture_size, samples_per_ray))
    )


def surface_density(density: Float[np.ndarray, "r r r"], cell: float) -> float:
    """The density at which to put the surface, so that the mesh has the outline that volume rendering has.

    Seen along an axis the field is opaque where exp(−Σ σ δ) < ½, with δ = `cell`, and the mesh where max σ exceeds the
    level. Levels that halve light within one cell (hard surfaces) to half the box (fog) are tried, and the highest of
    those with the largest overlap is taken. Raises `MeshError` if the field is transparent everywhere.
    """
    levels = math.log(2) / np.geomspace(cell, cell * len(density) / 2, 32)  # (l,)
    overlap, union = np.zeros(len(levels)), np.zeros(len(levels))
    for axis in range(3):
        opaque = density.sum(axis=axis) * cell > math.log(2)  # (r, r)
        solid = density.max(axis=axis) > levels[:, None, None]  # (l, r, r)
        overlap += (solid & opaque).sum(axis=(1, 2))
        union += (solid | opaque).sum(axis=(1, 2))
    if overlap.max() == 0:
        raise MeshError("There is no surface yet: the object is transparent from every side.")
    agreement = overlap / union  # intersection over union
    return float(levels[np.argmax(agreement >= agreement.max() - 1e-3)])


def save(asset: Asset, path: Path) -> None:
    """Write an asset as a GLB: y up, front towards +z, unlit and double-sided; the file is complete or absent.

    The yaw is applied. `assets.load(path, normalise=False)` gives the same colours at the same places. Faces keep their
    order; vertices that are equal in every attribute are written once, and indices have 16 bits where these suffice.
    """
    turn = trimesh.transformations.rotation_matrix(np.radians(asset.yaw_deg), [0, 0, 1])
    vertices = trimesh.transform_points(asset.mesh.vertices, GLTF_TO_WORLD.T @ turn)  # a rotation: Tᵀ is its inverse
    kinds = np.full(len(asset.mesh.faces), -1) if asset.face_texture is None else asset.face_texture
    writer = glb.GlbWriter()
    for kind in np.unique(kinds):
        used, faces = np.unique(asset.mesh.faces[kinds == kind], return_inverse=True)
        values = {"POSITION": vertices[used].astype(np.float32)}
        if kind >= 0:
            uv = asset.uv[used] * [1, -1] + [0, 1]  # glTF's v = 0 is the top edge
            values["TEXCOORD_0"] = uv.astype(np.float32)
        if (asset.colours[used] < 1).any():
            light = np.column_stack([to_linear(asset.colours[used]), np.ones(len(used))])  # (v, 4)
            values["COLOR_0"] = np.round(light * 65535).astype(np.uint16)
        kept, merged = glb.distinct_vertices(list(values.values()))
        attributes = {
            name: writer.array(array[kept], bounds=name == "POSITION", normalized=name == "COLOR_0")
            for name, array in values.items()
        }
        indices = writer.array(glb.index_array(merged[faces].reshape(-1), len(kept)))
        writer.primitive(attributes, indices, asset.textures[kind] if kind >= 0 else None)
    with replacing(path) as temporary:
        temporary.write_bytes(writer.packed())


@torch.no_grad()
def query_field(field_fn: FieldFunction, grid: OccupancyGrid, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour (n, 3) and density (n,) of the field; nothing where the grid is empty, as in volume rendering."""
    rgb, density = np.zeros((len(points), 3), np.float32), np.zeros(len(points), np.float32)
    for start in range(0, len(points), POINTS_PER_CHUNK):
        chunk = torch.from_numpy(points[start : start + POINTS_PER_CHUNK]).to(grid.density)  # (n, 3)
        kept = grid.occupied(chunk)  # (n,)
        values = [x.float().cpu().numpy() for x in field_fn(chunk[kept])]
        places = start + np.flatnonzero(kept.cpu().numpy())
        rgb[places], density[places] = (np.nan_to_num(x) for x in values)  # what has diverged counts as empty
    return rgb, density


def _density(field_fn: FieldFunction, grid: OccupancyGrid, resolution: int) -> Float[np.ndarray, "r r r"]:
    edge = np.linspace(-grid.bound, grid.bound, resolution, dtype=np.float32)
    points = np.stack(np.meshgrid(edge, edge, edge, indexing="ij"), axis=-1).reshape(-1, 3)  # (r³, 3)
    return query_field(field_fn, grid, points)[1].reshape(resolution, resolution, resolution)


def _surface(density: Float[np.ndarray, "r r r"], level: float, cell: float, bound: float) -> trimesh.Trimesh:
    """Marching cubes around the solid pieces, without floaters and without the unseen walls of cavities."""
    solid = density > level  # (r, r, r)
    pieces, count = ndimage.label(solid)
    if count == 0:
        raise MeshError("There is no surface: the field is nowhere as dense as the threshold. Lower it.")
    volume = np.bincount(pieces.ravel())[1:]
    kept = np.isin(pieces, 1 + np.flatnonzero(volume >= SMALLEST_PIECE * volume.max()))
    density = np.where(solid & ~kept, 0, density)
    density = np.where(ndimage.binary_fill_holes(kept) & ~kept, 2 * level, density)
    # Opacity of a cell instead of density: the same surface, but a hard one then lies midway between its two samples.
    # A layer of nothing around the box closes what touches its walls.
    opacity, surface = (-np.expm1(-cell * x) for x in (np.pad(density, 1), level))
    vertices, faces, _, _ = measure.marching_cubes(opacity, surface, spacing=(cell,) * 3)
    return trimesh.Trimesh(vertices - (bound + cell), faces[:, ::-1])  # its faces look inwards


def _textured(
    mesh: trimesh.Trimesh,
    field_fn: FieldFunction,
    grid: OccupancyGrid,
    cell: float,
    texture_size: int,
    pictures: Sequence[Picture],
) -> Asset:
    """The mesh cut into charts (xatlas), each texel with the colour that pictures of the field have there."""
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding, packing.bilinear = texture_size, PADDING, True
    atlas.generate(xatlas.ChartOptions(), packing)
    origin, faces, uv = atlas[0]  # the vertex each new one was, (f, 3), (v, 2)
    faces = faces.astype(np.int64)
    vertices, normals = np.asarray(mesh.vertices)[origin], np.asarray(mesh.vertex_normals)[origin]  # (v, 3) both

    # Laid flat, the atlas is a mesh of its own: a ray down through each texel finds its triangle and place.
    width, height = atlas.width, atlas.height
    column, row = np.meshgrid(np.arange(width), np.arange(height))
    texels = np.column_stack(
        [(column.ravel() + 0.5) / width, 1 - (row.ravel() + 0.5) / height, np.ones(width * height)]
    )
    flat = Tree(np.column_stack([uv, np.zeros(len(uv))]), faces)
    texels, triangles, weights = flat.cast(
        texels, np.broadcast_to([0.0, 0.0, -1.0], texels.shape)
    )  # (m,), (m,), (m, 3)
    points, along = ((weights[:, :, None] * values[faces[triangles]]).sum(axis=1) for values in (vertices, normals))

    texture, covered = np.zeros((height * width, 3)), np.zeros(height * width, bool)
    tree = Tree(vertices, faces)
    texture[texels] = bake_texture(
        pictures,
        points,
        along,
        cell,
        _surface_colour(field_fn, grid, points, along, cell),
        lambda o, d: _hits(tree, vertices[faces], o, d),
    )
    covered[texels] = True
    return Asset(
        mesh=trimesh.Trimesh(vertices, faces, process=False),
        colours=np.ones((len(vertices), 3), np.float32),
        uv=uv.astype(np.float32),
        textures=(dilate_texture(texture.reshape(height, width, 3), covered.reshape(height, width)),),
        face_texture=np.zeros(len(faces), np.int64),
    )


def _hits(
    tree: Tree, corners: Float[np.ndarray, "f 3 3"], origins: Float[np.ndarray, "n 3"], directions: np.ndarray
) -> Float[np.ndarray, "n 3"]:
    """Where rays first meet the mesh; infinitely far where they miss it."""
    places = np.full(origins.shape, np.inf)
    rays, triangles, weights = tree.cast(origins, directions)
    places[rays] = (weights[:, :, None] * corners[triangles]).sum(axis=1)
    return places


def _pictures(field_fn: FieldFunction, grid: OccupancyGrid, size: int, samples_per_ray: int) -> Iterator[Picture]:
    """The field from around, above and below, filling the picture with the sphere that the box holds."""
    distance = 4 * grid.bound
    fovy_deg = math.degrees(2 * math.asin(grid.bound / distance))
    black = torch.zeros(3, device=grid.density.device)
    for elevation_deg, count in BAKE_RINGS:
        for camera in ring(count, elevation_deg, distance, fovy_deg):
            rendering = render(field_fn, camera, size, black, grid, samples_per_ray, None, RAYS_PER_CHUNK)
            both = torch.cat([rendering.image, rendering.opacity], dim=1)  # (1, 4, size, size)
            yield camera, both.nan_to_num(0.0, 0.0, 0.0).cpu()  # what has diverged counts as empty


def bake_texture(
    pictures: Sequence[Picture],
    points: Float[np.ndarray, "n 3"],
    normals: Float[np.ndarray, "n 3"],
    cell: float,
    otherwise: Float[np.ndarray, "n 3"],
    hits: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Float[np.ndarray, "n 3"]:
    """The colour of surface points in pictures of the field that see them, those from straight ahead counting most.

    A field is never quite solid, so its pictures mix what lies before and behind its surface: this is what they show.
    Where no picture looks, the colour is that of `otherwise`. `hits`: rays → where they meet the mesh.
    """
    total, weight = 1e-3 * otherwise, np.full(len(points), 1e-3)  # (n, 3), (n,)
    for camera, picture in pictures:
        there = _looked_up(picture, camera, points)  # (n, 4)
        origins = np.broadcast_to(camera.pose[:3, 3].numpy(), points.shape)
        towards = points - origins
        towards = towards / np.linalg.norm(towards, axis=1, keepdims=True)
        visible = np.linalg.norm(hits(origins, towards) - points, axis=1) < 1.5 * cell
        facing = np.clip(-(towards * normals).sum(axis=1), 0, None) ** 4 * visible  # (n,)
        total = total + facing[:, None] * there[:, :3]  # colour times opacity, as the picture is over black
        weight = weight + facing * there[:, 3]
    return np.clip(total / weight[:, None], 0, 1)


def _looked_up(
    picture: Float[torch.Tensor, "1 c h w"], camera: Camera, points: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n c"]:
    """The picture's values where a camera sees these points, bilinear; 0 outside."""
    pose = camera.pose.numpy()
    right, up, backward = ((points - pose[:3, 3]) @ pose[:3, :3]).T  # (n,) each
    scale = -1 / (backward * math.tan(math.radians(camera.fovy_deg) / 2))
    at = torch.from_numpy(np.stack([right * scale, -up * scale], axis=-1)).to(picture)[None, None]  # (1, 1, n, 2)
    return torch.nn.functional.grid_sample(picture, at, align_corners=False)[0, :, 0].T.numpy()


def _surface_colour(
    field_fn: FieldFunction, grid: OccupancyGrid, points: np.ndarray, normals: np.ndarray, cell: float
) -> Float[np.ndarray, "n 3"]:
    """The colour a ray that enters along the normal would collect around each surface point: Σ w c / Σ w."""
    depths = np.array(DEPTHS)[:, None] * cell  # (s, 1)
    places = (points[:, None] + depths * normals[:, None]).reshape(-1, 3)  # (n·s, 3)
    rgb, density = query_field(field_fn, grid, places)
    length = torch.full((len(points), 1), cell * (DEPTHS[0] - DEPTHS[1]))  # (n, 1)
    weights, _ = volume_weights(torch.from_numpy(density).view(len(points), -1), length)  # (n, s)
    weights = (weights.numpy() + 1e-6)[:, :, None]  # (n, s, 1), so that a faint place has a colour too
    return (weights * rgb.reshape(len(points), -1, 3)).sum(axis=1) / weights.sum(axis=1)


def dilate_texture(texture: Float[np.ndarray, "h w 3"], covered: Bool[np.ndarray, "h w"]) -> np.ndarray:
    """Every empty texel gets the colour of the nearest covered one, so that look-ups at seams stay clean; as bytes."""
    nearest = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)  # (2, h, w)
    return np.round(texture[tuple(nearest)] * 255).clip(0, 255).astype(np.uint8)
