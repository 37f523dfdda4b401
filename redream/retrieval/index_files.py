"""The files of an index: a manifest, a table, and the vectors of captions and pictures; looked at before they are parsed.

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
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file

from redream import hub
from redream.errors import RedreamError
from redream.retrieval import vectors
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
class Manifest:
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
    def read(folder: Path) -> "Manifest":
        """Raises `IndexFormatError`."""
        try:
            values = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            version = values["format"]
            former = {"coding": "exact", "pictures": values["assets"]} if version == 1 else {}
            values = former | values
            manifest = Manifest(
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


def stages(
    folder: Path, manifest: Manifest
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
