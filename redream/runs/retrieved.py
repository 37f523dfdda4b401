"""The assets a run starts from: retrieved from the library or uploaded, loaded, and oriented so that their front faces +x."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from redream.files import sha256
from redream.retrieval.build import ring_pictures
from redream.retrieval.fetch import AssetUnavailable, AssetUnreachable, FetchProgress, FetchStopped, finished, never
from redream.retrieval.index import Hit, retrieved_json
from redream.retrieval.licences import LicenceError
from redream.retrieval.orientation import Alignment, align
from redream.runs.run import UploadedAsset
from redream.scene.assets import Asset, AssetError
from redream.scene.glb import GlbError
from redream.scene.glb_reader import GlbReader, ReadingStopped
from redream.settings import Settings
from redream.stack.models import Models


@dataclass(frozen=True)
class RetrievedAsset:
    """An asset and its entry in retrieved.json: uid, caption, author, license, similarity, source; the library's: sha256."""

    entry: dict
    asset: Asset

    @property
    def captioned(self):
        """The asset as distillation takes it: a `redream.distillation.adaptation.CaptionedAsset`."""
        from redream.distillation.adaptation import CaptionedAsset  # imports diffusers, which takes seconds

        return CaptionedAsset(self.asset, self.entry["caption"])


def search(prompt: str, models: Models, settings: Settings) -> tuple[list[RetrievedAsset], list[str]]:
    """Return the `settings.retrieval.assets` best assets that can be loaded, and a sentence for each better one that cannot.

    Raises the error of the last one if none can be loaded.
    """
    return finished(searching(prompt, models, settings))


def searching(
    prompt: str,
    models: Models,
    settings: Settings,
    stop: Callable[[], bool] = never,
    commercial_use: bool = False,
) -> Generator[FetchProgress, None, tuple[list[RetrievedAsset], list[str]]]:
    """As `search`, also of those alone whose licence allows commercial use; yields the progress of downloads.

    Candidates without a picture are fetched and looked at first. Raises `FetchStopped` and `LicenceError` too.
    """
    wanted, candidates = settings.retrieval.assets, settings.retrieval.candidates
    licences = models.index.commercial_licences if commercial_use else None
    waiting = models.index.search(prompt, models.clip("retrieval"), candidates, candidates, licences)
    if not waiting:
        raise LicenceError(
            "No asset of the library has a licence that allows commercial use; start a new run that may use all of them."
        )
    failed: dict[str, AssetUnavailable] = {}
    if unseen := [hit.uid for hit in waiting if hit.similarity is None]:
        failed = yield from _look_at(unseen, models, stop)
        waiting = models.index.search(prompt, models.clip("retrieval"), candidates, candidates, licences)
    retrieved, warnings = [], []
    while waiting and len(retrieved) < wanted:
        batch, waiting = waiting[: wanted - len(retrieved)], waiting[wanted - len(retrieved) :]
        failed |= yield from models.index.fetch([hit.uid for hit in batch if hit.uid not in failed], stop)
        with GlbReader() as reader:
            for hit in batch:
                try:
                    if hit.uid in failed:
                        raise failed[hit.uid]
                    retrieved.append(_of_library(_entry(hit), reader, models, stop))
                except (AssetUnavailable, AssetError, GlbError) as error:
                    warnings.append(f"The asset “{hit.caption}” is left out: {error}")
                    last_error = error
        if any(isinstance(error, AssetUnreachable) for error in failed.values()):
            waiting = [hit for hit in waiting if models.index.is_here(hit.uid)]
    if not retrieved:
        raise last_error
    return retrieved, warnings


def _look_at(
    uids: Sequence[str], models: Models, stop: Callable[[], bool]
) -> Generator[FetchProgress, None, dict[str, AssetUnavailable]]:
    """Fetch assets and have the index remember their pictures; yields the progress of downloads, returns {uid: why it could
    not be had}. One that cannot be loaded or remembered is passed over. Raises `FetchStopped`."""
    clip = models.clip("retrieval")
    failed = yield from models.index.fetch(uids, stop)
    with GlbReader() as reader:
        for uid in [uid for uid in uids if uid not in failed]:
            if stop():
                raise FetchStopped("The search for assets was stopped; resume the run to go on.")
            try:
                asset = _load(reader, models.index.asset_path(uid), stop)
                image = clip.embed_images(ring_pictures(asset, clip.size)).mean(dim=0)  # (d,)
                models.index.remember(uid, (image / image.norm()).cpu().numpy())
            except (AssetUnavailable, AssetError, GlbError, OSError):  # OSError: the disk is full
                continue
    return failed


