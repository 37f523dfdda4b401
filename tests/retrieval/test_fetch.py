"""Assets from the Hub, by its real client: right, or one sentence; never a wrong file in the cache."""

import errno
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest
from hub_server import Fault
from huggingface_hub import file_download

from redream import hub
from redream.hub import HubFile
from redream.retrieval import fetch as fetching
from redream.retrieval.fetch import (
    AssetUnavailable,
    AssetUnreachable,
    FetchStopped,
    RemoteAsset,
    fetch,
    finished,
)

CONTENTS = {f"glbs/000-00{i}/u{i}.glb": os.urandom(3 * 2**20 + i) for i in range(4)}


def remote(number: int) -> RemoteAsset:
    name = f"glbs/000-00{number}/u{number}.glb"
    digest = hashlib.sha256(CONTENTS.get(name, b"")).hexdigest()
    return RemoteAsset(f"u{number}", HubFile("owner/objects", name, "main", "dataset"), digest)


@pytest.fixture
def objects(hub_server, monkeypatch):
    """A Hub with a data set of four objects, for a client that loses patience soon."""
    monkeypatch.setattr(hub.faults, "RETRY_WAITS", (0.01,) * 4)
    monkeypatch.setattr(fetching, "STALL_SECONDS", 2.5)
    monkeypatch.setattr(fetching, "POLL_SECONDS", 0.02)
    hub_server.add("owner/objects", CONTENTS, "datasets")
    return hub_server


