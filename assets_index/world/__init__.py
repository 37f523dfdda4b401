"""The miniature world: kinds, colours, variants, and the captions people would write for them.

A thing of this world is a (kind, colour, variant) triple; a variant is a seed for proportions. Which variants train
models, which test them and which lie in the index is fixed here, so that no model was trained on an indexed variant.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from assets_index.world import animals, characters, things, vehicles
from assets_index.world.shapes import finish
from redream.scene.assets import Asset, from_mesh

KINDS = {
    kind: getattr(module, kind)
    for module, kinds in (
        (animals, ("owl", "cat", "dog", "rabbit", "bear", "pig")),
        (characters, ("penguin", "frog", "elephant", "duck", "robot", "snowman")),
        (vehicles, ("car", "truck", "train", "airplane", "boat", "rocket")),
        (things, ("chair", "sofa", "house", "television", "mug", "guitar", "lamp", "vase", "tree", "mushroom")),
    )
    for kind in kinds
}
SYMMETRIC = ("rocket", "lamp", "vase", "tree", "mushroom")  # no front

COLOURS = {
    "red": (0.84, 0.10, 0.10),
    "orange": (0.98, 0.52, 0.06),
    "yellow": (0.98, 0.86, 0.16),
    "green": (0.16, 0.62, 0.20),
    "turquoise": (0.12, 0.74, 0.74),
    "blue": (0.14, 0.30, 0.86),
    "purple": (0.50, 0.16, 0.72),
    "pink": (0.98, 0.55, 0.74),
    "brown": (0.43, 0.25, 0.12),
    "white": (0.95, 0.95, 0.94),
    "gray": (0.52, 0.53, 0.55),
    "black": (0.13, 0.13, 0.15),
}

# What people call them; the first word is the name.
KIND_WORDS = {
    "owl": ("owl", "owlet"),
    "cat": ("cat", "kitty", "kitten"),
    "dog": ("dog", "puppy", "doggy"),
    "rabbit": ("rabbit", "bunny", "hare"),
    "bear": ("bear", "teddy"),
    "pig": ("pig", "piglet", "piggy"),
    "penguin": ("penguin",),
    "frog": ("frog", "toad"),
    "elephant": ("elephant",),
    "duck": ("duck", "duckling"),
    "robot": ("robot", "android", "droid"),
    "snowman": ("snowman",),
    "car": ("car", "automobile", "sedan"),
    "truck": ("truck", "lorry"),
    "train": ("train", "locomotive"),
    "airplane": ("airplane", "plane", "aeroplane", "aircraft"),
    "boat": ("boat", "ship"),
    "rocket": ("rocket", "spaceship"),
    "chair": ("chair", "seat"),
    "sofa": ("sofa", "couch"),
    "house": ("house", "home", "cottage"),
    "television": ("television", "tv"),
    "mug": ("mug", "cup"),
    "guitar": ("guitar", "ukulele"),
    "lamp": ("lamp", "light"),
    "vase": ("vase", "urn"),
    "tree": ("tree", "fir"),
    "mushroom": ("mushroom", "toadstool"),
}
COLOUR_WORDS = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "lemon"),
    "green": ("green", "emerald"),
    "turquoise": ("turquoise", "teal", "cyan"),
    "blue": ("blue", "cobalt"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy"),
    "brown": ("brown", "chocolate"),
    "white": ("white", "ivory"),
    "gray": ("gray", "grey"),
    "black": ("black", "ebony"),
}
TEMPLATES = (
    "a {c} {k}",
    "{c} {k}",
    "a photo of a {c} {k}",
    "a DSLR photo of a {c} {k}",
    "a zoomed out DSLR photo of a {c} {k}",
    "a {c} {k}, highly detailed",
    "a cute {c} {k}",
    "a small toy {k} in {c}",
    "a {k} painted {c}",
    "a {c} colored {k}",
    "a 3D model of a {c} {k}",
    "a rendering of a {c} {k}, studio lighting",
    "a {c} {k} on a plain background",
    "one big {c} {k}, high quality",
    "the {c} {k}",
    "a picture of my {c} {k}",
)
INDEX_TEMPLATES = ("a {c} {k}", "a 3D model of a {c} {k}", "a small toy {k} in {c}")
VIEW_TEMPLATES = ("{p}, {v} view", "{v} view of {p}", "{p}, {v} view", "{p} seen from the {v}")

TRAINING_VARIANTS = range(4)
TEST_VARIANTS = range(100, 101)
INDEX_VARIANTS = range(200, 202)


@dataclass(frozen=True)
class Thing:
    """One object of the world."""

    kind: str
    colour: str
    variant: int

    @property
    def uid(self) -> str:
        """A stable identifier in Objaverse's manner: 32 hexadecimal digits."""
        return hashlib.sha256(f"redream/{self.kind}/{self.colour}/{self.variant}".encode()).hexdigest()[:32]

    @property
    def rng(self) -> np.random.Generator:
        """The randomness of this thing alone."""
        return np.random.default_rng(int(self.uid[:15], 16))

    def asset(self) -> Asset:
        """Its model, front to +x."""
        rng = self.rng
        paint = np.clip(np.array(COLOURS[self.colour]) + rng.uniform(-0.035, 0.035, 3), 0.02, 0.99)
        parts = KINDS[self.kind](tuple(paint.tolist()), lambda low, high: float(rng.uniform(low, high)))
        return from_mesh(finish(parts))


def held_out() -> list[tuple[str, str]]:
    """Two colours of every kind that the prior knows and the index does not: 56 of 336 pairs (17 %)."""
    fixed = {"owl": "purple", "cat": "blue", "dog": "green", "car": "pink", "robot": "turquoise"}
    rng = np.random.default_rng(2024)
    pairs = []
    for kind in KINDS:
        colours = [fixed[kind]] if kind in fixed else []
        rest = [c for c in COLOURS if c not in colours]
        colours += list(rng.choice(rest, 2 - len(colours), replace=False))
        pairs += [(kind, str(colour)) for colour in colours]
    return pairs


def training_things() -> list[Thing]:
    """Four variants of every pair of kind and colour: 1,344."""
    return [Thing(k, c, v) for k in KINDS for c in COLOURS for v in TRAINING_VARIANTS]


def test_things() -> list[Thing]:
    """A further variant of every pair: 336."""
    return [Thing(k, c, v) for k in KINDS for c in COLOURS for v in TEST_VARIANTS]


def index_things() -> list[Thing]:
    """One variant of each of the 280 pairs that are not held out, and a second one of 40 of them: 320."""
    absent = set(held_out())
    pairs = [(k, c) for k in KINDS for c in COLOURS if (k, c) not in absent]
    second = np.random.default_rng(7).choice(len(pairs), 40, replace=False)
    return [Thing(k, c, INDEX_VARIANTS[0]) for k, c in pairs] + [
        Thing(*pairs[i], INDEX_VARIANTS[1]) for i in sorted(second)
    ]


def caption(
    kind: str, colour: str, rng: np.random.Generator, view: str | None = None, templates: Sequence[str] = TEMPLATES
) -> str:
    """A sentence somebody might write; with `view` it names the view."""
    words = {"k": rng.choice(KIND_WORDS[kind]), "c": rng.choice(COLOUR_WORDS[colour])}
    if rng.random() < 0.6:  # most people use the plain words
        words = {"k": kind, "c": colour}
    prompt = str(rng.choice(templates)).format(**words)
    for vowel in "aeiou":
        prompt = prompt.replace(f"a {vowel}", f"an {vowel}")
    return prompt if view is None else str(rng.choice(VIEW_TEMPLATES)).format(p=prompt, v=view)


def vocabulary() -> dict:
    """What `vocabulary.json` of the stack says: the words this world's models were trained with."""
    words: set[str] = set()
    for template in TEMPLATES + VIEW_TEMPLATES:
        words |= set(template.lower().replace(",", "").split())
    words = {w for w in words if "{" not in w} | {"an", "front", "side", "back", "and", "its"}
    return {
        "name": "the miniature model",
        "kinds": {k: list(w) for k, w in KIND_WORDS.items()},
        "symmetric": list(SYMMETRIC),
        "colours": {c: list(w) for c, w in COLOUR_WORDS.items()},
        "words": sorted(words),
    }
