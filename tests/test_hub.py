"""Folders and Hub ids, against a small server that speaks the Hub's protocol."""

import errno
import hashlib
import os
import socket

import huggingface_hub
import huggingface_hub.constants
import pytest
from filelock import FileLock
from hub_server import COMMIT, Fault
from huggingface_hub import file_download
from huggingface_hub.errors import HTTPError

from redream import hub
from redream.files import sha256
from redream.hub import HubError, HubUnreachable, resolve, verify

REPOSITORY = {
    "config.json": b'{"a": 1}',
    "unet/model.safetensors": b"weights",
    "text.faiss": b"vectors",
    "truth.csv": b"kind,file",
    "pytorch_model.bin": b"pickle",
    "README.md": b"words",
}


@pytest.fixture
def fake_hub(hub_server, monkeypatch):
    """A Hub with one model, whose troubles are tried again at once."""
    monkeypatch.setattr(hub.faults, "RETRY_WAITS", (0.01, 0.01))
    hub_server.add("owner/model", REPOSITORY)
    return hub_server


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_branch_is_resolved_to_a_commit_and_only_safe_files_come(fake_hub, tmp_path):
    resolved = resolve("owner/model", base=tmp_path, revision="main")
    assert resolved.revision == COMMIT
    assert names(resolved.folder) == {"config.json", "unet/model.safetensors", "text.faiss", "truth.csv"}
    assert (resolved.folder / "unet/model.safetensors").read_bytes() == b"weights"
    assert not any(".bin" in path for path in fake_hub.requests)


def test_patterns_narrow_what_is_fetched_and_cannot_widen_it(fake_hub, tmp_path):
    assert names(resolve("owner/model", base=tmp_path, allow_patterns=["*.json"]).folder) == {"config.json"}
    for pattern in ("*", "*.bin", "unet/*"):
        with pytest.raises(HubError, match="are not fetched from the Hub"):
            resolve("owner/model", base=tmp_path, allow_patterns=[pattern])


def test_a_cached_repository_loads_while_the_hub_is_down(fake_hub, tmp_path):
    first = resolve("owner/model", base=tmp_path, revision="main")
    fake_hub.stop()
    assert resolve("owner/model", base=tmp_path, revision="main") == first


def test_a_pinned_commit_in_the_cache_needs_no_hub(fake_hub, tmp_path):
    first = resolve("owner/model", base=tmp_path, revision=COMMIT)
    fake_hub.requests.clear()
    assert resolve("owner/model", base=tmp_path, revision=COMMIT) == first and not fake_hub.requests


def test_of_alternatives_the_first_that_is_there_is_fetched(fake_hub, tmp_path):
    patterns = ["*.json", "unet/model.fp16.safetensors | unet/model.safetensors", "text.faiss | truth.csv"]
    assert names(resolve("owner/model", base=tmp_path, allow_patterns=patterns).folder) == {
        "config.json",
        "unet/model.safetensors",
        "text.faiss",
    }
    with pytest.raises(HubError, match="are not fetched from the Hub"):
        resolve("owner/model", base=tmp_path, allow_patterns=["*.json | *.bin"])


def test_what_a_check_refuses_is_refused_before_large_files_come(fake_hub, tmp_path):
    def check(folder, files):
        assert (folder / "config.json").is_file() and set(files) == set(REPOSITORY)
        raise HubError("The config says no.")

    with pytest.raises(HubError, match="The config says no"):
        resolve("owner/model", base=tmp_path, check=check)
    assert not any("content" in request for request in fake_hub.requests)
    folder = tmp_path / "local"
    folder.mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        (folder / name).write_bytes(REPOSITORY[name])
    with pytest.raises(AssertionError):  # its files are others
        resolve(str(folder), base=tmp_path, check=check)


def test_the_cache_says_which_files_of_a_commit_it_lacks_and_their_sizes(fake_hub, tmp_path):
    assert hub.cached("owner/model", COMMIT) == hub.Cached()
    folder = resolve("owner/model", base=tmp_path, revision="main", allow_patterns=["*.json"]).folder
    fake_hub.stop()
    expected = hub.Cached(folder, {name: len(content) for name, content in REPOSITORY.items()})
    assert hub.cached("owner/model", COMMIT) == hub.cached("owner/model", "main") == expected
    assert hub.cached("no id") == hub.cached("owner/model", "v9") == hub.Cached()


