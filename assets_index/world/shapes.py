"""Modelling with a handful of primitives: every kind of the miniature world is a list of coloured parts.

World axes (z up, front +x, left +y). A kind is built at any size; `finish` centres it, scales it into the sphere of
radius 0.5 and bakes a soft light into the vertex colours, because assets are rendered unlit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import trimesh
from numpy.typing import ArrayLike

Colour = tuple[float, float, float]  # sRGB in [0, 1]
Draw = Callable[[float, float], float]  # (low, high) → a number between them: a variant's proportions

# Accents that kinds share.
WHITE: Colour = (0.97, 0.97, 0.95)
DARK: Colour = (0.07, 0.07, 0.09)
GLASS: Colour = (0.60, 0.82, 0.93)
METAL: Colour = (0.72, 0.74, 0.78)
WOOD: Colour = (0.62, 0.42, 0.24)
BEAK: Colour = (0.98, 0.68, 0.10)
NOSE: Colour = (0.95, 0.55, 0.60)
LAMP: Colour = (1.00, 0.93, 0.55)
LEAF: Colour = (0.30, 0.60, 0.25)


@dataclass(frozen=True)
class Part:
    """One piece of a kind: a mesh and its colour before light."""

    mesh: trimesh.Trimesh
    colour: Colour


def shade(colour: Colour, factor: float) -> Colour:
    """A darker (factor < 1) or lighter (factor > 1: mixed with white) version of a colour."""
    c = np.array(colour)
    c = c * factor if factor <= 1 else 1 - (1 - c) / factor
    return tuple(float(x) for x in np.clip(c, 0, 1))


def ball(
    centre: ArrayLike,
    radii: ArrayLike,
    colour: Colour,
    detail: int = 2,
    pitch: float = 0,
    yaw: float = 0,
    roll: float = 0,
) -> Part:
    """An ellipsoid; `radii` is one number or three along x, y, z; turned by roll (x), pitch (y), yaw (z) in degrees."""
    mesh = trimesh.creation.icosphere(subdivisions=detail)
    mesh.apply_scale(np.broadcast_to(np.asarray(radii, float), 3))
    return Part(_place(mesh, centre, roll, pitch, yaw), colour)


def box(
    centre: ArrayLike,
    size: ArrayLike,
    colour: Colour,
    pitch: float = 0,
    yaw: float = 0,
    roll: float = 0,
    top: float = 1.0,
) -> Part:
    """A box of `size` (x, y, z); `top` scales its upper end across: < 1 tapers, > 1 widens it."""
    mesh = trimesh.creation.box(extents=size)
    if top != 1.0:
        vertices = mesh.vertices.copy()
        vertices[vertices[:, 2] > 0, :2] *= top
        mesh.vertices = vertices
    # A box has one vertex a corner; sides get their own light only when their vertices are their own.
    mesh = trimesh.Trimesh(mesh.triangles.reshape(-1, 3), np.arange(36).reshape(12, 3), process=False)
    return Part(_place(mesh, centre, roll, pitch, yaw), colour)


def cylinder(
    start: ArrayLike,
    end: ArrayLike,
    radius: float,
    colour: Colour,
    radius_end: float | None = None,
    sections: int = 16,
) -> Part:
    """A round bar or, with `radius_end`, a truncated cone (0 for a cone) from `start` to `end`, with caps."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    radius_end = radius if radius_end is None else radius_end
    length = float(np.linalg.norm(end - start))
    return lathe([(0, 0), (radius, 0), (radius_end, length), (0, length)], colour, sections).moved(start, end - start)


