"""The papers' other experiments, each one command, each with a picture.

    python -m examples.experiments NAME --out DIR [--stack mini] [--preset mini-fast] [--seed 0]

away       ReDream fig. 7: one asset, prompts that move away from it
assets     ReDream fig. 8: one prompt, each time another asset
particles  ReDream E.7, PD D.3: particles of one run against as many runs of one particle
progress   ReDream fig. 10: renders while it forms, for three methods
views      ReDream fig. 4 and 14: 2D samples from back to front, before and after adaptation
overfit    ReDream fig. 15: 2D samples of changing prompts, before and after adaptation to one asset
distil2d   PD fig. 3, table 6: SDS and VSD where the picture itself is optimised
views3d    PD table 4: views of an evaluation's objects against samples of the prior (--runs DIR)
blind      twenty objects of an evaluation without their prompts, to be named by whoever looks (--runs DIR)

DIR/NAME.png is the picture, DIR/NAME.json has the figures, which are printed too. Generations are kept in DIR/runs and
used again by the next call. The usual prompts are those of examples/prompts_mini.txt that settings are chosen with, so
that none of it is a result to report; where the papers want what no asset shows, such as a purple owl, a held-out pair
of them stands: a yellow owl. "CLIP-feature distance" is the Fréchet distance between image embeddings of the stack's
first scoring CLIP: it stands where the papers have an FID and is never compared with one.
"""

import argparse
import hashlib
import itertools
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from redream import evaluation, pipeline, references
from redream.distillation import adaptation
from redream.distillation.adaptation import Adaptation, Reference, StoredViews, sample_background, store_views
from redream.distillation.guidance import gradient_loss, sds_gradient, vsd_gradient
from redream.distillation.loop import Distillation
from redream.distillation.prior import Prior
from redream.distillation.variational import Variational
from redream.files import read_json, replacing
from redream.judging import Still, objects_of
from redream.metrics import SCORES_VERSION, clip_score, silhouette_iou, view_agreement
from redream.models import Models
from redream.results import Shown
from redream.retrieval.clip import Clip
from redream.runs import Run
from redream.scene.assets import Asset
from redream.scene.cameras import VIEWS, Camera, ring
from redream.scene.turntable import as_bytes
from redream.settings import PRESETS, Preset, Settings
from redream.stack import check_prompt
from redream.tables import FORMAT

AROUND = 8  # views that a row shows
SIDE, GAP = 96, 4  # pixels: of a picture, between two of them
COUNT = 8  # 2D samples, or 2D particles, at once
AZIMUTH_DEG = {"front": 0.0, "side": 90.0, "back": 180.0}
FIXED = Camera(0.0, 0.0, 1.0, 40.0)  # where a camera is asked for and nothing is seen from one

Figures = dict[str, float]


class ExperimentError(ValueError):
    """What was asked for makes no experiment; the message says why."""


@dataclass(frozen=True)
class Lab:
    """What an experiment works with."""

    models: Models
    preset: Preset
    out: Path
    prompts: tuple[str, ...]
    assets: tuple[str, ...] = ()  # in words: the library's best asset for each of them
    samples: int = 64  # of the prior per prompt, for feature distances
    runs: Path | None = None  # an evaluation's folder

    @cached_property
    def weights(self) -> str:
        """The fingerprint of all models."""
        return evaluation.fingerprint(self.models.stack)

    @property
    def settings(self) -> Settings:
        """ReDream's."""
        return self.preset["redream"]

    @property
    def prior(self) -> Prior:
        return self.models.prior

    @property
    def clip(self) -> Clip:
        """The one that features are taken from."""
        return self.models.clip("a")

    def understood(self, prompt: str) -> str:
        """The prompt as the models get it."""
        return check_prompt(prompt, self.models.stack.vocabulary).prompt

    def clips(self, images: Float[Tensor, "b 3 h w"], prompt: str) -> Figures:
        """CLIP scores by both scoring models."""
        text = self.understood(prompt)
        return {f"CLIP {name}": clip_score(self.models.clip(name), images, text) for name in ("a", "b")}


@dataclass(frozen=True)
class Row:
    """A line of the picture; without pictures it is a heading for those that follow."""

    label: str
    images: Float[Tensor, "n 3 h w"] | None = None


@dataclass(frozen=True)
class Outcome:
    """What an experiment found; `heads` stand over equal shares of the columns."""

    rows: list[Row]
    figures: Figures
    heads: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()  # where they are not those that were asked for
    folders: tuple[str, ...] = ()  # of the runs that were compared


