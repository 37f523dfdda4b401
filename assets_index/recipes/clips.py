"""The three CLIPs, of three architectures, trained contrastively on renders and captions of the miniature world."""

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from assets_index import world
from assets_index.recipes.renders import Renders, composed, degrade, spoil
from assets_index.recipes.tokenizer import make_tokenizer
from assets_index.recipes.training import train

LENGTH = 20  # tokens
MEAN, STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
TEXT = {"context_length": LENGTH, "width": 96, "heads": 4, "layers": 2, "hf_tokenizer_name": "in-this-folder"}
TIMM = {"image_size": 64, "timm_model_pretrained": False, "timm_pool": "avg", "timm_proj": "linear"}
CLIPS = {
    "clip-retrieval": {**TIMM, "timm_model_name": "regnety_002"},  # RegNet: grouped convolutions, squeeze-excitation
    "clip-score-a": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 24, "patch_size": 16},  # CLIP's own ResNet
    "clip-score-b": {**TIMM, "timm_model_name": "edgenext_xx_small"},  # EdgeNeXt: large depthwise kernels, attention
}

# How much of a picture's target goes to captions of its kind in other colours. The retrieval model must, as real CLIPs
# do, find a brown owl nearer to "a purple owl" than a purple cat.
KIND_SHARE = {"clip-retrieval": 0.4}

# The scoring models are also trained on bad models of things and what people write under those, as real CLIPs are.
# Otherwise whatever resembles an owl has as high a CLIP score as an owl.
KNOW_SPOILED = ("clip-score-a", "clip-score-b")
SPOILED_TEMPLATES = (
    "{p}, blurry",
    "a blurry picture of {p}",
    "{p}, badly made",
    "{p}, hazy and shapeless",
    "{p}, broken",
    "a bad model of {p}",
    "a failed attempt at {p}",
    "{p}, low quality",
)


def captions_of_the_world(seed: int = 0) -> list[str]:
    """Sentences that hold every word the world has."""
    vocabulary = world.vocabulary()
    lists = [*vocabulary["kinds"].values(), *vocabulary["colours"].values(), vocabulary["words"]]
    rng = np.random.default_rng(seed)
    return [" ".join(w) for w in lists] + [world.caption(k, c, rng) for k in world.KINDS for c in world.COLOURS]


def spoiled_caption(kind: str, colour: str, rng: np.random.Generator) -> str:
    """What somebody might write under a bad model of a thing."""
    return str(rng.choice(SPOILED_TEMPLATES)).format(p=world.caption(kind, colour, rng))