@pytest.fixture
def released():
    """Ends what a stalled server waits for when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def blobs(cache: Path) -> list[Path]:
    """Complete files of the cache."""
    return [path for path in cache.rglob("blobs/*") if path.suffix != ".incomplete"]


def test_assets_come_side_by_side_with_progress(objects):
    meeting = threading.Barrier(3, timeout=10)  # none is answered before all three are asked for
    objects.faults = {name: Fault(pause=meeting.wait) for name in CONTENTS}
    updates, failed = [], None
    steps = fetch([remote(i) for i in range(3)])
    while failed is None:
        try:
            updates.append(next(steps))
        except StopIteration as end:
            failed = end.value
    assert failed == {} and all(update.received <= update.size for update in updates) and updates
    for number in range(3):
        path = remote(number).cached()
        assert path.read_bytes() == CONTENTS[remote(number).file.name]


def test_what_is_in_the_cache_is_used_without_a_request(objects):
    assert finished(fetch([remote(0)])) == {}
    objects.requests.clear()
    assert finished(fetch([remote(0)])) == {} and not objects.requests
    objects.stop()  # offline after a first success
    assert finished(fetch([remote(0)])) == {} and remote(0).cached().is_file()
    failed = finished(fetch([remote(0), remote(1)]))
    assert list(failed) == ["u1"] and isinstance(failed["u1"], AssetUnreachable)


def test_a_cached_file_that_was_changed_is_fetched_again(objects):
    finished(fetch([remote(0)]))
    remote(0).cached().resolve().write_bytes(b"something else")
    assert remote(0).cached() is None
    assert finished(fetch([remote(0)])) == {}
    assert remote(0).cached().read_bytes() == CONTENTS[remote(0).file.name]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=503, times=2),
        Fault(status=503, times=2, methods=("HEAD",)),
        Fault(status=429, headers={"Retry-After": "0"}),
        Fault(cut=2 * 2**20 + 1000),
    ],
    ids=["503 twice", "503 twice for its size", "429", "cut mid-file"],
)
def test_a_fault_that_passes_is_tried_again(objects, fault):
    objects.faults[remote(0).file.name] = fault
    assert finished(fetch([remote(0)])) == {} and fault.times == 0
    assert remote(0).cached().read_bytes() == CONTENTS[remote(0).file.name]
    assert not fault.cut or objects.ranges == [f"bytes={2 * 2**20}-"]  # it goes on where it was cut


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault(status=503, times=99), "answers with error 503"),
        (Fault(status=429, headers={"Retry-After": "600"}, times=99), "sends nothing for"),
        (Fault(status=404, headers={"X-Error-Code": "EntryNotFound"}, methods=("HEAD",), times=99), "lacks a file"),
        (Fault(cut=2**20, pause=lambda: time.sleep(10), times=99), "sends nothing for"),
        (Fault(content=os.urandom(3 * 2**20)), "is not the one that was indexed"),
    ],
    ids=["503", "429 for long", "missing file", "stall", "wrong bytes"],
)
def test_a_fault_that_stays_is_one_sentence_and_no_file(objects, tmp_path, fault, sentence):
    objects.faults[remote(0).file.name] = fault
    failed = finished(fetch([remote(0), remote(1)]))
    assert list(failed) == ["u0"] and sentence in str(failed["u0"]) and "\n" not in str(failed["u0"])
    assert remote(0).cached() is None and remote(1).cached().is_file()
    assert [path.read_bytes() for path in blobs(tmp_path / "hub-cache")] == [CONTENTS[remote(1).file.name]]


def test_an_asset_that_is_not_in_the_repository_is_a_sentence(objects):
    assert "lacks a file" in str(finished(fetch([remote(9)]))["u9"])


@pytest.mark.parametrize(("number", "sentence"), [(errno.ENOSPC, "The disk is full"), (errno.EROFS, "set HF_HOME")])
def test_a_disk_that_takes_no_file_is_a_sentence(objects, tmp_path, monkeypatch, number, sentence):
    def write(url, file, **options):
        file.write(b"glT")
        raise OSError(number, "it does not go on")

    monkeypatch.setattr(file_download, "http_get", write)
    assert sentence in str(finished(fetch([remote(0)]))["u0"]) and not blobs(tmp_path / "hub-cache")


def test_an_asset_over_the_size_limit_is_refused_by_its_size_and_by_its_bytes(objects, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "SIZE_LIMIT", 2**20)
    objects.faults[remote(0).file.name] = Fault(pause=lambda: time.sleep(0.2))
    assert "is larger than 1 MB" in str(finished(fetch([remote(0)]))["u0"])
    asset = remote(1)
    download = fetching._Download(asset)
    download.add(0)  # the server says no size
    with pytest.raises(fetching._Cancelled):
        for _ in range(3):
            download.add(2**19 + 1)
    assert "is larger than 1 MB" in str(download.error) and not blobs(tmp_path / "hub-cache")


def test_a_stop_is_honoured_within_two_seconds_though_the_server_stalls(objects, released):
    objects.faults[remote(0).file.name] = Fault(cut=2**20, pause=lambda: released.wait(20), times=99)
    begin = time.monotonic()
    with pytest.raises(FetchStopped):
        finished(fetch([remote(0)], stop=lambda: time.monotonic() - begin > 0.5))
    assert time.monotonic() - begin < 2.0 and remote(0).cached() is None


def test_a_download_that_takes_too_long_is_given_up(objects, released, monkeypatch):
    monkeypatch.setattr(fetching, "SECONDS_LIMIT", 0.3)
    objects.faults[remote(0).file.name] = Fault(cut=2**20, pause=lambda: released.wait(20), times=99)
    assert "takes longer than" in str(finished(fetch([remote(0)]))["u0"])


def test_a_fault_of_the_program_is_raised(objects, monkeypatch):
    monkeypatch.setattr(RemoteAsset, "is_right", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        finished(fetch([remote(0)]))


def test_names_outside_the_repository_and_other_kinds_of_files_are_refused(objects):
    for name in ("../secrets.glb", "/etc/passwd", "model.bin"):
        asset = RemoteAsset("x", HubFile("owner/objects", name, "main", "dataset"), "")
        failed = finished(fetch([asset]))["x"]
        assert isinstance(failed, AssetUnavailable) and "is not fetched" in str(failed)
