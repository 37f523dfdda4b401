"""The table of an index's assets: a Parquet file of which only the rows that are asked for are read."""

from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool

from redream.retrieval.licences import allows_commercial_use

COLUMNS = ("uid", "caption", "author", "license", "source", "file", "sha256")
GROUP_ROWS = 4096  # of a row group, which is read and unpacked as a whole
CACHED_GROUPS = 32


class AssetTable:
    """Rows by their places. Raises `pyarrow.ArrowException` or `OSError` for what is no Parquet file."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path, memory_map=True)
        sizes = [self._file.metadata.row_group(n).num_rows for n in range(self._file.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])  # (groups + 1,)
        self._group = lru_cache(CACHED_GROUPS)(self._file.read_row_group)
        self.columns = self._file.schema_arrow.names

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def row(self, place: int) -> dict:
        """Everything that the table says about an asset."""
        group = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self._group(group).slice(place - int(self._starts[group]), 1).to_pylist()[0]

    def place(self, uid: str) -> int | None:
        """The place of an asset, None if the table has no such one."""
        place = pc.index(self._uids, uid).as_py()
        return None if place < 0 else place

    def first(self, count: int, licences: Sequence[str] | None = None) -> Iterator[dict]:
        """The first rows, of all or of some licences."""
        places = np.arange(len(self)) if licences is None else np.flatnonzero(self.has_licence(licences))
        return map(self.row, places[:count].tolist())

    @cached_property
    def licences(self) -> list[str]:
        """All licences that occur, sorted."""
        return sorted(text for text in self._licences.chunk(0).dictionary.to_pylist() if text)

    @cached_property
    def commercial_licences(self) -> list[str]:
        """Those of `licences` that are known to allow commercial use."""
        return list(filter(allows_commercial_use, self.licences))

    def has_licence(self, licences: Sequence[str]) -> Bool[np.ndarray, "n"]:
        """Whether each asset's licence is one of these."""
        return pc.fill_null(pc.is_in(self._licences, value_set=pa.array(licences, pa.string())), False).to_numpy()

    @cached_property
    def _uids(self) -> pa.ChunkedArray:
        return self._strings("uid")

    @cached_property
    def _licences(self) -> pa.ChunkedArray:
        return self._strings("license").dictionary_encode().unify_dictionaries()

    def _strings(self, column: str) -> pa.ChunkedArray:
        return self._file.read([column])[column].cast(pa.string())  # a column of nulls has no type of its own