# ---------------------------------------------------------------- experiments in 3D


def away(lab: Lab) -> Outcome:
    """Does the object follow its prompt when the asset does not? (ReDream fig. 7)"""
    asset = from_library(lab, lab.assets[0])
    rows, figures = [Row(f"the asset:\n{asset.caption}", asset.seen.images)], {}
    for prompt in lab.prompts:
        made = generate(lab, prompt, asset)[0]
        own = made.scores | {"IoU with the asset": silhouette_iou(made.seen.opacity, asset.seen.opacity)}
        own["CLIP a of the asset"] = lab.clips(asset.seen.images, prompt)["CLIP a"]
        rows.append(Row(labelled(prompt, own), made.seen.images))
        figures |= under(prompt, own)
    return Outcome(rows, figures)


def assets(lab: Lab) -> Outcome:
    """Does the asset show in the object? (ReDream fig. 8) If so, outlines fit their own asset better than the others."""
    rows, figures = [], {}
    known = [from_library(lab, words) for words in lab.assets]
    for prompt in lab.prompts:
        for number, asset in enumerate(known):
            made = generate(lab, prompt, asset)[0]
            fits = [silhouette_iou(made.seen.opacity, other.seen.opacity) for other in known]
            others = fits[:number] + fits[number + 1 :]
            own = made.scores | {"IoU with the asset": fits[number]}
            own |= {"IoU with the others": sum(others) / len(others)} if others else {}
            rows += [Row(f"asset {number + 1}:\n{asset.caption}", asset.seen.images)]
            rows += [Row(labelled(prompt, own), made.seen.images)]
            figures |= under(f"{prompt} from {number + 1}, {asset.caption}", own)
    return Outcome(rows, figures)


PARTICLES = (2, 4)  # in one run
CLIPS = ("CLIP a", "CLIP b")


def particles(lab: Lab) -> Outcome:
    """More particles, more diversity, and the same quality? (ReDream E.7, PD D.3)

    As they are usually made, the particles of a run start from its assets in turn, the best first, and a single one from
    that. Without a start only the score they share tells a run's particles from as many runs. The prior is
    adapted to the same assets in all of them.
    """
    rows, found = [], {}
    for prompt, initialise in itertools.product(lab.prompts, (True, False)):
        start = "from assets" if initialise else "from nothing"
        seeds = [lab.settings.seed + i for i in range(max(PARTICLES))]
        single = [generate(lab, prompt, seed=seed, initialise=initialise)[0] for seed in seeds]
        groups = {f"{start}, {n} seeds": single[:n] for n in PARTICLES}
        groups |= {
            f"{start}, {n} particles": generate(lab, prompt, particles=n, initialise=initialise) for n in PARTICLES
        }
        for name, group in groups.items():
            own = {key: mean(o.scores[key] for o in group) for key in CLIPS} | distances(lab.clip, group)
            found.setdefault(name, []).append(own)
            rows.append(Row(labelled(f"{prompt}: {name}", own).replace("\n", ", ")))
            rows += [Row(f"{name}, {i + 1}", o.seen.images) for i, o in enumerate(group)]
    figures = {}
    for name, owns in found.items():
        figures |= under(name, {key: mean(own[key] for own in owns) for key in owns[0]})
    for name in found:
        if name.endswith("seeds"):
            continue
        alone = name.replace("particles", "seeds")
        change = {
            f"{clip}, change in %": 100 * (figures[f"{name}: {clip}"] / figures[f"{alone}: {clip}"] - 1)
            for clip in CLIPS
        }
        change |= {"distance, difference": figures[f"{name}: distance"] - figures[f"{alone}: distance"]}
        figures |= under(f"{name} against {alone.rpartition(', ')[2]}", change)
    return Outcome(rows, figures)


MOMENTS = (0.05, 0.15, None, 0.5, 0.75, 1.0)  # shares of the iterations; None: τ
TWO = (0, 3)  # of the eight views: the front, and one from behind


