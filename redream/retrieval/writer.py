"""Write an index from parts that come one by one: memory is bounded by one part, however many there are."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int64
from safetensors.numpy import save

from redream.files import replacing, require_space, sha256, write_json
from redream.retrieval import vectors
from redream.retrieval.index_files import FORMAT, TABLE, file_names
from redream.retrieval.table import GROUP_ROWS
from redream.retrieval.vectors import IMAGE_BITS, TextCoder, TransformCoder

EXACT_CAPTIONS = 20_000  # up to so many captions vectors are kept as they are
SAMPLE = 20_000  # vectors that train a coder
COMPRESSION = "zstd"  # of the table


@dataclass(frozen=True)
class Part:
    """A run of consecutive assets, sorted by uid; parts follow each other in the order of uids."""

    table: pa.Table  # uid, caption (the first), author, license, source, file, path, sha256 (strings), further columns
    texts: Float[np.ndarray, "c d"]  # unit embeddings of captions
    rows: Int64[np.ndarray, "c"]  # the asset of each caption, counted within the part
    images: Float[np.ndarray, "n d"]  # unit mean image embeddings; an all-zero row: none


def write(
    parts: Callable[[], Iterable[Part]],
    folder: Path,
    *,
    embedding: Mapping[str, str],
    root: str = ".",
    repository: Mapping[str, str] | None = None,
    sources: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the index of `parts()`, which is called twice, into `folder`. An index that is there already stays until the
    new one is complete; while the files take its place there is no manifest.

    `embedding` is name and sha256 of the CLIP; `root` the assets' folder relative to `folder`; `repository` where assets
    without a file are, `sources` the Hub's repositories that records came from (see `redream.retrieval.index_files`). `progress` gets how many of all assets are written. Raises `OSError` where the
    folder cannot be written to.
    """
    survey = _Survey()
    for part in parts():
        survey.add(part)
    coding = "codes" if survey.captions > EXACT_CAPTIONS and survey.dim % vectors.GROUP == 0 else "exact"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as files:  # left in reverse: the manifest takes its place last
        new_manifest = files.enter_context(replacing(folder / "index.json"))
        paths = {name: files.enter_context(replacing(folder / name)) for name in sorted(file_names(coding))}
        with _Writer(paths, survey, coding) as writer:
            for part in parts():
                writer.add(part)
                progress(writer.assets, survey.assets)
        manifest = {
            "format": FORMAT,
            "embedding": dict(embedding),
            "dim": survey.dim,
            "assets": survey.assets,
            "captions": survey.captions,
            "pictures": survey.pictures,
            "coding": coding,
            "root": root,
            "files": {name: sha256(path) for name, path in paths.items()},
        }
        origin = {"repository": repository, "sources": sources}
        manifest |= {name: dict(values) for name, values in origin.items() if values}
        write_json(new_manifest, manifest)
        (folder / "index.json").unlink(missing_ok=True)


@dataclass
class _Sample:
    """Vectors drawn evenly from a stream: those with the smallest of so many random numbers."""

    generator: np.random.Generator
    keys: np.ndarray = field(default_factory=lambda: np.empty(0))  # (n,)
    vectors: np.ndarray | None = None  # (n, d)

    def add(self, batch: Float[np.ndarray, "n d"]) -> None:
        keys = np.concatenate([self.keys, self.generator.random(len(batch))])
        known = batch if self.vectors is None else np.concatenate([self.vectors, batch])
        kept = np.argsort(keys, kind="stable")[:SAMPLE]
        self.keys, self.vectors = keys[kept], known[kept].astype(np.float32)


@dataclass
class _Survey:
    """What is known of all parts before they are written."""

    assets: int = 0
    captions: int = 0
    pictures: int = 0
    dim: int = 0
    texts: _Sample = field(default_factory=lambda: _Sample(np.random.default_rng(0)))
    images: _Sample = field(default_factory=lambda: _Sample(np.random.default_rng(1)))

    def add(self, part: Part) -> None:
        pictured = part.images.any(axis=1)
        self.assets, self.captions = self.assets + len(part.table), self.captions + len(part.texts)
        self.pictures, self.dim = self.pictures + int(pictured.sum()), part.texts.shape[1]
        self.texts.add(part.texts)
        self.images.add(part.images[pictured])


class _Writer:
    """The files of an index, written part by part to the paths that they have until all are complete, by name."""

    def __init__(self, paths: Mapping[str, Path], survey: _Survey, coding: str) -> None:
        self._paths, self._survey, self._coding = paths, survey, coding
        self._table: pq.ParquetWriter | None = None
        self.assets = self._captions = self._pictures = 0  # written so far

    def __enter__(self) -> "_Writer":  # noqa: PYI034 - Self is not checked at run time
        captions, pictures, dim = self._survey.captions, self._survey.pictures, self._survey.dim
        self._arrays = {
            "text_assets.npy": self._array("text_assets.npy", np.int32, (captions,)),
            "image_assets.npy": self._array("image_assets.npy", np.int32, (pictures,)),
        }
        if self._coding == "exact":
            shapes = {"texts.npy": (np.float32, (captions, dim)), "images.npy": (np.float32, (pictures, dim))}
        else:
            # Without a picture there is nothing to train with, and nothing to code either.
            texts = self._survey.texts.vectors  # what prompts are like
            images = self._survey.images.vectors if pictures else texts
            self._text_coder, self._image_coder = (
                TextCoder.train(texts),
                TransformCoder.train(images, texts, IMAGE_BITS),
            )
            coders = self._text_coder.arrays | self._image_coder.arrays("image")
            self._paths["coders.safetensors"].write_bytes(save(coders))
            shapes = {
                "text_codes.npy": (np.uint8, (captions, vectors.text_code_size(dim))),
                "texts.npy": (np.uint8, (captions, self._text_coder.rest.size)),
                "images.npy": (np.uint8, (pictures, self._image_coder.size)),
            }
        self._arrays |= {name: self._array(name, *shape) for name, shape in shapes.items()}
        return self

    def add(self, part: Part) -> None:
        """Write one part behind the former ones."""
        pictured = np.flatnonzero(part.images.any(axis=1))  # (p,)
        texts, images = part.texts.astype(np.float32), part.images[pictured].astype(np.float32)
        captions = slice(self._captions, self._captions + len(texts))
        pictures = slice(self._pictures, self._pictures + len(images))
        self._arrays["text_assets.npy"][captions] = part.rows + self.assets
        self._arrays["image_assets.npy"][pictures] = pictured + self.assets
        if self._coding == "codes":
            self._arrays["text_codes.npy"][captions], texts = self._text_coder.encode(texts)
            images = self._image_coder.encode(images)
        self._arrays["texts.npy"][captions], self._arrays["images.npy"][pictures] = texts, images
        if self._table is None:
            self._table = pq.ParquetWriter(self._paths[TABLE], part.table.schema, compression=COMPRESSION)
        self._table.write_table(part.table, row_group_size=GROUP_ROWS)
        self.assets, self._captions, self._pictures = self.assets + len(part.table), captions.stop, pictures.stop

    def __exit__(self, *error: object) -> None:
        for array in self._arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
        self._arrays.clear()  # a mapped file cannot take its place everywhere
        if self._table is not None:
            self._table.close()

    def _array(self, name: str, kind: type, shape: tuple[int, ...]) -> np.ndarray:
        path = self._paths[name]
        if not np.prod(shape):  # nothing to map
            np.save(path, np.empty(shape, kind))
            return np.empty(shape, kind)
        array = np.lib.format.open_memmap(path, "w+", kind, shape)
        require_space(path)
        return array
