"""Measure the miniature stack: `python -m assets_index.check_mini retrieval|orientation|prior|adaptation`.

Prints one figure a line. The scoring models and the autoencoder are measured by `make_mini check`. `--limit N` measures
the first N prompts, assets or samples only: to see that a check works.
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch

from assets_index import world
from redream.distillation.adaptation import ADAPTER, Adaptation
from redream.distillation.generators import Generators
from redream.retrieval.clip import Clip
from redream.retrieval.orientation import align
from redream.runs.outputs import as_bytes, grid
from redream.runs.retrieved import oriented, search
from redream.scene import assets
from redream.scene.cameras import VIEWS, view_prompt
from redream.settings import PRESETS, Settings
from redream.stack.models import Models
from redream.stack.stack import Stack
from redream.stack.vocabulary import parse_prompt

MINI = Path(__file__).parent / "mini"
PROMPTS = Path(__file__).parents[1] / "examples" / "retrieval_prompts.csv"


def retrieval(models: Models, settings: Settings, out: Path, limit: int | None = None) -> None:
    """Right kinds among the three assets of 100 prompts, with re-ranking by image and without, for several N′."""
    clip, index = models.clip("retrieval"), models.index
    rows = _rows(PROMPTS, limit)
    captions = {caption for thing in world.index_things() for caption in _captions(thing)}
    print("prompts:", len(rows), "of which captions of the index:", sum(row["prompt"] in captions for row in rows))
    for candidates in (3, 6, 12, 24):
        first = every = 0
        for row in rows:
            hits = index.search(parse_prompt(row["prompt"], models.stack.vocabulary).prompt, clip, 3, candidates)
            kinds = [index.row(hit.uid)["kind"] for hit in hits]
            first += kinds[0] == row["kind"]
            every += kinds == [row["kind"]] * 3
        label = "text alone" if candidates == 3 else "re-ranked by image"
        print(f"N' = {candidates} ({label}): right kind first {first}, in all three places {every}")


def orientation(models: Models, settings: Settings, out: Path, limit: int | None = None) -> None:
    """Fronts of all assets that have one: within 45°, opposite, not found."""
    clip = models.clip("retrieval")
    results: dict[str, list[str]] = {}
    for row in _rows(MINI / "truth.csv", limit):
        caption = models.index.row(row["uid"])["caption"]
        alignment = align(assets.load(models.index.asset_path(row["uid"])), caption, clip, settings)
        error = abs((alignment.yaw_deg + float(row["yaw_deg"]) + 180) % 360 - 180)
        verdict = "right" if error <= 45 else "inverted" if error > 135 else "sideways"
        results.setdefault(row["kind"], []).append(verdict if alignment.clear else "no clear front")
    fronts = [v for kind, verdicts in results.items() if kind not in world.SYMMETRIC for v in verdicts]
    print(
        "assets with a front:", len(fronts), {v: round(fronts.count(v) / len(fronts), 4) for v in sorted(set(fronts))}
    )
    for kind, verdicts in results.items():
        wrong = [v for v in verdicts if v != "right"]
        if wrong:
            print(" ", kind, f"{len(wrong)} of {len(verdicts)}:", {v: wrong.count(v) for v in sorted(set(wrong))})


def prior(models: Models, settings: Settings, out: Path, limit: int | None = None) -> None:
    """200 samples: kind and colour as scoring CLIP a and b name them, and the views of prompts that name none."""
    rng = np.random.default_rng(11)
    things = [(k, c) for k in world.KINDS for c in world.COLOURS]
    sampled = [things[i] for i in rng.choice(len(things), 200, replace=False)][:limit]
    prompts = [f"a {c} {k}" for k, c in sampled]
    generator = torch.Generator().manual_seed(11)
    pictures = torch.cat(
        [models.prior.sample(models.prior.embed(prompts[i : i + 20]), generator) for i in range(0, len(prompts), 20)]
    )
    iio.imwrite(out / "prior-samples.png", as_bytes(grid(pictures, 20)))
    for name in ("a", "b"):
        clip = models.clip(name)
        image = clip.embed_images(pictures)
        guess = (image @ clip.embed_texts([f"a {c} {k}" for k, c in things]).T).argmax(dim=1).tolist()
        right = np.mean([things[g] == thing for g, thing in zip(guess, sampled)])
        kind = np.mean([things[g][0] == thing[0] for g, thing in zip(guess, sampled)])
        print(f"CLIP {name}: kind and colour right {right:.3f}, kind {kind:.3f};", _views(clip, pictures, sampled))


def adaptation(models: Models, settings: Settings, out: Path, limit: int | None = None) -> None:
    """Samples with the view that the prompt names, before and after adaptation to three retrieved assets, ten prompts
    of kinds with a front."""
    rng = np.random.default_rng(12)
    things = [(k, c) for k, c in world.held_out() if k not in world.SYMMETRIC]
    things = [things[i] for i in rng.choice(len(things), 10, replace=False)][:limit]
    obeyed: dict[str, list[float]] = {}
    sheets: dict[str, list[torch.Tensor]] = {"before": [], "after": []}
    for kind, colour in things:
        prompt = f"a {colour} {kind}"
        hits, _ = search(prompt, models, settings)
        retrieved = [oriented(asset, models, settings)[0].captioned for asset in hits]
        adapted = Adaptation(models.prior, settings, retrieved, Generators(0, models.prior.device))
        while not adapted.finished:
            adapted.step()
        for view in VIEWS:
            for label, sheet in sheets.items():
                after = label == "after"
                text, prefix = (prompt, adapted.prefix(view)) if after else (view_prompt(prompt, view), None)
                generator = torch.Generator().manual_seed(12)
                with torch.no_grad(), models.prior.using(ADAPTER if after else None):
                    pictures = models.prior.sample(models.prior.embed([text] * 8, prefix), generator)
                sheet.append(pictures)
                for name in ("a", "b"):
                    fraction = _views(models.clip(name), pictures, [(kind, colour)] * 8)[view]
                    obeyed.setdefault(f"{view} view {label}, CLIP {name}", []).append(fraction)
    for label, rows in sheets.items():
        iio.imwrite(out / f"adaptation-{label}.png", as_bytes(grid(torch.cat(rows), 24)))
    for label, fractions in sorted(obeyed.items()):
        print(f"{label}: obeyed {np.mean(fractions):.3f}")


def _rows(file: Path, limit: int | None) -> list[dict[str, str]]:
    """The first `limit` rows of a table; all for None."""
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))[:limit]


def _views(clip: Clip, pictures: torch.Tensor, things: list[tuple[str, str]]) -> dict[str, float]:
    """The fraction of the pictures that a CLIP takes for each view, of kinds with a front only; {} without any."""
    kept = [i for i, (kind, _) in enumerate(things) if kind not in world.SYMMETRIC]
    if not kept:
        return {}
    image = clip.embed_images(pictures[kept])
    texts = clip.embed_texts([view_prompt(f"a {things[i][1]} {things[i][0]}", view) for i in kept for view in VIEWS])
    named = torch.einsum("bd,bvd->bv", image, texts.unflatten(0, (-1, 3))).argmax(dim=1).tolist()
    return {view: round(named.count(number) / len(named), 3) for number, view in enumerate(VIEWS)}


def _captions(thing: world.Thing) -> list[str]:
    """The captions that `make_mini index` gave this thing."""
    rng = thing.rng.spawn(1)[0]
    rng.uniform(0, 360)
    return [world.caption(thing.kind, thing.colour, rng, templates=(t,)) for t in world.INDEX_TEMPLATES]


Check = Callable[[Models, Settings, Path, int | None], None]
CHECKS: dict[str, Check] = {
    "retrieval": retrieval,
    "orientation": orientation,
    "prior": prior,
    "adaptation": adaptation,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; `arguments` as the shell's, which are the default."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--out", type=Path, default=Path("build"), help="folder for contact sheets")
    parser.add_argument("--limit", type=int, help="the first so many prompts, assets or samples only")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    stack = Stack.load("mini")
    CHECKS[options.check](Models.load(stack), PRESETS[stack.preset]["redream"], options.out, options.limit)


if __name__ == "__main__":
    main()
