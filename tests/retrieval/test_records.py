"""Tables of records: joined by uid, filtered by the first reason that applies, with their captions; the time left."""

import pyarrow as pa
import pytest

from redream.retrieval import records
from redream.retrieval.records import Clock, attach, leave_out, with_captions


def test_columns_are_attached_by_uid_and_the_first_row_of_a_uid_counts():
    table = pa.table({"uid": pa.chunked_array([["c"], ["a", "b"]])})
    other = pa.table({"uid": ["b", "x", "b", "c"], "faces": [1, 2, 3, None], "name": ["one", "two", "three", "four"]})
    joined = attach(table, other, "faces", "name").to_pydict()
    assert joined == {"uid": ["c", "a", "b"], "faces": [None, None, 1], "name": ["four", None, "one"]}


def test_a_row_is_counted_under_the_first_reason_that_applies_and_null_is_no_reason():
    table = pa.table({"uid": ["a", "b", "c", "d", "e"]})
    first, second = pa.array([True, None, False, False, None]), pa.array([True, True, None, False, True])
    kept, counts = leave_out(table, [("first", first), ("second", second), ("first", second), ("never", first)])
    assert kept["uid"].to_pylist() == ["c", "d"] and counts == {"first": 1, "second": 2}
    assert sum(counts.values()) + len(kept) == len(table)


def test_captions_are_the_distinct_texts_in_order_or_else_the_fallback():
    columns = {"one": ["an owl", None, "", None], "two": ["a bird", "a car", None, None], "name": ["x", "y", "z", ""]}
    table = pa.table({"uid": list("abcd")} | columns)
    named = with_captions(table, ["two", "one"], "name")
    assert named["captions"].to_pylist() == [["a bird", "an owl"], ["a car"], ["z"], []]
    same = with_captions(table.set_column(1, "one", [["a bird", None, None, None]]), ["two", "one"])
    assert same["captions"].to_pylist() == [["a bird"], ["a car"], [], []] and "two" not in same.column_names


def test_the_time_left_is_that_of_the_pace_since_the_start(monkeypatch):
    """30 of 100 in 60 s, 10 of which were done before: 20 took 60 s, so 70 take 210 s."""
    now = iter([1000.0, 1060.0, 1060.0])
    monkeypatch.setattr(records.time, "monotonic", lambda: next(now))
    clock = Clock()
    progress = clock.progress("embedding", 30.0, 100, before=10.0)
    assert progress.seconds_left == pytest.approx(210) and progress.unit == "assets"
    assert clock.progress("embedding", 10.0, 100, before=10.0).seconds_left is None
