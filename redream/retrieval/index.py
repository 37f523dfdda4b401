"""Two-stage retrieval of assets from a folder with two FAISS indexes, a table of assets and a manifest.

    index.json      {format, embedding: {name, sha256}, dim, assets, captions, root, files: {name: sha256}, and where
                    assets are on the Hub: repository: {source, revision, kind}}
    text.faiss      unit embeddings of captions; the id of a vector is its asset's row (an asset may have several)
    image.faiss     unit embeddings of the assets' pictures, one per row
    assets.parquet  uid, caption, author, license, source, file, sha256, and any further columns

`file` is relative to `root`, itself relative to the index. The GLB of a row without one is fetched from the repository,
where the table's further column `path` says where it is (`redream.retrieval.fetch`).
"""

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from redream import hub
from redream.errors import RedreamError
from redream.files import sha256
from redream.retrieval.clip import Clip
from redream.retrieval.fetch import AssetUnavailable, FetchProgress, RemoteAsset, fetch, finished, never

FORMAT = 1
FILES = ("text.faiss", "image.faiss", "assets.parquet")
COLUMNS = ("uid", "caption", "author", "license", "source", "file", "sha256")
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
    similarity: float  # cosine of the prompt with the asset's mean image embedding: the rank, stage 2
    source: str  # a link, or a file name
    text_similarity: float  # cosine of the prompt with the nearest of its captions: stage 1 of the search


