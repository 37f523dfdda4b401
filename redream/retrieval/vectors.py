"""The unit vectors of an index: as they are where there are few, in a few bits a dimension where there are many.

Of many, a caption is coded twice. Its product code (4 bits for every 4 dimensions) is searched by table look-up; the nearest
ones by it are compared again with the transform code of what it leaves over added. An image is only compared, by its
transform code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import faiss
import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from scipy.special import ndtr, ndtri

GROUP = 4  # dimensions that share a product code
GROUP_BITS = 4
REFINED = 400, 32  # so many at least are compared again, and so many for each that is asked for
WIDENING = 8  # how many times as many are looked at where too few of them were allowed
BLOCK = 4096  # vectors decoded at once: 50 MB, with 768 dimensions
TEXT_BITS, IMAGE_BITS = 6.5, 9.5  # of transform codes, for each dimension in the mean
MOST_BITS = 16  # for one dimension
STRAY = 0.1  # how much of the captions' variance a query is expected to have in every direction
COMPANDING = 3**0.5  # the density of levels that fits a normal one is wider by this (Panter and Dite, 1951)
ARRAYS = {"matrix": 2, "mean": 1, "scale": 1, "bits": 1}  # of a `TransformCoder`, with their dimensions


@runtime_checkable
class Vectors(Protocol):
    """Unit vectors by their places."""

    def __len__(self) -> int: ...

    def take(self, places: Int64[np.ndarray, "k"]) -> Float32[np.ndarray, "k d"]:
        """The vectors at these places, as exact as they are stored."""
        ...


@runtime_checkable
class SearchableVectors(Vectors, Protocol):
    """Vectors among which the nearest ones are found."""

    def nearest(
        self, query: Float32[np.ndarray, "d"], count: int, allowed: Bool[np.ndarray, "n"] | None = None
    ) -> tuple[Float32[np.ndarray, "k"], Int64[np.ndarray, "k"]]:
        """The cosines of the `count` allowed vectors nearest to a unit vector, best first, and their places."""
        ...


@dataclass(frozen=True)
class Exact:
    """Vectors as they are."""

    vectors: Float32[np.ndarray, "n d"]

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, places: Int64[np.ndarray, "k"]) -> Float32[np.ndarray, "k d"]:
        return self.vectors[places]

    def nearest(
        self, query: Float32[np.ndarray, "d"], count: int, allowed: Bool[np.ndarray, "n"] | None = None
    ) -> tuple[Float32[np.ndarray, "k"], Int64[np.ndarray, "k"]]:
        places = np.arange(len(self)) if allowed is None else np.flatnonzero(allowed)
        return _best((self.vectors @ query)[places], places, count)


@dataclass(frozen=True)
class TransformCoder:
    """Codes vectors x by levels of y = M⁻¹(x − mean), whose components are uncorrelated; the more bits a component gets, the
    more its error would change the cosine with a query."""

    matrix: Float32[np.ndarray, "d d"]  # M
    mean: Float32[np.ndarray, "d"]
    scale: Float32[np.ndarray, "d"]  # standard deviations of y
    bits: UInt8[np.ndarray, "d"]  # of each component of y

    @staticmethod
    def train(sample: Float32[np.ndarray, "n d"], queries: Float32[np.ndarray, "m d"], bits: float) -> "TransformCoder":
        """The coder with so many `bits` a dimension that fits a sample, to be compared with vectors like `queries`.

        The mean square of the error ⟨q, x − x̂⟩ over queries q with the second moment C is that of C^½(x − x̂), so what is
        coded are the principal components of C^½ x.
        """
        dim = sample.shape[1]
        moment = queries.astype(np.float64).T @ queries / len(queries)
        values, axes = np.linalg.eigh(moment + STRAY * np.trace(moment) / dim * np.eye(dim))
        root = axes * np.sqrt(values) @ axes.T  # C^½
        mean = sample.mean(axis=0, dtype=np.float64)
        variances, basis = np.linalg.eigh(np.cov(((sample - mean) @ root).T, bias=True).reshape(dim, dim))
        scale = np.sqrt(np.maximum(variances, 1e-20)).astype(np.float32)
        matrix = np.linalg.solve(root, basis).astype(np.float32)
        return TransformCoder(matrix, mean.astype(np.float32), scale, _allocated(scale, round(bits * dim)))

    @staticmethod
    def of(arrays: Mapping[str, np.ndarray], name: str) -> "TransformCoder":
        """The coder that `arrays` was taken from."""
        return TransformCoder(*(arrays[f"{name}_{field}"] for field in ARRAYS))

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """What there is to store."""
        return {f"{name}_{field}": getattr(self, field) for field in ARRAYS}

    @property
    def size(self) -> int:
        """Bytes of a code."""
        return -(-int(self.bits.sum()) // 8)

    def encode(self, vectors: Float32[np.ndarray, "n d"]) -> UInt8[np.ndarray, "n s"]:
        """Codes: the components' levels, as many bits as each one has, the highest first."""
        y = (vectors - self.mean) @ self._inverse.T
        steps = 2.0**self.bits
        levels = np.minimum(ndtr(y / (COMPANDING * self.scale)) * steps, steps - 1).astype(">u2")
        bits = np.unpackbits(levels.view(np.uint8), axis=1)  # (n, 16 d)
        return np.packbits(bits[:, self._kept], axis=1)

    def decode(self, codes: UInt8[np.ndarray, "n s"]) -> Float32[np.ndarray, "n d"]:
        """The vectors of codes, nearly."""
        starts = range(0, max(len(codes), 1), BLOCK)
        return np.concatenate([self._decode_block(codes[start : start + BLOCK]) for start in starts])

    def _decode_block(self, codes: UInt8[np.ndarray, "n s"]) -> Float32[np.ndarray, "n d"]:
        bits = np.zeros((len(codes), MOST_BITS * len(self.bits)), np.uint8)
        bits[:, self._kept] = np.unpackbits(codes, axis=1, count=len(self._kept))
        levels = np.packbits(bits, axis=1).view(">u2").astype(np.float32)
        y = COMPANDING * self.scale * ndtri((levels + 0.5) / np.float32(2) ** self.bits)
        return (y @ self.matrix.T + self.mean).astype(np.float32)

    @cached_property
    def _inverse(self) -> Float32[np.ndarray, "d d"]:
        return np.linalg.inv(self.matrix.astype(np.float64)).astype(np.float32)

    @cached_property
    def _kept(self) -> Int64[np.ndarray, "b"]:
        """The places of the bits that are kept of all components' sixteen."""
        return np.flatnonzero(np.arange(MOST_BITS) >= MOST_BITS - self.bits[:, None].astype(int))


