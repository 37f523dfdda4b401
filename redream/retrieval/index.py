"""Two-stage retrieval of assets from a folder with the vectors of captions and pictures, a table and a manifest.

    index.json          {format: 2, embedding: {name, sha256}, dim, assets, captions, pictures, coding, root,
                        files: {name: sha256}, and where assets are on the Hub: repository: {source, revision, kind};
                        sources: {repository of the Hub: commit}, which the records came from}
    assets.parquet      uid, caption, author, license, source, file, sha256, and any further columns
    text_assets.npy     the row of the asset of each caption (an asset may have several)
    image_assets.npy    the row of the asset of each picture (an asset has one at most), rising
    texts.npy           unit embeddings of captions; with the coding "codes": codes of what their product codes leave over
    images.npy          unit mean embeddings of the assets' pictures, or their codes
    text_codes.npy      with the coding "codes": product codes of captions (`redream.retrieval.vectors`)
    coders.safetensors  with the coding "codes": what codes and decodes

`file` is relative to `root`, itself relative to the index. The GLB of a row without one is fetched from the repository,
where the table's further column `path` says where it is (`redream.retrieval.fetch`). Format 1, which is still read, has a
FAISS file for the captions and one for the pictures.
"""

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file

from redream import hub
from redream.errors import RedreamError
from redream.files import sha256
from redream.retrieval import vectors
from redream.retrieval.clip import Clip
from redream.retrieval.fetch import AssetUnavailable, FetchProgress, RemoteAsset, fetch, finished, never
from redream.retrieval.pictures import PictureMemory
from redream.retrieval.table import COLUMNS, AssetTable
from redream.retrieval.vectors import (
    Exact,
    ImageCodes,
    SearchableVectors,
    TextCoder,
    TextCodes,
    TransformCoder,
    Vectors,
)

FORMAT = 2
CODINGS = ("exact", "codes")
TABLE = "assets.parquet"
ARRAYS = ("text_assets.npy", "image_assets.npy", "texts.npy", "images.npy")
CODED = ("text_codes.npy", "coders.safetensors")
FORMER_FILES = ("text.faiss", "image.faiss", TABLE)
REPOSITORY = {"source", "revision", "kind"}  # owner/name; branch, tag or commit; "dataset" (the default) or "model"


class IndexFormatError(RedreamError):
    """An index that cannot be trusted or does not fit; the message says why."""


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
    def load(folder: Path, memory: Path | None = None) -> "Index":
        """Read an index whose files are those that its manifest names, and of the sizes it says.

        Image embeddings that it lacks are kept in the folder `memory`. Raises `IndexFormatError`.
        """
        manifest = _Manifest.read(folder)
        try:
            hub.verify(folder, manifest.files)
            table = AssetTable(folder / TABLE)
        except hub.HubError as error:
            raise IndexFormatError(str(error)) from error
        except (pa.ArrowException, OSError) as error:  # OSError: a damaged header
            raise IndexFormatError("The table of this index is not a Parquet file; build or fetch it again.") from error
        texts, images, text_assets, image_assets = _stages(folder, manifest)
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
        while True:
            cosines, places = self.texts.nearest(query, many)
            nearest: dict[int, float] = {}
            for row, value in zip(self.text_assets[places].tolist(), cosines.tolist(), strict=True):
                if allowed is None or allowed[row]:
                    nearest.setdefault(row, value)
            if len(nearest) >= candidates or many >= len(self.texts):
                return dict(list(nearest.items())[:candidates])
            many *= 8

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


