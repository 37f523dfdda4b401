"""Two-stage retrieval of assets from an index (`redream.retrieval.index_files` says what its folder holds)."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from redream import hub
from redream.files import sha256
from redream.retrieval.clip import Clip
from redream.retrieval.fetch import AssetUnavailable, FetchProgress, RemoteAsset, fetch, finished, never
from redream.retrieval.index_files import TABLE, IndexFormatError, Manifest, stages
from redream.retrieval.pictures import PictureMemory
from redream.retrieval.table import COLUMNS, AssetTable
from redream.retrieval.vectors import SearchableVectors, Vectors


@dataclass(frozen=True)
class Hit:
    """A retrieved asset and where it comes from."""

    uid: str
    caption: str
    author: str
    license: str
    similarity: float | None  # cosine of the prompt with its mean image embedding: the rank, stage 2; None: it has none
    source: str  # a link, or a file name
    text_similarity: float  # cosine of the prompt with the nearest of its captions: stage 1 of the search


@dataclass(frozen=True)
class Index:
    """A checked index; `load` is the way in."""

    folder: Path
    root: Path  # where the assets' files are
    embedding: dict[str, str]  # name and sha256 of the CLIP that it was made with
    table: AssetTable
    texts: SearchableVectors  # of captions
    images: Vectors
    text_assets: Int[np.ndarray, "c"]  # the asset's row of each caption
    image_assets: Int[np.ndarray, "p"]  # and of each picture, rising
    repository: Mapping[str, str] = field(default_factory=dict)  # source, revision, kind: assets without a file
    memory: PictureMemory | None = None  # of assets without a picture

    @staticmethod
    def load(folder: Path, memory: Path | None = None, *, anew: bool = False) -> "Index":
        """Read an index whose files are those that its manifest names, and of the sizes it says.

        Image embeddings that it lacks are kept in the folder `memory`; `anew` as in `hub.verify`. Raises `IndexFormatError`.
        """
        manifest = Manifest.read(folder)
        try:
            hub.verify(folder, manifest.files, anew=anew)
            table = AssetTable(folder / TABLE)
        except hub.HubError as error:
            raise IndexFormatError(str(error)) from error
        except (pa.ArrowException, OSError) as error:  # OSError: a damaged header
            raise IndexFormatError("The table of this index is not a Parquet file; build or fetch it again.") from error
        texts, images, text_assets, image_assets = stages(folder, manifest)
        if not len(text_assets) or not np.array_equal(np.unique(text_assets), np.arange(manifest.assets)):
            raise IndexFormatError("The captions of this index do not belong to its assets; build it again.")
        if np.any(np.diff(image_assets) <= 0) or np.any((image_assets < 0) | (image_assets >= manifest.assets)):
            raise IndexFormatError("The pictures of this index do not belong to its assets; build it again.")
        if len(table) != manifest.assets or not set(COLUMNS) <= set(table.columns):
            raise IndexFormatError("The table of this index does not fit its manifest; build it again.")
        kept = PictureMemory.of_clip(memory, manifest.embedding["sha256"], manifest.dim) if memory else None
        return Index(
            folder,
            folder / manifest.root,
            manifest.embedding,
            table,
            texts,
            images,
            text_assets,
            image_assets,
            manifest.repository,
            kept,
        )

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, uid: str) -> bool:
        return self.table.place(uid) is not None

    @property
    def licences(self) -> list[str]:
        """All licences that occur, sorted."""
        return self.table.licences

    @property
    def commercial_licences(self) -> list[str]:
        """Those of `licences` that are known to allow commercial use."""
        return self.table.commercial_licences

    def first(self, count: int, licences: Sequence[str] | None = None) -> Iterator[dict]:
        """The first rows of the table, of all or of some licences."""
        return self.table.first(count, licences)

    def search(
        self, prompt: str, clip: Clip, assets: int, candidates: int, licences: Sequence[str] | None = None
    ) -> list[Hit]:
        """The `assets` best hits: N′ = `candidates` by nearest caption, re-ranked by their pictures (4.5; B).

        With `licences`, only assets that have one of these. Assets without a picture come last, in the order of their
        captions. Raises `IndexFormatError` if the index was made with another CLIP.
        """
        query = self._query(prompt, clip)  # (d,)
        allowed = None if licences is None else self.table.has_licence(licences)  # (n,)
        by_text = self._nearest_captions(query, candidates, allowed)  # {row: cosine}
        rows = np.array(list(by_text), np.int64)
        cosine = self._picture_cosines(query, rows)  # (N′,)
        order = np.argsort(-cosine, kind="stable")[:assets]  # NaN last
        return [self._hit(int(rows[i]), float(cosine[i]), by_text[int(rows[i])]) for i in order]

    def hit(self, uid: str, prompt: str, clip: Clip) -> Hit:
        """One asset by uid, compared with a prompt as `search` does. Raises `AssetUnavailable`, and
        `IndexFormatError` if the index was made with another CLIP."""
        query, place = self._query(prompt, clip), self._place(uid)
        captions = self.texts.take(np.flatnonzero(self.text_assets == place)) @ query
        return self._hit(place, float(self._picture_cosines(query, np.array([place]))[0]), float(captions.max()))

    def row(self, uid: str) -> dict:
        """Everything the table says about an asset. Raises `AssetUnavailable`."""
        return self.table.row(self._place(uid))

    def remember(self, uid: str, image: Float[np.ndarray, "d"]) -> None:
        """Keep the unit mean image embedding of an asset that has no picture in the index: searches count with it.

        Raises `AssetUnavailable`, and `OSError`.
        """
        if self.memory is not None:
            self.memory.remember(self.row(uid), image)

    def asset_path(self, uid: str) -> Path:
        """The asset's GLB, a checked file: of the library, or of the Hub's cache, where it is fetched to if necessary.

        Raises `AssetUnavailable`.
        """
        row = self.row(uid)
        if not row["file"]:
            remote = self._remote(row)
            if remote.cached() is None and (failed := finished(fetch([remote]))):
                raise failed[uid]
            path = remote.cached()
            if path is None:
                raise AssetUnavailable(f"The file of asset {uid} is gone from the Hub's cache; fetch it again.")
            return path
        path = self.root / row["file"]
        if not hub.is_inside(row["file"]) or not path.is_file():
            raise AssetUnavailable(f"The file of asset {uid} is missing; fetch the library again.")
        if row["sha256"] and sha256(path) != row["sha256"]:
            raise AssetUnavailable(f"The file of asset {uid} is not the one that was indexed; fetch it again.")
        return path

    def is_here(self, uid: str) -> bool:
        """Whether the asset's GLB needs no network: of the library, or in the Hub's cache."""
        row = self.row(uid)
        return bool(row["file"] or (row.get("path") and self._remote(row).cached()))

    def fetch(
        self, uids: Sequence[str], stop: Callable[[], bool] = never
    ) -> Generator[FetchProgress, None, dict[str, AssetUnavailable]]:
        """Bring the GLBs of these assets here, side by side, as `redream.retrieval.fetch.fetch` does.

        Raises `AssetUnavailable` for an asset that the library does not have, and `FetchStopped`.
        """
        wanted, unknown = [], {}
        for row in [self.row(uid) for uid in uids]:
            try:
                wanted += [] if row["file"] else [self._remote(row)]
            except AssetUnavailable as error:
                unknown[row["uid"]] = error
        failed = yield from fetch(wanted, stop)
        return unknown | failed

    def _remote(self, row: dict) -> RemoteAsset:
        path = row.get("path")
        if not self.repository or not path:
            raise AssetUnavailable(f"The library does not say where asset {row['uid']} is; choose another one.")
        source, revision = self.repository["source"], self.repository.get("revision")
        file = hub.HubFile(source, path, revision, self.repository.get("kind", "dataset"))
        return RemoteAsset(row["uid"], file, row["sha256"] or "")

    def _query(self, prompt: str, clip: Clip) -> Float[np.ndarray, "d"]:
        if clip.sha256 != self.embedding["sha256"]:
            raise IndexFormatError(f"This index was made with another CLIP ({self.embedding['name']}); use that one.")
        return clip.embed_texts([prompt]).cpu().numpy()[0]

    def _place(self, uid: str) -> int:
        """Its row in the table."""
        place = self.table.place(uid)
        if place is None:
            raise AssetUnavailable(f"The library has no asset {uid}; search for it again.")
        return place

    @cached_property
    def _captions_per_asset(self) -> int:
        """At most."""
        return int(np.bincount(self.text_assets).max())

    def _nearest_captions(
        self, query: Float[np.ndarray, "d"], candidates: int, allowed: Bool[np.ndarray, "n"] | None
    ) -> dict[int, float]:
        """Rows of the `candidates` allowed assets with the nearest captions, and the cosine of each one's nearest."""
        # Among so many captions there are enough different assets, however many captions some have.
        many = candidates * self._captions_per_asset
        cosines, places = self.texts.nearest(query, many, None if allowed is None else allowed[self.text_assets])
        nearest: dict[int, float] = {}
        for row, value in zip(self.text_assets[places].tolist(), cosines.tolist(), strict=True):
            nearest.setdefault(row, value)
        return dict(list(nearest.items())[:candidates])

    def _picture_cosines(self, query: Float[np.ndarray, "d"], rows: Int[np.ndarray, "k"]) -> Float[np.ndarray, "k"]:
        """Cosines of assets' mean image embeddings with a unit vector, NaN where there is none."""
        places = np.searchsorted(self.image_assets, rows)  # (k,)
        pictured = np.append(self.image_assets, -1)[places] == rows
        cosines = np.full(len(rows), np.nan, np.float32)
        cosines[pictured] = self.images.take(places[pictured]) @ query
        for number in np.flatnonzero(~pictured) if self.memory is not None else ():
            if (image := self.memory.recall(self.table.row(int(rows[number])))) is not None:
                cosines[number] = image @ query
        return cosines

    def _hit(self, row: int, similarity: float, text_similarity: float) -> Hit:
        known, similarity = self.table.row(row), None if np.isnan(similarity) else similarity
        texts = {key: known[key] or "" for key in ("uid", "caption", "author", "license", "source")}
        return Hit(similarity=similarity, text_similarity=text_similarity, **texts)


def retrieved_json(prompt: str, hits: Sequence[Hit]) -> dict:
    """What a run's `retrieved.json` says."""
    assets = [{key: value for key, value in asdict(hit).items() if key != "text_similarity"} for hit in hits]
    return {"prompt": prompt, "assets": assets}
