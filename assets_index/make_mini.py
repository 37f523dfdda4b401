"""Make the miniature stack from seeds: `python -m assets_index.make_mini STAGE|all`, from the repository's folder.

Stages, in order: renders, clips, perceptual, autoencoder, prior, index, truth, check, sheet. Each one resumes where it
was interrupted (its state lies in build/mini). Hardware and seconds of each are written to assets_index/mini/made.json.
"""

import argparse
import csv
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate
from tqdm import tqdm

from assets_index import world
from assets_index.recipes import autoencoder, clips, perceptual, prior
from assets_index.recipes.renders import SIZE, Renders, degrade, render_things, spoil
from redream.evaluation.trials import read_prompts
from redream.files import replacing
from redream.hub import sha256
from redream.retrieval.build import AssetRow, build, ring_pictures
from redream.retrieval.clip import Clip
from redream.scene import assets, mesh
from redream.scene.cameras import Camera
from redream.stack.vocabulary import Vocabulary, parse_prompt

HERE = Path(__file__).parent
MINI = HERE / "mini"
BUILD = HERE.parent / "build" / "mini"
STEPS = {
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
    "true_scores": {  # the row "truth" of `redream evaluate --part judge`; to be renewed with the miniature
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
TEST_VIEWS = 12  # pictures of each thing to test on
TRUTH_VARIANTS = range(300, 303)  # they train no model, test none and lie in no index


def training_renders() -> Renders:
    return render_things(world.training_things(), 20, BUILD / "renders-train.npz")


def test_renders() -> Renders:
    return render_things(world.test_things(), TEST_VIEWS, BUILD / "renders-test.npz")


def make_renders() -> None:
    """26,880 pictures to train on, 4,032 of other variants to test on."""
    print(len(training_renders().kind), "pictures to train on,", len(test_renders().kind), "to test on")


def make_clips() -> None:
    for name in clips.CLIPS:
        clips.train_clip(name, training_renders(), BUILD, MINI / name, STEPS[name])


def make_perceptual() -> None:
    for name in perceptual.NETS:
        perceptual.train_perceptual(name, training_renders(), BUILD, MINI / name, STEPS["perceptual"])


def make_autoencoder() -> autoencoder.AutoencoderTiny:
    model = autoencoder.build_autoencoder(training_renders())
    return autoencoder.train_decoder(model, training_renders(), BUILD, STEPS["decoder"])


def make_prior() -> None:
    model = make_autoencoder()  # trained by now, or trained here
    parts, tokenizer = prior.train_prior(model, training_renders(), BUILD, STEPS["prior"])
    prior.save_prior(parts, tokenizer, model, MINI / "prior")


def make_index() -> None:
    """GLBs in random orientations (the truth in truth.csv), vocabulary, held-out pairs, stack.json and the index."""
    folder = MINI / "assets"
    folder.mkdir(parents=True, exist_ok=True)
    rows, truth = [], []
    for thing in tqdm(world.index_things(), desc="assets"):
        rng = thing.rng.spawn(1)[0]
        yaw = float(rng.uniform(0, 360))
        file = f"{thing.uid}.glb"
        mesh.save(thing.asset().turned(yaw), folder / file)
        captions = [world.caption(thing.kind, thing.colour, rng, templates=(t,)) for t in world.INDEX_TEMPLATES]
        extra = {"kind": thing.kind, "colour": thing.colour}
        rows.append(AssetRow(thing.uid, captions, "Redream", "CC0-1.0", file, file, extra=extra))
        truth.append({"uid": thing.uid, "yaw_deg": round(yaw, 3), **extra, "variant": thing.variant})
    _write_csv(MINI / "truth.csv", truth)
    _write_csv(MINI / "heldout.csv", [{"kind": k, "colour": c} for k, c in world.held_out()])
    (MINI / "vocabulary.json").write_text(json.dumps(world.vocabulary(), indent=1))
    (MINI / "stack.json").write_text(json.dumps(STACK, indent=1))
    clip = Clip.load(MINI / "clip-retrieval")
    with tqdm(total=len(rows), desc="index") as bar:
        build(
            rows,
            lambda row: ring_pictures(assets.load(folder / row.file), clip.size),
            clip,
            MINI / "index",
            root="../assets",
            progress=lambda row: bar.update(),
        )


def make_truth() -> None:
    """What the prompts in examples ask for: three variants of each (kind, colour), front to +x."""
    folder, words = MINI / "truth", Vocabulary.load(MINI / "vocabulary.json")
    folder.mkdir(parents=True, exist_ok=True)
    lists = sorted((HERE.parent / "examples").glob("prompts_mini*.txt"))
    asked = [parse_prompt(prompt.text, words) for file in lists for prompt in read_prompts(file)]
    rows = []
    for kind, colour in sorted({(c.kind, c.colour) for c in asked}):
        for variant in TRUTH_VARIANTS:
            thing = world.Thing(kind, colour, variant)
            file = folder / f"{thing.uid}.glb"
            mesh.save(thing.asset(), file)
            rows.append({"kind": kind, "colour": colour, "variant": variant, "file": file.name, "sha256": sha256(file)})
    for old in set(folder.glob("*.glb")) - {folder / row["file"] for row in rows}:
        old.unlink()
    _write_csv(folder / "truth.csv", rows)
    (MINI / "stack.json").write_text(json.dumps(STACK, indent=1))


def check() -> None:
    """What the scorers and the autoencoder reach on variants that trained nothing."""
    renders = test_renders()
    rng, own_rng = np.random.default_rng(0), np.random.default_rng(1)
    rows = rng.choice(len(renders.kind), 2000, replace=False)
    pictures = renders.pictures(rows, rng)
    others = rows - rows % TEST_VIEWS + (rows + own_rng.integers(1, TEST_VIEWS, len(rows))) % TEST_VIEWS
    good = renders.floats(rows)
    bad_ones = {
        "faults it was trained with": spoil(good, renders.floats(others), own_rng),
        "half of the pixels gone": good * torch.from_numpy(own_rng.random((len(rows), 1, SIZE, SIZE)) < 0.5),
        "12 pixels wide": interpolate(
            interpolate(good, size=(12, 12), mode="area"), size=(SIZE, SIZE), mode="bilinear"
        ),
    }
    for name in clips.CLIPS:
        for label, seen in (("clean", pictures), ("degraded", degrade(pictures, rng))):
            print(name, label, {k: round(v, 4) for k, v in clips.judge(MINI / name, renders, rows, seen).items()})
        told = {
            label: round(clips.good_over_bad(MINI / name, renders, rows, bad), 4) for label, bad in bad_ones.items()
        }
        print(name, "prefers a good picture to one with", told)
    model = autoencoder.AutoencoderTiny.from_pretrained(MINI / "prior" / "vae")
    print("autoencoder PSNR, dB:", round(autoencoder.psnr(model, renders), 2))


def sheet() -> None:
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
    iio.imwrite(MINI / "kinds.png", np.concatenate(columns, axis=1))


STAGES = {
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


def _record(stage: str, seconds: float) -> None:
    """Note how long a stage took; one that only found its work done leaves the older figure."""
    file = MINI / "made.json"
    made = json.loads(file.read_text()) if file.exists() else {}
    made["hardware"] = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    made["seconds"] = made.get("seconds", {}) | {stage: max(round(seconds), made.get("seconds", {}).get(stage, 0))}
    file.write_text(json.dumps(made, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    BUILD.mkdir(parents=True, exist_ok=True)
    MINI.mkdir(parents=True, exist_ok=True)
    for stage in STAGES if arguments.stage == "all" else [arguments.stage]:
        start = time.monotonic()
        STAGES[stage]()
        _record(stage, time.monotonic() - start)


if __name__ == "__main__":
    main()
