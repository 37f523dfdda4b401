"""Scores of one object: fit to the prompt (CLIP score), consistency (A-LPIPS), one front (view accuracy, Janus rate).

All are computed from 120 views once around the object. None suffices alone: a gray ball has a perfect A-LPIPS.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from redream.errors import RedreamError
from redream.retrieval.clip import Clip
from redream.scene.cameras import VIEWS, Camera, score_ring, view_prompt
from redream.settings import Settings

SCORES_VERSION = 2  # raised when what a score means changes: values of another version are made again
AZIMUTHS = 120  # views once around, 3° apart
CLEAR_DEG = 15.0  # a view this far from a border between view names is clearly the one or the other
BEHIND_DEG = 105.0  # from this azimuth on a view is clearly of the back half
FACE_DEG = 9.0  # an arc of views this wide counts as a face
CHUNK = 40  # pairs of pictures compared at once

# pictures (b, 3, h, w) in [0, 1], twice → distances (b,) ≥ 0
Distance = Callable[[Tensor, Tensor], Tensor]
# camera → RGB (1, 3, h, w) over white and opacity (1, 1, h, w), both in [0, 1]
RenderFunction = Callable[[Camera], tuple[Tensor, Tensor]]


class MetricsError(RedreamError):
    """A score that cannot be computed; the message says why."""


# ---------------------------------------------------------------- pictures → numbers


def clip_score(clip: Clip, images: Float[Tensor, "b 3 h w"], prompt: str) -> float:
    """Mean cosine of each picture with the prompt, in [−1, 1]; higher is better."""
    return _mean_cosine(clip.embed_images(images), clip.embed_texts([prompt]))


def view_accuracy(clip: Clip, images: Float[Tensor, "b 3 h w"], cameras: Sequence[Camera], prompt: str) -> float:
    """Share of views whose zero-shot name is the camera's, in [0, 1]; for objects with a clear front.

    The names compete as "PROMPT, front view" and so on. Only views at least 15° from a border between names count: 84
    of a ring of 120 (21 fronts, 42 sides, 21 backs), so a CLIP that always says the same gets 1/4, 1/2 or 1/4. Raises
    `MetricsError` if no view counts.
    """
    return accuracy_of_names(view_names(clip, clip.embed_images(images), prompt), cameras)


def view_names(clip: Clip, images: Float[Tensor, "b d"], prompt: str) -> list[str]:
    """The zero-shot name of each embedded view: front, side or back."""
    names = clip.embed_texts([view_prompt(prompt, view) for view in VIEWS])  # (3, d)
    return [VIEWS[guess] for guess in (images @ names.T).argmax(dim=1).tolist()]


def accuracy_of_names(names: Sequence[str], cameras: Sequence[Camera]) -> float:
    """View accuracy of zero-shot names. Raises `MetricsError` if no view counts."""
    right = [name == camera.view for name, camera in zip(names, cameras, strict=True) if clearly_named(camera)]
    if not right:
        raise MetricsError("None of these views is at least 15° from a border between front, side and back.")
    return sum(right) / len(right)


def janus_rate(names: Sequence[str], cameras: Sequence[Camera]) -> float:
    """Share of the views from behind (|azimuth| ≥ 105°) that are called front, in [0, 1]; 1 for a front all round."""
    fronts = _fronts_behind(names, cameras)
    return sum(fronts) / len(fronts)


def janus_count(names: Sequence[str], cameras: Sequence[Camera]) -> int:
    """Separate arcs, at least 9° wide, of the views from behind that are called front; 2 if all of them are.

    The cameras are equally spaced, the first one at azimuth 0°; each view stands for an arc as wide as their distance.
    """
    fronts, step = _fronts_behind(names, cameras), 360 / len(cameras)
    if all(fronts):
        return 2
    arcs = [len(list(group)) * step for front, group in itertools.groupby(fronts) if front]
    return sum(arc >= FACE_DEG - 1e-6 for arc in arcs)


def _fronts_behind(names: Sequence[str], cameras: Sequence[Camera]) -> list[bool]:
    pairs = zip(names, cameras, strict=True)
    return [name == "front" for name, camera in pairs if abs((camera.azimuth_deg + 180) % 360 - 180) >= BEHIND_DEG]


def clearly_named(camera: Camera) -> bool:
    """Whether the camera is at least 15° away from the borders between view names, which are at ±45° and ±135°."""
    from_border = abs(camera.azimuth_deg % 90 - 45)
    return from_border >= CLEAR_DEG


def a_lpips(net: Distance, images: Float[Tensor, "b 3 h w"]) -> float:
    """Mean perceptual distance of neighbouring views once around, the last one beside the first; lower is steadier.

    A-LPIPS = (1/b) Σ_k d(x_k, x_{k+1 mod b})
    """
    following = images.roll(-1, dims=0)
    pairs = zip(images.split(CHUNK), following.split(CHUNK), strict=True)
    with torch.no_grad():
        return float(torch.cat([net(a, b) for a, b in pairs]).mean())


def silhouette_iou(a: Float[Tensor, "b 1 h w"], b: Float[Tensor, "b 1 h w"], threshold: float = 0.5) -> float:
    """Mean over views of |A ∩ B| / |A ∪ B|, where A and B are the pixels more opaque than `threshold`; 1 if both are
    empty."""
    a, b = (a > threshold).flatten(1), (b.to(a.device) > threshold).flatten(1)  # (b, pixels)
    both, either = (a & b).sum(dim=1), (a | b).sum(dim=1)  # (b,)
    return float(torch.where(either > 0, both / either.clamp(min=1), 1.0).mean())


def coverage(opacity: Float[Tensor, "b 1 h w"]) -> float:
    """Share of the pictures that the object covers, in [0, 1]; near 0 there is no object, near 1 it is a fog."""
    return float(opacity.mean())


# ---------------------------------------------------------------- object → numbers

FROM_VIEW_NAMES = {"view_accuracy": accuracy_of_names, "janus_rate": janus_rate, "janus_count": janus_count}


def score(
    render: RenderFunction,
    prompt: str,
    clips: Mapping[str, Clip],
    nets: Mapping[str, Distance | None],
    settings: Settings,
    has_front: bool | None,
) -> dict[str, float | int | None | dict[str, str]]:
    """All scores of one object from 120 azimuths, rounded to 6 decimals: equal objects have equal scores.

    `render` shows it over white, in pictures of at least 64 px (the CLIPs' own size is best). `clips` and `nets` are
    named ("a", "b"), and so are their scores: clip_a, view_accuracy_a, a_lpips_a … A score that cannot be computed is None,
    and `not_available` says why: a net is None, or the object has no front (`has_front`; None if nobody knows, and
    then what its views are called is measured).
    """
    cameras = score_cameras(settings)
    with torch.no_grad():
        views = [render(camera) for camera in cameras]
    images = torch.cat([image for image, _ in views])  # (120, 3, h, w)
    opacity = torch.cat([opaque for _, opaque in views])  # (120, 1, h, w)

    scores: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name, clip in clips.items():
        embeddings = clip.embed_images(images)  # (120, d)
        scores[f"clip_{name}"] = _mean_cosine(embeddings, clip.embed_texts([prompt]))
        names = view_names(clip, embeddings, prompt)
        for key, metric in FROM_VIEW_NAMES.items():
            if has_front is False:
                scores[f"{key}_{name}"] = None
                reasons[f"{key}_{name}"] = "This kind of object has no front."
            else:
                scores[f"{key}_{name}"] = float(metric(names, cameras))
    for name, net in nets.items():
        if net is None:
            scores[f"a_lpips_{name}"] = None
            reasons[f"a_lpips_{name}"] = "This perceptual net's weights are not here."
        else:
            scores[f"a_lpips_{name}"] = a_lpips(net, images)
    scores["coverage"] = coverage(opacity)
    rounded = {name: value if value is None else round(value, 6) for name, value in scores.items()}
    return {"version": SCORES_VERSION, **rounded, "not_available": reasons}


def score_cameras(settings: Settings) -> list[Camera]:
    """The 120 cameras that scores are made from; the first one sees the front."""
    return score_ring(AZIMUTHS, settings.output)


def _mean_cosine(images: Float[Tensor, "b d"], text: Float[Tensor, "1 d"]) -> float:
    return float((images @ text.T).mean())  # both of unit norm
