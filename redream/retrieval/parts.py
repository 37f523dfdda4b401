"""Parts of an index: a few thousand assets each, embedded; made by any worker, kept as one file each.

A part's file is a Parquet table, complete or absent: the columns of the index's table, `texts` (the embeddings of an asset's
captions) and `image` (the unit mean of its pictures' embeddings; null: none), all in half precision. What is in it depends
on its records alone: on a CPU a worker computes in one thread, so that sums have the same order everywhere.
"""

import io
import json
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal
from urllib.error import HTTPError

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Float16
from PIL import Image

from redream.hub import HubFile, HubFileMissing, faults
from redream.processes import worker_pool
from redream.retrieval.build import BuildError, ring_pictures
from redream.retrieval.clip import CHUNK, Clip
from redream.retrieval.fetch import RemoteAsset, finished
from redream.retrieval.records import WORKING
from redream.retrieval.writer import Part
from redream.scene.assets import AssetError
from redream.scene.glb import GlbError
from redream.scene.glb_reader import GlbReader

THUMBNAILS = "https://media.sketchfab.com/"  # nothing is fetched from elsewhere
THUMBNAIL_LIMIT = 5_000_000  # bytes
THUMBNAIL_SIDE = 4096  # pixels
THUMBNAIL_SECONDS = 20.0  # without a byte
DOWNLOADS = 8  # thumbnails at once
MISSING, CHANGED, UNUSABLE = "no GLB on the Hub", "a GLB that is not the described one", "an unusable GLB"

Pictures = Float[np.ndarray, "k 3 s s"]


@dataclass(frozen=True)
class Job:
    """What a worker needs to make any part of an index."""

    load_clip: Callable[[], Clip]
    pictures: Literal["none", "thumbnails", "renders"] = "none"  # of assets that have no image embedding yet
    renders: int = 1  # processes that render
    root: Path | None = None  # where assets with a file are
    repository: Mapping[str, str] | None = None  # where on the Hub the others are


