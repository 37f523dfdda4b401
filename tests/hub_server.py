"""A local server that speaks the Hub's protocol: models and data sets, for huggingface_hub's own client.

It answers what the client asks for: repository information, the tree of a commit, and files, where large ones are
redirected to another host name with their SHA-256 as ETag, and are sent in ranges. Faults are injected by file name.
It takes uploads too: a new repository, large files by the LFS protocol, and a commit (always the same one) of all files.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# What the Hub keeps outside git (LFS).
LARGE = (".safetensors", ".glb", ".bin", ".faiss", ".npy", ".parquet", ".gz", ".csv")
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?")
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
CONTENT = re.compile(r"/content/([0-9a-f]{64})")
PREUPLOAD = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/preupload/main")
COMMITTING = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/commit/main")
BATCH = re.compile(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")


@dataclass
class Fault:
    """What goes wrong with a file, the first `times` times that it is asked for by one of `methods`."""

    status: int | None = None  # answered in place of the file
    headers: Mapping[str, str] = field(default_factory=dict)  # of that answer
    content: bytes | None = None  # sent in place of the file's, with its ETag
    cut: int | None = None  # bytes after which the connection is closed
    pause: Callable[[], object] | None = None  # called before the connection is closed, without `cut` before all
    methods: tuple[str, ...] = ("GET",)  # HEAD: when the client asks for ETag and size
    times: int = 1


@dataclass
class HubServer:
    """The server's repositories, {file: content} by ("models" or "datasets", owner/name), and what was asked of it."""

    address: str
    repositories: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)  # by file name
    requests: list[str] = field(default_factory=list)  # "METHOD path"
    ranges: list[str] = field(default_factory=list)  # Range headers
    uploads: dict[str, bytes] = field(default_factory=dict)  # large files by SHA-256, before their commit
    write_status: int | None = None  # answered to who wants to write
    stop: Callable[[], None] = lambda: None

    def add(self, name: str, files: Mapping[str, bytes], kind: str = "models") -> None:
        """Publish a repository, all of it in one commit, `COMMIT`, of the branch main."""
        self.repositories[kind, name] = dict(files)

    def fault(self, file: str, method: str, redirected: bool = False) -> Fault | None:
        """The fault of a file that is due; where it is only redirected, one that has a status."""
        fault = self.faults.get(file)
        if fault is None or method not in fault.methods or not fault.times or (redirected and not fault.status):
            return None
        fault.times -= 1
        return fault

    def content(self, digest: str) -> tuple[str, bytes]:
        """Name and content of a large file, by its SHA-256."""
        files = [item for repository in self.repositories.values() for item in repository.items()]
        return next((name, content) for name, content in files if hashlib.sha256(content).hexdigest() == digest)


