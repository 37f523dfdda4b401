"""Animals with a face.

Each function returns coloured parts in world axes; `v(low, high)` draws a variant's proportions.
"""

import numpy as np
import trimesh

from assets_index.world.shapes import (
    BEAK,
    DARK,
    NOSE,
    WHITE,
    Colour,
    Draw,
    Part,
    ball,
    box,
    cylinder,
    eyes,
    mirrored,
    shade,
)


def owl(paint: Colour, v: Draw) -> list[Part]:
    """A round bird with a flat face of two huge eyes, ear tufts, folded wings and a pale belly."""
    tall, wide = v(0.95, 1.2), v(0.42, 0.52)
    light, dark = shade(paint, 1.9), shade(paint, 0.72)
    parts = [
        ball((0, 0, 0), (wide * 0.92, wide, 0.55 * tall), paint),
        ball((0.02, 0, 0.55 * tall), (0.40, 0.46, 0.36), paint),
        ball((wide * 0.35, 0, -0.08), (wide * 0.66, wide * 0.68, 0.40 * tall), light),
    ]
    size = v(0.15, 0.19)
    parts += mirrored(ball((0.30, 0.18, 0.60 * tall), (0.12, size * 1.35, size * 1.35), light, detail=1))
    parts += eyes((0.36, 0.18, 0.60 * tall), size)
    parts.append(_cone((0.38, 0, 0.50 * tall), (0.56, 0, 0.42 * tall), 0.085, BEAK))
    tip = (0.0, 0.36, 0.80 * tall + v(0.22, 0.32))
    parts += mirrored(_cone((0.02, 0.26, 0.80 * tall), tip, 0.12, shade(paint, 0.75)))
    parts += mirrored(ball((-0.06, wide * 0.98, -0.04), (0.26, 0.10, 0.42), dark, detail=1, pitch=-12))
    parts += mirrored(ball((0.24, 0.16, -0.54 * tall), (0.17, 0.11, 0.07), BEAK, detail=1))
    parts.append(ball((-wide * 0.85, 0, -0.36 * tall), (0.20, 0.16, 0.10), dark, detail=1, pitch=35))
    return parts


def cat(paint: Colour, v: Draw) -> list[Part]:
    """A sitting cat: pointed ears, whiskers on a pale muzzle, slit pupils and a tail that curls up behind."""
    wide, ear, size, curl = v(0.42, 0.48), v(0.36, 0.46), v(0.125, 0.15), v(0.17, 0.23)
    light, dark = shade(paint, 1.9), shade(paint, 0.72)
    parts = [
        ball((-0.06, 0, -0.05), (0.38, 0.36, 0.50), paint, pitch=14),
        ball((0.14, 0, 0.52), (0.36, wide, 0.35), paint),
        ball((0.50, 0, 0.47), (0.09, 0.08, 0.065), NOSE, detail=0),
    ]
    parts += mirrored(_cone((0.10, 0.22, 0.70), (0.08, 0.33, 0.74 + ear), 0.20, dark))
    parts += mirrored(_cone((0.20, 0.22, 0.72), (0.14, 0.32, 0.66 + ear), 0.12, NOSE))
    parts += eyes((0.38, 0.19, 0.60), size, pupil=(0.6, 0.42, 0.8))
    parts += mirrored(ball((0.42, 0.08, 0.39), (0.11, 0.12, 0.095), light, detail=1))
    for rise in (0.05, -0.11):
        parts += mirrored(_cone((0.42, 0.14, 0.40 + rise / 2), (0.40, 0.54, 0.42 + rise), 0.055, _against(paint)))
    parts += mirrored(ball((0.24, 0.14, -0.28), (0.12, 0.11, 0.30), paint, detail=1))
    parts += mirrored(ball((0.32, 0.15, -0.50), (0.17, 0.13, 0.10), light, detail=0))
    parts += mirrored(ball((-0.10, 0.28, -0.36), (0.30, 0.15, 0.24), dark, detail=1))
    turn = np.linspace(-0.5, 1.25, 9) * np.pi
    rise = np.column_stack([-0.52 - curl * np.cos(turn), 0 * turn, -0.16 + (curl + 0.1) * np.sin(turn)])
    path = np.concatenate([[(-0.25, 0, -0.44)], rise])
    parts.append(_tube(path, 0.085, dark))
    return parts


