"""Characters with a face. Each function returns coloured parts in world axes.

`v(low, high)` draws a variant's proportions.
"""

import math

from assets_index.world.shapes import (
    BEAK,
    DARK,
    LAMP,
    METAL,
    NOSE,
    WHITE,
    WOOD,
    Colour,
    Draw,
    Part,
    ball,
    box,
    cylinder,
    eyes,
    lathe,
    mirrored,
    ring,
    shade,
)

ORANGE: Colour = (1.0, 0.45, 0.05)
RED: Colour = (0.90, 0.15, 0.12)


def _apart(paint: Colour, *choices: Colour) -> Colour:
    """The first of the choices that stands out against the paint (or else the one farthest from it)."""
    return next((c for c in choices if math.dist(c, paint) > 0.4), max(choices, key=lambda c: math.dist(c, paint)))


def _second(paint: Colour, factor: float = 0.7) -> Colour:
    """A darker shade of the paint for wings, limbs and bands; a lighter one where the paint is nearly black."""
    return shade(paint, factor) if max(paint) > 0.3 else shade(paint, 1 + 0.6 * (1 - factor) / factor)


def penguin(paint: Colour, v: Draw) -> list[Part]:
    """An upright egg with a pale face and belly, flippers held out, orange beak and feet, a stub of a tail."""
    tall, wide, head, spread = v(0.50, 0.64), v(0.45, 0.55), v(0.38, 0.45), v(18, 42)
    pale, orange = _apart(paint, WHITE, shade(paint, 0.72)), _apart(paint, ORANGE, BEAK)
    top = tall + 0.14
    parts = [
        ball((0, 0, 0), (wide * 0.92, wide, tall), paint),
        ball((0, 0, top), (head, head * 1.05, head), paint),
        ball((wide * 0.24, 0, -0.06), (wide * 0.76, wide * 0.70, tall * 0.84), pale),
    ]
    parts += mirrored(ball((head * 0.55, head * 0.38, top), (head * 0.48, head * 0.46, head * 0.52), pale, detail=1))
    parts += mirrored(ball((head * 0.98, head * 0.42, top + 0.06), (0.06, 0.085, 0.10), DARK, detail=1))
    beak = (head * 0.85, 0, top - head * 0.18)
    parts.append(cylinder(beak, (head + 0.26, 0, beak[2] - 0.05), 0.13, orange, 0.0, sections=10))
    lean = math.radians(spread)
    at = (-0.02, wide * 0.82 + 0.30 * math.sin(lean), tall * 0.55 - 0.34 * math.cos(lean))
    parts += mirrored(ball(at, (0.19, 0.09, 0.42), _second(paint), detail=1, roll=spread))
    parts += mirrored(ball((0.20, wide * 0.48, -tall * 0.97), (0.32, 0.19, 0.09), orange, detail=1, yaw=14))
    tip = (-wide * 1.2, 0, -tall * 0.78)
    parts.append(cylinder((-wide * 0.55, 0, -tall * 0.55), tip, 0.24, _second(paint), 0.05, sections=10))
    return parts


def frog(paint: Colour, v: Draw) -> list[Part]:
    """A crouching frog: wide head with bulging eyes on top, wide mouth, folded hind legs, webbed feet."""
    wide, head, bulge, thigh = v(0.54, 0.66), v(0.30, 0.36), v(0.20, 0.25), v(0.26, 0.34)
    pale, limb = _apart(paint, shade(paint, 1.9), shade(paint, 0.8)), _second(paint, 0.78)
    top = 0.30
    parts = [
        ball((-0.16, 0, -0.02), (0.62, wide * 0.88, 0.40), paint, pitch=-24),
        ball((0.24, 0, top), (0.42, wide, head), paint),
        ball((0.30, 0, top - 0.10), (0.42, wide * 0.86, head * 0.92), pale, detail=1, pitch=6),
    ]
    lips = lathe([(0, -0.08), (1, -0.035), (1, 0.035), (0, 0.08)], _apart(paint, DARK, NOSE), sections=18)
    lips.mesh.apply_scale((0.44, wide * 0.91, 1))
    lips.mesh.vertices[:, 2] += 0.16 * (lips.mesh.vertices[:, 1] / wide) ** 2  # a smile
    lips.mesh.apply_translation((0.30, 0, top - 0.08))
    parts.append(lips)
    eye = (0.26, wide * 0.52, top + head * 0.95)
    parts += mirrored(ball(eye, bulge, paint, detail=1))
    parts += eyes((eye[0] + bulge * 0.45, eye[1] + 0.02, eye[2] + 0.02), bulge * 0.78)
    parts += mirrored(ball((-0.30, wide * 0.92, -0.18), (0.40, 0.20, thigh), limb, detail=1, pitch=-25))
    parts += mirrored(ball((0.02, wide * 1.02, -0.44), (0.36, 0.20, 0.08), limb, detail=1, yaw=22))
    parts += mirrored(cylinder((0.26, wide * 0.55, 0.10), (0.46, wide * 0.60, -0.50), 0.12, limb, 0.17, sections=7))
    return parts


