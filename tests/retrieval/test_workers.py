"""Where parts are made: tasks are taken no faster than they are worked on, and a worker that dies is said in a sentence."""

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import SimpleNamespace

import pyarrow as pa
import pytest

from redream.retrieval import workers
from redream.retrieval.build import BuildError
from redream.retrieval.parts import Job
from redream.retrieval.workers import _collected, make_here, make_in_processes, make_on_ray

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


class KilledRenderer:
    """A worker whose process that renders is killed."""

    def __init__(self, job: Job) -> None:
        pass

    def made(self, *_: object) -> bytes:
        raise BrokenProcessPool("killed")

    make = made

    def close(self) -> None:
        pass


class RayTaskError(Exception):
    cause = BrokenProcessPool("killed")


class Actor:
    """An actor of a Ray whose workers have a renderer that is killed."""

    made = property(lambda self: SimpleNamespace(remote=lambda *_: SimpleNamespace(future=self.failed)))

    def failed(self) -> Future:
        future = Future()
        future.set_exception(RayTaskError())
        return future


def test_a_renderer_that_is_killed_is_said_in_a_sentence(monkeypatch):
    monkeypatch.setattr(workers, "PartMaker", KilledRenderer)
    actors = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda job: Actor()))
    exceptions = SimpleNamespace(RayTaskError=RayTaskError, RayError=RayTaskError)
    known = {"init": lambda *_, **__: None, "shutdown": lambda: None, "cluster_resources": lambda: {"CPU": 2.0}}
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(**known, remote=lambda _: actors, exceptions=exceptions))
    for updates in (make_here(Job(len), [(0, RECORDS, None)]), make_on_ray(Job(len), [(0, RECORDS, None)], "local")):
        with pytest.raises(BuildError, match="A worker process ended early"):
            list(updates)