def test_what_was_fetched_by_a_commit_is_not_found_as_a_branch(fake_hub):
    """Hence the lines of a Space's `preload_from_hub` in the README."""
    for revision, found in ((COMMIT, False), ("main", True)):
        hub.HubFile("owner/model", "config.json", revision).fetch()
        assert hub.cached("owner/model", COMMIT).folder is not None
        assert (hub.cached("owner/model", "main").folder is not None) == found


def test_a_large_file_that_was_stopped_goes_on_where_it_was(fake_hub, tmp_path):
    """Other than by huggingface_hub's own download, which begins anew."""
    weights = os.urandom(3 * 2**20)
    fake_hub.add("owner/large", {"config.json": b"{}", "unet/model.safetensors": weights})
    reported = []

    def stop_after_a_megabyte(name, count, size):
        reported.append((name, count, size))
        if sum(count for _, count, _ in reported) > 2**20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve("owner/large", base=tmp_path, watch=stop_after_a_megabyte)
    (part,) = (tmp_path / "hub-cache").rglob("*.part")
    arrived = part.stat().st_size
    assert 0 < arrived < len(weights) and reported[0] == ("unet/model.safetensors", 0, len(weights))
    reported.clear()
    resolved = resolve("owner/large", base=tmp_path, watch=lambda *values: reported.append(values))
    assert (resolved.folder / "unet/model.safetensors").read_bytes() == weights
    assert fake_hub.ranges == [f"bytes={arrived}-"] and not list((tmp_path / "hub-cache").rglob("*.part"))
    assert sum(count for _, count, _ in reported) == len(weights) and reported[0][1] == arrived


def test_a_file_that_was_killed_just_before_its_end_is_not_fetched_again(tmp_path):
    (tmp_path / "a.glb.part").write_bytes(b"all of it")
    hub.fetch_to(tmp_path / "a.glb", "http://127.0.0.1:9", lambda path: True, lambda *values: None)
    assert (tmp_path / "a.glb").read_bytes() == b"all of it"


def test_wrong_bytes_of_an_earlier_attempt_are_removed_when_nothing_more_can_come(fake_hub, tmp_path):
    address = f"{fake_hub.address}/owner/model/resolve/main/unet/model.safetensors"
    path, is_right = tmp_path / "a", lambda path: path.read_bytes() == b"weights"
    (tmp_path / "a.part").write_bytes(b"WEIGHTS")
    with pytest.raises(HubError, match="came with wrong bytes and was removed"):
        hub.fetch_to(path, address, is_right, lambda *values: None)
    hub.fetch_to(path, address, is_right, lambda *values: None)
    assert path.read_bytes() == b"weights" and fake_hub.ranges == ["bytes=7-"]


def test_a_large_file_with_wrong_bytes_leaves_nothing(fake_hub, tmp_path):
    fake_hub.faults["unet/model.safetensors"] = Fault(content=b"Weights")
    with pytest.raises(HubError, match="came with wrong bytes"):
        resolve("owner/model", base=tmp_path, watch=lambda *values: None)
    cache = tmp_path / "hub-cache"
    assert not [path for path in cache.rglob("*") if path.is_file() and path.read_bytes() == b"Weights"]
    folder = resolve("owner/model", base=tmp_path, watch=lambda *values: None).folder
    assert (folder / "unet/model.safetensors").read_bytes() == b"weights"


def test_one_file_is_fetched_by_one_program_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(hub.download, "LOCK_SECONDS", 0.05)
    with FileLock(tmp_path / "a.glb.part.lock"), pytest.raises(HubError, match="Another program fetches this file"):
        hub.fetch_to(tmp_path / "a.glb", "http://127.0.0.1:9", lambda path: True, lambda *values: None)