@dataclass(frozen=True)
class _Manifest:
    """What index.json says."""

    version: int
    embedding: dict[str, str]
    dim: int
    assets: int
    captions: int
    pictures: int
    coding: str
    root: str
    files: dict[str, str]
    repository: dict[str, str]

    @staticmethod
    def read(folder: Path) -> "_Manifest":
        """Raises `IndexFormatError`."""
        try:
            values = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            version = values["format"]
            former = {"coding": "exact", "pictures": values["assets"]} if version == 1 else {}
            values = former | values
            manifest = _Manifest(
                version,
                {key: str(values["embedding"][key]) for key in ("name", "sha256")},
                *(int(values[key]) for key in ("dim", "assets", "captions", "pictures")),
                str(values["coding"]),
                str(values["root"]),
                dict(values["files"]),
                {key: str(value) for key, value in dict(values.get("repository", {})).items()},
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            sentence = f"The index {folder.name} has no complete index.json; build or fetch it again."
            raise IndexFormatError(sentence) from error
        manifest._check()
        return manifest

    def _check(self) -> None:
        if self.version not in (1, FORMAT) or self.coding not in CODINGS:
            raise IndexFormatError(
                f"This index has format {self.version!r}, {self.coding}; this version reads {FORMAT} and 1."
            )
        if set(self.files) != (needed := file_names(self.coding) if self.version == FORMAT else set(FORMER_FILES)):
            raise IndexFormatError(f"The manifest of this index must name exactly: {', '.join(sorted(needed))}.")
        if not hub.is_inside(self.root.removeprefix("../")):
            raise IndexFormatError("This index keeps its assets neither in its folder nor beside it; it is not used.")
        source = self.repository.get("source", "")
        if self.repository and not (hub.HUB_ID.fullmatch(source) and set(self.repository) <= REPOSITORY):
            raise IndexFormatError("The manifest of this index names no Hub repository of assets; build it again.")


def file_names(coding: str) -> set[str]:
    """The files of an index besides index.json."""
    return {TABLE, *ARRAYS, *(CODED if coding == "codes" else ())}


def retrieved_json(prompt: str, hits: Sequence[Hit]) -> dict:
    """What a run's `retrieved.json` says."""
    assets = [{key: value for key, value in asdict(hit).items() if key != "text_similarity"} for hit in hits]
    return {"prompt": prompt, "assets": assets}


def _stages(
    folder: Path, manifest: _Manifest
) -> tuple[SearchableVectors, Vectors, Int[np.ndarray, "c"], Int[np.ndarray, "p"]]:
    """Captions, pictures, and the assets' rows of both."""
    dim, captions, pictures = manifest.dim, manifest.captions, manifest.pictures
    if manifest.version == 1:
        texts = _read_former(folder / "text.faiss", faiss.IndexIDMap, b"IxMp", captions, dim)
        images = _read_former(folder / "image.faiss", faiss.IndexFlatIP, b"IxFI", pictures, dim)
        rows = faiss.vector_to_array(texts.id_map)  # (c,)
        return Exact(_vectors(texts.index)), Exact(_vectors(images)), rows, np.arange(pictures)
    text_assets = np.asarray(_array(folder / "text_assets.npy", np.int32, (captions,)))
    image_assets = np.asarray(_array(folder / "image_assets.npy", np.int32, (pictures,)))
    if manifest.coding == "exact":
        shapes = {"texts.npy": (captions, dim), "images.npy": (pictures, dim)}
        texts, images = (Exact(_array(folder / name, np.float32, shape)) for name, shape in shapes.items())
        return texts, images, text_assets, image_assets
    coders = _coders(folder / "coders.safetensors", dim)
    text_coder, image_coder = TextCoder.of(coders), TransformCoder.of(coders, "image")
    texts = TextCodes(
        text_coder,
        _array(folder / "text_codes.npy", np.uint8, (captions, vectors.text_code_size(dim))),
        _array(folder / "texts.npy", np.uint8, (captions, text_coder.rest.size)),
    )
    images = ImageCodes(image_coder, _array(folder / "images.npy", np.uint8, (pictures, image_coder.size)))
    return texts, images, text_assets, image_assets


def _array(path: Path, kind: type, shape: tuple[int, ...]) -> np.ndarray:
    """One array, which stays on the disk."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    if size <= path.stat().st_size <= size + 256:  # an array and its header
        try:
            array = np.load(path, mmap_mode="r" if size else None, allow_pickle=False)
        except (ValueError, OSError) as error:
            raise IndexFormatError(f"The file {path.name} of this index cannot be read; build it again.") from error
        if array.dtype == kind and array.shape == shape and array.flags.c_contiguous:
            return array
    raise IndexFormatError(f"The file {path.name} of this index is not what its manifest says; build it again.")


def _coders(path: Path, dim: int) -> dict[str, np.ndarray]:
    shapes = vectors.array_shapes(dim)
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise IndexFormatError(f"The file {path.name} of this index cannot be read; build it again.") from error
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    most = max(int(arrays[name].max(initial=0)) for name in shapes if name.endswith("bits")) if found == shapes else 0
    if found != shapes or dim % vectors.GROUP or most > vectors.MOST_BITS:
        raise IndexFormatError(f"The file {path.name} of this index is not what its manifest says; build it again.")
    return arrays


def _read_former(path: Path, kind: type, code: bytes, count: int, dim: int) -> faiss.Index:
    """One FAISS file of format 1, whose kind and size are looked at before it is parsed."""
    with path.open("rb") as file:
        start = file.read(4)
    payload = count * dim * 4 + (count * 8 if kind is faiss.IndexIDMap else 0)  # bytes: vectors, and ids
    if start == code and payload <= path.stat().st_size <= payload + 256:
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise IndexFormatError(f"The file {path.name} of this index cannot be read; build it again.") from error
        if isinstance(index, kind) and (index.ntotal, index.d) == (count, dim):
            return index
    raise IndexFormatError(f"The file {path.name} of this index is not what its manifest says; build it again.")


def _vectors(index: faiss.Index) -> Float[np.ndarray, "n d"]:
    flat = faiss.downcast_index(index)
    if not isinstance(flat, faiss.IndexFlatIP):
        raise IndexFormatError("The captions of this index do not belong to its assets; build it again.")
    return flat.reconstruct_n(0, flat.ntotal)
