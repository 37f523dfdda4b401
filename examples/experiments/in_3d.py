"""The papers' experiments with objects."""

import itertools
from dataclasses import replace

import torch

from examples.experiments.distances import compared, distances
from examples.experiments.lab import ExperimentError, Lab, Outcome, Row, labelled, mean, say, under
from examples.experiments.objects import (
    TEN,
    around,
    evaluated,
    finished_runs,
    found_for,
    from_library,
    generate,
    ten_views,
    uids_for,
)
from examples.experiments.samples import prior_samples
from redream.distillation.loop import Distillation
from redream.evaluation import trials
from redream.evaluation.scorer import RenderableAsset, objects_of, true_objects
from redream.runs.run import Run
from redream.scoring.metrics import clip_score, silhouette_iou
from redream.stack.vocabulary import parse_prompt


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


def particles(lab: Lab, initialise: bool = True) -> Outcome:
    """More particles, more diversity, and the same quality? (ReDream E.7, PD D.3)

    As they are usually made, the particles of a run start from its assets in turn, the best first, and a run of one from
    the best. So beside seeds there are "starts": as many runs of one particle, from those assets in turn. Without a start
    (`initialise` off) only the score they share tells a run's particles from as many runs. The prior is adapted to the
    same assets in all of them, in another order where the start is another.
    """
    rows, figures, found = [], {}, {}  # found: of all prompts, by name
    start = "from assets" if initialise else "from nothing"
    for prompt in lab.prompts:
        seeds = [lab.settings.seed + i for i in range(max(PARTICLES))]
        single = [generate(lab, prompt, seed=seed, initialise=initialise)[0] for seed in seeds]
        groups = {f"{start}, {n} seeds": single[:n] for n in PARTICLES}
        if initialise:
            uids = uids_for(lab, prompt)
            ordered = [uids[i % len(uids) :] + uids[: i % len(uids)] for i in range(len(seeds))]  # from each in turn
            starts = [
                one if order == uids else generate(lab, prompt, uids=order, seed=seed, initialise=True)[0]
                for one, order, seed in zip(single, ordered, seeds, strict=True)
            ]
            groups |= {f"{start}, {n} starts": starts[:n] for n in PARTICLES}
        groups |= {
            f"{start}, {n} particles": generate(lab, prompt, particles=n, initialise=initialise) for n in PARTICLES
        }
        for name, group in groups.items():
            own = {key: mean(o.scores[key] for o in group) for key in CLIPS} | distances(lab.clip, group)
            found.setdefault(name, []).append(own)
            figures |= under(f"{prompt}, {name}", own)
            rows.append(Row(labelled(f"{prompt}: {name}", own).replace("\n", ", ")))
            rows += [Row(f"{name}, {i + 1}", o.seen.images) for i, o in enumerate(group)]
    for name, owns in found.items():
        figures |= under(name, {key: mean(own[key] for own in owns) for key in owns[0]})
    pairs = (("starts", "seeds"), ("particles", "seeds"), ("particles", "starts"))
    for n, (kind, other) in itertools.product(PARTICLES, pairs):
        name, against = f"{start}, {n} {kind}", f"{start}, {n} {other}"
        if name not in found or against not in found:
            continue  # from nothing there are no starts
        change = {
            f"{clip}, change in %": 100 * (figures[f"{name}: {clip}"] / figures[f"{against}: {clip}"] - 1)
            for clip in CLIPS
        }
        change |= {"distance, difference": figures[f"{name}: distance"] - figures[f"{against}: distance"]}
        figures |= under(f"{name} against {n} {other}", change)
    return Outcome(rows, figures)


MOMENTS = (0.05, 0.15, None, 0.5, 0.75, 1.0)  # shares of the iterations; None: τ
TWO = (0, 3)  # of the eight views: the front, and one from behind


