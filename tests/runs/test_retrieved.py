"""The assets of a run whose library lies on the Hub: fetched, shown as they come, stopped, replaced by the next ones."""

import json
import shutil
import threading
import time

import numpy as np
import pytest
from hub_server import Fault
from hub_stack import publish_assets
from tiny_stack import TINY

from redream import pipeline
from redream.files import sha256
from redream.retrieval import fetch
from redream.retrieval.fetch import AssetUnavailable
from redream.runs import events, retrieved
from redream.runs.run import Run
from redream.stack.models import Models

PROMPT = "a red owl"


@pytest.fixture
def remote_models(tiny_stack, hub_server, tmp_path):
    return Models.load(publish_assets(hub_server, tiny_stack, tmp_path / "index"), "cpu")


def path_of(models: Models, uid: str) -> str:
    return models.index.row(uid)["path"]


def test_the_same_assets_are_found_as_in_a_library_with_files(remote_models, models):
    expected, _ = retrieved.search(PROMPT, models, TINY)
    found, warnings = retrieved.search(PROMPT, remote_models, TINY)
    assert [asset.entry["uid"] for asset in found] == [asset.entry["uid"] for asset in expected] and not warnings
    assert all((a.asset.mesh.vertices == b.asset.mesh.vertices).all() for a, b in zip(found, expected, strict=True))


def test_an_asset_that_cannot_be_fetched_is_replaced_by_the_next_candidate(remote_models, hub_server):
    candidates = TINY.retrieval.candidates
    hits = remote_models.index.search(PROMPT, remote_models.clip("retrieval"), candidates, candidates)
    path = path_of(remote_models, hits[1].uid)
    wrong = bytes(len(hub_server.repositories["datasets", "owner/objects"][path]))
    hub_server.faults[path] = Fault(content=wrong)
    found, warnings = retrieved.search(PROMPT, remote_models, TINY)
    wanted = TINY.retrieval.assets
    expected = [hit.uid for hit in hits if hit.uid != hits[1].uid][:wanted]
    assert [asset.entry["uid"] for asset in found] == expected
    assert len(warnings) == 1 and hits[1].caption in warnings[0] and "not the one that was indexed" in warnings[0]


def without_pictures(models: Models) -> Models:
    """The same models with an index that has no image embeddings."""
    folder = models.index.folder
    manifest = json.loads((folder / "index.json").read_text()) | {"pictures": 0}
    np.save(folder / "images.npy", np.zeros((0, manifest["dim"]), np.float32))
    np.save(folder / "image_assets.npy", np.zeros(0, np.int32))
    manifest["files"] |= {name: sha256(folder / name) for name in ("images.npy", "image_assets.npy")}
    (folder / "index.json").write_text(json.dumps(manifest))
    return Models.load(models.stack, "cpu")


def test_assets_without_a_picture_are_fetched_looked_at_and_remembered(remote_models, models, hub_server):
    expected, _ = retrieved.search(PROMPT, models, TINY)
    unseen = without_pictures(remote_models)
    assert {hit.similarity for hit in pipeline.retrieve(PROMPT, models=unseen)} == {None}
    found, warnings = retrieved.search(PROMPT, unseen, TINY)
    assert [asset.entry["uid"] for asset in found] == [asset.entry["uid"] for asset in expected] and not warnings
    similarities = [asset.entry["similarity"] for asset in expected]
    assert [asset.entry["similarity"] for asset in found] == pytest.approx(similarities, abs=1e-5)

    hub_server.stop()  # a later search knows their pictures without the files, in another process too
    hits = pipeline.retrieve(PROMPT, models=Models.load(unseen.stack, "cpu"))
    assert [hit.similarity for hit in hits] == pytest.approx(similarities, abs=1e-5)


def test_assets_without_a_picture_that_cannot_be_had_come_last_and_are_asked_for_once(remote_models, hub_server):
    hits = pipeline.retrieve(PROMPT, models=remote_models)
    path = path_of(remote_models, hits[0].uid)
    hub_server.faults[path] = Fault(content=bytes(len(hub_server.repositories["datasets", "owner/objects"][path])))
    found, _ = retrieved.search(PROMPT, without_pictures(remote_models), TINY)
    assert hits[0].uid not in [asset.entry["uid"] for asset in found] and len(found) == TINY.retrieval.assets
    assert 1 <= sum(path in request for request in hub_server.requests) <= 2  # its size, and its bytes


def test_offline_the_candidates_in_the_cache_are_used(remote_models, hub_server, monkeypatch):
    monkeypatch.setattr(fetch, "STALL_SECONDS", 0.3)
    settings = TINY.with_(retrieval={"candidates": 6})
    hits = pipeline.retrieve(PROMPT, k=6, models=remote_models)
    kept = [hits[0].uid, hits[5].uid]
    for uid in kept:
        remote_models.index.asset_path(uid)
    hub_server.stop()
    found, warnings = retrieved.search(PROMPT, remote_models, settings)
    assert [asset.entry["uid"] for asset in found] == kept and len(warnings) == settings.retrieval.assets - 1
    shutil.rmtree(remote_models.index.asset_path(kept[0]).parents[5])
    with pytest.raises(AssetUnavailable):
        retrieved.search(PROMPT, remote_models, settings)


def test_a_run_shows_the_download_and_goes_on_after_a_stop(remote_models, hub_server, tmp_path, monkeypatch):
    released, stopped = threading.Event(), threading.Event()
    best = pipeline.retrieve(PROMPT, k=1, models=remote_models)[0].uid
    hub_server.faults[path_of(remote_models, best)] = Fault(pause=lambda: released.wait(20))
    run_events = pipeline.generate(
        PROMPT, settings=TINY, out=tmp_path / "run", models=remote_models, stop=stopped.is_set
    )
    assert isinstance(next(run_events), events.Started) and isinstance(next(run_events), events.Fetching)
    stopped.set()
    begin = time.monotonic()
    assert [type(event) for event in run_events][-1] is events.Finished and time.monotonic() - begin < 2
    released.set()
    run = Run.open(tmp_path / "run")
    assert not run.finished and list(run.events())[-1] == events.Finished(stopped=True)

    kinds = [type(event) for event in pipeline.resume(tmp_path / "run", models=remote_models)]
    assert events.Retrieved in kinds and kinds[-1] is events.Finished and Run.open(tmp_path / "run").finished
