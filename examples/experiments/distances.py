"""How unlike pictures and objects are, by their CLIP embeddings."""

import itertools
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from examples.experiments.lab import Figures, Lab, Outcome, Row, mean, under
from examples.experiments.objects import AROUND, Made
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