def elephant(paint: Colour, v: Draw) -> list[Part]:
    """A stout elephant: big ears spread to the sides, a trunk bent forward at its end, pale tusks, a small tail."""
    long, ear, tusk, curl, leg = v(0.44, 0.56), v(0.32, 0.42), v(0.16, 0.26), v(0.02, 0.18), v(0.28, 0.38)
    inner, white = _second(paint, 0.75), _apart(paint, WHITE, (0.98, 0.88, 0.55))
    x, z = long + 0.04, 0.34
    parts = [
        ball((0, 0, 0), (long, 0.50, 0.48), paint),
        ball((x, 0, z), (0.40, 0.42, 0.44), paint),
    ]
    parts += mirrored(ball((x - 0.10, 0.34 + ear * 0.75, z + 0.08), (0.12, ear, ear * 1.15), paint, 1, yaw=-25))
    inside = (x - 0.03, 0.36 + ear * 0.75, z + 0.06)
    parts += mirrored(ball(inside, (0.10, ear * 0.68, ear * 0.80), inner, detail=1, yaw=-25))
    bend = [(x + 0.26, 0, z - 0.06), (x + 0.48, 0, z - 0.54), (x + 0.72, 0, z - 0.60 + curl)]
    for start, end, r0, r1 in zip(bend[:-1], bend[1:], (0.22, 0.17), (0.17, 0.14)):
        parts.append(cylinder(start, end, r0, paint, r1, sections=7))
    root = (x + 0.20, 0.24, z - 0.22)
    parts += mirrored(cylinder(root, (x + 0.40 + tusk, 0.32, z - 0.30), 0.10, white, 0.02, sections=5))
    parts += mirrored(ball((x + 0.30, 0.22, z + 0.14), 0.125, WHITE, detail=1))
    parts += mirrored(ball((x + 0.38, 0.23, z + 0.14), 0.08, DARK, detail=1))
    for at in (-0.55 * long, 0.62 * long):
        parts += mirrored(cylinder((at, 0.27, -0.40 - leg), (at, 0.27, -0.10), 0.21, inner, 0.19, sections=6))
    parts.append(cylinder((-long * 0.88, 0, 0.20), (-long - 0.24, 0, -0.14), 0.085, inner, 0.06, sections=5))
    return parts


def duck(paint: Colour, v: Draw) -> list[Part]:
    """A rubber duck: a boat of a body with a tail turned up, a round head, a flat orange bill, small wings."""
    long, wide, head, tail, bill = v(0.58, 0.70), v(0.44, 0.52), v(0.34, 0.41), v(0.22, 0.38), v(0.20, 0.27)
    orange, x, z = _apart(paint, ORANGE, BEAK), 0.24, 0.34 + head * 0.72
    parts = [
        ball((0, 0, 0), (long, wide, 0.42), paint),
        ball((x, 0, z), head, paint),
        cylinder((-long * 0.52, 0, 0.06), (-long - 0.12, 0, 0.20 + tail), 0.30, shade(paint, 0.9), 0.06, sections=14),
        ball((x + head + 0.06, 0, z - 0.06), (bill, 0.25, 0.075), orange, pitch=-10),
        ball((x + head + 0.02, 0, z - 0.15), (bill * 0.8, 0.19, 0.06), shade(orange, 0.8), detail=1, pitch=8),
    ]
    parts += eyes((x + head * 0.74, head * 0.52, z + head * 0.38), 0.115)
    wing = _second(paint, 0.78)
    parts += mirrored(ball((-0.12, wide * 0.92, 0.06), (0.34, 0.11, 0.22), wing, detail=1, pitch=18))
    return parts


