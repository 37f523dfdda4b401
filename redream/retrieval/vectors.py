"""The unit vectors of an index: as they are where there are few, in a few bits a dimension where there are many.

Of many, a caption is coded twice. Its product code (4 bits for every 4 dimensions) is searched by table look-up; the nearest
ones by it are compared again with the scalar code of what it leaves over (6 bits a dimension) added. An image is only
compared, by a scalar code (8 bits a dimension).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import faiss
import numpy as np
from jaxtyping import Float32, Int64, UInt8

GROUP = 4  # dimensions that share a product code
GROUP_BITS = 4
REFINED = 400, 32  # so many at least are compared again, and so many for each that is asked for
TEXT_BITS, IMAGE_BITS = faiss.ScalarQuantizer.QT_6bit, faiss.ScalarQuantizer.QT_8bit


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
        self, query: Float32[np.ndarray, "d"], count: int
    ) -> tuple[Float32[np.ndarray, "k"], Int64[np.ndarray, "k"]]:
        """The cosines of the `count` vectors nearest to a unit vector, best first, and their places."""
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
        self, query: Float32[np.ndarray, "d"], count: int
    ) -> tuple[Float32[np.ndarray, "k"], Int64[np.ndarray, "k"]]:
        return _best(self.vectors @ query, np.arange(len(self)), count)


@dataclass(frozen=True)
class TextCoder:
    """Codes captions; `train` or `of` makes one."""

    product: faiss.IndexPQ
    scalar: faiss.IndexScalarQuantizer  # of what the product code leaves over

    @staticmethod
    def train(sample: Float32[np.ndarray, "n d"]) -> "TextCoder":
        """The coder that fits a sample of at least 16 vectors, of a dimension that is a multiple of `GROUP`."""
        coder = TextCoder._untrained(sample.shape[1])
        coder.product.train(sample)
        coder.scalar.train(sample - coder.product.sa_decode(coder.product.sa_encode(sample)))
        return coder

    @staticmethod
    def of(arrays: Mapping[str, Float32[np.ndarray, "..."]]) -> "TextCoder":
        """The coder that `arrays` was taken from."""
        centroids, ranges = arrays["text_centroids"], arrays["text_ranges"]
        coder = TextCoder._untrained(len(ranges) // 2)
        _fill(coder.product.pq.centroids, centroids)
        coder.product.is_trained = True
        _restore(coder.scalar, ranges)
        return coder

    @property
    def arrays(self) -> dict[str, Float32[np.ndarray, "..."]]:
        """What there is to store."""
        centroids = faiss.vector_to_array(self.product.pq.centroids)
        return {"text_centroids": centroids, "text_ranges": faiss.vector_to_array(self.scalar.sq.trained)}

    def encode(self, vectors: Float32[np.ndarray, "n d"]) -> tuple[UInt8[np.ndarray, "n p"], UInt8[np.ndarray, "n s"]]:
        """Product codes, and scalar codes of what these leave over."""
        codes = self.product.sa_encode(vectors)
        return codes, self.scalar.sa_encode(vectors - self.product.sa_decode(codes))

    @staticmethod
    def _untrained(dim: int) -> "TextCoder":
        product = faiss.IndexPQ(dim, dim // GROUP, GROUP_BITS, faiss.METRIC_INNER_PRODUCT)
        product.pq.cp.min_points_per_centroid = 1  # a small sample is none to warn of
        return TextCoder(product, faiss.IndexScalarQuantizer(dim, TEXT_BITS))


class TextCodes:
    """Coded captions. `codes` are copied into memory, `rest` may stay on the disk."""

    def __init__(self, coder: TextCoder, codes: UInt8[np.ndarray, "n p"], rest: UInt8[np.ndarray, "n s"]) -> None:
        self._coder, self._codes, self._rest = coder, codes, rest
        dim = coder.product.d
        plain = faiss.IndexPQ(dim, dim // GROUP, GROUP_BITS, faiss.METRIC_INNER_PRODUCT)
        _fill(plain.pq.centroids, faiss.vector_to_array(coder.product.pq.centroids))
        faiss.copy_array_to_vector(codes.reshape(-1), plain.codes)
        plain.is_trained, plain.ntotal = True, len(codes)
        self._search = faiss.IndexPQFastScan(plain)

    def __len__(self) -> int:
        return len(self._codes)

    def take(self, places: Int64[np.ndarray, "k"]) -> Float32[np.ndarray, "k d"]:
        codes, rest = (np.ascontiguousarray(array[places]) for array in (self._codes, self._rest))
        return self._coder.product.sa_decode(codes) + self._coder.scalar.sa_decode(rest)

    def nearest(
        self, query: Float32[np.ndarray, "d"], count: int
    ) -> tuple[Float32[np.ndarray, "k"], Int64[np.ndarray, "k"]]:
        least, each = REFINED
        _, found = self._search.search(query[None], min(len(self), max(least, each * count)))
        places = np.sort(found[0][found[0] >= 0])  # in the order of the disk
        return _best(self.take(places) @ query, places, count)


class ImageCoder:
    """Codes images; `train` or `of` makes one."""

    def __init__(self, scalar: faiss.IndexScalarQuantizer) -> None:
        self._scalar = scalar

    @staticmethod
    def train(sample: Float32[np.ndarray, "n d"]) -> "ImageCoder":
        """The coder that fits a sample."""
        scalar = faiss.IndexScalarQuantizer(sample.shape[1], IMAGE_BITS)
        scalar.train(sample)
        return ImageCoder(scalar)

    @staticmethod
    def of(arrays: Mapping[str, Float32[np.ndarray, "..."]]) -> "ImageCoder":
        """The coder that `arrays` was taken from."""
        scalar = faiss.IndexScalarQuantizer(len(arrays["image_ranges"]) // 2, IMAGE_BITS)
        _restore(scalar, arrays["image_ranges"])
        return ImageCoder(scalar)

    @property
    def arrays(self) -> dict[str, Float32[np.ndarray, "..."]]:
        """What there is to store."""
        return {"image_ranges": faiss.vector_to_array(self._scalar.sq.trained)}

    def encode(self, vectors: Float32[np.ndarray, "n d"]) -> UInt8[np.ndarray, "n d"]:
        """A byte for each dimension."""
        return self._scalar.sa_encode(vectors)

    def decode(self, codes: UInt8[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
        """The vectors of codes, nearly."""
        return self._scalar.sa_decode(np.ascontiguousarray(codes))


@dataclass(frozen=True)
class ImageCodes:
    """Coded images, which may stay on the disk."""

    coder: ImageCoder
    codes: UInt8[np.ndarray, "n d"]

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, places: Int64[np.ndarray, "k"]) -> Float32[np.ndarray, "k d"]:
        return self.coder.decode(self.codes[places])


def text_code_sizes(dim: int) -> tuple[int, int]:
    """Bytes of a caption's product code and scalar code."""
    return -(-dim // GROUP * GROUP_BITS // 8), -(-dim * 6 // 8)


def array_shapes(dim: int) -> dict[str, tuple[int, ...]]:
    """The shapes of what `TextCoder.arrays` and `ImageCoder.arrays` hold."""
    return {"text_centroids": (2**GROUP_BITS * dim,), "text_ranges": (2 * dim,), "image_ranges": (2 * dim,)}


def _best(
    cosines: Float32[np.ndarray, "n"], places: Int64[np.ndarray, "n"], count: int
) -> tuple[Float32[np.ndarray, "k"], Int64[np.ndarray, "k"]]:
    order = np.argsort(-cosines, kind="stable")[:count]
    return cosines[order], places[order]


def _restore(scalar: faiss.IndexScalarQuantizer, ranges: Float32[np.ndarray, "n"]) -> None:
    _fill(scalar.sq.trained, ranges)
    scalar.is_trained = True


def _fill(vector: object, values: Float32[np.ndarray, "..."]) -> None:
    """Put an array into a vector of FAISS."""
    faiss.copy_array_to_vector(np.ascontiguousarray(values, np.float32).reshape(-1), vector)
