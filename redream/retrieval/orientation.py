"""Find an asset's semantic front by CLIP, so that it can be turned to face +x (ReDream, appendix B)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from redream.retrieval.clip import Clip
from redream.scene.assets import Asset
from redream.scene.cameras import VIEWS, Camera, score_ring, view_name
from redream.settings import Settings

TEMPLATES = ("{view} view of {caption}", "{caption}, {view} view")  # their embeddings are averaged
BACKGROUND = 0.93  # light gray, so that white things keep an outline
CLEAR_MARGIN = 0.2  # ours: below it there is "no clear front"


@dataclass(frozen=True)
class Alignment:
    """The detected front: `asset.rotated(yaw_deg)` faces +x."""

    yaw_deg: float  # in (−180, 180]; 0 where there is no clear front
    margin: float  # lead over every yaw at least 90° away; 1 is the lead of an object whose views CLIP names perfectly
    clear: bool


def align(asset: Asset, caption: str, clip: Clip, settings: Settings, *, views: int = 24) -> Alignment:
    """The yaw whose views agree best with CLIP's names for them, from `views` equally spaced azimuths.

        p_k(v) = softmax_v CLIP(view k, "v view of caption"),   score(φ) = mean_k p_k(view name of k if the front is at φ)

    Similarities are centred over the ring before the softmax (ours): a CLIP that finds everything rather front-like
    would otherwise decide nothing.
    """
    cameras = score_ring(views, settings.output)
    images = clip.embed_images(pictures(asset, cameras, clip.size))  # (k, d)
    similarity = images @ name_embeddings(caption, clip).T  # (k, 3)
    similarity = similarity - similarity.mean(dim=0)
    chance = torch.softmax(clip.scale * similarity, dim=1)  # (k, 3)
    return best_yaw(chance.cpu())


def best_yaw(chance: Float[Tensor, "k 3"], clear_margin: float = CLEAR_MARGIN) -> Alignment:
    """The yaw, from the probability of each name in `VIEWS` for the views of `ring(k, …)`."""
    count = len(chance)
    names = torch.tensor([VIEWS.index(view_name(360 * i / count)) for i in range(count)])  # (k,) if the front is at 0°
    # Row j: the names that the k views have if the front is at azimuth 360° j / k.
    named = torch.stack([names.roll(j) for j in range(count)])  # (k, k)
    score = chance[torch.arange(count), named].mean(dim=1)  # (k,)
    ideal = (named == names).float().mean(dim=1)  # (k,) the scores of certainty with the front at 0°

    best = int(score.argmax())
    steps = torch.arange(count)
    away = torch.minimum(steps, count - steps) * 360 / count >= 90  # (k,)
    margin = float(score[best] - score.roll(-best)[away].max()) / float(1 - ideal[away].max())
    if margin < clear_margin:
        return Alignment(0.0, margin, False)
    front_deg = 360 * best / count
    return Alignment(180 - (180 + front_deg) % 360, margin, True)  # turned back by where the front is


def name_embeddings(caption: str, clip: Clip) -> Float[Tensor, "3 d"]:
    """Unit embeddings of "front view of caption" and so on, in the order of `VIEWS`."""
    texts = [template.format(view=view, caption=caption) for view in VIEWS for template in TEMPLATES]
    embeddings = clip.embed_texts(texts).unflatten(0, (len(VIEWS), len(TEMPLATES)))  # (3, templates, d)
    return torch.nn.functional.normalize(embeddings.mean(dim=1), dim=-1)


def pictures(asset: Asset, cameras: Sequence[Camera], size: int) -> Float[Tensor, "k 3 size size"]:
    """Renders of the asset over light gray, one per camera, as CLIP sees them."""
    background = torch.full((3,), BACKGROUND)
    return torch.cat([asset.render(camera, size, background)[0] for camera in cameras])  # (k, 3, size, size)
