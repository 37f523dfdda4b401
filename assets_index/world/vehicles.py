"""Toy vehicles that drive towards +x. Each function returns coloured parts in world axes; `v` draws the proportions."""

from itertools import pairwise

import numpy as np
import trimesh

from assets_index.world.shapes import (
    GLASS,
    LAMP,
    METAL,
    WHITE,
    WOOD,
    Colour,
    Draw,
    Part,
    ball,
    box,
    cylinder,
    lathe,
    mirrored,
    shade,
)

TAIL: Colour = (0.85, 0.06, 0.10)
TYRE: Colour = (0.13, 0.13, 0.15)


def _pillow(centre, radii, colour: Colour, detail: int = 2, pitch: float = 0, power: float = 4) -> Part:
    """A box with round edges: a ball of the `power` norm; `pitch` < 0 leans its front back."""
    mesh = ball((0, 0, 0), 1, colour, detail).mesh
    size = np.linalg.norm(mesh.vertices, ord=power, axis=1, keepdims=True)
    mesh.vertices = mesh.vertices / size * np.asarray(radii, float)
    mesh.apply_transform(trimesh.transformations.rotation_matrix(np.radians(pitch), (0, 1, 0)))
    mesh.apply_translation(centre)
    return Part(mesh, colour)


def _loft(rings, colour: Colour) -> Part:
    """A flat-shaded solid through two or more convex outlines with equally many points, closed at both ends."""
    rings = [np.asarray(ring, float) for ring in rings]
    count = len(rings[0])
    triangles = []
    for low, high in pairwise(rings):
        for i in range(count):
            j = (i + 1) % count
            triangles += [(low[i], low[j], high[j]), (low[i], high[j], high[i])]
    for i in range(1, count - 1):
        triangles += [(rings[0][0], rings[0][i + 1], rings[0][i]), (rings[-1][0], rings[-1][i], rings[-1][i + 1])]
    corners = np.array(triangles).reshape(-1, 3)
    mesh = trimesh.Trimesh(corners, np.arange(len(corners)).reshape(-1, 3), process=False)
    if mesh.volume < 0:
        mesh.invert()
    return Part(mesh, colour)


def _slab(outline, y_low: float, y_high: float, colour: Colour) -> Part:
    """A convex outline in (x, z) drawn out from `y_low` to `y_high`."""
    return _loft([[(x, y, z) for x, z in outline] for y in (y_low, y_high)], colour)


def _axle(x: float, radius: float, outer: float, width: float, hub: Colour = METAL, sections: int = 10) -> list[Part]:
    """Two fat wheels standing on z = 0, their outer faces at y = ±`outer`, and the axle whose ends are the hubs."""
    wheels = mirrored(cylinder((x, outer - width, radius), (x, outer, radius), radius, TYRE, sections=sections))
    end = outer + 0.03
    return [*wheels, cylinder((x, -end, radius), (x, end, radius), radius * 0.54, hub, sections=6)]


def car(paint: Colour, v: Draw) -> list[Part]:
    """A round little car: bubble cabin, windscreen and headlights in front, red lights and a bumper at the back."""
    long, wide, roof = v(0.84, 1.0), v(0.52, 0.6), v(0.42, 0.52)
    wheel, back = v(0.25, 0.31), v(-0.22, -0.08)
    parts = [
        _pillow((0, 0, 0.46), (long, wide, 0.30), paint, power=3),
        _pillow((back, 0, 0.74), (0.56, wide * 0.86, roof), paint, power=2.8),
        _pillow((back + 0.38, 0, 0.76 + roof * 0.36), (0.19, wide * 0.66, roof * 0.46), GLASS, 1, -20),
        _pillow((back - 0.02, 0, 0.78 + roof * 0.34), (0.31, wide * 0.90, roof * 0.36), GLASS, 1, power=8),
        _pillow((long * 0.84, 0, 0.34), (0.20, wide * 0.80, 0.09), METAL, 1),
        _pillow((-long * 0.84, 0, 0.34), (0.20, wide * 0.80, 0.09), shade(paint, 0.55), 1),
    ]
    parts += mirrored(ball((long * 0.86, wide * 0.60, 0.56), (0.13, 0.15, 0.15), LAMP, detail=1))
    parts += mirrored(_pillow((-long * 0.90, wide * 0.60, 0.56), (0.10, 0.12, 0.10), TAIL, 1))
    for x in (long * 0.56, -long * 0.56):
        parts += _axle(x, wheel, wide + 0.05, 0.24)
    return parts