def progress(lab: Lab) -> Outcome:
    """What is there when, with assets at the start, without, and without retrieval at all? (ReDream fig. 10)"""
    rows, figures = [], {}
    iterations = lab.settings.iterations
    shares = [lab.settings.warmup if share is None else share for share in MOMENTS]
    moments = [max(1, round(share * iterations)) for share in shares]
    for prompt in lab.prompts:
        text = lab.understood(prompt)
        rows.append(Row(prompt))
        for method in ("redream", "redream-no-init", "vsd"):
            say(f"{prompt}, {method}")
            settings = evaluation.own_settings(method, lab.preset)
            known = found_for(lab, prompt) if settings.uses_assets else []
            distillation, pictures = Distillation(lab.prior, settings, text, known), {}
            for step in distillation.steps():
                if step.iteration in moments:
                    pictures[step.iteration] = around(distillation.particles[0], settings).images
                    score = clip_score(lab.clip, pictures[step.iteration], text)
                    figures[f"{prompt}, {method}, iteration {step.iteration}: CLIP a"] = score
            rows.append(Row(method, torch.cat([pictures[moment][list(TWO)] for moment in moments])))
    names = [
        f"{share:.0%}, the warm-up ends" if asked is None else f"{share:.0%}" for asked, share in zip(MOMENTS, shares)
    ]
    return Outcome(rows, figures, tuple(f"{name}: {moment}" for name, moment in zip(names, moments)))


def views3d(lab: Lab) -> Outcome:
    """How far are views of the objects from samples of the prior? (PD table 4)

    The first particle of each run, ten views at 30° elevation over backgrounds as in the training. The runs are those
    of the folder's table.json with its first seed, finished and of equal settings but for the method, of prompts that
    all methods have. Samples of plain prompts mostly show fronts, so a face on every side brings views closer to them:
    the distance is to be read beside the faces behind.
    """
    table = evaluated(lab.runs)
    runs = finished_runs(lab, table, table["seeds"][0])
    prompts = [p for p in next(iter(runs.values()), {}) if all(p in own for own in runs.values())]
    if not prompts:
        raise ExperimentError(f"The folder {lab.runs.name} has no finished runs of a prompt that all its methods have.")
    say(f"{len(runs)} methods, {len(prompts)} prompts: {', '.join(prompts)}")
    folders = [own[prompt].folder.relative_to(lab.runs.resolve()) for own in runs.values() for prompt in prompts]
    reference = [prior_samples(lab, prompt, lab.samples, lab.settings.seed) for prompt in prompts]
    sets = {"samples, another seed": [prior_samples(lab, p, TEN, lab.settings.seed + 1) for p in prompts]}
    for method, own in runs.items():
        say(method)
        sets[method] = [ten_views(own[prompt], lab.settings.seed) for prompt in prompts]
    outcome = compared(lab, prompts, reference, sets)
    return replace(outcome, prompts=tuple(prompts), folders=tuple(folder.as_posix() for folder in folders))


TO_NAME = 20
NAMED_METHOD = "redream"


def blind(lab: Lab) -> Outcome:
    """Does someone who does not know the prompt see what it is?

    The first particles of finished runs of ReDream, of any prompt and seed in the folder's table.json, drawn by
    `--seed`. The picture numbers them; blind.json has their prompts in the same order, for afterwards.
    """
    table = evaluated(lab.runs)
    runs = []
    for seed in table["seeds"]:
        runs += finished_runs(lab, table, seed).get(NAMED_METHOD, {}).items()
    if len(runs) < TO_NAME:
        raise ExperimentError(f"{len(runs)} finished runs are too few to draw {TO_NAME} from; evaluate more of them.")
    order = torch.randperm(len(runs), generator=torch.Generator().manual_seed(lab.settings.seed))
    drawn = [runs[i] for i in order[:TO_NAME]]
    shown = [around(objects_of(run)[0][0], run.request.settings) for _, run in drawn]
    folders = tuple(run.folder.relative_to(lab.runs.resolve()).as_posix() for _, run in drawn)
    rows = [Row(str(number), seen.images) for number, seen in enumerate(shown, 1)]
    return Outcome(rows, {"objects": float(len(rows))}, (), tuple(prompt for prompt, _ in drawn), folders)


# ---------------------------------------------------------------- experiments in 2D


