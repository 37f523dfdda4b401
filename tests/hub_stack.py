"""The tiny stack as somebody publishes it: every entry a repository of the tests' local Hub, LPIPS's backbones beside it."""

import hashlib
import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hub_server import COMMIT, HubServer
from torchvision.models import alexnet

from redream.files import sha256
from redream.scoring import perceptual
from redream.stack.stack import Stack

ENTRIES = {"prior": "prior", "index": "index", "retrieval": "clip-retrieval", "a": "clip-score-a", "b": "clip-score-b"}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def publish(server: HubServer, tiny_stack: Path, folder: Path, monkeypatch, with_index: bool = True) -> Stack:
    """Publish the entries, and write into `folder` a stack that names them, which is returned."""
    for name in ENTRIES.values():
        if name != "index" or with_index:
            server.add(f"owner/{name}", files_of(tiny_stack / name))
    source = {key: {"source": f"owner/{name}", "revision": COMMIT} for key, name in ENTRIES.items()}
    sizes = {path: len(content) / 1e6 for path, content in files_of(tiny_stack / "prior").items()}
    values = {
        "format": 1,
        "name": "published",
        "preset": "mini",
        "prior": source["prior"] | {"megabytes": sizes},
        "index": source["index"],
        "clips": {key: source[key] for key in ("retrieval", "a", "b")},
        "perceptual": {"a": {"source": str(tiny_stack / "perceptual-a")}, "b": {"lpips": "alex"}},
    }
    (folder / "stack.json").write_text(json.dumps(values))
    add_backbone(server, folder, monkeypatch)
    monkeypatch.setenv("REDREAM_DATA", str(folder / "data"))
    return Stack.load(folder)


def publish_assets(server: HubServer, tiny_stack: Path, index: Path) -> Stack:
    """The tiny stack, whose six assets are a data set of the Hub; its index is written into a folder."""
    shutil.copytree(tiny_stack / "index", index)
    manifest, glbs = json.loads((index / "index.json").read_text()), {}
    rows = pq.read_table(index / "assets.parquet").to_pylist()
    for row in rows:
        row["path"] = f"glbs/000-000/{row['uid']}.glb"
        glbs[row["path"]] = (tiny_stack / "index" / manifest["root"] / row["file"]).read_bytes()
        row["file"] = ""
    pq.write_table(pa.Table.from_pylist(rows), index / "assets.parquet")
    manifest["files"]["assets.parquet"] = sha256(index / "assets.parquet")
    manifest["repository"] = {"source": "owner/objects", "revision": "main", "kind": "dataset"}
    (index / "index.json").write_text(json.dumps(manifest))
    server.add("owner/objects", glbs, "datasets")
    return Stack.load(tiny_stack, {"REDREAM_INDEX": str(index)})


def add_backbone(server: HubServer, folder: Path, monkeypatch) -> None:
    """Serve an AlexNet without its classifier as torchvision does, with a part of its SHA-256 in its name."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = {name: value.half() for name, value in alexnet().state_dict().items() if name.startswith("features")}
    torch.save(weights, file := io.BytesIO())
    name = f"alexnet-{hashlib.sha256(file.getvalue()).hexdigest()[:8]}.pth"
    server.add("owner/torchvision", {name: file.getvalue()})
    monkeypatch.setitem(perceptual.BACKBONES, "alex", name)
    monkeypatch.setitem(perceptual.BACKBONE_MEGABYTES, "alex", len(file.getvalue()) / 1e6)
    monkeypatch.setattr(perceptual, "BACKBONE_ADDRESS", f"{server.address}/owner/torchvision/resolve/main/")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder / "torch"))
