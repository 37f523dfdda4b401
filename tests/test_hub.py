"""Folders and Hub ids, against a small server that speaks the Hub's protocol."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
from huggingface_hub.errors import HTTPError

from redream import hub
from redream.files import sha256
from redream.hub import HubError, resolve, verify

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = {
    "config.json": b'{"a": 1}',
    "unet/model.safetensors": b"weights",
    "text.faiss": b"vectors",
    "truth.csv": b"kind,file",
    "pytorch_model.bin": b"pickle",
    "README.md": b"words",
}


class FakeHub(BaseHTTPRequestHandler):
    """Model information, the tree of a commit, and files with the headers that huggingface_hub reads."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.requests.append(path)
        if path in ("/api/models/owner/model/revision/main", "/api/models/owner/model"):
            self.answer(json.dumps({"id": "owner/model", "sha": COMMIT, "siblings": []}).encode())
        elif path == f"/api/models/owner/model/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in REPOSITORY.items()
            ]
            self.answer(json.dumps(entries).encode())
        elif path.startswith(f"/owner/model/resolve/{COMMIT}/"):
            self.answer(REPOSITORY[path.removeprefix(f"/owner/model/resolve/{COMMIT}/")])
        else:
            known = path.startswith("/api/models/owner/model")
            self.answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})

    def answer(self, content, status=200, headers=None):
        self.send_response(status)
        tag = hashlib.sha1(content).hexdigest()
        common = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}
        for key, value in {**common, "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.requests = []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
    template = address + template[template.index("/{repo_id}") :]
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


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
    fake_hub.shutdown()
    fake_hub.server_close()
    assert resolve("owner/model", base=tmp_path, revision="main") == first


def test_a_pinned_commit_in_the_cache_needs_no_hub(fake_hub, tmp_path):
    first = resolve("owner/model", base=tmp_path, revision=COMMIT)
    fake_hub.requests.clear()
    assert resolve("owner/model", base=tmp_path, revision=COMMIT) == first and not fake_hub.requests


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


def test_a_connection_error_of_huggingface_hub_is_said_in_a_sentence(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise HTTPError("a proxy said no")

    monkeypatch.setattr(hub, "snapshot_download", fail)
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