def views(lab: Lab) -> Outcome:
    """Does the prior show the view it is asked for, before and after adaptation? (ReDream fig. 4 and 14)

    Text features are mixed from back through side to front, the noise stays; shares are counted at the three views.
    """
    rows, shares = [], {}
    for prompt in lab.prompts:
        say(prompt)
        text, known = lab.understood(prompt), found_for(lab, prompt)
        rows.append(Row(prompt))
        for name, learned in (("before", None), ("after", True), ("after, prefixes frozen", False)):
            learning = None if learned is None else adapted(lab, known, prefix_learned=learned)
            ends = {view: conditioned(lab.prior, text, view, learning) for view in VIEWS}
            pictures = []
            for share in (0.0, 0.5, 1.0, 1.5, 2.0):
                first, second = ("back", "side") if share < 1 else ("side", "front")
                embedding = torch.lerp(ends[first], ends[second], share % 1 if share < 2 else 1.0)  # (1, l, d)
                pictures.append(sampled(lab.prior, embedding, COUNT, lab.settings.seed, learning))
            rows.append(Row(name, torch.cat([p[:2] for p in pictures])))
            for view, images in zip(("back", "side", "front"), pictures[::2]):
                cameras = [Camera(AZIMUTH_DEG[view], 0.0, 1.0, 40.0)] * len(images)
                for clip in ("a", "b"):
                    share = view_agreement(lab.models.clip(clip), images, cameras, text)
                    shares.setdefault(f"{name}: {view} by CLIP {clip}", []).append(share)
    figures = {key: mean(values) for key, values in shares.items()}
    for name, clip in itertools.product(("before", "after", "after, prefixes frozen"), ("a", "b")):
        figures[f"{name}: all views by CLIP {clip}"] = mean(figures[f"{name}: {v} by CLIP {clip}"] for v in VIEWS)
    return Outcome(rows, figures, ("back", "between", "side", "between", "front"))


def overfit(lab: Lab) -> Outcome:
    """Does adaptation to one asset show in samples of other prompts? (ReDream fig. 15)

    The likeness is the mean cosine between samples and the asset's views. Losses are those of Eq. 5 on fresh renders,
    of the asset and of others that the prior was not adapted to.
    """
    known = [from_library(lab, words) for words in lab.assets]
    asset, features = known[0], lab.clip.embed_images(known[0].seen.images)  # (8, d)
    under_heads = [7, 0, 1, 1, 2, 3, 3, 4, 5]  # of the eight views: front, side and back with their neighbours
    rows, figures = [Row(f"the asset:\n{asset.caption}", asset.seen.images[under_heads])], {}
    say(f"adaptation to: {asset.caption}")
    learning = adapted(lab, [asset.reference])
    for name, state in (("before", None), ("after", learning)):
        for number, other in enumerate(known):
            what = "the asset" if number == 0 else f"unseen {number}, {other.caption}"
            figures[f"loss on renders of {what}: {name}"] = view_loss(lab, other.reference, state)
    for prompt in lab.prompts:
        for name, state in (("before", None), ("after", learning)):
            embeddings = [conditioned(lab.prior, lab.understood(prompt), view, state) for view in VIEWS]
            pictures = [sampled(lab.prior, e, COUNT, lab.settings.seed, state) for e in embeddings]
            images = torch.cat(pictures)  # (24, 3, h, w)
            own = lab.clips(images, prompt)
            own["likeness"] = float((lab.clip.embed_images(images) @ features.T).mean())
            rows.append(Row(labelled(f"{prompt}: {name}", own), torch.cat([p[:3] for p in pictures])))
            figures |= under(f"{prompt}, {name}", own)
    return Outcome(rows, figures, VIEWS)


LEARNING_RATE_2D = 0.03  # PD G
T_2D = (0.02, 0.98)  # PD G: not annealed


def distil2d(lab: Lab) -> Outcome:
    """SDS and VSD where nothing is 3D: g(θ) = θ, eight latents a prompt (PD fig. 3, table 6)."""
    methods = {"SDS, 100": (100.0, False), "SDS, 7.5": (7.5, False), "VSD, 7.5": (7.5, True)}
    reference = [prior_samples(lab, prompt, lab.samples, lab.settings.seed) for prompt in lab.prompts]
    sets = {"samples, another seed": [prior_samples(lab, p, COUNT, lab.settings.seed + 1) for p in lab.prompts]}
    for name, (guidance, varied) in methods.items():
        for prompt in lab.prompts:
            say(f"{prompt}, {name}")
            text, generator = lab.understood(prompt), torch.Generator().manual_seed(lab.settings.seed)
            shape = (COUNT, lab.prior.unet.config.in_channels, lab.prior.latent_size, lab.prior.latent_size)
            start = torch.randn(shape, generator=generator).to(lab.prior.device)
            score = Variational(lab.prior, lab.settings, text, generator) if varied else None
            latents = distil(lab.prior, text, start, lab.settings.iterations, guidance, generator, score)
            with torch.no_grad():
                sets.setdefault(name, []).append(lab.prior.decode(latents).cpu())
    return compared(lab, lab.prompts, reference, sets)