def progress(lab: Lab) -> Outcome:
    """What is there when, with assets at the start, without, and without retrieval at all? (ReDream fig. 10)"""
    rows, figures = [], {}
    iterations = lab.settings.iterations
    shares = [lab.settings.initialisation.warmup if share is None else share for share in MOMENTS]
    moments = [max(1, round(share * iterations)) for share in shares]
    for prompt in lab.prompts:
        text = lab.understood(prompt)
        rows.append(Row(prompt))
        for method in ("redream", "redream-no-init", "vsd"):
            say(f"{prompt}, {method}")
            settings = trials.own_settings(method, lab.preset)
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

    The first particle of each run, ten views at 30° elevation over backgrounds as in the training; the runs as in
    `beside`, of all prompts. Samples of plain prompts mostly show fronts, so a face on every side brings views closer to
    them: the distance is to be read beside the faces behind.
    """
    runs, prompts, folders = compared_runs(lab)
    say(f"{len(runs)} methods, {len(prompts)} prompts: {', '.join(prompts)}")
    reference = [prior_samples(lab, prompt, lab.samples, lab.settings.seed) for prompt in prompts]
    sets = {"samples, another seed": [prior_samples(lab, p, TEN, lab.settings.seed + 1) for p in prompts]}
    for method, own in runs.items():
        say(method)
        sets[method] = [ten_views(own[prompt], lab.settings.seed) for prompt in prompts]
    return replace(compared(lab, prompts, reference, sets), prompts=prompts, folders=folders)


SIDES = (0, 2, 4)  # of the eight views: front, side, back


def beside(lab: Lab) -> Outcome:
    """What do the methods of an evaluation make of equal prompts? Beside the best asset and the true object.

    The runs are those of the folder's table.json with its first seed, finished and of equal settings but for the method:
    of the first ten prompts that all methods have, their first particles.
    """
    runs, prompts, folders = compared_runs(lab, TEN)
    rows, has_truth = [], True
    for prompt in prompts:
        say(prompt)
        truth, _ = true_objects(lab.models.stack, parse_prompt(prompt, lab.models.stack.vocabulary))
        has_truth = has_truth and bool(truth)
        shown = [objects_of(own[prompt])[0][0] for own in runs.values()]
        shown += [RenderableAsset(asset, lab.settings) for asset in truth[:1]]
        seen = [from_library(lab, prompt).seen, *(around(one, lab.settings) for one in shown)]
        rows.append(Row(prompt, torch.cat([own.images[list(SIDES)] for own in seen])))
    heads = ("the best asset", *runs, *["the true object"] * has_truth)
    return Outcome(rows, {"prompts": float(len(prompts))}, heads, prompts, folders)


TO_NAME = 20  # objects of each method


def blind(lab: Lab) -> Outcome:
    """Does someone who does not know the prompt see what it is?

    The first particles of finished runs of each method in the folder's table.json, of any prompt and seed, drawn and mixed
    by `--seed`. The picture numbers them; blind.json has their prompts and folders in the same order, for afterwards.
    """
    table, drawn = evaluated(lab.runs), []
    generator = torch.Generator().manual_seed(lab.settings.seed)
    by_seed = [finished_runs(lab, table, seed) for seed in table["seeds"]]
    for method in by_seed[0]:
        runs = [found for of_seed in by_seed for found in of_seed[method].items()]
        if len(runs) < TO_NAME:
            raise ExperimentError(
                f"{len(runs)} finished runs of {method} are too few to draw {TO_NAME} from; evaluate more of them."
            )
        drawn += [runs[i] for i in torch.randperm(len(runs), generator=generator)[:TO_NAME]]
    drawn = [drawn[i] for i in torch.randperm(len(drawn), generator=generator)]
    shown = [around(objects_of(run)[0][0], run.request.settings) for _, run in drawn]
    rows = [Row(str(number), seen.images) for number, seen in enumerate(shown, 1)]
    prompts, folders = (tuple(words) for words in zip(*((prompt, folder_of(lab, run)) for prompt, run in drawn)))
    return Outcome(rows, {"objects": float(len(rows))}, (), prompts, folders)


def compared_runs(
    lab: Lab, most: int | None = None
) -> tuple[dict[str, dict[str, Run]], tuple[str, ...], tuple[str, ...]]:
    """The finished runs of the folder's table.json with its first seed, method → prompt → run; the first prompts that all
    methods have; and the folders of their runs. Raises `ExperimentError` if there are none."""
    table = evaluated(lab.runs)
    runs = finished_runs(lab, table, table["seeds"][0])
    prompts = tuple(p for p in next(iter(runs.values()), {}) if all(p in own for own in runs.values()))[:most]
    if not prompts:
        raise ExperimentError(f"The folder {lab.runs.name} has no finished runs of a prompt that all its methods have.")
    return runs, prompts, tuple(folder_of(lab, own[prompt]) for own in runs.values() for prompt in prompts)


def folder_of(lab: Lab, run: Run) -> str:
    """A run's folder within the evaluation's."""
    return run.folder.relative_to(lab.runs.resolve()).as_posix()