def truck(paint: Colour, v: Draw) -> list[Part]:
    """A six-wheeled truck: a short cab in front and, behind a gap, a taller ribbed cargo box."""
    tall, long, wide = v(0.95, 1.2), v(0.95, 1.2), v(0.56, 0.64)
    wheel, cab = v(0.23, 0.26), v(0.85, 1.0)
    floor, rear, dark = 0.38, -long, shade(paint, 0.6)  # the cargo box reaches from `rear` to x = 0
    parts = [
        box((rear / 2 + 0.28, 0, 0.36), (long + 0.65, wide * 1.5, 0.20), dark),
        box((rear / 2, 0, floor + tall / 2), (long, wide * 2, tall), paint),
        box((rear / 2, 0, floor + tall - 0.02), (long + 0.06, wide * 2 + 0.06, 0.13), dark),
        box((rear, 0, floor + tall * 0.48), (0.06, 0.10, tall * 0.84), shade(paint, 1.5)),
        _pillow((0.50, 0, 0.28 + cab / 2), (0.38, wide * 0.96, cab / 2), shade(paint, 0.88), power=6),
        box((0.72, 0, 0.28 + cab * 0.68), (0.36, wide * 1.98, cab * 0.34), GLASS),
        box((0.80, 0, 0.36), (0.24, wide * 1.8, 0.16), METAL),
    ]
    lamp = 0.28 + cab * 0.31
    parts += mirrored(cylinder((0.7, wide * 0.62, lamp), (0.94, wide * 0.62, lamp), 0.14, LAMP, sections=6))
    parts += mirrored(box((rear - 0.02, wide * 0.72, floor + 0.06), (0.12, 0.24, 0.19), TAIL))
    for x in (0.50, rear * 0.36, rear * 0.36 - 2.15 * wheel):
        parts += _axle(x, wheel, wide + 0.05, 0.26)
    return parts


def train(paint: Colour, v: Draw) -> list[Part]:
    """A steam locomotive: boiler with headlight and funnel, cow-catcher in front, roofed cab with windows behind."""
    long, girth, cab = v(0.85, 1.05), v(0.40, 0.46), v(0.58, 0.72)
    wheel, chimney = v(0.24, 0.28), v(0.30, 0.42)
    axis, front = 0.36 + girth, long  # the boiler's height; it reaches from the cab (x = 0) to the front
    top, roof = axis + girth, axis + girth + 0.26
    pilot = [(-0.1, -0.42), (0.40, -0.08), (0.40, 0.08), (-0.1, 0.42)]  # the cow-catcher's foot
    parts = [
        cylinder((-0.1, 0, axis), (front, 0, axis), girth, paint, sections=12),
        cylinder((front - 0.16, 0, axis), (front + 0.05, 0, axis), girth * 1.10, shade(paint, 0.8), sections=12),
        cylinder((front, 0, axis), (front + 0.15, 0, axis), girth * 0.56, LAMP, girth * 0.48, sections=10),
        lathe(
            [(0.13, top - 0.08), (0.11, top + chimney * 0.5), (0.22, top + chimney), (0, top + chimney)],
            shade(paint, 0.6),
            10,
            (front - 0.28, 0, 0),
        ),
        ball((front * 0.34, 0, top - 0.02), (0.18, 0.18, 0.18), LAMP, detail=1),
        box(((front - cab) / 2, 0, 0.36), (front + cab - 0.04, girth * 1.5, 0.22), shade(paint, 0.65)),
        box((-cab / 2, 0, (0.30 + roof) / 2), (cab, girth * 2.25, roof - 0.30), paint),
        box((-cab / 2, 0, roof - 0.24), (cab * 0.56, girth * 2.25 + 0.06, 0.34), GLASS),
        box((-cab / 2, 0, roof + 0.05), (cab + 0.22, girth * 2.25 + 0.22, 0.14), shade(paint, 0.75)),
        box((-cab - 0.02, 0, 0.62), (0.10, girth * 1.5, 0.30), shade(paint, 1.5)),
        _loft(
            [[(front + x * size, y * size, z) for x, y in pilot] for z, size in ((0.04, 1.0), (0.44, 0.7))],
            shade(paint, 1.5),
        ),
    ]
    for x in (front * 0.70, front * 0.22, -cab * 0.55):
        parts += _axle(x, wheel, girth * 1.12 + 0.06, 0.16, shade(paint, 1.4))
    return parts


def airplane(paint: Colour, v: Draw) -> list[Part]:
    """A fat toy plane: propeller nose and windscreen in front, broad wings, tail plane and a tall fin behind."""
    long, girth, span = v(0.80, 0.92), v(0.42, 0.49), v(0.92, 1.05)
    chord, fin = v(0.32, 0.40), v(0.54, 0.68)
    dark, pale = shade(paint, 0.72), shade(paint, 1.5)
    parts = [
        ball((0.06, 0, 0), (long, girth, girth), paint),
        ball((-0.35, 0, 0.08), (long * 0.72, girth * 0.62, girth * 0.62), paint),
        ball((0.16, 0, -0.08), (chord, span, 0.12), dark),
        _slab(
            [(-long - 0.22, 0.10), (-long * 0.55, 0.10), (-long - 0.05, fin + 0.16), (-long - 0.28, fin + 0.16)],
            -0.08,
            0.08,
            pale,
        ),
        ball((-long - 0.02, 0, 0.12), (0.22, 0.54, 0.10), dark, detail=1),
        _pillow((0.28, 0, girth * 0.72), (0.30, girth * 0.66, girth * 0.50), GLASS, 1, -8, 3),
        _pillow((0.06, 0, girth * 0.78), (0.32, girth * 0.70, girth * 0.52), paint, 1, 0, 3),
        cylinder((long * 0.80, 0, 0), (long + 0.10, 0, 0), girth * 0.74, pale, girth * 0.50, sections=12),
        ball((long + 0.18, 0, 0), (0.17, 0.15, 0.15), TAIL, detail=1),
    ]
    parts.append(ball((long + 0.19, 0, 0), (0.07, 0.54, 0.13), TYRE, detail=1, roll=70))
    parts += mirrored(cylinder((0.30, 0.16, -0.46), (0.30, 0.32, -0.46), 0.18, TYRE, sections=10))
    return parts


def boat(paint: Colour, v: Draw) -> list[Part]:
    """A tug-like boat: solid hull with a high pointed bow, cabin with front windows, funnel, flag at the stern."""
    long, wide, deep = v(0.88, 1.02), v(0.50, 0.57), v(0.60, 0.72)
    cabin, funnel, rise = v(0.44, 0.54), v(0.30, 0.42), v(0.16, 0.26)

    def outline(z: float, grow: float, lift: float = 0.0):
        half = [(-0.92, 0.62), (-0.86, 0.82), (0.10, 1.0), (0.60, 0.66), (1.0 + 0.18 * grow, 0.07)]
        size = 0.80 + 0.20 * grow
        points = [(x, -y) for x, y in half] + [(x, y) for x, y in reversed(half)]
        return [(x * long * size, y * wide * size, z + lift * max(x, 0) ** 2) for x, y in points]

    light = shade(paint, 1.35)
    parts = [
        _loft([outline(0, 0), outline(0.16, 0.4)], shade(paint, 0.55)),
        _loft([outline(0.16, 0.4), outline(deep - 0.12, 0.9, rise)], paint),
        _loft([outline(deep - 0.12, 1.1, rise), outline(deep, 1.2, rise)], WHITE),
        _loft([outline(deep - 0.02, 0.8, rise), outline(deep + 0.06, 0.8, rise)], shade(paint, 1.6)),
        box((0.02, 0, deep + cabin / 2), (0.72, wide * 1.22, cabin), light),
        box((0.02, 0, deep + cabin + 0.04), (0.86, wide * 1.22 + 0.14, 0.12), shade(paint, 0.7)),
        box((0.0, 0, deep + cabin * 0.60), (0.42, wide * 1.22 + 0.06, cabin * 0.46), GLASS),
        *mirrored(box((0.36, wide * 0.30, deep + cabin * 0.62), (0.10, wide * 0.44, cabin * 0.44), GLASS)),
        box((-0.34, 0, deep + cabin * 0.42), (0.08, 0.26, cabin * 0.84), WOOD),
        cylinder((-0.12, 0, deep + cabin), (-0.16, 0, deep + cabin + funnel), 0.17, paint, sections=12),
        cylinder((-0.16, 0, deep + cabin + funnel), (-0.17, 0, deep + cabin + funnel + 0.13), 0.19, TYRE, sections=12),
        cylinder((-long * 0.80, 0, deep), (-long * 0.90, 0, deep + 0.62), 0.045, WOOD, sections=6),
        box((-long * 0.87 - 0.14, 0.10, deep + 0.50), (0.42, 0.07, 0.30), TAIL, yaw=-35),
    ]
    return parts


def rocket(paint: Colour, v: Draw) -> list[Part]:
    """A plump rocket, the same all round: pointed tip, round band, a ring of portholes and eight chunky fins."""
    girth, tall, reach = v(0.46, 0.54), v(1.55, 1.8), v(0.26, 0.36)
    band, fin = v(0.36, 0.44), v(0.50, 0.66)

    def radius(t: float) -> float:
        return girth * (0.70 + 1.2 * t - 2.0 * t * t if t < 0.3 else 0.88 * (1 - max(0, (t - 0.3) / 0.7) ** 2.2))

    def section(levels, colour: Colour, grow: float = 0.0) -> Part:
        inner = [(radius(t) + grow, t * tall) for t in levels]
        return lathe([(0, inner[0][1]), *inner, (0, inner[-1][1])], colour, 16)

    parts = [
        section((0, 0.15, 0.3, 0.45, 0.6, 0.74), paint),
        section((0.74, 0.88, 1.0), shade(paint, 0.6), 0.012),
        section((band - 0.05, band), WHITE, 0.035),
        lathe([(0, -0.13), (girth * 0.62, -0.13), (girth * 0.45, 0.03), (0, 0.03)], METAL, 16),
    ]
    for turn in np.arange(8) * np.pi / 4:
        spin = trimesh.transformations.rotation_matrix(turn, (0, 0, 1))
        edge = girth + reach
        fins = [(0.2, 0.02), (edge, -0.22), (edge, fin * 0.35), (girth * 0.7, fin)]
        blade = _slab(fins, -0.065, 0.065, shade(paint, 0.78))
        window = ball((radius(0.58) - 0.01, 0, 0.58 * tall), (0.07, 0.12, 0.12), GLASS, detail=0)
        for part in (blade, window):
            part.mesh.apply_transform(spin)
            parts.append(part)
    return parts