def distil(
    prior: Prior,
    prompt: str,
    start: Float[Tensor, "b c h w"],
    steps: int,
    guidance: float,
    generator: torch.Generator,
    variational: Variational | None = None,
) -> Float[Tensor, "b c h w"]:
    """Latents after `steps` of Adam from `start`: VSD with a variational score, which learns beside them, else SDS.

    θ ← θ − η w(t) (ε̂ − ε_q),    ε_q = ε_{φ,ζ}(x_t, t, y) or ε,    t ~ U(0.02, 0.98) for each latent
    """
    latents = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([latents], lr=LEARNING_RATE_2D)
    words, empty = (prior.embed([text] * len(start)) for text in (prompt, ""))
    for _ in range(steps):
        share = T_2D[0] + (T_2D[1] - T_2D[0]) * torch.rand(len(start), generator=generator)
        t = (share * (prior.timesteps - 1)).long().to(start.device)  # (b,)
        noise = torch.randn(start.shape, generator=generator).to(start)
        noised, sigma = prior.add_noise(latents.detach(), t, noise), prior.alpha_sigma(t)[1]
        with torch.no_grad():
            prior_noise = prior.guided_noise(noised, t, words, empty, guidance)
        if variational is None:
            gradient = sds_gradient(prior_noise, noise, sigma)
        else:
            gradient = vsd_gradient(prior_noise, variational.predict(noised, t, FIXED), sigma)
        optimizer.zero_grad(set_to_none=True)
        gradient_loss(latents, gradient).backward()
        optimizer.step()
        if variational is not None:
            variational.step(latents.detach(), FIXED)
    return latents.detach()


# ---------------------------------------------------------------- what they share: objects


@dataclass(frozen=True)
class Seen:
    """Something from eight sides over white, the front first."""

    images: Float[Tensor, "8 3 s s"]
    opacity: Float[Tensor, "8 1 s s"]


@dataclass(frozen=True)
class Made:
    """One particle of a finished run."""

    seen: Seen
    scores: Figures


@dataclass(frozen=True)
class Known:
    """An asset of the library, its front at +x."""

    path: Path
    caption: str
    asset: Asset
    seen: Seen

    @property
    def reference(self) -> Reference:
        return Reference(self.asset, self.caption)


def generate(lab: Lab, prompt: str, asset: Known | None = None, **changes) -> list[Made]:
    """The particles of a run, from this asset or from retrieved ones; a run made before is used again or goes on."""
    settings = lab.settings.with_(**changes)
    given = [(asset.path, asset.caption)] if asset else []
    asked = [prompt, asdict(settings), [caption for _, caption in given], lab.weights]
    digest = hashlib.sha256(
        json.dumps([*asked, [path.name for path, _ in given], evaluation.METHODS_VERSION, SCORES_VERSION]).encode()
    ).hexdigest()[:12]
    folder = lab.out / "runs" / f"{re.sub('[^a-z0-9]+', '-', prompt.lower()).strip('-')[:40]}-{digest}"
    say(f"{prompt}, {settings.particles} × {settings.iterations} iterations, {folder.name}")
    if (folder / "settings.json").is_file():
        told = pipeline.resume(folder, models=lab.models)
    else:
        told = pipeline.generate(prompt, settings=settings, assets=given, out=folder, models=lab.models)
    for _ in told:
        pass
    return [
        Made(around(particle, settings), {f"CLIP {name}": scores[f"clip_{name}"] for name in ("a", "b")})
        for particle, scores in objects_of(Run.open(folder))
    ]


def from_library(lab: Lab, words: str) -> Known:
    """The library's best asset for these words, turned to its front."""
    found, _ = references.search(lab.understood(words), lab.models, lab.settings.with_(assets=1))
    turned, _ = references.turned(found[0], lab.models, lab.settings)
    seen = around(Still(turned.asset, lab.settings), lab.settings)
    return Known(lab.models.index.asset_path(turned.entry["uid"]), turned.entry["caption"], turned.asset, seen)


def found_for(lab: Lab, prompt: str) -> list[Reference]:
    """What a run retrieves for a prompt."""
    found, _ = references.search(lab.understood(prompt), lab.models, lab.settings)
    return [references.as_reference(references.turned(f, lab.models, lab.settings)[0]) for f in found]


def around(shown: Shown, settings: Settings) -> Seen:
    """Eight views of an asset or a particle."""
    white = torch.ones(3, device=shown.grid.density.device)
    cameras = ring(AROUND, settings.score_elevation_deg, settings.score_distance, settings.score_fovy_deg)
    seen = [shown.render(camera, SIDE, white) for camera in cameras]
    return Seen(torch.cat([s.image for s in seen]).cpu(), torch.cat([s.opacity for s in seen]).cpu())