class PartMaker:
    """A worker: a CLIP, and what fetches and renders for it. `close` ends it."""

    def __init__(self, job: Job) -> None:
        self.job, self.clip = job, job.load_clip()
        self.dim = self.clip.embed_texts(["a"]).shape[1]
        self._stack = ExitStack()
        self._pool: Executor | None = None
        if job.pictures == "thumbnails":
            self._pool = self._stack.enter_context(ThreadPoolExecutor(DOWNLOADS))
        elif job.pictures == "renders" and job.renders > 1:
            self._pool = self._stack.enter_context(worker_pool(job.renders, _start_renderer))
        self._reader = self._stack.enter_context(GlbReader())

    def close(self) -> None:
        self._stack.close()

    def make(self, records: pa.Table, images: pa.Table | None = None) -> Generator[float, None, bytes]:
        """Embed the assets of a part, but for the `images` (uid, image) that there are; yields the fraction that is done,
        returns the part's file. Assets whose GLB turns out unusable are left out.

        Raises `HubError` if the Hub fails and `BuildError` if Sketchfab does: then the part is not made.
        """
        with _one_thread(self.clip.device):
            vectors, reasons = yield from self._embed_pictures(records, images)
            kept = np.array([reason is None for reason in reasons], bool)
            records, vectors = records.filter(pa.array(kept)), vectors[kept]
            captions = records["captions"].combine_chunks()
            texts = yield from self._embed_texts(captions.flatten().to_pylist())
        table = records.drop_columns([name for name in WORKING if name in records.column_names])
        table = table.add_column(1, "caption", pc.list_element(captions, 0))
        rows = np.repeat(np.arange(len(records)), pc.list_value_length(captions).to_numpy())
        return pack(Part(table, texts, rows, vectors), Counter(filter(None, reasons)))

    def made(self, records: pa.Table, images: pa.Table | None = None) -> bytes:
        """What `make` returns."""
        return finished(self.make(records, images))

    def _embed_texts(self, texts: list[str]) -> Generator[float, None, Float16[np.ndarray, "c d"]]:
        vectors = [np.zeros((0, self.dim), np.float16)]
        for start in range(0, len(texts), CHUNK):
            vectors.append(_half(self.clip.embed_texts(texts[start : start + CHUNK])))
            yield 0.5 + 0.5 * start / len(texts)
        return np.concatenate(vectors)

    def _embed_pictures(
        self, records: pa.Table, images: pa.Table | None
    ) -> Generator[float, None, tuple[Float16[np.ndarray, "n d"], list[str | None]]]:
        """The mean image embedding of each asset, and why it is left out (None: it is not)."""
        vectors = np.zeros((len(records), self.dim), np.float16)
        reasons: list[str | None] = [None] * len(records)
        if images is not None:
            if images["image"].type.list_size != self.dim:
                raise BuildError(f"The image embeddings are not of this CLIP: it makes {self.dim} numbers.")
            places = pc.index_in(images["uid"].combine_chunks(), value_set=records["uid"].combine_chunks())
            vectors[places.to_numpy()] = _matrix(images["image"].combine_chunks().flatten(), self.dim)
        missing = np.flatnonzero(~vectors.any(axis=1)) if self.job.pictures != "none" else np.zeros(0, int)
        rows = records.take(pa.array(missing)).to_pylist()
        for done, (row, pictures) in enumerate(zip(missing, self._pictures(rows), strict=True)):
            if isinstance(pictures, str):
                reasons[row] = pictures
            elif pictures is not None:
                mean = self.clip.embed_images(torch.from_numpy(pictures)).mean(dim=0, keepdim=True)  # (1, d)
                vectors[row] = _half(torch.nn.functional.normalize(mean, dim=1))[0]
            yield 0.5 * done / len(missing)
        return vectors, reasons

    def _pictures(self, rows: list[dict]) -> Iterable[Pictures | str | None]:
        if self.job.pictures == "thumbnails":
            return _ahead(
                self._pool, partial(thumbnail, size=self.clip.size), [row["thumbnail"] for row in rows], DOWNLOADS
            )
        where = {"root": self.job.root, "repository": self.job.repository, "size": self.clip.size}
        render = partial(render_asset, **where, reader=None if self._pool else self._reader)
        return _ahead(self._pool, render, rows, self.job.renders)


def render_asset(
    record: Mapping, root: Path | None, repository: Mapping[str, str] | None, size: int, reader: GlbReader | None
) -> Pictures | str:
    """The pictures an asset is indexed by, or why it is left out. A GLB that comes from the Hub for this does not stay.

    `reader`: None in a process that renders, which has its own. Raises `HubError`.
    """
    reader = reader or _reader
    if record["file"]:
        return _rendered(root / record["file"], size, reader)
    file = HubFile(repository["source"], record["path"], repository["revision"], repository["kind"])
    remote = RemoteAsset(record["uid"], file, record["sha256"] or "")
    if (path := remote.cached()) is not None:
        return _rendered(path, size, reader)
    with TemporaryDirectory() as folder:  # in the cache, workers would remove a file that two assets share
        try:
            path = file.fetch(folder=Path(folder))
        except HubFileMissing:
            return MISSING
        return _rendered(path, size, reader) if remote.is_right(path) else CHANGED


def thumbnail(address: str | None, size: int) -> Pictures | None:
    """The middle square of a thumbnail, None if there is none or it cannot be used. Raises `BuildError`."""
    content = _fetched(address) if (address or "").startswith(THUMBNAILS) else None
    if content is None:
        return None
    try:
        picture = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
        if len(content) > THUMBNAIL_LIMIT or max(picture.size) > THUMBNAIL_SIDE:
            return None
        side = min(picture.size)
        left, top = ((length - side) // 2 for length in picture.size)
        square = picture.crop((left, top, left + side, top + side)).convert("RGB").resize((size, size))  # bicubic
    except (OSError, ValueError, Image.DecompressionBombError, SyntaxError):  # Pillow's
        return None
    return np.asarray(square, np.float32).transpose(2, 0, 1)[None] / 255


def _fetched(address: str) -> bytes | None:
    """What is at an address, cut if it is too large; None if it is gone. Raises `BuildError` if that is not known."""
    for wait in (*faults.RETRY_WAITS, None):
        try:
            with urllib.request.urlopen(address, timeout=THUMBNAIL_SECONDS) as answer:
                return answer.read(THUMBNAIL_LIMIT + 1)
        except (OSError, HTTPException) as error:
            if isinstance(error, HTTPError) and error.code not in (*faults.PASSING, HTTPStatus.TOO_MANY_REQUESTS):
                return None
            if wait is None:
                sentence = "Sketchfab does not answer; check the network. The same command goes on from there."
                raise BuildError(sentence) from error
        time.sleep(wait)
    raise AssertionError("unreachable")


def pack(part: Part, left_out: Mapping[str, int]) -> bytes:
    """A part's file."""
    count, dim = part.images.shape
    offsets = np.concatenate([[0], np.cumsum(np.bincount(part.rows, minlength=count))])
    texts = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), _vectors(part.texts, dim))
    images = _vectors(part.images, dim, ~part.images.any(axis=1))
    table = part.table.append_column("texts", texts).append_column("image", images)
    table = table.replace_schema_metadata({"left_out": json.dumps(dict(left_out), sort_keys=True)})
    file = io.BytesIO()
    pq.write_table(table, file, use_dictionary=part.table.column_names)
    return file.getvalue()


def unpack(path: Path) -> tuple[Part, dict[str, int]]:
    """A part, and how many assets were left out of it, by reason."""
    table = pq.read_table(path).combine_chunks()
    texts, image = table["texts"].combine_chunks(), table["image"].combine_chunks()
    images = np.zeros((len(table), image.type.list_size), np.float16)
    images[image.is_valid().to_numpy(zero_copy_only=False)] = _matrix(
        image.flatten(), images.shape[1]
    )  # nulls have none
    rows = np.repeat(np.arange(len(table)), pc.list_value_length(texts).to_numpy())
    left_out = json.loads(table.schema.metadata[b"left_out"])
    kept = table.drop_columns(["texts", "image"]).replace_schema_metadata(None)
    return Part(kept, _matrix(texts.flatten().flatten(), images.shape[1]), rows, images), left_out


_reader: GlbReader  # in a process that renders; its child ends with it


def _start_renderer() -> None:
    global _reader
    torch.set_num_threads(1)
    _reader = GlbReader()


def _rendered(path: Path, size: int, reader: GlbReader) -> Pictures | str:
    try:
        return ring_pictures(reader.load(path), size).numpy()
    except (GlbError, AssetError):
        return UNUSABLE


def _ahead(pool: Executor | None, work: Callable, items: list, width: int) -> Iterator:
    """What `work` makes of each item, in their order; a pool works a few items ahead."""
    if pool is None:
        yield from map(work, items)
        return
    futures: deque[Future] = deque()
    for item in items:
        futures.append(pool.submit(work, item))
        if len(futures) > 2 * width:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU, compute in one thread."""
    before = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


def _half(vectors: torch.Tensor) -> Float16[np.ndarray, "b d"]:
    return vectors.half().cpu().numpy()


def _vectors(values: Float16[np.ndarray, "n d"], dim: int, missing: np.ndarray | None = None) -> pa.FixedSizeListArray:
    mask = None if missing is None else pa.array(missing)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), dim, mask=mask)


def _matrix(values: pa.Array, dim: int) -> Float16[np.ndarray, "n d"]:
    return values.to_numpy(zero_copy_only=False).reshape(-1, dim)
