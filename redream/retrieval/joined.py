"""A stack's index and one's own library, searched as if they were one index."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from jaxtyping import Float

from redream.retrieval.clip import Clip
from redream.retrieval.fetch import AssetUnavailable, FetchProgress, never
from redream.retrieval.index import Hit, Index, IndexFormatError
from redream.retrieval.licences import allows_commercial_use


@dataclass(frozen=True)
class JoinedIndex:
    """Indexes made with the same CLIP; of an asset that several of them have, the first one's entry counts."""

    indexes: tuple[Index, ...]

    def __len__(self) -> int:
        return sum(map(len, self.indexes))

    @property
    def licences(self) -> list[str]:
        """All licences that occur, sorted."""
        return sorted(set(chain.from_iterable(index.licences for index in self.indexes)))

    @property
    def commercial_licences(self) -> list[str]:
        """Those of `licences` that are known to allow commercial use."""
        return list(filter(allows_commercial_use, self.licences))

    def first(self, count: int, licences: Sequence[str] | None = None) -> Iterator[dict]:
        """The first rows, of all or of some licences."""
        return islice(chain.from_iterable(index.first(count, licences) for index in self.indexes), count)

    def search(
        self, prompt: str, clip: Clip, assets: int, candidates: int, licences: Sequence[str] | None = None
    ) -> list[Hit]:
        """As `Index.search` of one index of all assets: the nearest captions of each index hold those of all of them."""
        hits: dict[str, Hit] = {}
        for index in self.indexes:
            for hit in index.search(prompt, clip, candidates, candidates, licences):
                hits.setdefault(hit.uid, hit)
        by_text = sorted(hits.values(), key=lambda hit: -hit.text_similarity)[:candidates]
        return sorted(by_text, key=lambda hit: (hit.similarity is None, -(hit.similarity or 0)))[:assets]

    def hit(self, uid: str, prompt: str, clip: Clip) -> Hit:
        """As `Index.hit`."""
        return self._of(uid).hit(uid, prompt, clip)

    def row(self, uid: str) -> dict:
        """Everything the table says about an asset. Raises `AssetUnavailable`."""
        return self._of(uid).row(uid)

    def remember(self, uid: str, image: Float[np.ndarray, "d"]) -> None:
        """As `Index.remember`."""
        self._of(uid).remember(uid, image)

    def asset_path(self, uid: str) -> Path:
        """The asset's GLB, as `Index.asset_path`."""
        return self._of(uid).asset_path(uid)

    def is_here(self, uid: str) -> bool:
        """Whether the asset's GLB needs no network."""
        return self._of(uid).is_here(uid)

    def fetch(
        self, uids: Sequence[str], stop: Callable[[], bool] = never
    ) -> Generator[FetchProgress, None, dict[str, AssetUnavailable]]:
        """As `Index.fetch`, one index after the other."""
        failed = {}
        for index in self.indexes:
            if wanted := [uid for uid in uids if self._of(uid) is index]:
                failed |= yield from index.fetch(wanted, stop)
        return failed

    def _of(self, uid: str) -> Index:
        """The index that has an asset; the first one says that there is none."""
        return next((index for index in self.indexes if uid in index), self.indexes[0])


def with_own(index: Index, library: Path) -> Index | JoinedIndex:
    """An index joined with the library in a folder; the index alone where there is none, or one for another CLIP.

    Raises `IndexFormatError` if the library is damaged.
    """
    if not (library / "index.json").is_file():
        return index
    try:
        own = Index.load(library)
    except IndexFormatError as error:
        raise IndexFormatError(f"Your own library in {library} cannot be used: {error}") from error
    return JoinedIndex((index, own)) if own.embedding["sha256"] == index.embedding["sha256"] else index
