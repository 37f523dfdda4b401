"""What an index is to be made of: one record an asset, before anything is embedded."""

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

Mask = pa.Array | pa.ChunkedArray  # of truth values; null is no

WORKING = ("captions", "thumbnail")  # columns that are needed to make the index, and not in its table


@dataclass(frozen=True)
class Records:
    """Assets sorted by uid, and why others were left out."""

    # The columns of an index's table but caption, as texts; `path` and further ones; captions (a list of texts, the
    # first is the one that is shown) and, where there are any, thumbnail (an address).
    table: pa.Table
    left_out: Mapping[str, int]  # how many, by reason
    repository: Mapping[str, str] | None = None  # where on the Hub assets without a file are (`Index`)
    commits: Mapping[str, str] = field(default_factory=dict)  # of the Hub's repositories that were read


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is."""

    stage: str  # what is done now: "reading", "embedding" or "writing"
    done: float
    total: int
    seconds_left: float | None = None  # of the stage

    @property
    def unit(self) -> str:
        """What `done` and `total` count."""
        return {"reading": "files", "embedding": "assets", "writing": "parts"}[self.stage]


class Clock:
    """Tells how long a stage still takes at the pace so far."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def progress(self, stage: str, done: float, total: int, before: float = 0.0) -> BuildProgress:
        """`before` of what is done was done before the clock's start."""
        made = done - before
        left = (time.monotonic() - self.start) * (total - done) / made if made > 0 else None
        return BuildProgress(stage, done, total, left)


def attach(table: pa.Table, other: pa.Table, *columns: str) -> pa.Table:
    """Columns of another table by uid, null where it lacks the uid; of a uid that it has twice the first row counts."""
    rows = pc.index_in(table["uid"].combine_chunks(), value_set=other["uid"].combine_chunks())
    for name in columns:
        table = table.append_column(name, other[name].combine_chunks().take(rows))
    return table


def leave_out(table: pa.Table, reasons: Iterable[tuple[str, Mask]]) -> tuple[pa.Table, dict[str, int]]:
    """The rows that no reason (name, mask) applies to, and how many each one was the first for."""
    kept, counts = pa.repeat(pa.scalar(True), len(table)), {}
    for name, mask in reasons:
        mask = pc.and_(kept, pc.fill_null(mask, False))
        counts[name] = counts.get(name, 0) + (pc.sum(mask).as_py() or 0)
        kept = pc.and_not(kept, mask)
    return table.filter(kept), {name: count for name, count in counts.items() if count}


def with_captions(table: pa.Table, columns: Sequence[str], fallback: str | None = None) -> pa.Table:
    """The table with `captions` in place of those columns: their distinct texts, in their order; where there is none, that
    of the column `fallback`."""

    def distinct(*texts: str | None) -> list[str]:
        *found, last = texts
        return list(dict.fromkeys(filter(None, found))) or ([last] if last else [])

    texts = [_texts(table[name]) for name in columns]
    texts.append(_texts(table[fallback]) if fallback else itertools.repeat(None, len(table)))
    captions = pa.array(map(distinct, *texts), pa.list_(pa.string()), size=len(table))
    return table.drop_columns(list(columns)).append_column("captions", captions)


def _texts(column: pa.ChunkedArray) -> Iterator[str | None]:
    return (value.as_py() for value in column)
