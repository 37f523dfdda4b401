"""The papers' experiments with 3D objects."""

import itertools
from dataclasses import replace

import torch

from examples.experiments.context import (
    Context,
    ExperimentError,
    Metrics,
    Outcome,
    Row,
    label_of,
    log,
    mean,
    prefixed,
)
from examples.experiments.distances import compare_with_samples, distances
from examples.experiments.objects import (
    TEN_VIEWS,
    GeneratedObject,
    best_asset,
    finished_runs,
    generate,
    read_table,
    render_ring,
    render_ten_views,
    retrieve_oriented,
    retrieved_uids,
)
from examples.experiments.samples import sample_prior
from redream.distillation.loop import Distillation
from redream.evaluation.scorer import RenderableAsset, objects_of, true_objects
from redream.evaluation.trials import method_settings
from redream.runs.run import Run
from redream.scoring.metrics import clip_score, silhouette_iou
from redream.stack.vocabulary import parse_prompt


def away(context: Context) -> Outcome:
    """Does the object follow its prompt where the asset does not? (ReDream fig. 7)"""
    asset = best_asset(context, context.assets[0])
    rows, metrics = [Row(f"the asset:\n{asset.caption}", asset.views.images)], {}
    for prompt in context.prompts:
        generated = generate(context, prompt, asset)[0]
        of_prompt = dict(generated.scores)
        of_prompt["IoU with the asset"] = silhouette_iou(generated.views.opacity, asset.views.opacity)
        of_prompt["CLIP a of the asset"] = context.clip_scores(asset.views.images, prompt)["CLIP a"]
        rows.append(Row(label_of(prompt, of_prompt), generated.views.images))
        metrics |= prefixed(prompt, of_prompt)
    return Outcome(rows, metrics)


def assets(context: Context) -> Outcome:
    """Does the asset show in the object? (ReDream fig. 8) If so, silhouettes fit their own asset better than the others."""
    rows, metrics = [], {}
    library = [best_asset(context, query) for query in context.assets]
    for prompt in context.prompts:
        for number, asset in enumerate(library):
            generated = generate(context, prompt, asset)[0]
            overlaps = [silhouette_iou(generated.views.opacity, other.views.opacity) for other in library]
            others = overlaps[:number] + overlaps[number + 1 :]
            of_object = generated.scores | {"IoU with the asset": overlaps[number]}
            of_object |= {"IoU with the others": mean(others)} if others else {}
            rows += [Row(f"asset {number + 1}:\n{asset.caption}", asset.views.images)]
            rows += [Row(label_of(prompt, of_object), generated.views.images)]
            metrics |= prefixed(f"{prompt} from {number + 1}, {asset.caption}", of_object)
    return Outcome(rows, metrics)


PARTICLES = (2, 4)  # in one run
CLIPS = ("CLIP a", "CLIP b")


def particles(context: Context, initialise: bool = True) -> Outcome:
    """More particles, more diversity, and the same quality? (ReDream E.7, PD D.3)

    By default the particles of a run start from its assets in turn, the best first, and a run of one from the best. So
    beside "seeds" there are "starts": as many runs of one particle, from those assets in turn. Without a start
    (`initialise` off) only the variational score that they share distinguishes a run's particles from as many runs. The prior
    is adapted to the same assets in all of them, in another order where the start is another.
    """
    rows, metrics, by_group = [], {}, {}  # by_group: group → metrics of each prompt
    start = "from assets" if initialise else "from nothing"
    for prompt in context.prompts:
        for group, objects in _groups(context, prompt, initialise).items():
            name = f"{start}, {group}"
            of_group = {key: mean(o.scores[key] for o in objects) for key in CLIPS} | distances(context.clip, objects)
            by_group.setdefault(name, []).append(of_group)
            metrics |= prefixed(f"{prompt}, {name}", of_group)
            rows.append(Row(label_of(f"{prompt}: {name}", of_group).replace("\n", ", ")))
            rows += [Row(f"{name}, {number}", o.views.images) for number, o in enumerate(objects, 1)]
    for name, of_prompts in by_group.items():
        metrics |= prefixed(name, {key: mean(one[key] for one in of_prompts) for key in of_prompts[0]})
    return Outcome(rows, metrics | _group_changes(metrics, start, set(by_group)))


