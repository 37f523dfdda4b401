"""Distances between images and between objects, by their CLIP embeddings."""

import itertools
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from examples.experiments.context import Context, Metrics, Outcome, Row, mean, prefixed
from examples.experiments.objects import RING_VIEWS, GeneratedObject
from redream.retrieval.clip import Clip


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
    """Return the mean of 1 − cosine over all pairs; 0 for a single vector."""
    unit = torch.nn.functional.normalize(vectors, dim=1)
    pairs = list(itertools.combinations(range(len(unit)), 2))
    return mean(float(1 - unit[i] @ unit[j]) for i, j in pairs) if pairs else 0.0


def distances(clip: Clip, objects: Sequence[GeneratedObject]) -> Metrics:
    """Return the pairwise distance of objects' mean embeddings over eight views, and the mean of that of each view."""
    features = torch.stack([clip.embed_images(o.views.images) for o in objects]).cpu()  # (objects, 8, d)
    by_view = mean(pairwise(features[:, view]) for view in range(RING_VIEWS))
    return {"distance": pairwise(features.mean(dim=1)), "distance by view": by_view}


PROMPTS_SHOWN = 4


def compare_with_samples(
    context: Context,
    prompts: Sequence[str],
    samples: Sequence[Tensor],
    sets: dict[str, list[Float[Tensor, "n 3 h w"]]],
) -> Outcome:
    """Compare sets of images, each with an equal number per prompt, with the prior's own `samples` per prompt."""

    def features(batches: Iterable[Tensor]) -> Tensor:
        return context.clip.embed_images(torch.cat(list(batches))).cpu()

    rows, metrics = [], {"samples of the prior": float(sum(map(len, samples)))}
    sample_features = features(samples)
    for name, batches in sets.items():
        of_set = {"pictures": float(sum(map(len, batches)))}
        of_set["CLIP-feature distance"] = frechet(features(batches), sample_features)
        scores = [context.clip_scores(images, prompt) for images, prompt in zip(batches, prompts, strict=True)]
        of_set |= {key: mean(s[key] for s in scores) for key in scores[0]}
        of_set["distance in a prompt"] = mean(pairwise(features([images])) for images in batches)
        metrics |= prefixed(name, of_set)
    for number, prompt in enumerate(prompts[:PROMPTS_SHOWN]):
        columns = len(next(iter(sets.values()))[number])
        rows += [Row(prompt), Row("samples of the prior", samples[number][:columns])]
        rows += [Row(name, batches[number]) for name, batches in sets.items()]
    return Outcome(rows, metrics)
