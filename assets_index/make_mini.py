"""Make the miniature stack from seeds: `python -m assets_index.make_mini STAGE|all`, from the repository's folder.

Stages, in order: renders, clips, perceptual, autoencoder, prior, index, truth, check, sheet. Each one resumes where it
was interrupted (its state lies in build/mini). Hardware and seconds of each are written to assets_index/mini/made.json.

`--trial FOLDER` goes through the same stages in small, in a minute or two: a few things, two training steps per model.
It writes to FOLDER a stack whose models are untrained and whose GLBs are those of the miniature.
"""

import argparse
import csv
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate
from tqdm import tqdm

from assets_index import world
from assets_index.recipes import autoencoder, clips, perceptual, prior
from assets_index.recipes.renders import SIZE, Renders, degrade, render_things, spoil
from redream.evaluation.trials import read_prompts
from redream.files import replacing, sha256
from redream.retrieval.build import AssetRow, build, ring_pictures
from redream.retrieval.clip import Clip
from redream.scene import assets, mesh
from redream.scene.cameras import Camera
from redream.stack.vocabulary import Vocabulary, parse_prompt

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
STEPS = {  # of training
    "clip-retrieval": 2600,
    "clip-score-a": 8000,
    "clip-score-b": 4200,
    "perceptual": 800,
    "decoder": 2200,
    "prior": 7000,
}

STACK = {
    "format": 1,
    "name": "mini",
    "preset": "mini",
    "prior": {"source": "prior"},
    "index": {"source": "index"},
    "clips": {
        "retrieval": {"source": "clip-retrieval"},
        "a": {"source": "clip-score-a"},
        "b": {"source": "clip-score-b"},
    },
    "perceptual": {"a": {"source": "perceptual-a"}, "b": {"source": "perceptual-b"}},
    "vocabulary": "vocabulary.json",
    "truth": {"source": "truth"},
    "true_scores": {  # the row "truth" of `python -m redream evaluate --split test`; to be renewed with the miniature
        "clip_a": 0.7784,
        "clip_b": 0.8382,
        "a_lpips_a": 0.0218,
        "a_lpips_b": 0.0082,
        "view_accuracy_a": 0.9991,
        "view_accuracy_b": 0.9998,
        "janus_rate_a": 0.0003,
        "janus_rate_b": 0.0,
        "coverage": 0.2829,
    },
}
TRUTH_VARIANTS = range(300, 303)  # they train no model, test none and lie in no index


@dataclass(frozen=True)
class Recipe:
    """What the stages make, how much of it, and where. As it is: the shipped miniature."""

    out: Path = HERE / "mini"  # the stack's folder
    build: Path = HERE.parent / "build" / "mini"  # renders, and the state of what is being trained
    steps: Mapping[str, int] = field(default_factory=lambda: STEPS)
    training_things: Sequence[world.Thing] = field(default_factory=world.training_things)
    training_views: int = 20  # pictures of each
    test_things: Sequence[world.Thing] = field(default_factory=world.test_things)
    test_views: int = 12
    index_things: Sequence[world.Thing] = field(default_factory=world.index_things)
    truths: int | None = None  # pairs of kind and colour to make true objects of; None: all that the prompts name
    check_pictures: int = 2000

    @staticmethod
    def trial(folder: Path) -> "Recipe":
        """All stages in small, into `folder`: every kind in two colours, each model trained for two steps."""
        colours = list(world.COLOURS)[:2]
        return Recipe(
            out=folder,
            build=folder / "build",
            steps=dict.fromkeys(STEPS, 2),
            training_things=[
                t for t in world.training_things() if t.variant == world.TRAINING_VARIANTS[0] and t.colour in colours
            ],
            training_views=8,  # two in each quarter of the circle, as the CLIPs' batches need at least one
            test_things=world.test_things()[::12],
            test_views=4,
            index_things=world.index_things()[::80],
            truths=2,
            check_pictures=32,
        )

    def training_renders(self) -> Renders:
        """Pictures to train on, rendered once and kept in `build`."""
        return render_things(self.training_things, self.training_views, self.build / "renders-train.npz")

    def test_renders(self) -> Renders:
        """Pictures of variants that train nothing, to test on."""
        return render_things(self.test_things, self.test_views, self.build / "renders-test.npz")