def test_who_waits_for_another_program_shows_life_can_be_stopped_and_takes_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(hub.download, "POLL_SECONDS", 0.01)
    path, signs, lock = tmp_path / "a.glb", [], FileLock(tmp_path / "a.glb.part.lock")

    def stop_at_third(*values):
        signs.append(values)
        if len(signs) == 3:
            raise KeyboardInterrupt

    with lock, pytest.raises(KeyboardInterrupt):
        hub.fetch_to(path, "http://127.0.0.1:9", lambda path: True, stop_at_third)
    assert signs == [(0, None)] * 3

    def end_the_other(*values):
        path.write_bytes(b"all of it")
        lock.release()

    lock.acquire()
    hub.fetch_to(path, "http://127.0.0.1:9", lambda path: True, end_the_other)
    assert path.read_bytes() == b"all of it"


# Faults


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=503, times=2),
        Fault(status=503, times=1, methods=("HEAD",)),
        Fault(status=429, headers={"Retry-After": "0"}),
        Fault(cut=3),
    ],
    ids=["503 twice", "503 for its size", "429", "cut"],
)
@pytest.mark.parametrize("watch", [None, lambda *values: None], ids=["plain", "watched"])
def test_a_fault_that_passes_is_tried_again(fake_hub, tmp_path, fault, watch):
    fake_hub.faults["unet/model.safetensors"] = fault
    folder = resolve("owner/model", base=tmp_path, watch=watch).folder
    assert (folder / "unet/model.safetensors").read_bytes() == b"weights" and fault.times == 0


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault(status=503, times=99), "answers with error 503"),
        (Fault(status=403, times=99), "refuses access to owner/model; log in"),
        (
            Fault(status=429, headers={"Retry-After": "0"}, times=99),
            "answers no more requests for now; fetch owner/model",
        ),
        (Fault(status=404, headers={"X-Error-Code": "EntryNotFound"}, times=99), "lacks a file"),
    ],
    ids=["503", "403", "429", "404"],
)
def test_a_fault_that_stays_is_one_sentence_and_no_file(fake_hub, tmp_path, fault, sentence):
    fake_hub.faults["unet/model.safetensors"] = fault
    with pytest.raises(HubError, match=sentence) as error:
        resolve("owner/model", base=tmp_path)
    assert "\n" not in str(error.value) and not list((tmp_path / "hub-cache").rglob("model.safetensors"))


@pytest.mark.parametrize(
    ("number", "sentence"), [(errno.ENOSPC, "The disk is full"), (errno.EROFS, "cannot be written; set HF_HOME")]
)
def test_a_disk_that_takes_no_file_is_said_in_a_sentence(fake_hub, tmp_path, monkeypatch, number, sentence):
    def write(url, file, **options):
        file.write(b"wei")
        raise OSError(number, "it does not go on")

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", write)
        with pytest.raises(HubError, match=sentence):
            resolve("owner/model", base=tmp_path)
        assert not [path for path in (tmp_path / "hub-cache").rglob("blobs/*") if path.stat().st_size == 3]
    assert (resolve("owner/model", base=tmp_path).folder / "unet/model.safetensors").read_bytes() == b"weights"


def test_only_a_hub_that_does_not_answer_is_unreachable(fake_hub, tmp_path):
    with pytest.raises(HubError) as error:
        resolve("owner/unknown", base=tmp_path)
    assert not isinstance(error.value, HubUnreachable)
    fake_hub.stop()
    with pytest.raises(HubUnreachable):
        resolve("owner/model", base=tmp_path)


@pytest.mark.parametrize(
    ("source", "revision", "sentence"),
    [
        ("owner/unknown", "main", "The Hub has no public repository owner/unknown"),
        ("owner/model", "v9", "has no revision v9"),
        ("owner/model--x", "main", "no public repository"),
    ],
)
def test_a_missing_repository_or_revision_is_said_in_a_sentence(fake_hub, tmp_path, source, revision, sentence):
    with pytest.raises(HubError, match=sentence):
        resolve(source, base=tmp_path, revision=revision)


def test_a_repository_without_usable_files_is_refused(fake_hub, tmp_path):
    with pytest.raises(HubError, match="holds no file that can be used here"):
        resolve("owner/model", base=tmp_path, allow_patterns=["*.parquet"])


def test_a_hub_that_does_not_answer_is_said_to_be_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(HubError, match="The Hub did not answer"):
        resolve("owner/model", base=tmp_path)