def dog(paint: Colour, v: Draw) -> list[Part]:
    """A standing dog: long snout with a dark nose, floppy ears, tongue, red collar and a raised tail."""
    long, snout, ear, leg, tail = v(0.38, 0.45), v(0.20, 0.27), v(0.27, 0.34), v(0.22, 0.32), v(0.30, 0.42)
    light, dark = shade(paint, 1.9), shade(paint, 0.6)
    x = long - 0.04
    parts = [
        ball((0, 0, 0), (long, 0.34, 0.30), paint),
        ball((x, 0, 0.46), (0.31, 0.35, 0.32), paint),
        ball((x + 0.22, 0, 0.36), (snout, 0.175, 0.155), light, detail=1, pitch=6),
        ball((x + 0.20 + snout, 0, 0.42), (0.09, 0.10, 0.085), DARK, detail=1),
        ball((x + 0.26, 0, 0.22), (0.17, 0.08, 0.06), (0.90, 0.25, 0.30), detail=1, pitch=35),
        cylinder((x - 0.18, 0, 0.13), (x - 0.10, 0, 0.24), 0.25, (0.85, 0.12, 0.14), 0.26, sections=12),
    ]
    parts += eyes((x + 0.22, 0.14, 0.58), 0.115)
    parts += mirrored(ball((x - 0.04, 0.37, 0.43), (0.16, 0.08, ear), dark, detail=1, roll=14))
    for end in (0.62, -0.62):
        foot = (end * long, 0.19, -0.22 - leg)
        parts += mirrored(_tube([(end * long, 0.19, -0.05), foot], 0.125, paint))
        parts += mirrored(ball((foot[0] + 0.04, 0.19, foot[2]), (0.16, 0.13, 0.08), light, detail=0))
    bend = np.linspace(0, 1, 7)
    path = np.column_stack([0.12 - long - 0.24 * np.sin(2.5 * bend), 0 * bend, 0.1 + (tail + 0.1) * bend])
    parts.append(_tube(path, 0.085, dark))
    return parts


def rabbit(paint: Colour, v: Draw) -> list[Part]:
    """A crouching rabbit: very long ears, a pale muzzle with buck teeth and a cotton tail."""
    ear, lean, size, plump = v(0.34, 0.42), v(4, 16), v(0.12, 0.145), v(0.40, 0.46)
    light, dark = shade(paint, 1.9), shade(paint, 0.75)
    parts = [
        ball((-0.16, 0, -0.08), (0.50, plump, 0.42), paint, pitch=10),
        ball((0.30, 0, 0.34), (0.33, 0.34, 0.32), paint),
        ball((-0.66, 0, -0.12), 0.19, _against(paint), detail=1),
        ball((0.66, 0, 0.32), (0.08, 0.09, 0.07), NOSE, detail=0),
        box((0.62, 0, 0.11), (0.08, 0.14, 0.15), WHITE),
    ]
    parts += mirrored(ball((0.18, 0.20, 0.60 + ear * 0.8), (0.10, 0.145, ear), paint, detail=1, roll=-lean))
    inner = (0.25, 0.20, 0.60 + ear * 0.8)
    parts += mirrored(ball(inner, (0.06, 0.085, ear * 0.8), NOSE, detail=1, roll=-lean))
    parts += eyes((0.52, 0.18, 0.45), size)
    parts += mirrored(ball((0.57, 0.085, 0.23), (0.11, 0.12, 0.10), light, detail=1))
    parts += mirrored(ball((-0.20, plump * 0.82, -0.26), (0.30, 0.14, 0.25), dark, detail=1))
    parts += mirrored(ball((0.00, plump * 0.80, -0.46), (0.30, 0.13, 0.09), light, detail=0))
    parts += mirrored(_tube([(0.24, 0.14, -0.10), (0.34, 0.14, -0.42)], 0.11, light))
    return parts