@dataclass(frozen=True)
class TextCoder:
    """Codes captions; `train` or `of` makes one."""

    product: faiss.IndexPQ
    rest: TransformCoder  # of what the product code leaves over

    @staticmethod
    def train(sample: Float32[np.ndarray, "n d"]) -> "TextCoder":
        """The coder that fits a sample of at least 16 vectors, of a dimension that is a multiple of `GROUP`."""
        product = _untrained(sample.shape[1])
        product.train(sample)
        rest = sample - product.sa_decode(product.sa_encode(sample))
        return TextCoder(product, TransformCoder.train(rest, sample, TEXT_BITS))

    @staticmethod
    def of(arrays: Mapping[str, np.ndarray]) -> "TextCoder":
        """The coder that `arrays` was taken from."""
        rest = TransformCoder.of(arrays, "text")
        product = _untrained(len(rest.mean))
        _fill(product.pq.centroids, arrays["text_centroids"])
        product.is_trained = True
        return TextCoder(product, rest)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What there is to store."""
        return {"text_centroids": faiss.vector_to_array(self.product.pq.centroids)} | self.rest.arrays("text")

    def encode(self, vectors: Float32[np.ndarray, "n d"]) -> tuple[UInt8[np.ndarray, "n p"], UInt8[np.ndarray, "n s"]]:
        """Product codes, and transform codes of what these leave over."""
        codes = self.product.sa_encode(vectors)
        return codes, self.rest.encode(vectors - self.product.sa_decode(codes))


class TextCodes:
    """Coded captions. `codes` are copied into memory, `rest` may stay on the disk."""

    def __init__(self, coder: TextCoder, codes: UInt8[np.ndarray, "n p"], rest: UInt8[np.ndarray, "n s"]) -> None:
        self._coder, self._codes, self._rest = coder, codes, rest
        dim = coder.product.d
        plain = _untrained(dim)
        _fill(plain.pq.centroids, faiss.vector_to_array(coder.product.pq.centroids))
        faiss.copy_array_to_vector(codes.reshape(-1), plain.codes)
        plain.is_trained, plain.ntotal = True, len(codes)
        self._search = faiss.IndexPQFastScan(plain)

    def __len__(self) -> int:
        return len(self._codes)

    def take(self, places: Int64[np.ndarray, "k"]) -> Float32[np.ndarray, "k d"]:
        codes, rest = (np.ascontiguousarray(array[places]) for array in (self._codes, self._rest))
        return self._coder.product.sa_decode(codes) + self._coder.rest.decode(rest)

    def nearest(
        self, query: Float32[np.ndarray, "d"], count: int, allowed: Bool[np.ndarray, "n"] | None = None
    ) -> tuple[Float32[np.ndarray, "k"], Int64[np.ndarray, "k"]]:
        least, each = REFINED
        refined = max(least, each * count)
        places = self._nearest_codes(query, refined, allowed)
        return _best(self.take(places) @ query, places, count)

    def _nearest_codes(
        self, query: Float32[np.ndarray, "d"], count: int, allowed: Bool[np.ndarray, "n"] | None
    ) -> Int64[np.ndarray, "k"]:
        """The places of the `count` allowed captions that are nearest by their product codes, in the order of the disk."""
        looked_at = min(len(self), count)
        while True:
            _, found = self._search.search(query[None], looked_at)  # best first, -1 for none
            places = found[0][found[0] >= 0]
            if allowed is not None:  # FAISS's fast scan knows no filter
                places = places[allowed[places]]
            if len(places) >= count or looked_at == len(self):
                return np.sort(places[:count])
            if allowed is None:
                return np.sort(places)
            looked_at = min(len(self), WIDENING * looked_at)


@dataclass(frozen=True)
class ImageCodes:
    """Coded images, which may stay on the disk."""

    coder: TransformCoder
    codes: UInt8[np.ndarray, "n s"]

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, places: Int64[np.ndarray, "k"]) -> Float32[np.ndarray, "k d"]:
        return self.coder.decode(self.codes[places])


def text_code_size(dim: int) -> int:
    """Bytes of a caption's product code."""
    return -(-dim // GROUP * GROUP_BITS // 8)


def array_shapes(dim: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shapes and kinds of what the coders of captions and images store."""
    of_coders = {
        f"{name}_{field}": ((dim,) * count, np.uint8 if field == "bits" else np.float32)
        for name in ("text", "image")
        for field, count in ARRAYS.items()
    }
    return {"text_centroids": ((2**GROUP_BITS * dim,), np.float32)} | of_coders


def _allocated(scale: Float32[np.ndarray, "d"], total: int) -> UInt8[np.ndarray, "d"]:
    """Bits for components with these standard deviations: each bit, which halves an error, goes where the error is largest."""
    bits, error = np.zeros(len(scale), np.uint8), scale.copy()
    for _ in range(min(total, MOST_BITS * len(scale))):
        largest = int(np.argmax(error))
        bits[largest] += 1
        error[largest] = error[largest] / 2 if bits[largest] < MOST_BITS else -1.0
    return bits


def _untrained(dim: int) -> faiss.IndexPQ:
    product = faiss.IndexPQ(dim, dim // GROUP, GROUP_BITS, faiss.METRIC_INNER_PRODUCT)
    product.pq.cp.min_points_per_centroid = 1  # a small sample is none to warn of
    return product


def _best(
    cosines: Float32[np.ndarray, "n"], places: Int64[np.ndarray, "n"], count: int
) -> tuple[Float32[np.ndarray, "k"], Int64[np.ndarray, "k"]]:
    order = np.argsort(-cosines, kind="stable")[:count]
    return cosines[order], places[order]


def _fill(vector: object, values: Float32[np.ndarray, "..."]) -> None:
    """Put an array into a vector of FAISS."""
    faiss.copy_array_to_vector(np.ascontiguousarray(values, np.float32).reshape(-1), vector)