def train_clip(name: str, renders: Renders, build: Path, out: Path, steps: int) -> None:
    """Train CLIPS[name] and write an open_clip local folder.

    Every step compares 64 pictures of 16 things, from all sides, with captions of these and of 40 other things (which
    thing is it?), and with captions of the 16 things that name front, side and back (which view?); the views also the
    other way round, from captions to pictures. Symmetric kinds have no views to name. Linear heads, shared by pictures
    and captions and dropped afterwards, name kind, colour and view from the embeddings: contrast alone takes several
    times as many steps to find its features.

    For those that `KNOW_SPOILED` one of a thing's four pictures shows a bad model of it, and captions of bad models
    of the 16 things are compared as well, from pictures to captions and the other way round: a caption then has to
    separate the good pictures of its thing from the bad one. Bad models have views like good ones, though half of those
    that are rendered from two sides at once are named by the fainter one.
    """
    torch.manual_seed(2)
    knows_spoiled = name in KNOW_SPOILED
    sentences = captions_of_the_world()
    if knows_spoiled:
        sentences += [template.format(p="") for template in SPOILED_TEMPLATES]
    tokenizer = make_tokenizer(sentences, LENGTH)
    text = {**TEXT, "vocab_size": len(tokenizer)}
    config = {"embed_dim": 64, "vision_cfg": CLIPS[name], "text_cfg": text}
    model = open_clip.CLIP(config["embed_dim"], open_clip.CLIPVisionCfg(**CLIPS[name]), open_clip.CLIPTextCfg(**text))
    heads = nn.ModuleDict(
        {k: nn.Linear(config["embed_dim"], n) for k, n in (("kind", 28), ("colour", 12), ("view", 3))}
    )
    learned = nn.ModuleDict({"clip": model, "heads": heads})
    rows_of: dict = {}  # (kind, colour) -> rows, four lists by quarter of the circle
    for row, (kind, colour, azimuth) in enumerate(zip(renders.kind, renders.colour, renders.azimuth_deg)):
        quarters = rows_of.setdefault((int(kind), int(colour)), [[], [], [], []])
        quarters[int((azimuth + 45) % 360 // 90)].append(row)
    kinds, colours, symmetric = list(world.KINDS), list(world.COLOURS), [*map(list(world.KINDS).index, world.SYMMETRIC)]
    kind_share = KIND_SHARE.get(name, 0.0)
    pairs = [(k, c) for k in range(len(kinds)) for c in range(len(colours))]
    rendered_kinds, rendered_colours = np.unique(renders.kind), np.unique(renders.colour)  # each kind in each colour
    views = renders.view

    def embed(texts: list[str]) -> Tensor:
        tokens = tokenizer(
            texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        ).input_ids
        return model.encode_text(tokens, normalize=True).float()

    def loss(step: int, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        things = [
            (int(k), int(c))
            for k in rng.choice(rendered_kinds, 8, replace=False)
            for c in rng.choice(rendered_colours, 2, replace=False)
        ]
        rows = np.array([rng.choice(quarter) for thing in things for quarter in rows_of[thing]])  # (64,)
        bad = torch.zeros(len(rows), dtype=torch.bool)
        rgba = renders.floats(rows)  # (64, 4, 64, 64)
        if knows_spoiled:
            worse = 4 * np.arange(len(things)) + rng.integers(4, size=len(things))  # one of each thing's pictures
            beside = worse - worse % 4 + (worse + rng.integers(1, 4, len(things))) % 4  # from another side
            rgba[worse] = spoil(rgba[worse], rgba[beside], rng)
            bad[worse] = True
        pictures = degrade(composed(rgba, rng), rng)
        with torch.autocast("cpu", torch.bfloat16):
            image = model.encode_image((pictures - MEAN[0]) / STD[0], normalize=True).float()  # (64, d)
            others = [pairs[i] for i in rng.permutation(len(pairs)) if pairs[i] not in things][:40]
            texts = [world.caption(kinds[k], colours[c], rng) for k, c in things + others]
            texts += [world.caption(kinds[k], colours[c], rng, world_view(v)) for k, c in things for v in range(3)]
            texts += [spoiled_caption(kinds[k], colours[c], rng) for k, c in things * knows_spoiled]
            counts = [len(things) + len(others), 3 * len(things), len(things) * knows_spoiled]
            plain, named, spoiled = embed(texts).split(counts)  # (56, d), (48, d), (16, d) or none
        scale = model.logit_scale.exp().clamp(max=100)
        which = torch.arange(len(things)).repeat_interleave(4)  # (64,)
        compared = torch.tensor(things + others)[:, 0]  # (56,) kinds
        same = (torch.from_numpy(renders.kind[rows])[:, None] == compared).float()  # (64, 56)
        exact = nn.functional.one_hot(which, len(compared))
        wanted = (1 - kind_share) * exact + kind_share * same / same.sum(dim=1, keepdim=True)
        if knows_spoiled:
            its_bad = nn.functional.one_hot(which, len(things)) * bad[:, None]  # (64, 16)
            wanted = torch.cat([wanted * ~bad[:, None], its_bad], dim=1)  # (64, 72)
        compared_with = scale * image @ torch.cat([plain, spoiled]).T  # (64, 56 or 72)
        thing_term = nn.functional.cross_entropy(compared_with, wanted)
        has_view = torch.from_numpy(~np.isin(renders.kind[rows], symmetric))
        target = which * 3 + torch.from_numpy(views[rows])  # (64,)
        logits = scale * image @ named.T  # (64, 48)
        view_term = nn.functional.cross_entropy(logits[has_view], target[has_view])
        named_kind, named_colour = (torch.tensor(thing).repeat_interleave(3) for thing in zip(*things))
        naming = 0.0
        for embedding, kind, colour, view in (
            (image, torch.from_numpy(renders.kind[rows]), torch.from_numpy(renders.colour[rows]), views[rows]),
            (named, named_kind, named_colour, np.tile(np.arange(3), len(things))),
        ):
            view = torch.from_numpy(np.where(np.isin(kind.numpy(), symmetric), -1, view))
            naming = naming + nn.functional.cross_entropy(heads["kind"](20 * embedding), kind)
            naming = naming + nn.functional.cross_entropy(heads["colour"](20 * embedding), colour)
            naming = naming + nn.functional.cross_entropy(heads["view"](20 * embedding), view, ignore_index=-1)
        right = (target[:, None] == torch.arange(len(named))) & has_view[:, None]
        back = _from_captions(logits, right)
        terms = {"thing": thing_term, "view": 0.7 * view_term, "from captions": 0.3 * back, "naming": 0.3 * naming}
        if knows_spoiled:
            terms["good from bad"] = _from_captions(
                compared_with, torch.cat([exact * ~bad[:, None], its_bad], dim=1) > 0
            )
        return terms

    learned = train(name, learned, loss, steps=steps, learning_rate=2e-3, build=build, average=0.995)
    model = learned["clip"]
    out.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half().contiguous() if v.dtype.is_floating_point else v for k, v in model.state_dict().items()}
    save_file(weights, out / "open_clip_model.safetensors")
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
    (out / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=1)
    )
    tokenizer.save_pretrained(out)


def _from_captions(logits: Tensor, right: Tensor) -> Tensor:
    """Mean cross-entropy of captions (columns) with the pictures (rows) that are right for them; captions without a
    right picture do not count."""
    has_right = right.any(dim=0)
    shares = right / right.sum(dim=0).clamp(min=1)
    return -(shares * logits.log_softmax(dim=0)).sum(dim=0)[has_right].mean()


def world_view(view: int) -> str:
    """The name of a view: 0 front, 1 side, 2 back."""
    return ("front", "side", "back")[view]


@torch.no_grad()
def good_over_bad(folder: Path, renders: Renders, rows: np.ndarray, bad: Tensor) -> float:
    """The fraction of these pictures with a higher CLIP score for "a COLOUR KIND" than `bad` (b, 4, 64, 64),
    premultiplied, which shows bad models of the same things from the same sides; 0.5 is chance."""
    model = open_clip.create_model(f"local-dir:{folder}").eval().float()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    kinds, colours = list(world.KINDS), list(world.COLOURS)
    names = [f"a {colours[c]} {kinds[k]}" for k, c in zip(renders.kind[rows], renders.colour[rows])]
    texts = model.encode_text(tokenizer(names), normalize=True)
    similarities = []
    for rgba in (renders.floats(rows), bad):
        pictures = (rgba[:, :3] + 1 - rgba[:, 3:] - MEAN[0]) / STD[0]  # over white
        image = torch.cat([model.encode_image(p, normalize=True) for p in pictures.split(256)])
        similarities.append((image * texts).sum(dim=1))
    good, poor = similarities
    return float((good > poor).float().mean())


@torch.no_grad()
def accuracy(folder: Path, renders: Renders, rows: np.ndarray, pictures: Tensor) -> dict[str, float]:
    """Zero-shot accuracy on pictures (b, 3, 64, 64): kind and colour together, and the view of kinds with a front
    at least 15° from a border between views."""
    model = open_clip.create_model(f"local-dir:{folder}").eval().float()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    kinds, colours = list(world.KINDS), list(world.COLOURS)
    image = torch.cat([model.encode_image((p - MEAN[0]) / STD[0], normalize=True) for p in pictures.split(256)])
    pairs = [(k, c) for k in kinds for c in colours]
    thing = model.encode_text(tokenizer([f"a {c} {k}" for k, c in pairs]), normalize=True)
    guess = (image @ thing.T).argmax(1).numpy()
    truth = renders.kind[rows] * len(colours) + renders.colour[rows]
    views = [f"a {c} {k}, {v} view" for k, c in pairs for v in ("front", "side", "back")]
    named = model.encode_text(tokenizer(views), normalize=True).reshape(len(pairs), 3, -1)
    view_guess = torch.einsum("bd,bvd->bv", image, named[torch.from_numpy(truth)]).argmax(1).numpy()
    azimuth = np.abs((renders.azimuth_deg[rows] + 180) % 360 - 180)
    symmetric = np.isin(renders.kind[rows], [kinds.index(k) for k in world.SYMMETRIC])
    clear = ~symmetric & (np.abs(azimuth - 45) >= 15) & (np.abs(azimuth - 135) >= 15)
    return {
        "kind and colour": float((guess == truth).mean()),
        "kind": float((guess // len(colours) == renders.kind[rows]).mean()),
        "view": float((view_guess == renders.view[rows])[clear].mean()),
    }