@contextmanager
def serving(patch: pytest.MonkeyPatch, cache: Path) -> Iterator[HubServer]:
    """A running server that huggingface_hub takes for the Hub, with a fresh cache."""
    listener = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    address = f"http://127.0.0.1:{listener.server_port}"

    def stop() -> None:
        listener.shutdown()
        listener.server_close()

    listener.hub = HubServer(address, stop=stop)
    threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    values = {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + template[template.index("/{repo_id}") :],
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }
    for name, value in values.items():
        patch.setattr(constants, name, value)
    yield listener.hub
    stop()


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, self.hub = self.path.partition("?")[0], self.server.hub
        self.hub.requests.append(f"{self.command} {path}")
        if match := API.fullmatch(path):
            self.describe(*match.groups())
        elif match := CONTENT.fullmatch(path):
            name, content = self.hub.content(match[1])
            self.send(name, content, {"ETag": f'"{match[1]}"'})
        elif match := RESOLVE.fullmatch(path):
            kind, name, revision, file = match.groups()
            self.resolve("datasets" if kind else "models", name, revision, file)
        else:
            self.answer(404)

    def do_POST(self) -> None:
        path, self.hub = self.path.partition("?")[0], self.server.hub
        self.hub.requests.append(f"POST {path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.hub.write_status:
            self.answer(self.hub.write_status)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.hub.repositories.setdefault((f"{asked.get('type', 'model')}s", name), {})
            self.answer_json({"url": f"{self.hub.address}/{name}"})
        elif path == "/api/validate-yaml":
            self.answer_json({"errors": [], "warnings": []})
        elif PREUPLOAD.fullmatch(path):
            modes = (
                (file["path"], "lfs" if file["path"].endswith(LARGE) else "regular")
                for file in json.loads(body)["files"]
            )
            self.answer_json(
                {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes]}
            )
        elif BATCH.fullmatch(path):
            self.answer_json({"transfer": "basic", "objects": [self.upload_of(o) for o in json.loads(body)["objects"]]})
        elif match := COMMITTING.fullmatch(path):
            self.commit(*match.groups(), [json.loads(line) for line in body.splitlines()])
        else:
            self.answer(404)

    def do_PUT(self) -> None:
        """A large file, to where the batch of uploads said."""
        content, digest = self.rfile.read(int(self.headers["Content-Length"])), self.path.rpartition("/")[2]
        right = hashlib.sha256(content).hexdigest() == digest
        self.server.hub.requests.append(f"PUT {self.path}")
        self.server.hub.uploads |= {digest: content} if right else {}
        self.answer(200 if right else 422)

    def upload_of(self, file: dict) -> dict:
        """What the LFS protocol answers about a file that is to be uploaded, unless it is there."""
        address = f"{self.hub.address}/content/{file['oid']}"
        return (
            file if file["oid"] in self.hub.uploads else file | {"actions": {"upload": {"href": address, "header": {}}}}
        )

    def commit(self, kind: str, name: str, lines: list[dict]) -> None:
        """Put a commit's files into a repository."""
        files = self.hub.repositories[kind, name]
        for what, value in ((line["key"], line["value"]) for line in lines):
            if what == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif what == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
        self.answer_json({"commitOid": COMMIT, "commitUrl": f"{self.hub.address}/{name}/commit/{COMMIT}"})

    def describe(self, kind: str, name: str, what: str | None, revision: str | None) -> None:
        """Repository information, or the tree of a commit."""
        files = self.hub.repositories.get((kind, name))
        if files is None:
            self.answer(404, {"X-Error-Code": "RepoNotFound"})
        elif revision not in (None, "main", COMMIT):
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        elif what == "tree":
            self.answer(200, content=json.dumps([_entry(*item) for item in files.items()]).encode())
        else:
            self.answer(200, content=json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode())

    def resolve(self, kind: str, name: str, revision: str, file: str) -> None:
        """A small file, or a redirection to a large one."""
        files = self.hub.repositories.get((kind, name))
        if files is None or revision not in ("main", COMMIT):
            self.answer(404, {"X-Error-Code": "RevisionNotFound" if files else "RepoNotFound"})
        elif file not in files:
            self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        elif not file.endswith(LARGE):
            self.send(file, files[file], {"ETag": f'"{hashlib.sha1(files[file]).hexdigest()}"'})
        elif fault := self.hub.fault(file, self.command, redirected=True):
            self.answer(fault.status, fault.headers)
        else:
            digest, size = hashlib.sha256(files[file]).hexdigest(), str(len(files[file]))
            elsewhere = self.hub.address.replace("127.0.0.1", "localhost")  # as the Hub's storage is on another host
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": size, "X-Repo-Commit": COMMIT}
            self.answer(302, {"Location": f"{elsewhere}/content/{digest}", **linked})

    def send(self, name: str, content: bytes, headers: Mapping[str, str]) -> None:
        """A file from where the client wants it to start, with its fault if one is due."""
        fault = self.hub.fault(name, self.command) or Fault()
        if fault.status:
            self.answer(fault.status, fault.headers)
            return
        content, status, headers = fault.content or content, 200, {**headers, "X-Repo-Commit": COMMIT}
        if wanted := self.headers.get("Range"):
            self.hub.ranges.append(wanted)
            start, size = int(wanted.removeprefix("bytes=").partition("-")[0]), len(content)
            if start >= size:
                self.answer(416, {"Content-Range": f"bytes */{size}"})
                return
            content, status = content[start:], 206
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        if fault.pause and fault.cut is None:
            fault.pause()
        self.answer(status, headers, content, fault.cut)
        if fault.pause and fault.cut is not None:
            self.wfile.flush()
            fault.pause()

    def answer(
        self, status: int, headers: Mapping[str, str] | None = None, content: bytes = b"", cut: int | None = None
    ) -> None:
        """One answer, of whose content at most `cut` bytes are sent."""
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])

    def answer_json(self, values: dict) -> None:
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(values).encode())

    def log_message(self, *_: object) -> None:
        pass


def _entry(name: str, content: bytes) -> dict:
    """A file as the tree of a commit names it."""
    entry = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry
