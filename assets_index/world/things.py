"""Things of house and garden. Each function returns coloured parts in world axes; `v(low, high)` draws proportions.

Everything stands on z = 0. Chair, sofa, house, television, mug and guitar have a front; the others are symmetric.
"""

import numpy as np
import trimesh

from assets_index.world.shapes import (
    DARK,
    GLASS,
    LAMP,
    LEAF,
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
    ring,
    shade,
)

CREAM: Colour = (0.96, 0.89, 0.74)
COFFEE: Colour = (0.25, 0.13, 0.07)


def chair(paint: Colour, v: Draw) -> list[Part]:
    """A sturdy chair: thick seat with a cushion, a padded backrest in front, bare slats behind."""
    wide, tall, leg = v(0.40, 0.48), v(0.72, 0.92), v(0.075, 0.095)
    seat = v(0.48, 0.60)
    parts = [
        box((0, 0, seat), (0.90, 2 * wide, 0.16), paint),
        ball((0.05, 0, seat + 0.09), (0.38, wide * 0.84, 0.10), _pale(paint)),
        box((-0.40, 0, seat + tall), (0.17, 2 * wide + 0.06, 0.22), paint),
        box((-0.39, 0, seat + tall / 2), (0.09, 2 * wide - 0.1, tall), _dark(paint, 0.80)),
        ball((-0.32, 0, seat + tall * 0.52), (0.10, wide * 0.74, tall * 0.32), _pale(paint)),
    ]
    for x, slant in ((0.34, 0.06), (-0.36, -0.06)):
        parts += mirrored(
            cylinder((x + slant, wide - 0.04, 0), (x, wide - 0.1, seat), leg, _dark(paint, 0.72), leg * 1.25, 10)
        )
    parts += mirrored(box((-0.40, wide - 0.05, seat + tall / 2), (0.15, 0.15, tall), paint))
    for y in (-0.18, 0, 0.18):
        parts.append(box((-0.45, y, seat + tall / 2), (0.06, 0.10, tall), _dark(paint, 0.5)))
    return parts


def sofa(paint: Colour, v: Draw) -> list[Part]:
    """A plump two-seater: two seat cushions between round arms, two back cushions, a plain back."""
    wide, tall, arm = v(0.58, 0.70), v(0.70, 0.88), v(0.15, 0.19)
    parts = [
        box((0, 0, 0.25), (0.86, 2 * wide + arm, 0.28), _dark(paint, 0.78)),
        box((-0.36, 0, 0.12 + tall / 2), (0.22, 2 * wide, tall), paint),
        cylinder((-0.36, -wide, 0.12 + tall), (-0.36, wide, 0.12 + tall), 0.13, paint, sections=12),
    ]
    half = wide / 2 - arm / 2 + 0.01
    parts += mirrored(box((0.10, half, 0.46), (0.78, 2 * half - 0.04, 0.18), _pale(paint)))
    parts += mirrored(ball((-0.20, half, 0.54 + tall * 0.27), (0.16, half * 0.92, tall * 0.30), _pale(paint, 1.3)))
    parts += mirrored(box((0.02, wide, 0.37), (0.92, arm * 1.7, 0.52), paint))
    parts += mirrored(cylinder((-0.46, wide, 0.62), (0.50, wide, 0.62), arm, paint, sections=12))
    parts += mirrored(cylinder((0.501, wide, 0.62), (0.52, wide, 0.62), arm * 0.6, _dark(paint, 0.6), sections=8))
    for x in (0.32, -0.36):
        parts += mirrored(cylinder((x, wide - 0.08, 0), (x, wide - 0.08, 0.13), 0.07, WOOD, 0.10, 6))
    return parts


def house(paint: Colour, v: Draw) -> list[Part]:
    """A little house: door and two windows in front, a round window in each gable, a steep roof with a chimney."""
    deep, wide, wall = v(0.40, 0.48), v(0.50, 0.60), v(0.70, 0.88)
    roof, edge = _dark(paint, 0.62), 0.10
    frame = _contrast(paint)
    slab = np.sqrt(2) * (deep + edge)
    parts = [
        box((0, 0, wall / 2), (2 * deep, 2 * wide, wall), paint),
        box((0, 0, wall), (np.sqrt(2) * deep, 2 * wide, np.sqrt(2) * deep), paint, pitch=45),  # upper half: the gable
    ]
    for side in (1, -1):
        middle = (side * (deep + edge) / 2, 0, wall + 0.06 + (deep - edge) / 2)
        parts.append(box(middle, (slab + 0.06, 2 * wide + 0.2, 0.11), roof, pitch=side * 45))
    chimney = v(-0.6, -0.3) * wide
    parts.append(box((-0.14, chimney, wall + deep), (0.20, 0.20, 0.52), _dark(paint, 0.8)))
    parts.append(box((-0.14, chimney, wall + deep + 0.26), (0.27, 0.27, 0.09), roof))
    parts.append(box((deep + 0.01, 0, 0.27), (0.06, 0.34, 0.54), frame))
    parts.append(box((deep + 0.03, 0, 0.24), (0.06, 0.24, 0.48), WOOD))
    parts.append(ball((deep + 0.07, 0.07, 0.25), 0.035, LAMP, detail=0))
    for part in (
        box((deep + 0.01, wide * 0.63, 0.38), (0.06, 0.30, 0.32), frame),
        box((deep + 0.03, wide * 0.63, 0.38), (0.06, 0.20, 0.22), GLASS),
        cylinder((0, wide - 0.01, wall * 0.98), (0, wide + 0.03, wall * 0.98), 0.18, frame, sections=12),
        cylinder((0, wide, wall * 0.98), (0, wide + 0.05, wall * 0.98), 0.125, GLASS, sections=12),
    ):
        parts += mirrored(part)
    return parts


def television(paint: Colour, v: Draw) -> list[Part]:
    """A retro television: a pale screen and two knobs in front, a V of antennae, splayed legs, vents at the back."""
    wide, tall, deep = v(0.56, 0.66), v(0.82, 0.94), v(0.58, 0.72)
    z, front = 0.22 + tall / 2, deep / 2
    parts = [
        box((0, 0, z), (deep, 2 * wide, tall), paint),
        box((-front - 0.09, 0, z - 0.03), (0.20, 1.3 * wide, tall * 0.70), _dark(paint, 0.78)),
    ]
    screen = 0.17 - wide * 0.31
    parts.append(box((front, screen, z), (0.07, wide * 1.26, tall * 0.76), _dark(paint, 0.55)))
    parts.append(box((front + 0.02, screen, z), (0.07, wide * 1.04, tall * 0.59), (0.70, 0.80, 0.88)))
    parts.append(box((front + 0.025, screen - wide * 0.25, z + tall * 0.14), (0.07, wide * 0.3, 0.13), WHITE))
    for knob in (0.20, -0.08):
        spot = np.array((front, wide * 0.74, z + tall * knob))
        parts.append(cylinder(spot, spot + (0.09, 0, 0), 0.105, _contrast(paint), 0.085, 10))
    for slot in range(4):
        parts.append(box((-front - 0.18, 0, z + tall * (0.20 - 0.15 * slot)), (0.05, wide, 0.065), _dark(paint, 0.35)))
    spread, high = v(0.26, 0.40), 0.22 + tall + v(0.34, 0.44)
    parts.append(ball((0, 0, 0.22 + tall), (0.18, 0.18, 0.11), _dark(paint, 0.6), detail=1))
    parts += mirrored(cylinder((0, 0.04, 0.24 + tall), (0, spread, high), 0.035, _dark(paint, 0.6), sections=8))
    parts += mirrored(ball((0, spread, high), 0.075, _pale(paint), detail=1))
    for x in (front * 0.62, -front * 0.62):
        parts += mirrored(cylinder((x * 1.25, wide * 0.8, 0), (x, wide * 0.62, 0.25), 0.05, _dark(paint, 0.5), 0.09, 8))
    return parts


def mug(paint: Colour, v: Draw) -> list[Part]:
    """A big mug of coffee with a star on its front, white or dark, and a round handle on its right side."""
    r, tall = v(0.42, 0.50), v(0.80, 0.98)
    rim = r - 0.075
    profile = [(0, 0), (r * 0.86, 0), (r, 0.09), (r, tall - 0.03), (r - 0.03, tall), (rim, tall), (rim, tall - 0.13)]
    handle = ring((0, -r - 0.02, tall * 0.52), v(0.23, 0.28), 0.075, _dark(paint, 0.82), axis=(1, 0, 0))
    return [
        lathe(profile, paint, 24),
        lathe([(rim, tall - 0.05), (0, tall - 0.05)], COFFEE, 24),
        lathe([(r + 0.012, 0.10), (r + 0.012, 0.19)], _dark(paint, 0.72), 24),
        handle,
        _star(r + 0.02, tall * 0.57, min(v(0.30, 0.34), tall * 0.36), _contrast(paint)),
    ]


def guitar(paint: Colour, v: Draw) -> list[Part]:
    """A chunky ukulele standing upright: waisted body, sound hole, bridge and strings in front, a head with pegs."""
    low, high, deep = v(0.46, 0.52), v(0.35, 0.41), v(0.20, 0.25)
    chest = low + v(0.46, 0.52)  # height of the upper bout's centre
    shoulder, top = chest + high, chest + high + v(0.22, 0.32)
    hole, front = low + (chest - low) * 0.62, deep + 0.03
    board, string = (hole + 0.19, top + 0.02), (0.012, 0.026, top - low * 0.6)

    def disc(x: float, z: float, radius: float, colour: Colour, sections: int = 18) -> Part:
        rim = lathe([(radius, 0), (radius, 0.05), (0, 0.05)], colour, sections)
        return rim.moved((x, 0, z), (np.sign(x), 0, 0))

    parts = []
    for z, radius in ((low, low), (chest, high)):
        parts.append(cylinder((-deep, 0, z), (deep, 0, z), radius, _dark(paint, 0.72), sections=20))
        parts += [disc(side * (deep - 0.02), z, radius * 0.93, paint) for side in (1, -1)]
    return parts + [
        disc(front - 0.04, hole, 0.23, _contrast(paint), 14),
        disc(front - 0.03, hole, 0.165, DARK, 14),
        box((front, 0, low * 0.56), (0.10, 0.42, 0.11), _dark(paint, 0.40)),
        box((0.09, 0, (shoulder + top) / 2), (0.24, 0.20, top - shoulder + 0.2), _dark(paint, 0.72)),
        box((front - 0.03, 0, sum(board) / 2), (0.12, 0.23, board[1] - board[0]), _dark(paint, 0.40)),
        *(box((front + 0.035, y, (low * 0.6 + top) / 2), string, WHITE) for y in (-0.07, 0, 0.07)),
        box((0.10, 0, top + 0.16), (0.28, 0.32, 0.36), paint, top=1.25),
        *mirrored(ball((0.10, 0.24, top + 0.07), (0.09, 0.10, 0.075), METAL, detail=0)),
        *mirrored(ball((0.10, 0.26, top + 0.25), (0.09, 0.10, 0.075), METAL, detail=0)),
    ]


def lamp(paint: Colour, v: Draw) -> list[Part]:
    """A table lamp: a round foot, a stem with a knob and a big conical shade that glows underneath."""
    foot, wide, narrow = v(0.30, 0.40), v(0.54, 0.64), v(0.24, 0.34)
    low, tall = v(0.60, 0.72), v(0.55, 0.68)
    top = low + tall
    trim = _pale(paint, 1.7)
    return [
        lathe([(0, 0), (foot, 0), (foot, 0.08), (foot * 0.75, 0.15), (0.08, 0.20)], _dark(paint, 0.72), 20),
        cylinder((0, 0, 0.1), (0, 0, low + 0.1), 0.085, _dark(paint, 0.55), sections=12),
        ball((0, 0, 0.18 + low * 0.3), (0.18, 0.18, 0.14), paint, detail=1),
        lathe([(0, low + 0.03), (wide * 0.97, low + 0.03)], LAMP, 24),
        lathe([(wide, low), (narrow, top), (0, top)], paint, 24),
        lathe([(wide + 0.02, low), (wide - 0.005, low + 0.09)], trim, 24),
        lathe([(narrow + 0.055, top - 0.06), (narrow + 0.02, top + 0.015), (0, top + 0.015)], trim, 24),
        ball((0, 0, top + 0.05), 0.085, _dark(paint, 0.55), detail=1),
    ]


def vase(paint: Colour, v: Draw) -> list[Part]:
    """A bellied vase with a band, a flared rim and a posy of flowers and leaves all round."""
    belly, tall, neck, rim = v(0.44, 0.54), v(0.42, 0.52), v(0.17, 0.22), v(0.28, 0.36)
    middle, top = tall * 0.92, 1.85 * tall + 0.20
    band = belly * 1.012
    parts = [
        lathe([(0, 0), (belly * 0.62, 0), (belly * 0.52, 0.12)], _dark(paint, 0.72), 18),
        ball((0, 0, middle), (belly, belly, tall * 0.95), paint),
        lathe([(band * 0.985, middle - 0.08), (band * 1.015, middle), (band * 0.985, middle + 0.08)], _pale(paint), 20),
        lathe([(neck * 1.3, 1.6 * tall), (neck, 1.8 * tall), (rim, top), (0, top)], _dark(paint, 0.85), 18),
        ball((0, 0, top + 0.28), (0.13, 0.13, 0.10), WHITE, detail=1),
        ball((0, 0, top + 0.36), (0.07, 0.07, 0.05), LAMP, detail=0),
        ball((0, 0, top + 0.05), (0.20, 0.20, 0.16), LEAF, detail=1),
    ]
    for angle in np.arange(5) * 72:
        x, y = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        parts.append(ball((0.24 * x, 0.24 * y, top + 0.15), (0.11, 0.13, 0.13), WHITE, detail=1, pitch=-30, yaw=angle))
        parts.append(ball((0.33 * x, 0.33 * y, top + 0.19), 0.06, LAMP, detail=0))
        x, y = np.cos(np.radians(angle + 36)), np.sin(np.radians(angle + 36))
        leaf = ((rim + 0.05) * x, (rim + 0.05) * y, top + 0.04)
        parts.append(ball(leaf, (0.19, 0.09, 0.05), LEAF, detail=1, pitch=-20, yaw=angle + 36))
    return parts


def tree(paint: Colour, v: Draw) -> list[Part]:
    """A Christmas tree: trunk, three stacked cones, baubles on the rims of the lower two, a golden ball on top."""
    wide, tall, slim = v(0.54, 0.66), v(0.50, 0.60), v(0.68, 0.80)
    parts = [cylinder((0, 0, 0), (0, 0, 0.45), 0.17, WOOD, 0.14, 12)]
    z, radius = 0.36, wide
    for tier, count in enumerate((6, 6, 0)):
        tone = _dark(paint, 0.84 + 0.08 * tier)
        parts.append(lathe([(0, z + 0.06), (radius * 0.94, z), (radius, z + 0.05)], _dark(paint, 0.55), 20))
        parts.append(lathe([(radius, z + 0.05), (radius * (0.22 if tier < 2 else 0), z + tall)], tone, 20))
        for angle in (np.arange(count) + tier / 2) * 60:
            x, y = np.cos(np.radians(angle)), np.sin(np.radians(angle))
            parts.append(ball((radius * 0.93 * x, radius * 0.93 * y, z + 0.08), 0.075, _contrast(paint), detail=1))
        z, radius = z + tall * 0.58, radius * slim
    parts.append(ball((0, 0, z + tall * 0.42), 0.10, LAMP, detail=1))
    return parts


def mushroom(paint: Colour, v: Draw) -> list[Part]:
    """A toadstool: a stout pale stem with a collar under a domed cap with pale dots all round."""
    wide, dome, stem, low = v(0.56, 0.66), v(0.46, 0.60), v(0.20, 0.25), v(0.44, 0.56)
    size = v(0.105, 0.13)
    cap = ball((0, 0, 0), (wide, wide, dome), paint, detail=2)
    cap.mesh.vertices = cap.mesh.vertices * np.where(cap.mesh.vertices[:, 2:] < 0, [1, 1, 0.22], [1, 1, 1])
    cap.mesh.apply_translation((0, 0, low))
    parts = [
        lathe([(0, 0), (stem * 1.35, 0), (stem * 1.4, 0.08), (stem, low * 0.6), (stem, low)], CREAM, 18),
        lathe([(stem * 0.9, low - 0.02), (stem * 1.5, low * 0.62)], shade(CREAM, 0.9), 18),
        cap,
        ball((0, 0, low + dome), (size * 1.3, size * 1.3, 0.05), _contrast(paint), detail=1),
    ]
    for count, height, scale in ((6, 22, 1.0), (6, 52, 0.85)):
        for k in range(count):
            yaw = 60 * k + (30 if height > 40 else 0)
            c, s = np.cos(np.radians(height)), np.sin(np.radians(height))
            spot = (wide * c * np.cos(np.radians(yaw)), wide * c * np.sin(np.radians(yaw)), low + dome * s)
            slope = np.degrees(np.arctan2(s / dome, c / wide))  # of the dome's normal
            radii = (0.045, size * scale, size * scale)
            parts.append(ball(spot, radii, _contrast(paint), detail=1, pitch=-slope, yaw=yaw))
    return parts


def _contrast(paint: Colour) -> Colour:
    """White, or a dark gray where the paint itself is nearly white."""
    return WHITE if min(paint) < 0.75 else (0.30, 0.31, 0.36)


def _pale(paint: Colour, factor: float = 1.5) -> Colour:
    """A lighter tone of the paint, or a darker one where the paint is nearly white."""
    return shade(paint, factor) if min(paint) < 0.75 else shade(paint, 0.8)


def _dark(paint: Colour, factor: float) -> Colour:
    """A darker tone of the paint, or a slightly lighter one where the paint is nearly black."""
    return shade(paint, factor) if max(paint) > 0.25 else shade(paint, 1.5 - 0.5 * factor)


def _star(radius: float, height: float, size: float, colour: Colour) -> Part:
    """A five-pointed star wrapped round the front of an upright cylinder."""
    angles = np.radians(90 + 36 * np.arange(10))
    reach = size * np.where(np.arange(10) % 2, 0.5, 1.0)
    flat = np.vstack([[0, 0], np.column_stack([np.cos(angles), np.sin(angles)]) * reach[:, None]])
    faces = [(0, 1 + k, 1 + (k + 1) % 10) for k in range(10)]
    mesh = trimesh.Trimesh(np.column_stack([np.zeros(11), flat]), faces, process=False).subdivide()
    turn = mesh.vertices[:, 1] / radius
    mesh.vertices = np.column_stack([radius * np.cos(turn), radius * np.sin(turn), mesh.vertices[:, 2] + height])
    return Part(mesh, colour)
