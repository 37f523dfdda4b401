"""Samples of the 2D prior, adapted to assets or not."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from examples.experiments.context import Context
from redream.distillation import adaptation
from redream.distillation.adaptation import Adaptation, CaptionedAsset, StoredViews, sample_background, store_views
from redream.distillation.generators import Generators
from redream.distillation.prior import Prior
from redream.scene.cameras import VIEWS, CameraRange, view_prompt

BATCH = 8  # images


def adapt_prior(context: Context, assets: Sequence[CaptionedAsset], **changes) -> Adaptation:
    """Adapt the prior to these assets (Eq. 5) and return ω and e_ψ; there is one adapter at a time."""
    settings = context.settings.with_(**changes)
    adapted = Adaptation(context.prior, settings, assets, Generators(settings.seed, context.prior.device))
    while not adapted.finished:
        adapted.step()
    return adapted


@torch.no_grad()
def embed_view(prior: Prior, prompt: str, view: str, adapted: Adaptation | None) -> Float[Tensor, "1 l d"]:
    """Embed a prompt in a view: c_ψ ("c, front view") before adaptation, cat(e_ψ, c) after it."""
    return prior.embed([view_prompt(prompt, view)]) if adapted is None else prior.embed([prompt], adapted.prefix(view))


def sample(
    prior: Prior, embedding: Float[Tensor, "1 l d"], count: int, seed: int, adapted: Adaptation | None, steps: int = 25
) -> Float[Tensor, "n 3 h w"]:
    """Sample by DPM-Solver++, from equal noise for equal seeds."""
    with prior.using(None if adapted is None else adaptation.ADAPTER):
        generator = torch.Generator().manual_seed(seed)
        return prior.sample(embedding.expand(count, -1, -1), generator, steps).cpu()


def sample_prior(context: Context, prompt: str, count: int, seed: int) -> Float[Tensor, "n 3 h w"]:
    """Sample the unadapted prior for the plain prompt in 50 steps (PD K)."""
    embedding = context.prior.embed([context.parsed(prompt)])
    generator = torch.Generator().manual_seed(seed)
    batches = [min(BATCH, count - start) for start in range(0, count, BATCH)]
    return torch.cat([context.prior.sample(embedding.expand(n, -1, -1), generator, 50).cpu() for n in batches])


@torch.no_grad()
def view_loss(context: Context, asset: CaptionedAsset, adapted: Adaptation | None) -> float:
    """Return Eq. 5 on fresh renders of an asset, the timesteps equally spaced: equal noise before and after adaptation."""
    prior, generator = context.prior, torch.Generator().manual_seed(context.settings.seed + 1)
    cameras = CameraRange.of(context.settings.cameras).uniform(context.settings.adaptation.views, generator)
    stored: StoredViews = store_views(asset.asset, cameras, prior.size)
    rows = range(len(stored.cameras))
    latents = prior.encode(stored.on(rows, sample_background(generator, len(rows))))  # (n, c, hl, wl)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    # Views are in the order of their azimuths: the timesteps are shuffled among them.
    t = (torch.randperm(len(rows), generator=generator) + 0.5) / len(rows) * prior.timesteps
    t = t.long().to(latents.device)  # (n,)
    by_view = {view: embed_view(prior, asset.caption, view, adapted) for view in VIEWS}
    embeddings = torch.cat([by_view[camera.view] for camera in stored.cameras])  # (n, l, d)
    with prior.using(None if adapted is None else adaptation.ADAPTER):
        batches = zip(*(x.split(BATCH) for x in (prior.add_noise(latents, t, noise), t, embeddings)), strict=True)
        predicted = torch.cat([prior.predict_noise(*batch) for batch in batches])
    return float((predicted - noise).square().mean())