def evaluated(out: Path | None) -> dict:
    """What an evaluation's table.json says. Raises `ExperimentError`."""
    if out is None:
        raise ExperimentError("Name the folder of an evaluation: --runs DIR.")
    table = read_json(out / "table.json") or {}
    if table.get("format") != FORMAT:
        raise ExperimentError(f"The folder {out.name} has no table.json of this version; evaluate into it first.")
    return table


def finished_runs(lab: Lab, table: dict, seed: int) -> dict[str, dict[str, Run]]:
    """The finished runs of an evaluation's table with a seed: method → prompt → run."""
    runs = {}
    for (method, changes), entry in itertools.product(table["changes"].items(), table["prompts"]):
        if evaluation.METHODS.get(method) is not None:
            settings = Settings.from_json(json.dumps(table["settings"] | changes))
            prompt = evaluation.Prompt(entry["prompt"], entry["part"])
            trial = evaluation.plan(lab.runs, prompt, method, seed, settings, lab.weights)
            own = runs.setdefault(method, {})
            if trial.folder.is_dir() and (run := Run.open(trial.folder)).finished:
                own[prompt.text] = run
    return runs


TEN, ELEVATION_DEG = 10, 30.0  # PD K


def ten_views(run: Run, seed: int) -> Float[Tensor, "10 3 s s"]:
    """The first particle of a finished run, over backgrounds as the prior's pictures have them."""
    settings, generator = run.request.settings, torch.Generator().manual_seed(seed)
    particle, _ = objects_of(run)[0]
    cameras = ring(TEN, ELEVATION_DEG, settings.score_distance, settings.score_fovy_deg)
    backgrounds = sample_background(generator, TEN)  # (10, 3)
    return torch.cat([particle.render(c, SIDE, b).image for c, b in zip(cameras, backgrounds, strict=True)])


# ---------------------------------------------------------------- what they share: samples


def adapted(lab: Lab, known: Sequence[Reference], **changes) -> Adaptation:
    """The prior's adapter and view prefixes, learned from these assets; there is one adapter at a time."""
    settings = lab.settings.with_(**changes)
    learning = Adaptation(lab.prior, settings, known, torch.Generator().manual_seed(settings.seed))
    while not learning.finished:
        learning.step()
    return learning


@torch.no_grad()
def conditioned(prior: Prior, prompt: str, view: str, learning: Adaptation | None) -> Float[Tensor, "1 l d"]:
    """The prompt seen from a view: named in words before adaptation, by its prefix after it."""
    return prior.embed([f"{prompt}, {view} view"]) if learning is None else prior.embed([prompt], learning.prefix(view))


def sampled(
    prior: Prior, embedding: Float[Tensor, "1 l d"], count: int, seed: int, learning: Adaptation | None, steps: int = 25
) -> Float[Tensor, "n 3 h w"]:
    """Pictures by DPM-Solver++, always of the same noise for a seed."""
    with prior.using(None if learning is None else adaptation.ADAPTER):
        generator = torch.Generator().manual_seed(seed)
        return prior.sample(embedding.expand(count, -1, -1), generator, steps).cpu()


def prior_samples(lab: Lab, prompt: str, count: int, seed: int) -> Float[Tensor, "n 3 h w"]:
    """What the prior itself makes of the plain prompt, in 50 steps (PD K)."""
    embedding = lab.prior.embed([lab.understood(prompt)])
    generator = torch.Generator().manual_seed(seed)
    chunks = [min(COUNT, count - start) for start in range(0, count, COUNT)]
    return torch.cat([lab.prior.sample(embedding.expand(n, -1, -1), generator, 50).cpu() for n in chunks])


@torch.no_grad()
def view_loss(lab: Lab, reference: Reference, learning: Adaptation | None) -> float:
    """Eq. 5 on fresh renders of an asset, the timesteps equally spaced: equal noise before and after adaptation."""
    prior, generator = lab.prior, torch.Generator().manual_seed(lab.settings.seed + 1)
    stored: StoredViews = store_views(reference.asset, lab.settings, prior.size, generator)
    rows = range(len(stored.cameras))
    latents = prior.encode(stored.on(rows, sample_background(generator, len(rows))))  # (n, c, hl, wl)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    # Views go around, so timesteps are dealt out across them.
    t = (torch.randperm(len(rows), generator=generator) + 0.5) / len(rows) * prior.timesteps
    t = t.long().to(latents.device)  # (n,)
    by_view = {view: conditioned(prior, reference.caption, view, learning) for view in VIEWS}
    words = torch.cat([by_view[camera.view] for camera in stored.cameras])  # (n, l, d)
    with prior.using(None if learning is None else adaptation.ADAPTER):
        parts = zip(*(x.split(COUNT) for x in (prior.add_noise(latents, t, noise), t, words)), strict=True)
        predicted = torch.cat([prior.predict_noise(*part) for part in parts])
    return float((predicted - noise).square().mean())