def lathe(
    profile: Sequence[tuple[float, float]], colour: Colour, sections: int = 20, centre: ArrayLike = (0, 0, 0)
) -> "_LathePart":
    """A surface of revolution about z through (radius, height) pairs, closed where these begin and end on the axis.

    It is sharp where the profile bends: every pair of neighbours has vertices of its own. A radius of 0 becomes 1e-5.
    """
    angles = np.linspace(0, 2 * np.pi, sections, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    vertices, faces = [], []
    for (r0, z0), (r1, z1) in pairwise(profile):
        base = sum(len(v) for v in vertices)
        for r, z in ((r0, z0), (r1, z1)):
            vertices.append(np.column_stack([circle * max(r, 1e-5), np.full(sections, z)]))
        for i in range(sections):
            j = (i + 1) % sections
            a, b, c, d = base + i, base + j, base + sections + i, base + sections + j
            if r0 > 0:
                faces.append((a, b, d) if r1 > 0 else (a, b, c))
            if r1 > 0:
                faces.append((a, d, c))
    mesh = trimesh.Trimesh(np.concatenate(vertices), np.array(faces), process=False)
    mesh.remove_unreferenced_vertices()
    mesh.apply_translation(centre)
    return _LathePart(mesh, colour)


class _LathePart(Part):
    """A surface of revolution that stands on the origin, its axis along z."""

    def moved(self, start: ArrayLike, direction: ArrayLike) -> Part:
        """The part with its foot at `start` and its axis along `direction`."""
        turn = trimesh.geometry.align_vectors([0, 0, 1], direction)
        mesh = self.mesh.copy()
        mesh.apply_transform(turn)
        mesh.apply_translation(start)
        return Part(mesh, self.colour)


def ring(
    centre: ArrayLike,
    radius: float,
    thickness: float,
    colour: Colour,
    axis: ArrayLike = (0, 0, 1),
    sections: int = 16,
) -> Part:
    """A torus around `axis`: `radius` to the middle of its tube, `thickness` the radius of the tube."""
    mesh = trimesh.creation.torus(radius, thickness, major_sections=sections, minor_sections=8)
    mesh.apply_transform(trimesh.geometry.align_vectors([0, 0, 1], axis))
    mesh.apply_translation(centre)
    return Part(mesh, colour)


def mirrored(part: Part) -> list[Part]:
    """The part and its mirror image on the other side (y → −y): ears, eyes, legs, wheels."""
    mesh = part.mesh.copy()
    mesh.apply_transform(np.diag([1.0, -1, 1, 1]))  # trimesh turns the faces round itself
    return [part, Part(mesh, part.colour)]


def eyes(centre: ArrayLike, radius: float, pupil: ArrayLike = 0.62) -> list[Part]:
    """Two white eyes with dark pupils that look forward (+x), of few vertices.

    A pupil's radii are `pupil` times the eye's, one number or three along x, y, z; its centre is 0.62 radii before the
    eye's.
    """
    x, y, z = centre
    pupils = ball((x + radius * 0.62, y, z), radius * np.asarray(pupil), DARK, detail=1)
    return mirrored(ball(centre, radius, WHITE, detail=1)) + mirrored(pupils)


def finish(parts: list[Part]) -> trimesh.Trimesh:
    """One mesh with vertex colours, lit from above; its box centred at 0, its farthest vertex at radius 0.4995.

        colour × 1.05 (0.66 + 0.34 (n_z + 1) / 2 + 0.05 n_x) (0.86 + 0.14 h),    at most 1, in steps of 1/255

    n is the vertex normal, h the vertex's height in the object: 0 at its lowest vertex, 1 at its highest.
    """
    meshes = []
    for part in parts:
        mesh = part.mesh.copy()
        mesh.fix_normals()
        meshes.append(mesh)
    points = np.concatenate([m.vertices for m in meshes])
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    radius = np.linalg.norm(points - middle, axis=1).max()
    low, high = points[:, 2].min(), points[:, 2].max()
    for mesh, part in zip(meshes, parts):
        normals, height = mesh.vertex_normals, (mesh.vertices[:, 2] - low) / (high - low)
        light = 0.66 + 0.34 * (normals[:, 2] + 1) / 2 + 0.05 * normals[:, 0]
        light = light * (0.86 + 0.14 * height)
        colour = np.clip(np.asarray(part.colour) * light[:, None] * 1.05, 0, 1)
        rgba = np.column_stack([np.round(colour * 255), np.full(len(colour), 255)]).astype(np.uint8)
        mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=rgba)
        mesh.apply_translation(-middle)
        mesh.apply_scale(0.5 / radius * 0.999)
    return trimesh.util.concatenate(meshes)


def _place(mesh: trimesh.Trimesh, centre: ArrayLike, roll: float, pitch: float, yaw: float) -> trimesh.Trimesh:
    mesh.apply_transform(trimesh.transformations.euler_matrix(*np.radians([roll, pitch, yaw])))
    mesh.apply_translation(centre)
    return mesh