def _groups(context: Context, prompt: str, initialise: bool) -> dict[str, list[GeneratedObject]]:
    """Objects of a prompt in groups of equal size: runs with other seeds, with other starts too, and particles of a run."""
    seeds = [context.settings.seed + number for number in range(max(PARTICLES))]
    single = [generate(context, prompt, seed=seed, initialise=initialise)[0] for seed in seeds]
    groups = {f"{n} seeds": single[:n] for n in PARTICLES}
    if initialise:
        uids = retrieved_uids(context, prompt)
        orders = [
            uids[i % len(uids) :] + uids[: i % len(uids)] for i in range(len(seeds))
        ]  # each of them first in turn
        starts = [
            run if order == uids else generate(context, prompt, uids=order, seed=seed, initialise=True)[0]
            for run, order, seed in zip(single, orders, seeds, strict=True)
        ]
        groups |= {f"{n} starts": starts[:n] for n in PARTICLES}
    return groups | {f"{n} particles": generate(context, prompt, particles=n, initialise=initialise) for n in PARTICLES}


def _group_changes(metrics: Metrics, start: str, groups: set[str]) -> Metrics:
    """Changes of CLIP scores, in per cent, and of distances between those groups that there are."""
    changes = {}
    pairs = (("starts", "seeds"), ("particles", "seeds"), ("particles", "starts"))
    for n, (kind, other) in itertools.product(PARTICLES, pairs):
        name, base = f"{start}, {n} {kind}", f"{start}, {n} {other}"
        if {name, base} <= groups:  # from nothing there are no starts
            ratios = {clip: metrics[f"{name}: {clip}"] / metrics[f"{base}: {clip}"] for clip in CLIPS}
            change = {f"{clip}, change in %": 100 * (quotient - 1) for clip, quotient in ratios.items()}
            change["distance, difference"] = metrics[f"{name}: distance"] - metrics[f"{base}: distance"]
            changes |= prefixed(f"{name} against {n} {other}", change)
    return changes


MOMENTS = (0.05, 0.15, None, 0.5, 0.75, 1.0)  # fractions of the iterations; None: τ
FRONT_AND_BEHIND = [0, 3]  # of the eight views


def progress(context: Context) -> Outcome:
    """What is there when, with assets at the start, without, and without retrieval at all? (ReDream fig. 10)"""
    rows, metrics = [], {}
    warmup = context.settings.initialisation.warmup
    fractions = [warmup if fraction is None else fraction for fraction in MOMENTS]
    moments = [max(1, round(fraction * context.settings.iterations)) for fraction in fractions]
    for prompt in context.prompts:
        text = context.parsed(prompt)
        rows.append(Row(prompt))
        for method in ("redream", "redream-no-init", "vsd"):
            log(f"{prompt}, {method}")
            settings = method_settings(method, context.preset)
            retrieved = retrieve_oriented(context, prompt) if settings.uses_assets else []
            distillation, images = Distillation(context.prior, settings, text, retrieved), {}
            for step in distillation.steps():
                if step.iteration in moments:
                    images[step.iteration] = render_ring(distillation.particles[0], settings).images
                    score = clip_score(context.clip, images[step.iteration], text)
                    metrics[f"{prompt}, {method}, iteration {step.iteration}: CLIP a"] = score
            rows.append(Row(method, torch.cat([images[moment][FRONT_AND_BEHIND] for moment in moments])))
    ends = ["" if moment is not None else ", the warm-up ends" for moment in MOMENTS]
    heads = [f"{fraction:.0%}{end}: {m}" for fraction, end, m in zip(fractions, ends, moments, strict=True)]
    return Outcome(rows, metrics, tuple(heads))


def views3d(context: Context) -> Outcome:
    """How far are views of the objects from samples of the prior? (PD table 4)

    The first particle of each run, ten views at 30° elevation over backgrounds as in training; the runs as in `beside`,
    of all prompts. Samples of plain prompts mostly show fronts, so a face on every side brings views closer to them: the
    distance is to be read beside the Janus rate.
    """
    runs, prompts, folders = _comparable_runs(context)
    seed = context.settings.seed
    log(f"{len(runs)} methods, {len(prompts)} prompts: {', '.join(prompts)}")
    samples = [sample_prior(context, prompt, context.samples, seed) for prompt in prompts]
    sets = {"samples, another seed": [sample_prior(context, prompt, TEN_VIEWS, seed + 1) for prompt in prompts]}
    for method, by_prompt in runs.items():
        log(method)
        sets[method] = [render_ten_views(by_prompt[prompt], seed) for prompt in prompts]
    return replace(compare_with_samples(context, prompts, samples, sets), prompts=prompts, folders=folders)