@dataclass(frozen=True)
class Index:
    """A checked index; `load` is the way in."""

    folder: Path
    root: Path  # where the assets' files are
    embedding: dict[str, str]  # name and sha256 of the CLIP that it was made with
    table: pa.Table
    text: faiss.IndexIDMap
    image: faiss.IndexFlatIP
    rows: Int[np.ndarray, "n"]  # the asset's row of each caption
    repository: Mapping[str, str] = field(default_factory=dict)  # source, revision, kind: assets without a file

    @staticmethod
    def load(folder: Path) -> "Index":
        """Read an index whose files are those that its manifest names, and of the sizes it says.

        Raises `IndexFormatError`.
        """
        try:
            manifest = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            version, files, root = manifest["format"], dict(manifest["files"]), str(manifest["root"])
            embedding = {key: str(manifest["embedding"][key]) for key in ("name", "sha256")}
            dim, assets, captions = (int(manifest[key]) for key in ("dim", "assets", "captions"))
            repository = {key: str(value) for key, value in dict(manifest.get("repository", {})).items()}
        except (OSError, KeyError, TypeError, ValueError) as error:
            sentence = f"The index {folder.name} has no complete index.json; build or fetch it again."
            raise IndexFormatError(sentence) from error
        if version != FORMAT:
            raise IndexFormatError(f"This index has format {version!r}; this version reads {FORMAT}.")
        if set(files) != set(FILES):
            raise IndexFormatError(f"The manifest of this index must name exactly: {', '.join(FILES)}.")
        try:
            hub.verify(folder, files)
            table = pq.read_table(folder / "assets.parquet")
        except hub.HubError as error:
            raise IndexFormatError(str(error)) from error
        except (pa.ArrowException, OSError) as error:  # OSError: a damaged header
            raise IndexFormatError("The table of this index is not a Parquet file; build or fetch it again.") from error
        if not hub.is_inside(root.removeprefix("../")):
            raise IndexFormatError("This index keeps its assets neither in its folder nor beside it; it is not used.")

        text = _read(folder / "text.faiss", faiss.IndexIDMap, b"IxMp", captions, dim)
        image = _read(folder / "image.faiss", faiss.IndexFlatIP, b"IxFI", assets, dim)
        rows = faiss.vector_to_array(text.id_map)  # (captions,)
        flat = isinstance(faiss.downcast_index(text.index), faiss.IndexFlatIP)
        if not flat or set(rows.tolist()) != set(range(assets)):
            raise IndexFormatError("The captions of this index do not belong to its assets; build it again.")
        if table.num_rows != assets or not set(COLUMNS) <= set(table.column_names):
            raise IndexFormatError("The table of this index does not fit its manifest; build it again.")
        if repository and not (hub.HUB_ID.fullmatch(repository.get("source", "")) and set(repository) <= REPOSITORY):
            raise IndexFormatError("The manifest of this index names no Hub repository of assets; build it again.")
        return Index(folder, folder / root, embedding, table, text, image, rows, repository)

    def __len__(self) -> int:
        return self.table.num_rows

    def search(self, prompt: str, clip: Clip, assets: int, candidates: int) -> list[Hit]:
        """The `assets` best hits: N′ = `candidates` by nearest caption, re-ranked by their pictures (4.5; B).

        Raises `IndexFormatError` if the index was made with another CLIP.
        """
        query = self._query(prompt, clip)  # (1, d)
        by_text = self._nearest_captions(query, candidates)  # {row: cosine}
        rows = np.array(list(by_text), np.int64)
        pictures = np.stack([self.image.reconstruct(int(row)) for row in rows])  # (N′, d)
        cosine = pictures @ query[0]  # (N′,)
        order = np.argsort(-cosine, kind="stable")[:assets]
        return [self._hit(int(rows[i]), float(cosine[i]), by_text[int(rows[i])]) for i in order]

    def hit(self, uid: str, prompt: str, clip: Clip) -> Hit:
        """One asset by uid, compared with a prompt as `search` does. Raises `AssetUnavailable`, and
        `IndexFormatError` if the index was made with another CLIP."""
        query, place = self._query(prompt, clip)[0], self._place(uid)
        captions = [self.text.index.reconstruct(int(n)) @ query for n in np.flatnonzero(self.rows == place)]
        return self._hit(place, float(self.image.reconstruct(place) @ query), float(max(captions)))

    def row(self, uid: str) -> dict:
        """Everything the table says about an asset. Raises `AssetUnavailable`."""
        return self.table.slice(self._place(uid), 1).to_pylist()[0]

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

    def _query(self, prompt: str, clip: Clip) -> Float[np.ndarray, "1 d"]:
        if clip.sha256 != self.embedding["sha256"]:
            raise IndexFormatError(f"This index was made with another CLIP ({self.embedding['name']}); use that one.")
        return clip.embed_texts([prompt]).cpu().numpy()

    def _place(self, uid: str) -> int:
        """Its row in the table."""
        place = pc.index(self.table["uid"], uid).as_py()
        if place < 0:
            raise AssetUnavailable(f"The library has no asset {uid}; search for it again.")
        return place

    def _nearest_captions(self, query: Float[np.ndarray, "1 d"], candidates: int) -> dict[int, float]:
        """Rows of the `candidates` assets with the nearest captions, and the cosine of each one's nearest."""
        # Among so many captions there are enough different assets, however many captions some have.
        many = min(len(self.rows), candidates * int(np.bincount(self.rows).max()))
        cosine, rows = self.text.search(query, many)  # (1, many) each, best first
        nearest: dict[int, float] = {}
        for row, value in zip(rows[0].tolist(), cosine[0].tolist()):
            nearest.setdefault(row, value)
        return dict(list(nearest.items())[:candidates])

    def _hit(self, row: int, similarity: float, text_similarity: float) -> Hit:
        known = self.table.slice(row, 1).to_pylist()[0]
        texts = {key: known[key] or "" for key in ("uid", "caption", "author", "license", "source")}
        return Hit(similarity=similarity, text_similarity=text_similarity, **texts)


def retrieved_json(prompt: str, hits: Sequence[Hit]) -> dict:
    """What a run's `retrieved.json` says."""
    assets = [{key: value for key, value in asdict(hit).items() if key != "text_similarity"} for hit in hits]
    return {"prompt": prompt, "assets": assets}


def _read(path: Path, kind: type, code: bytes, count: int, dim: int) -> faiss.Index:
    """One FAISS file, whose kind and size are looked at before it is parsed."""
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