def reload(
    entries: Sequence[dict],
    models: Models,
    stop: Callable[[], bool] = never,
    stop_reading: Callable[[], bool] | None = None,
) -> Generator[FetchProgress, None, list[RetrievedAsset]]:
    """Load the assets of a retrieved.json again; yields the progress of downloads.

    `stop_reading`: asked instead of `stop` once all files are here. Raises `AssetUnavailable`, `AssetError`, `GlbError` or
    `FetchStopped`.
    """
    failed = yield from models.index.fetch([entry["uid"] for entry in entries], stop)
    for error in failed.values():
        raise error
    with GlbReader() as reader:
        return [_of_library(entry, reader, models, stop_reading or stop) for entry in entries]


def by_uid(
    uids: Sequence[str],
    prompt: str,
    models: Models,
    stop: Callable[[], bool] = never,
    stop_reading: Callable[[], bool] | None = None,
) -> Generator[FetchProgress, None, list[RetrievedAsset]]:
    """Load assets of the library by uid, with their similarity to the prompt. Stops, yields and raises as `reload`."""
    entries = [_entry(models.index.hit(uid, prompt, models.clip("retrieval"))) for uid in uids]
    return (yield from reload(entries, models, stop, stop_reading))


def from_upload(
    uploads: Sequence[UploadedAsset],
    folder: Path,
    prompt: str,
    models: Models,
    validated: bool = False,
    stop: Callable[[], bool] = never,
) -> list[RetrievedAsset]:
    """Load uploaded assets from a run's folder, with their similarity to the prompt as the library's have it.

    `validated`: this program has just written the files there; others are validated first. Raises `AssetError`, `GlbError` or
    `FetchStopped`.
    """
    clip, retrieved = models.clip("retrieval"), []
    with GlbReader() as reader:
        loaded = [_load(reader, folder / upload.file, stop, validated) for upload in uploads]
    for upload, asset in zip(uploads, loaded, strict=True):
        image = clip.embed_images(ring_pictures(asset, clip.size)).mean(dim=0)  # (d,)
        similarity = float(image @ clip.embed_texts([prompt])[0] / image.norm())
        hit = Hit(Path(upload.file).stem, upload.caption, "", "", similarity, upload.name, 0.0)
        retrieved.append(RetrievedAsset(_entry(hit), asset))
    return retrieved


def oriented(
    retrieved: RetrievedAsset, models: Models, settings: Settings, known: Alignment | None = None
) -> tuple[RetrievedAsset, Alignment]:
    """Return the asset with its front at +x, and how the front was found (ReDream, appendix B), or is `known`."""
    alignment = known or align(retrieved.asset, retrieved.entry["caption"], models.clip("retrieval"), settings)
    return replace(retrieved, asset=retrieved.asset.rotated(alignment.yaw_deg)), alignment


def _of_library(entry: dict, reader: GlbReader, models: Models, stop: Callable[[], bool]) -> RetrievedAsset:
    """The asset of an entry, whose file is here; the entry names that file's SHA-256 now."""
    path = models.index.asset_path(entry["uid"])
    asset = _load(reader, path, stop)
    return RetrievedAsset(entry | {"sha256": models.index.row(entry["uid"])["sha256"] or sha256(path)}, asset)


def _load(reader: GlbReader, path: Path, stop: Callable[[], bool], validated: bool = False) -> Asset:
    try:
        return reader.load(path, validated=validated, stop=stop)
    except ReadingStopped:
        raise FetchStopped("The loading of the assets was stopped; resume the run to load them.") from None


def _entry(hit: Hit) -> dict:
    return retrieved_json("", [hit])["assets"][0]