def bear(paint: Colour, v: Draw) -> list[Part]:
    """A teddy bear that sits with its soles forward: round ears, pale snout and belly."""
    belly, head, ear, arm = v(0.40, 0.47), v(0.38, 0.43), v(0.16, 0.20), v(10, 40)
    light, dark = shade(paint, 1.9), shade(paint, 0.72)
    parts = [
        ball((0, 0, 0), (belly * 0.92, belly, 0.46), paint),
        ball((0.04, 0, 0.62), (head * 0.9, head, head * 0.88), paint),
        ball((belly * 0.48, 0, -0.02), (belly * 0.56, belly * 0.68, 0.30), light, detail=1),
        ball((head * 0.9, 0, 0.52), (0.19, 0.19, 0.15), light, detail=1),
        ball((head * 0.9 + 0.16, 0, 0.58), (0.10, 0.12, 0.085), DARK, detail=0),
        ball((-belly * 0.95, 0, -0.28), 0.14, dark, detail=1),
    ]
    parts += mirrored(ball((0.0, head * 0.82, 0.64 + head * 0.72), (0.11, ear, ear), dark, detail=1))
    parts += mirrored(ball((0.07, head * 0.82, 0.64 + head * 0.72), (0.07, ear * 0.65, ear * 0.65), light, detail=0))
    parts += eyes((head * 0.80, 0.18, 0.73), 0.13)
    parts += mirrored(ball((0.12, belly + 0.06, 0.08), (0.15, 0.14, 0.32), dark, detail=1, pitch=-arm, roll=18))
    parts += mirrored(ball((0.34, 0.28, -0.34), (0.32, 0.17, 0.17), dark, detail=1, yaw=14))
    parts += mirrored(ball((0.60, 0.34, -0.30), (0.09, 0.17, 0.20), light, detail=1, yaw=14))
    return parts


def pig(paint: Colour, v: Draw) -> list[Part]:
    """A plump pig: snout disc with two nostrils, flapped ears, short legs with hooves and a curly tail."""
    plump, snout, ear, leg = v(0.44, 0.50), v(0.17, 0.21), v(0.26, 0.34), v(0.10, 0.18)
    light, dark = shade(paint, 1.6), shade(paint, 0.7)
    parts = [
        ball((-0.06, 0, 0), (0.52, plump, plump * 0.95), paint),
        ball((0.36, 0, 0.22), (0.36, 0.40, 0.37), paint),
        cylinder((0.58, 0, 0.16), (0.80, 0, 0.14), snout * 1.05, light, snout, sections=14),
    ]
    parts += mirrored(ball((0.80, 0.085, 0.14), (0.03, 0.05, 0.075), shade(paint, 0.35), detail=1))
    parts += eyes((0.61, 0.20, 0.37), 0.125)
    parts += mirrored(_cone((0.30, 0.24, 0.44), (0.44, 0.37, 0.46 + ear), 0.18, dark))
    for x in (0.26, -0.36):
        foot = (x, 0.23, -0.32 - leg)
        parts += mirrored(_tube([(x, 0.22, -0.15), foot], 0.14, paint))
        parts += mirrored(_tube([foot, (x, 0.23, foot[2] - 0.08)], 0.15, shade(paint, 0.4)))
    turn = np.linspace(0, 3.2, 15) * np.pi
    path = np.column_stack([-0.53 - 0.020 * turn, 0.13 * np.sin(turn), 0.20 - 0.13 * np.cos(turn)])
    parts.append(_tube(path, 0.06, dark, across=(1, 0, 0)))
    return parts


def _against(paint: Colour) -> Colour:
    """White, or a grey-brown where the paint itself is nearly white."""
    return WHITE if min(paint) < 0.8 else (0.55, 0.50, 0.48)


def _cone(start, end, radius: float, colour: Colour, sections: int = 10) -> Part:
    """A cone whose foot is hidden in another part, hence of few vertices: ears, beaks, whiskers."""
    start, way = np.asarray(start, float), np.subtract(end, start)
    mesh = trimesh.creation.cone(radius, float(np.linalg.norm(way)), sections=sections)
    mesh.apply_transform(trimesh.geometry.align_vectors([0, 0, 1], way))
    mesh.apply_translation(start)
    return Part(mesh, colour)


def _tube(path, radius: float, colour: Colour, across=(0, 1, 0), sections: int = 8) -> Part:
    """A round tube along a path that nowhere runs along `across`, with blunt points as ends: tails, legs."""
    path = np.asarray(path, float)
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    side = np.asarray(across, float) - along * (along @ np.asarray(across, float))[:, None]
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    up = np.cross(along, side)
    angles = np.linspace(0, 2 * np.pi, sections, endpoint=False)[None, :, None]
    rings = path[:, None] + radius * (np.cos(angles) * side[:, None] + np.sin(angles) * up[:, None])
    ends = path[[0, -1]] + radius * 0.4 * along[[0, -1]] * [[-1], [1]]
    count, faces = len(path) * sections, []
    for i in range(sections):
        j = (i + 1) % sections
        for low in range(0, count - sections, sections):
            faces += [(low + i, low + j, low + sections + j), (low + i, low + sections + j, low + sections + i)]
        faces += [(count, j, i), (count + 1, count - sections + i, count - sections + j)]
    return Part(trimesh.Trimesh(np.concatenate([rings.reshape(-1, 3), ends]), faces, process=False), colour)