# ---------------------------------------------------------------- what they share: distances


def frechet(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """The squared Fréchet distance between the normal distributions fitted to two sets of features.

        ‖μ_a − μ_b‖² + tr Σ_a + tr Σ_b − 2 tr (Σ_a Σ_b)^½

    With Σ = XᵀX, the last trace is the sum of the singular values of X_a X_bᵀ: right for fewer features than
    dimensions too. It shrinks as sets grow: only sets of one size are compared with the same other set.
    """
    a, b = a.double(), b.double()
    x, y = ((f - f.mean(dim=0)) / max(1, len(f) - 1) ** 0.5 for f in (a, b))
    means = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    distance = means + x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()
    return max(0.0, float(distance))


def pairwise(vectors: Float[Tensor, "n d"]) -> float:
    """Mean of 1 − cosine over all pairs; 0 for a single vector."""
    unit = torch.nn.functional.normalize(vectors, dim=1)
    pairs = list(itertools.combinations(range(len(unit)), 2))
    return mean(float(1 - unit[i] @ unit[j]) for i, j in pairs) if pairs else 0.0


def distances(clip: Clip, group: Sequence[Made]) -> Figures:
    """How unlike the objects are: of their mean embeddings over eight views, and view by view."""
    features = torch.stack([clip.embed_images(o.seen.images) for o in group]).cpu()  # (objects, 8, d)
    by_view = mean(pairwise(features[:, view]) for view in range(AROUND))
    return {"distance": pairwise(features.mean(dim=1)), "distance by view": by_view}


PROMPTS_SHOWN = 4


def compared(
    lab: Lab, prompts: Sequence[str], reference: Sequence[Tensor], sets: dict[str, list[Float[Tensor, "n 3 h w"]]]
) -> Outcome:
    """Sets of pictures, each with an equal number per prompt, against the prior's own samples."""

    def features(pictures: Iterable[Tensor]) -> Tensor:
        return lab.clip.embed_images(torch.cat(list(pictures))).cpu()

    rows, figures = [], {"samples of the prior": float(sum(map(len, reference)))}
    known = features(reference)
    for name, pictures in sets.items():
        own = {"pictures": float(sum(map(len, pictures))), "CLIP-feature distance": frechet(features(pictures), known)}
        scores = [lab.clips(images, prompt) for images, prompt in zip(pictures, prompts, strict=True)]
        own |= {key: mean(s[key] for s in scores) for key in scores[0]}
        own["distance in a prompt"] = mean(pairwise(features([images])) for images in pictures)
        figures |= under(name, own)
    for number, prompt in enumerate(prompts[:PROMPTS_SHOWN]):
        shown = len(next(iter(sets.values()))[number])
        rows += [Row(prompt), Row("samples of the prior", reference[number][:shown])]
        rows += [Row(name, pictures[number]) for name, pictures in sets.items()]
    return Outcome(rows, figures)


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


# ---------------------------------------------------------------- what they share: pictures and words


def sheet(rows: Sequence[Row], heads: Sequence[str] = (), side: int = SIDE) -> Image.Image:
    """Rows of pictures with their labels at the left and the heads above; dark on white."""
    font, ink = ImageFont.load_default(13), "#222222"
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))

    def extent(text: str) -> tuple[int, int]:
        return tuple(int(x) + 1 for x in measure.multiline_textbbox((0, 0), text, font)[2:])

    columns = max((len(row.images) for row in rows if row.images is not None), default=0)
    left = max((extent(row.label)[0] for row in rows if row.images is not None), default=0) + 3 * GAP
    top = 6 * GAP if heads else GAP
    heights = [extent(row.label)[1] + 2 * GAP for row in rows]
    heights = [h if row.images is None else max(h, side + GAP) for h, row in zip(heights, rows)]
    width = max([left + columns * (side + GAP), *(extent(row.label)[0] + 2 * GAP for row in rows)])
    canvas = Image.new("RGB", (width, top + sum(heights)), "white")
    draw = ImageDraw.Draw(canvas)
    for number, head in enumerate(heads):
        draw.text((left + number * columns / len(heads) * (side + GAP), GAP), head, ink, font)
    y = top
    for row, height in zip(rows, heights, strict=True):
        draw.multiline_text((GAP, y + GAP), row.label, ink, font)
        for column, image in enumerate(() if row.images is None else row.images):
            picture = Image.fromarray(as_bytes(image)).resize((side, side), Image.Resampling.LANCZOS)
            canvas.paste(picture, (left + column * (side + GAP), y))
        y += height
    return canvas


