"""`/health`: 503 until the models are loaded, then 200; the queue and the disk as they are."""

import shutil
import threading

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from redream import pipeline
from redream.app.health import health_route
from redream.runs.queue import Worker


@pytest.fixture
def worker(models, tmp_path, monkeypatch):
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path))
    return Worker(models, pipeline.generate, pipeline.resume)


def test_an_app_is_ready_once_its_models_are_loaded(worker, tmp_path):
    client = TestClient(Starlette(routes=[health_route(worker)]))
    answer = client.get("/health")
    assert answer.status_code == 503 and answer.json()["ready"] is False
    for _ in worker.run_exclusive(uses_models(worker.models)):  # as runs do, where `prepare` was without success
        pass
    shutil.rmtree(tmp_path)  # somebody tidied up: the next run makes it anew
    answer = client.get("/health")
    assert answer.status_code == 200
    values = answer.json()
    assert values["stack"] == "tiny" and values["queue"] == 0
    assert abs(values["disk_left"] - shutil.disk_usage(tmp_path.parent).free) < 10**9


def uses_models(models):
    def work(stop):
        yield models.index, models.clip("retrieval"), models.prior

    return work


def test_work_that_waits_or_is_done_is_counted(worker):
    go, client = threading.Event(), TestClient(Starlette(routes=[health_route(worker)]))

    def work(stop):
        go.wait(10)
        yield 1

    for count in (1, 2):
        worker._enqueue(f"work-{count}", work, None)
        assert client.get("/health").json()["queue"] == count
    go.set()
