"""The papers' experiments with samples of the 2D prior."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from examples.experiments.context import Context, Metrics, Outcome, Row, label_of, log, mean, prefixed
from examples.experiments.distances import compare_with_samples
from examples.experiments.objects import LibraryAsset, best_asset, retrieve_oriented
from examples.experiments.samples import BATCH, adapt_prior, embed_view, sample, sample_prior, view_loss
from redream.distillation.adaptation import Adaptation
from redream.distillation.generators import Generators
from redream.distillation.guidance import gradient_loss, sds_gradient, vsd_gradient
from redream.distillation.prior import Prior
from redream.distillation.variational import Variational
from redream.scene.cameras import VIEWS, Camera
from redream.scoring.metrics import view_accuracy

AZIMUTH_DEG = {"front": 0.0, "side": 90.0, "back": 180.0}
FIXED = Camera(0.0, 0.0, 1.0, 40.0)  # for functions that need a camera where nothing is rendered
VIEW_STEPS = (  # (view, next view, weight of the next view)
    ("back", "side", 0.0),
    ("back", "side", 0.5),
    ("side", "front", 0.0),
    ("side", "front", 0.5),
    ("side", "front", 1.0),
)
ADAPTATIONS = {  # state of the prior → whether its prefixes are learned; None: no adaptation
    "before": None,
    "after": True,
    "after, prefixes frozen": False,
}


def views(context: Context) -> Outcome:
    """Does the prior show the requested view, before and after adaptation? (ReDream fig. 4 and 14)

    Embeddings are interpolated from back through side to front, from equal noise; view accuracy is that of the three views.
    """
    rows, accuracies = [], {}
    for prompt in context.prompts:
        log(prompt)
        text, assets = context.parsed(prompt), retrieve_oriented(context, prompt)
        rows.append(Row(prompt))
        for state, prefix_learned in ADAPTATIONS.items():
            changes = {"adaptation": {"prefix_learned": prefix_learned}}
            adapted = None if prefix_learned is None else adapt_prior(context, assets, **changes)
            batches = _sample_view_steps(context, text, adapted)
            rows.append(Row(state, torch.cat([batch[:2] for batch in batches])))
            for view, images in zip(("back", "side", "front"), batches[::2], strict=True):
                cameras = [Camera(AZIMUTH_DEG[view], 0.0, 1.0, 40.0)] * len(images)
                for clip in ("a", "b"):
                    accuracy = view_accuracy(context.models.clip(clip), images, cameras, text)
                    accuracies.setdefault(f"{state}: {view} by CLIP {clip}", []).append(accuracy)
    metrics = {key: mean(values) for key, values in accuracies.items()}
    for state, clip in itertools.product(ADAPTATIONS, ("a", "b")):
        metrics[f"{state}: all views by CLIP {clip}"] = mean(metrics[f"{state}: {v} by CLIP {clip}"] for v in VIEWS)
    return Outcome(rows, metrics, ("back", "between", "side", "between", "front"))


def _sample_view_steps(context: Context, text: str, adapted: Adaptation | None) -> list[Float[Tensor, "n 3 h w"]]:
    """Samples along `VIEW_STEPS`."""
    by_view = {view: embed_view(context.prior, text, view, adapted) for view in VIEWS}  # (1, l, d) each
    embeddings = [torch.lerp(by_view[view], by_view[other], weight) for view, other, weight in VIEW_STEPS]
    return [sample(context.prior, embedding, BATCH, context.settings.seed, adapted) for embedding in embeddings]


UNDER_HEADS = [7, 0, 1, 1, 2, 3, 3, 4, 5]  # of the eight views: front, side and back with their neighbours


def overfit(context: Context) -> Outcome:
    """Does adaptation to one asset show in samples of other prompts? (ReDream fig. 15)

    The similarity is the mean cosine between samples and the asset's views. Losses are those of Eq. 5 on fresh renders,
    of the asset and of others that the prior was not adapted to.
    """
    assets = [best_asset(context, query) for query in context.assets]
    asset, features = assets[0], context.clip.embed_images(assets[0].views.images)  # (8, d)
    rows = [Row(f"the asset:\n{asset.caption}", asset.views.images[UNDER_HEADS])]
    log(f"adaptation to: {asset.caption}")
    states = {"before": None, "after": adapt_prior(context, [asset.captioned])}
    metrics = _view_losses(context, assets, states)
    for prompt in context.prompts:
        for state, adapted in states.items():
            embeddings = [embed_view(context.prior, context.parsed(prompt), view, adapted) for view in VIEWS]
            batches = [sample(context.prior, e, BATCH, context.settings.seed, adapted) for e in embeddings]
            images = torch.cat(batches)  # (24, 3, h, w)
            of_prompt = context.clip_scores(images, prompt)
            of_prompt["similarity to the asset"] = float((context.clip.embed_images(images) @ features.T).mean())
            rows.append(Row(label_of(f"{prompt}: {state}", of_prompt), torch.cat([batch[:3] for batch in batches])))
            metrics |= prefixed(f"{prompt}, {state}", of_prompt)
    return Outcome(rows, metrics, VIEWS)


def _view_losses(context: Context, assets: list[LibraryAsset], states: dict[str, Adaptation | None]) -> Metrics:
    """Eq. 5 of each asset in each state of the prior, which is adapted to the first asset."""
    losses = {}
    for state, adapted in states.items():
        for number, asset in enumerate(assets):
            name = "the asset" if number == 0 else f"unseen {number}, {asset.caption}"
            losses[f"loss on renders of {name}: {state}"] = view_loss(context, asset.captioned, adapted)
    return losses


LEARNING_RATE_2D = 0.03  # PD G
T_2D = (0.02, 0.98)  # PD G: not annealed
VARIATIONAL_RATE_2D = 1e-3  # PD G: 1e-4 over 6,000 steps; ours over a tenth of them
METHODS_2D = {  # name → (guidance, whether there is a variational score)
    "SDS, 100": (100.0, False),
    "SDS, 7.5": (7.5, False),
    "VSD, 7.5": (7.5, True),
}


def distil2d(context: Context) -> Outcome:
    """SDS and VSD where nothing is 3D: g(θ) = θ, eight latents per prompt (PD fig. 3, table 6)."""
    seed = context.settings.seed
    samples = [sample_prior(context, prompt, context.samples, seed) for prompt in context.prompts]
    sets = {"samples, another seed": [sample_prior(context, prompt, BATCH, seed + 1) for prompt in context.prompts]}
    for name, (guidance, is_variational) in METHODS_2D.items():
        for prompt in context.prompts:
            log(f"{prompt}, {name}")
            sets.setdefault(name, []).append(_distilled_images(context, prompt, guidance, is_variational))
    return compare_with_samples(context, context.prompts, samples, sets)


def _distilled_images(context: Context, prompt: str, guidance: float, is_variational: bool) -> Float[Tensor, "n 3 h w"]:
    """Images of latents that `distil` makes from noise."""
    prior, text = context.prior, context.parsed(prompt)
    generators = Generators(context.settings.seed, prior.device)
    shape = (BATCH, prior.unet.config.in_channels, prior.latent_size, prior.latent_size)
    start = torch.randn(shape, generator=generators.host).to(prior.device)
    settings = context.settings.with_(variational={"learning_rate": VARIATIONAL_RATE_2D})
    variational = Variational(prior, settings, text, generators) if is_variational else None
    latents = distil(prior, text, start, context.settings.iterations, guidance, generators.host, variational)
    with torch.no_grad():
        return prior.decode(latents).cpu()


def distil(
    prior: Prior,
    prompt: str,
    start: Float[Tensor, "b c h w"],
    steps: int,
    guidance: float,
    generator: torch.Generator,
    variational: Variational | None = None,
) -> Float[Tensor, "b c h w"]:
    """Return latents after `steps` of Adam from `start`: VSD with a variational score, which learns beside them, else SDS.

    θ ← θ − η w(t) (ε̂ − ε_q),    ε_q = ε_{φ,ζ}(x_t, t, y) or ε,    t ~ U(0.02, 0.98) for each latent
    """
    latents = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([latents], lr=LEARNING_RATE_2D)
    embeddings, empty = (prior.embed([text] * len(start)) for text in (prompt, ""))  # (b, l, d): y, ∅
    for _ in range(steps):
        fraction = T_2D[0] + (T_2D[1] - T_2D[0]) * torch.rand(len(start), generator=generator)
        t = (fraction * (prior.timesteps - 1)).long().to(start.device)  # (b,)
        noise = torch.randn(start.shape, generator=generator).to(start)
        noised, sigma = prior.add_noise(latents.detach(), t, noise), prior.alpha_sigma(t)[1]
        with torch.no_grad():
            prior_noise = prior.guided_noise(noised, t, embeddings, empty, guidance)
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