def labelled(title: str, figures: Figures) -> str:
    """A row's label: the title, then its figures, one a line."""
    return "\n".join([title, *(f"{key} {value:.3f}" for key, value in figures.items())])


def under(name: str, figures: Figures) -> Figures:
    """The figures of one thing among those of all."""
    return {f"{name}: {key}": value for key, value in figures.items()}


def say(sentence: str) -> None:
    """Tell who waits what is being made."""
    print(f"  {sentence}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- the command line


@dataclass(frozen=True)
class Experiment:
    """A way to find something out, and what it is asked with unless the command line says otherwise."""

    find_out: Callable[[Lab], Outcome]
    prompts: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()
    iterations: int | None = None  # None: the preset's


# All of them are dev prompts of prompts_mini.txt.
HELD_OUT = ("a yellow owl", "a cute orange puppy", "my old brown car")  # the prior knows them, the library does not
FURTHER = ("a yellow owl", "white penguin, highly detailed", "brown teddy bear", "a 3D model of a black robot")
FURTHER += ("a red house",)  # from an owl, each more than the one before
EXPERIMENTS = {
    "away": Experiment(away, FURTHER, ("an orange owl",)),
    "assets": Experiment(assets, HELD_OUT[:1], ("a red owl", "a green owl", "a white owl", "a red cat", "a red robot")),
    "particles": Experiment(particles, HELD_OUT),
    "progress": Experiment(progress, HELD_OUT[:1]),
    "views": Experiment(views, HELD_OUT),
    "overfit": Experiment(overfit, FURTHER, ("an orange owl", "a green owl", "a red robot")),
    "distil2d": Experiment(distil2d, HELD_OUT, iterations=600),  # PD G: 6,000; ours: enough for 16 × 16 latents
    "views3d": Experiment(views3d),
    "blind": Experiment(blind),
}


def perform(name: str, lab: Lab) -> Iterator[str]:
    """Run an experiment, write its picture and its figures, and tell these one by one."""
    lab.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    outcome = EXPERIMENTS[name].find_out(lab)
    found = {"experiment": name, "stack": lab.models.stack.name, "assets": lab.assets}
    found |= {"prompts": outcome.prompts or lab.prompts, "folders": outcome.folders}
    found |= {"figures": {key: round(value, 6) for key, value in outcome.figures.items()}}
    found |= {"samples": lab.samples, "settings": asdict(lab.settings)}
    found |= {"seconds": round(time.perf_counter() - start, 1)}
    with replacing(lab.out / f"{name}.png") as file:
        sheet(outcome.rows, outcome.heads).save(file, "PNG")
    with replacing(lab.out / f"{name}.json") as file:
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    yield from (f"{key}: {value:g}" for key, value in found["figures"].items())
    yield f"seconds: {found['seconds']:g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--stack", default="mini")
    parser.add_argument("--preset", choices=PRESETS, default="mini-fast")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for picture, figures and runs")
    parser.add_argument("--iterations", type=int, help="other than the preset's; of distil2d: steps, 600")
    parser.add_argument("--prompts", nargs="+", help="other ones; in quotes")
    parser.add_argument("--assets", nargs="+", help="other ones, in words the library is searched with")
    parser.add_argument("--samples", type=int, default=64, help="of the prior per prompt, for feature distances")
    parser.add_argument("--runs", type=Path, help="views3d, blind: a folder made by redream evaluate --out")
    options = parser.parse_args(arguments)
    usual = EXPERIMENTS[options.name]
    try:
        changes = {"seed": options.seed}
        iterations = usual.iterations if options.iterations is None else options.iterations
        changes |= {} if iterations is None else {"iterations": iterations}
        preset = {method: settings.with_(**changes) for method, settings in PRESETS[options.preset].items()}
        prompts, known = tuple(options.prompts or usual.prompts), tuple(options.assets or usual.assets)
        models = Models.load(options.stack)
        lab = Lab(models, preset, options.out, prompts, known, options.samples, options.runs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of libraries are nobody's business here
            for line in perform(options.name, lab):
                print(line, flush=True)
    except ValueError as error:
        if not (pipeline.is_named(error) or isinstance(error, ExperimentError)):
            raise
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
