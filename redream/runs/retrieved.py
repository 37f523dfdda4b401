"""The assets a run starts from: found in the library or given, loaded, and turned so that their front faces +x."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from redream.retrieval.build import ring_pictures
from redream.retrieval.index import AssetUnavailable, Hit, retrieved_json
from redream.retrieval.orientation import Alignment, align
from redream.runs.run import UploadedAsset
from redream.scene import assets
from redream.scene.assets import Asset
from redream.scene.glb_validation import GlbError
from redream.settings import Settings
from redream.stack.models import Models


@dataclass(frozen=True)
class Found:
    """An asset and what retrieved.json says of it: uid, caption, author, license, similarity, source."""

    entry: dict
    asset: Asset


def search(prompt: str, models: Models, settings: Settings) -> tuple[list[Found], list[str]]:
    """The best assets of the library that can be had, and a sentence for each better one that cannot.

    Raises the last one's error if there is none.
    """
    hits = models.index.search(
        prompt, models.clip("retrieval"), settings.retrieval.candidates, settings.retrieval.candidates
    )
    found, sentences = [], []
    for hit in hits:
        if len(found) == settings.retrieval.assets:
            break
        try:
            found.append(Found(_entry(hit), assets.load(models.index.asset_path(hit.uid))))
        except (AssetUnavailable, assets.AssetError, GlbError) as error:
            sentences.append(f"The asset “{hit.caption}” is left out: {error}")
            unusable = error
    if not found:
        raise unusable
    return found, sentences


def again(entries: Sequence[dict], models: Models) -> list[Found]:
    """The assets that a run found before."""
    return [Found(entry, assets.load(models.index.asset_path(entry["uid"]))) for entry in entries]


def chosen(uids: Sequence[str], prompt: str, models: Models) -> list[Found]:
    """Assets of the library that somebody chose, compared with the prompt. Raises as `redream.retrieval.index` does."""
    hits = [models.index.hit(uid, prompt, models.clip("retrieval")) for uid in uids]
    return [Found(_entry(hit), assets.load(models.index.asset_path(hit.uid))) for hit in hits]


def given(brought: Sequence[UploadedAsset], folder: Path, prompt: str, models: Models) -> list[Found]:
    """Assets somebody brought along, whose files are in `folder`, compared with the prompt as the library's are."""
    clip, found = models.clip("retrieval"), []
    for b in brought:
        asset = assets.load(folder / b.file)
        image = clip.embed_images(ring_pictures(asset, clip.size)).mean(dim=0)  # (d,)
        cosine = image @ clip.embed_texts([prompt])[0] / image.norm()
        hit = Hit(Path(b.file).stem, b.caption, "", "", float(cosine), b.name, 0.0)
        found.append(Found(_entry(hit), asset))
    return found


def turned(found: Found, models: Models, settings: Settings) -> tuple[Found, Alignment]:
    """The same with its front at +x, and how that was found (ReDream, appendix B)."""
    alignment = align(found.asset, found.entry["caption"], models.clip("retrieval"), settings)
    return Found(found.entry, found.asset.turned(alignment.yaw_deg)), alignment


def as_reference(found: Found):
    """What distillation is given: a `redream.distillation.adaptation.CaptionedAsset`."""
    from redream.distillation.adaptation import CaptionedAsset  # imports diffusers, which takes seconds

    return CaptionedAsset(found.asset, found.entry["caption"])


def _entry(hit: Hit) -> dict:
    return retrieved_json("", [hit])["assets"][0]