def make_renders(recipe: Recipe) -> None:
    """26,880 pictures to train on, 4,032 of other variants to test on."""
    counts = len(recipe.training_renders().kind), len(recipe.test_renders().kind)
    print("{} pictures to train on, {} to test on".format(*counts))


def make_clips(recipe: Recipe) -> None:
    """The CLIP for retrieval and the two for scores."""
    for name in clips.CLIPS:
        clips.train_clip(name, recipe.training_renders(), recipe.build, recipe.out / name, recipe.steps[name])


def make_perceptual(recipe: Recipe) -> None:
    """The two nets of A-LPIPS."""
    steps = recipe.steps["perceptual"]
    for name in perceptual.NETS:
        perceptual.train_perceptual(name, recipe.training_renders(), recipe.build, recipe.out / name, steps)


def make_autoencoder(recipe: Recipe) -> autoencoder.AutoencoderTiny:
    """The prior's autoencoder, trained here or, if its state is in `build`, by an earlier call."""
    model = autoencoder.build_autoencoder(recipe.training_renders())
    return autoencoder.train_decoder(model, recipe.training_renders(), recipe.build, recipe.steps["decoder"])


def make_prior(recipe: Recipe) -> None:
    """The text-to-image model, with its autoencoder, as a diffusers pipeline."""
    model = make_autoencoder(recipe)
    parts, tokenizer = prior.train_prior(model, recipe.training_renders(), recipe.build, recipe.steps["prior"])
    prior.save_prior(parts, tokenizer, model, recipe.out / "prior")


def make_index(recipe: Recipe) -> None:
    """GLBs at random yaws (listed in truth.csv), the vocabulary, the held-out pairs, stack.json and the index."""
    folder = recipe.out / "assets"
    folder.mkdir(parents=True, exist_ok=True)
    rows, truth = [], []
    for thing in tqdm(recipe.index_things, desc="assets"):
        rng = thing.rng.spawn(1)[0]
        yaw = float(rng.uniform(0, 360))
        file = f"{thing.uid}.glb"
        mesh.save(thing.asset().rotated(yaw), folder / file)
        captions = [world.caption(thing.kind, thing.colour, rng, templates=(t,)) for t in world.INDEX_TEMPLATES]
        extra = {"kind": thing.kind, "colour": thing.colour}
        rows.append(AssetRow(thing.uid, captions, "Redream", "CC0-1.0", file, file, extra=extra))
        truth.append({"uid": thing.uid, "yaw_deg": round(yaw, 3), **extra, "variant": thing.variant})
    _write_csv(recipe.out / "truth.csv", truth)
    _write_csv(recipe.out / "heldout.csv", [{"kind": k, "colour": c} for k, c in world.held_out()])
    (recipe.out / "vocabulary.json").write_text(json.dumps(world.vocabulary(), indent=1))
    (recipe.out / "stack.json").write_text(json.dumps(STACK, indent=1))
    clip = Clip.load(recipe.out / "clip-retrieval")
    with tqdm(total=len(rows), desc="index") as bar:
        build(
            rows,
            lambda row: ring_pictures(assets.load(folder / row.file), clip.size),
            clip,
            recipe.out / "index",
            root="../assets",
            progress=lambda row: bar.update(),
        )


def make_truth(recipe: Recipe) -> None:
    """What the prompts in examples name: three variants of each (kind, colour), front to +x."""
    folder, vocabulary = recipe.out / "truth", Vocabulary.load(recipe.out / "vocabulary.json")
    folder.mkdir(parents=True, exist_ok=True)
    prompts = [
        parse_prompt(p.text, vocabulary) for file in EXAMPLES.glob("prompts_mini*.txt") for p in read_prompts(file)
    ]
    rows = []
    for kind, colour in sorted({(p.kind, p.colour) for p in prompts})[: recipe.truths]:
        for variant in TRUTH_VARIANTS:
            thing = world.Thing(kind, colour, variant)
            file = folder / f"{thing.uid}.glb"
            mesh.save(thing.asset(), file)
            rows.append({"kind": kind, "colour": colour, "variant": variant, "file": file.name, "sha256": sha256(file)})
    for old in set(folder.glob("*.glb")) - {folder / row["file"] for row in rows}:
        old.unlink()
    _write_csv(folder / "truth.csv", rows)
    (recipe.out / "stack.json").write_text(json.dumps(STACK, indent=1))


