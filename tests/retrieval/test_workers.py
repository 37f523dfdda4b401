"""Where parts are made: tasks are taken no faster than they are worked on, and a worker that dies is said in a sentence."""

from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import pyarrow as pa
import pytest

from redream.retrieval import workers
from redream.retrieval.build import BuildError
from redream.retrieval.parts import Job
from redream.retrieval.workers import _collected, make_in_processes

RECORDS = pa.table({"uid": ["a"]})


def test_every_task_is_made_once_and_few_are_taken_ahead(monkeypatch):
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.001)
    taken, ended = [], []

    def tasks():
        for number in range(20):
            taken.append(number)
            yield number, RECORDS, None

    with ThreadPoolExecutor(3) as pool:
        for update in _collected(tasks(), lambda records, images: pool.submit(bytes, len(records)), 3):
            if update.number is not None:
                assert update.content == bytes(len(RECORDS)) and update.fraction == 1
                ended.append(update.number)
            assert len(taken) <= len(ended) + 3
    assert sorted(ended) == taken == list(range(20))


def test_a_worker_that_ends_early_is_said_in_a_sentence(monkeypatch):
    @contextmanager
    def broken_pool(*_):
        raise BrokenProcessPool("killed")
        yield

    monkeypatch.setattr(workers, "worker_pool", broken_pool)
    with pytest.raises(BuildError, match="the same command goes on"):
        list(make_in_processes(Job(len), [(0, RECORDS, None)], 2))
