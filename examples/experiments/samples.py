"""Pictures of the prior, adapted to assets or not."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from examples.experiments.lab import Lab
from redream.distillation import adaptation
from redream.distillation.adaptation import Adaptation, CaptionedAsset, StoredViews, sample_background, store_views
from redream.distillation.prior import Prior
from redream.scene.cameras import VIEWS

COUNT = 8  # pictures at once


def adapted(lab: Lab, known: Sequence[CaptionedAsset], **changes) -> Adaptation:
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
def view_loss(lab: Lab, reference: CaptionedAsset, learning: Adaptation | None) -> float:
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
        splits = zip(*(x.split(COUNT) for x in (prior.add_noise(latents, t, noise), t, words)), strict=True)
        predicted = torch.cat([prior.predict_noise(*split) for split in splits])
    return float((predicted - noise).square().mean())
