"""Convert objathor's image embeddings of about 50,000 Objaverse assets, once and offline, into a table that nothing has to unpickle.

    python -m assets_index.convert_objathor clip_features.pkl objathor.parquet

The first file is the `clip_features.pkl` of allenai/objathor's assets (OBJATHOR_ASSETS_BASE_DIR, release 2023_09_23): {uids,
img_features: (n, 3, 768) in half precision, text_features}, made with OpenCLIP's ViT-L-14 laion2b_s32b_b82k, the retrieval CLIP
of the stack sd21. The second one is what `python -m redream index build objaverse --pictures` takes: uid, and image, the unit mean
of the asset's unit embeddings. The pickle is read by an unpickler that knows dictionaries, lists, texts and arrays of floats, and
nothing that could run code.
"""

import argparse
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from redream.errors import RedreamError
from redream.files import replacing
from redream.retrieval.sources import UID

SIZE_LIMIT = 4_000_000_000  # bytes
FLOATS = ("f2", "f4")


class ConversionError(RedreamError):
    """A file that is not objathor's; the message says why."""


def convert(source: Path, target: Path) -> int:
    """Write the table of the pickle at `source`; returns how many assets it has. Raises `ConversionError`."""
    if not source.is_file() or source.stat().st_size > SIZE_LIMIT:
        raise ConversionError(f"There is no file {source.name}, or it is larger than {SIZE_LIMIT / 1e9:.0f} GB.")
    try:
        with source.open("rb") as file:
            values = _Unpickler(file).load()
        uids, features = list(values["uids"]), values["img_features"].values
        if features.ndim != 3 or len(uids) != len(features):
            raise ConversionError("The image features do not have the shape (assets, views, numbers).")
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ConversionError(f"The file {source.name} is not objathor's clip_features.pkl: {error}.") from error
    numbers = {uid: n for n, uid in enumerate(uids) if isinstance(uid, str) and UID.fullmatch(uid)}
    rows = [numbers[uid] for uid in sorted(numbers)]
    means = np.concatenate([_means(features[rows[i : i + 4096]]) for i in range(0, max(len(rows), 1), 4096)])
    image = pa.FixedSizeListArray.from_arrays(pa.array(means.ravel()), features.shape[2])
    with replacing(target) as path:
        pq.write_table(pa.table({"uid": sorted(numbers), "image": image}), path, use_dictionary=False)
    return len(rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m assets_index.convert_objathor", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("pickle", type=Path)
    parser.add_argument("parquet", type=Path)
    options = parser.parse_args(arguments)
    try:
        print(f"{convert(options.pickle, options.parquet):,} assets are in {options.parquet}.")
    except ConversionError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _means(features: Float[np.ndarray, "n v d"]) -> Float[np.ndarray, "n d"]:
    """Unit means of unit vectors, in half precision."""
    views = features.astype(np.float32)
    views /= np.maximum(np.linalg.norm(views, axis=2, keepdims=True), 1e-12)
    means = views.mean(axis=1)
    return (means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)).astype(np.float16)


class _Unpickler(pickle.Unpickler):
    """Knows what a pickled array of floats is made of, by stand-ins for numpy's classes."""

    def find_class(self, module: str, name: str) -> Callable:
        numpy = module.split(".")[0] == "numpy"
        if numpy and name in _NUMPY:
            return _NUMPY[name]
        if (module, name) == ("_codecs", "encode"):  # how old protocols write bytes
            return _encoded
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


class _DType:
    def __init__(self, name: str, *_: object) -> None:
        if name not in FLOATS:
            raise pickle.UnpicklingError(f"it holds numbers of the kind {name}")
        self.name = name

    def __setstate__(self, state: tuple) -> None:
        if state[1] == ">":
            raise pickle.UnpicklingError("its numbers are big-endian")


class _Array:
    values: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, is_fortran, content = state
        self.values = np.frombuffer(content, kind.name).reshape(shape, order="F" if is_fortran else "C")


def _from_buffer(content: bytes, kind: _DType, shape: tuple, order: str, *_: object) -> _Array:
    array = _Array()
    array.values = np.frombuffer(content, kind.name).reshape(shape, order=order)
    return array


def _encoded(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes as {encoding}")
    return text.encode("latin1")


_NUMPY = {"_reconstruct": lambda *_: _Array(), "ndarray": _Array, "dtype": _DType, "_frombuffer": _from_buffer}


if __name__ == "__main__":
    sys.exit(main())