def robot(paint: Colour, v: Draw) -> list[Part]:
    """A toy robot: box head with glowing square eyes, antenna, buttons on the chest, a pack with jets on the back."""
    head, wide, tall, mast, eye = v(0.66, 0.84), v(0.66, 0.82), v(0.54, 0.68), v(0.10, 0.22), v(0.09, 0.115)
    second, panel = _second(paint), _apart(paint, shade(paint, 2.2), shade(paint, 0.75))
    top = tall / 2 + 0.34
    parts = [
        box((0, 0, 0), (0.52, wide, tall), paint, top=0.92),
        box((0, 0, top), (0.54, head, 0.50), paint),
        box((0.265, 0, top), (0.04, head * 0.86, 0.40), _apart(paint, DARK, shade(paint, 1.9))),
        box((0.28, 0, top - 0.12), (0.05, 0.30, 0.07), METAL),
        cylinder((0, 0, top + 0.2), (0, 0, top + 0.26 + mast), 0.06, METAL, sections=6),
        ball((0, 0, top + 0.30 + mast), 0.13, _apart(paint, RED, LAMP), detail=1),
        box((0.255, 0, -0.02), (0.06, wide * 0.68, tall * 0.64), panel),
    ]
    parts += mirrored(box((0.29, head * 0.22, top + 0.06), (0.05, eye * 2, eye * 2), LAMP))
    for side, colour in ((0.24, RED), (0.0, BEAK), (-0.24, (0.15, 0.65, 0.30))):
        parts.append(box((0.29, side * wide, tall * 0.14), (0.06, 0.12, 0.12), colour))
    parts.append(box((0.29, 0, -tall * 0.16), (0.05, wide * 0.5, 0.09), METAL))
    parts += mirrored(cylinder((0, head * 0.48, top), (0, head * 0.5 + 0.10, top), 0.15, METAL, sections=8))
    parts += mirrored(cylinder((0, wide * 0.46, tall * 0.3), (0.1, wide * 0.5 + 0.18, -0.22), 0.13, second, sections=6))
    parts += mirrored(ball((0.11, wide * 0.5 + 0.19, -0.27), 0.17, paint, detail=1))
    parts += mirrored(box((0, wide * 0.25, -tall / 2 - 0.1), (0.24, 0.22, 0.26), second))
    parts += mirrored(box((0.07, wide * 0.27, -tall / 2 - 0.26), (0.46, 0.30, 0.16), paint, top=0.85))
    parts.append(box((-0.34, 0, 0.02), (0.22, wide * 0.66, tall * 0.8), second))
    for side in (-0.17, 0.17):
        x, y = -0.46, side * wide
        parts.append(cylinder((x, y, -tall * 0.42), (x, y, tall * 0.42), 0.11, METAL, 0.06, sections=7))
    return parts


def snowman(paint: Colour, v: Draw) -> list[Part]:
    """Three stacked balls of tinted snow, a carrot nose, coal eyes and buttons, a top hat, a scarf, stick arms."""
    low, mid, head, hat, reach = v(0.48, 0.60), v(0.38, 0.44), v(0.34, 0.39), v(0.18, 0.30), v(0.02, 0.24)
    coal, scarf = _apart(paint, DARK, WHITE), _apart(paint, shade(paint, 2.4), shade(paint, 0.7))
    z1 = low * 0.62 + mid * 0.58
    z2 = z1 + mid * 0.66 + head * 0.62
    parts = [
        ball((0, 0, 0), (low, low, low * 0.9), paint),
        ball((0, 0, z1), mid, paint),
        ball((0, 0, z2), head, paint),
    ]
    brim, crown, black = head * 1.05, head * 0.72, _apart(paint, (0.16, 0.16, 0.20), (0.42, 0.42, 0.46))
    profile = [(0, 0), (brim, 0), (brim, 0.07), (crown, 0.07), (crown, 0.07 + hat), (0, 0.07 + hat)]
    parts.append(lathe(profile, black, sections=12, centre=(0, 0, z2 + head * 0.66)))
    nose = (head * 0.85, 0, z2 - 0.04)
    parts.append(cylinder(nose, (head + 0.32, 0, z2 - 0.06), 0.10, _apart(paint, ORANGE, BEAK), 0.0, sections=8))
    parts += mirrored(ball((head * 0.86, head * 0.42, z2 + 0.08), 0.10, coal, detail=1))
    for angle in (8, -34):
        x, z = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        parts.append(ball((mid * x, 0, z1 + mid * z), 0.085, coal, detail=1))
    neck = z1 + mid * 0.78
    parts.append(ring((0, 0, neck), head * 0.74, 0.12, scarf, sections=10))
    parts.append(box((mid * 0.86, -mid * 0.48, neck - 0.24), (0.12, 0.20, 0.40), scarf, pitch=-16, yaw=-26))
    hand = (0.08, mid + 0.32, z1 + 0.05 + reach)
    parts += mirrored(cylinder((0, mid * 0.8, z1 + 0.02), hand, 0.075, WOOD, 0.06, sections=6))
    return parts