def test_a_hub_that_takes_the_question_and_never_answers_is_not_waited_for(hub_server, tmp_path, monkeypatch):
    monkeypatch.setattr(hub.download, "SILENCE_SECONDS", 0.1)
    monkeypatch.setattr(hub.faults, "RETRY_WAITS", ())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(HubUnreachable, match="The Hub did not answer"):
            resolve("owner/model", base=tmp_path, revision="main")


def test_a_connection_error_of_huggingface_hub_is_said_in_a_sentence(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise HTTPError("a proxy said no")

    monkeypatch.setattr(hub.repositories, "snapshot_download", fail)
    with pytest.raises(HubError, match="The Hub did not answer"):
        resolve("owner/model", base=tmp_path)


def test_a_local_folder_resolves_to_itself(tmp_path):
    (tmp_path / "stack/owner/model").mkdir(parents=True)
    assert resolve("owner/model", base=tmp_path / "stack").folder == tmp_path / "stack/owner/model"  # before the Hub
    absolute = resolve(str(tmp_path), base=tmp_path / "stack")
    assert absolute.folder == tmp_path and absolute.revision is None


@pytest.mark.parametrize(
    "source", ["../outside", "prior/../../outside", "missing", "", "a/b/c", "https://example.org/x"]
)
def test_folders_outside_or_absent_are_refused(tmp_path, source):
    (tmp_path / "outside").mkdir()
    (tmp_path / "stack").mkdir()
    with pytest.raises(HubError):
        resolve(source, base=tmp_path / "stack")


def test_verify_refuses_a_file_with_one_changed_byte(tmp_path):
    (tmp_path / "a.json").write_bytes(b"one")
    manifest = {"a.json": hashlib.sha256(b"one").hexdigest()}
    assert sha256(tmp_path / "a.json") == manifest["a.json"]
    verify(tmp_path, manifest)
    (tmp_path / "a.json").write_bytes(b"onE")
    with pytest.raises(HubError, match="a.json is not the one its manifest describes"):
        verify(tmp_path, manifest)
    (tmp_path / "a.json").unlink()
    with pytest.raises(HubError, match="a.json is missing"):
        verify(tmp_path, manifest)
    with pytest.raises(HubError, match="outside its folder"):
        verify(tmp_path, {"../a.json": "0"})


def test_a_request_survives_that_another_thread_closes_the_shared_client(fake_hub, tmp_path):
    fake_hub.faults["config.json"] = Fault(pause=huggingface_hub.close_session)
    folder = resolve("owner/model", base=tmp_path).folder
    assert (folder / "config.json").read_bytes() == REPOSITORY["config.json"]
    assert fake_hub.requests.count(f"GET /owner/model/resolve/{COMMIT}/config.json") == 2


def test_a_large_file_is_hashed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    (tmp_path / "a.npy").write_bytes(b"large")
    monkeypatch.setattr(hub.repositories, "REMEMBERED", 5)
    hashed = []
    monkeypatch.setattr(hub.repositories, "sha256", lambda path: hashed.append(path) or sha256(path))
    for _ in range(2):
        hub.verify(tmp_path, {"a.npy": sha256(tmp_path / "a.npy")})
    assert len(hashed) == 1
    expected = sha256(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(b"other")
    with pytest.raises(HubError, match="is not the one its manifest describes"):
        hub.verify(tmp_path, {"a.npy": expected})


# ---------------------------------------------------------------- single files


def test_a_branch_of_a_file_is_resolved_to_the_commit_that_it_is_fetched_at(fake_hub):
    file = hub.HubFile("owner/model", "unet/model.safetensors", "main").at_commit()
    assert file.revision == COMMIT and file.cached().read_bytes() == b"weights"


def test_a_file_that_a_repository_lacks_is_told_from_other_faults(fake_hub):
    with pytest.raises(hub.HubFileMissing):
        hub.HubFile("owner/model", "other.json", "main").fetch()
    with pytest.raises(HubError) as raised:
        hub.HubFile("owner/none", "other.json", "main").fetch()
    assert not isinstance(raised.value, hub.HubFileMissing)