def check(recipe: Recipe) -> None:
    """Print what the scoring models and the autoencoder reach on variants that trained nothing."""
    renders, views = recipe.test_renders(), recipe.test_views
    rng, own_rng = np.random.default_rng(0), np.random.default_rng(1)
    rows = rng.choice(len(renders.kind), recipe.check_pictures, replace=False)
    pictures = renders.pictures(rows, rng)
    others = (
        rows - rows % views + (rows + own_rng.integers(1, views, len(rows))) % views
    )  # the same things' other views
    good = renders.floats(rows)
    bad_ones = {
        "faults it was trained with": spoil(good, renders.floats(others), own_rng),
        "half of the pixels gone": good * torch.from_numpy(own_rng.random((len(rows), 1, SIZE, SIZE)) < 0.5),
        "12 pixels wide": interpolate(
            interpolate(good, size=(12, 12), mode="area"), size=(SIZE, SIZE), mode="bilinear"
        ),
    }
    for name in clips.CLIPS:
        folder = recipe.out / name
        for label, shown in (("clean", pictures), ("degraded", degrade(pictures, rng))):
            print(name, label, {k: round(v, 4) for k, v in clips.accuracy(folder, renders, rows, shown).items()})
        shares = {label: round(clips.good_over_bad(folder, renders, rows, bad), 4) for label, bad in bad_ones.items()}
        print(name, "prefers a good picture to one with", shares)
    model = autoencoder.AutoencoderTiny.from_pretrained(recipe.out / "prior" / "vae")
    print("autoencoder PSNR, dB:", round(autoencoder.psnr(model, renders, min(512, recipe.check_pictures)), 2))


def sheet(recipe: Recipe) -> None:
    """A contact sheet of every kind: two colours and variants, five azimuths each, at 64 px."""
    import imageio.v3 as iio

    colours, rows = list(world.COLOURS), []
    for i, kind in enumerate(world.KINDS):
        row = []
        for variant in range(2):
            asset = world.Thing(kind, colours[(5 * i + 7 * variant) % len(colours)], variant).asset()
            for azimuth in (0.0, 45.0, 90.0, 180.0, 225.0):
                image, _ = asset.render(Camera(azimuth, 15.0, 1.6, 40.0), SIZE, torch.full((3,), 0.93))
                row.append((image[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
        rows.append(np.concatenate(row, axis=1))
    half = len(rows) // 2
    columns = [np.concatenate(rows[:half]), np.concatenate(rows[half:])]
    iio.imwrite(recipe.out / "kinds.jpg", np.concatenate(columns, axis=1), quality=85)


STAGES: dict[str, Callable[[Recipe], object]] = {
    "renders": make_renders,
    "clips": make_clips,
    "perceptual": make_perceptual,
    "autoencoder": make_autoencoder,
    "prior": make_prior,
    "index": make_index,
    "truth": make_truth,
    "check": check,
    "sheet": sheet,
}


def _write_csv(file: Path, rows: list[dict]) -> None:
    with replacing(file) as temporary, temporary.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _record(stage: str, seconds: float, file: Path) -> None:
    """Note how long a stage took; one that only found its work done leaves the older figure."""
    made = json.loads(file.read_text()) if file.exists() else {}
    made["hardware"] = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    made["seconds"] = made.get("seconds", {}) | {stage: max(round(seconds), made.get("seconds", {}).get(stage, 0))}
    file.write_text(json.dumps(made, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; `arguments` as the shell's, which are the default."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--trial", type=Path, metavar="FOLDER", help="go through it in small, and write to FOLDER")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = Recipe.trial(options.trial) if options.trial else Recipe()
    recipe.build.mkdir(parents=True, exist_ok=True)
    recipe.out.mkdir(parents=True, exist_ok=True)
    for stage in STAGES if options.stage == "all" else [options.stage]:
        start = time.monotonic()
        STAGES[stage](recipe)
        _record(stage, time.monotonic() - start, recipe.out / "made.json")


if __name__ == "__main__":
    main()