FRONT_SIDE_BACK = [0, 2, 4]  # of the eight views
PROMPTS_BESIDE = 10


def beside(context: Context) -> Outcome:
    """An evaluation's methods on equal prompts, beside the best asset and the true object.

    The runs are those of the folder's table.json with its first seed, finished and of equal settings but for the method:
    of the first ten prompts that all methods have, their first particles.
    """
    runs, prompts, folders = _comparable_runs(context, PROMPTS_BESIDE)
    rows, has_truth = [], True
    for prompt in prompts:
        log(prompt)
        truth, _ = true_objects(context.models.stack, parse_prompt(prompt, context.models.stack.vocabulary))
        has_truth = has_truth and bool(truth)
        objects = [objects_of(by_prompt[prompt])[0][0] for by_prompt in runs.values()]
        objects += [RenderableAsset(asset, context.settings) for asset in truth[:1]]
        rings = [best_asset(context, prompt).views, *(render_ring(one, context.settings) for one in objects)]
        rows.append(Row(prompt, torch.cat([views.images[FRONT_SIDE_BACK] for views in rings])))
    heads = ("the best asset", *runs, *["the true object"] * has_truth)
    return Outcome(rows, {"prompts": float(len(prompts))}, heads, prompts, folders)


OBJECTS_DRAWN = 20  # of each method


def blind(context: Context) -> Outcome:
    """Can a person name an object whose prompt and method are hidden?

    The first particles of finished runs of each method in the folder's table.json, of any prompt and seed, drawn and
    shuffled by `--seed`. The picture numbers them; blind.json has their prompts and folders in the same order.
    """
    table, drawn = read_table(context.sweep), []
    generator = torch.Generator().manual_seed(context.settings.seed)
    by_seed = [finished_runs(context, table, seed) for seed in table["seeds"]]
    for method in by_seed[0]:
        runs = [pair for by_method in by_seed for pair in by_method[method].items()]  # (prompt, run)
        if len(runs) < OBJECTS_DRAWN:
            raise ExperimentError(
                f"{len(runs)} finished runs of {method} are too few to draw {OBJECTS_DRAWN} from; evaluate more of them."
            )
        drawn += [runs[i] for i in torch.randperm(len(runs), generator=generator)[:OBJECTS_DRAWN]]
    drawn = [drawn[i] for i in torch.randperm(len(drawn), generator=generator)]
    rings = [render_ring(objects_of(run)[0][0], run.request.settings) for _, run in drawn]
    rows = [Row(str(number), views.images) for number, views in enumerate(rings, 1)]
    prompts, folders = zip(*((prompt, _relative_folder(context, run)) for prompt, run in drawn))
    return Outcome(rows, {"objects": float(len(rows))}, (), prompts, folders)


def _comparable_runs(
    context: Context, limit: int | None = None
) -> tuple[dict[str, dict[str, Run]], tuple[str, ...], tuple[str, ...]]:
    """The finished runs of the evaluation with its first seed, method → prompt → run; the first `limit` prompts that all
    methods have; and the folders of their runs. Raises `ExperimentError` if there are none."""
    table = read_table(context.sweep)
    runs = finished_runs(context, table, table["seeds"][0])
    first = next(iter(runs.values()), {})
    prompts = tuple(p for p in first if all(p in by_prompt for by_prompt in runs.values()))[:limit]
    if not prompts:
        name = context.sweep.name
        raise ExperimentError(f"The folder {name} has no finished runs of a prompt that all its methods have.")
    folders = tuple(_relative_folder(context, by_prompt[p]) for by_prompt in runs.values() for p in prompts)
    return runs, prompts, folders


def _relative_folder(context: Context, run: Run) -> str:
    """A run's folder within the evaluation's."""
    return run.folder.relative_to(context.sweep.resolve()).as_posix()
