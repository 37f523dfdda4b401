"""A prompt becomes an object with nothing on this computer but stack.json: prior, CLIPs, index and assets come from the Hub.

The prior has Stable Diffusion 2.1's structure, the retrieval CLIP is one of open_clip's own models with its own tokenizer;
their weights are random. The command runs as a user runs it, in a process of its own.
"""

import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import open_clip
import pytest
import torch
import trimesh
from hub_server import COMMIT, LARGE, HubServer, serving
from hub_stack import files_of
from safetensors.torch import save_file
from tiny_stack import COLOURS, KINDS, TINY, tiny_glb
from torchvision.transforms import Normalize

from redream.files import sha256
from redream.retrieval.build import AssetRow, build, ring_pictures
from redream.retrieval.clip import Clip
from redream.scene.assets import load
from redream.scoring.scores import keys_of
from redream.settings import PRESETS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
PROMPT = "a dog in the rain"
ARCHITECTURE = "ViT-S-32-alt"  # 40 million weights, the fewest of open_clip's CLIPs
LICENCES = ("CC-BY-4.0", "CC0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC0", "CC-BY-4.0")
CANDIDATES, ASSETS = TINY.retrieval.candidates, TINY.retrieval.assets
ENTRIES = ("prior", "index", "clips.retrieval", "clips.a", "clips.b", "perceptual.a", "perceptual.b")


def make_open_clip(folder: Path) -> Path:
    """A CLIP as open_clip's authors publish one: the package's own config file, safetensors, no tokenizer's files."""
    config = Path(open_clip.__file__).parent / "model_configs" / f"{ARCHITECTURE}.json"
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = open_clip.create_model(ARCHITECTURE)
    folder.mkdir()
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}
    values = {"model_cfg": json.loads(config.read_text()), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    return folder


def make_index(folder: Path, clip_folder: Path) -> tuple[list[AssetRow], dict[str, bytes]]:
    """An index of assets that lie in a data set, their rows, and the data set's files."""
    rows, glbs = [], {}
    for number, (kind, license) in enumerate(zip(KINDS, LICENCES, strict=True)):
        colour = [*COLOURS][number % len(COLOURS)]
        path = f"glbs/000-{number % 2:03d}/{kind}.glb"
        glbs[path] = tiny_glb(COLOURS[colour], round_one=number % 2 == 0)
        captions = [f"a {colour} {kind}", f"photo of a {kind}"]
        digest = hashlib.sha256(glbs[path]).hexdigest()
        page = f"https://example.com/{kind}"
        rows.append(AssetRow(kind, captions, f"author of {kind}", license, page, "", digest, {"path": path}))
    clip = Clip.load(clip_folder)
    build(
        rows,
        lambda row: ring_pictures(load(glbs[row.extra["path"]]), clip.size),
        clip,
        folder,
        repository={"source": "owner/objects", "revision": COMMIT, "kind": "dataset"},
    )
    return rows, glbs


def expected_ranking(rows: list[AssetRow], glbs: dict[str, bytes], clip_folder: Path) -> dict[str, float]:
    """The uids that two-stage retrieval must find, best first, and their cosines, by open_clip alone."""
    model = open_clip.create_model(ARCHITECTURE, pretrained=str(clip_folder / "open_clip_model.safetensors")).eval()
    tokenize = open_clip.get_tokenizer(ARCHITECTURE)
    assert isinstance(tokenize, open_clip.SimpleTokenizer)  # byte pairs, of the vocabulary that the package ships

    def unit(vectors: torch.Tensor) -> torch.Tensor:
        return vectors / vectors.norm(dim=-1, keepdim=True)

    with torch.no_grad():
        query = unit(model.encode_text(tokenize([PROMPT])))[0]  # (d,)
        nearest = {row.uid: max((unit(model.encode_text(tokenize(row.captions))) @ query).tolist()) for row in rows}
        picture = {}
        for row in rows:
            views = Normalize([0.5] * 3, [0.5] * 3)(ring_pictures(load(glbs[row.extra["path"]]), 224))
            picture[row.uid] = (unit(unit(model.encode_image(views)).mean(dim=0)) @ query).item()
    candidates = sorted(nearest, key=nearest.get, reverse=True)[:CANDIDATES]
    ranking = sorted(candidates, key=picture.get, reverse=True)
    for alone in (nearest, picture):  # neither captions nor pictures would find the same
        assert ranking[:ASSETS] != sorted(alone, key=alone.get, reverse=True)[:ASSETS]
    return {uid: picture[uid] for uid in ranking[:ASSETS]}


def settings_options() -> list[str]:
    """The options that make the stack's preset a run of seconds."""
    preset, options = dataclasses.asdict(PRESETS["mini"]["redream"]), []
    for group, values in dataclasses.asdict(TINY).items():
        pairs = values.items() if isinstance(values, dict) else [("", values)]
        for name, value in pairs:
            if value != (preset[group][name] if name else preset[group]):
                options += ["--set", f"{group}{'.' if name else ''}{name}={json.dumps(value)}"]
    return options


@dataclasses.dataclass
class Published:
    """A stack on the Hub, what its index must find, and two runs of it: one from the Hub, one without."""

    hub: HubServer
    cache: Path
    expected: dict[str, float]  # cosine by uid, best first
    run: Path
    offline: Path


def generate(stack: Path, out: Path, **environ: str) -> Path:
    """Run the command; returns the run's folder."""
    command = [sys.executable, "-m", "redream", "generate", PROMPT, "--stack", str(stack), "--out", str(out)]
    environ = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1"} | environ
    command += settings_options()
    ended = subprocess.run(command, check=False, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return out


@pytest.fixture(scope="module")
def published(tiny_stack_v, tmp_path_factory) -> Iterator[Published]:
    folder = tmp_path_factory.mktemp("published")
    clip_folder = make_open_clip(folder / "clip-retrieval")
    rows, glbs = make_index(folder / "index", clip_folder)
    folders = {"index": folder / "index", "clips.retrieval": clip_folder}
    for name in ENTRIES:
        folders.setdefault(name, tiny_stack_v / name.replace("clips", "clip-score").replace(".", "-"))
    values: dict = {"format": 1, "name": "published", "preset": "mini", "clips": {}, "perceptual": {}}
    with pytest.MonkeyPatch.context() as patch, serving(patch, folder / "unused") as hub:
        for name, content in folders.items():
            group, _, member = name.partition(".")
            hub.add(f"owner/{name}", files_of(content))
            (values[group] if member else values)[member or group] = {"source": f"owner/{name}", "revision": "main"}
        hub.add("owner/objects", glbs, "datasets")
        (folder / "stack").mkdir()
        (folder / "stack/stack.json").write_text(json.dumps(values))
        environ = {"HF_ENDPOINT": hub.address, "HF_HOME": str(folder / "home"), "REDREAM_DATA": str(folder / "data")}
        run = generate(folder / "stack", folder / "run", **environ)
        asked = len(hub.requests)
        offline = generate(folder / "stack", folder / "offline", **environ, HF_HUB_OFFLINE="1")
        assert len(hub.requests) == asked
        expected = expected_ranking(rows, glbs, clip_folder)
        yield Published(hub, folder / "home/hub", expected, run, offline)


def test_every_file_came_through_the_hub_as_it_was_published(published):
    fetched: dict[tuple[str, str], dict[str, Path]] = {}
    for snapshot in published.cache.glob("*--*/snapshots/*"):
        assert snapshot.name == COMMIT
        kind, name = snapshot.parents[1].name.split("--", 1)
        files = {path.relative_to(snapshot).as_posix(): path for path in snapshot.rglob("*") if path.is_file()}
        fetched[kind, name.replace("--", "/")] = files
    assert set(fetched) == set(published.hub.repositories)
    for key, files in fetched.items():
        there = published.hub.repositories[key]
        if key != ("datasets", "owner/objects"):
            assert set(files) == set(there)
        for name, path in files.items():
            digest = sha256(path)
            assert digest == hashlib.sha256(there[name]).hexdigest(), name
            prefix = "datasets/" if key[0] == "datasets" else ""
            small = f"GET /{prefix}{key[1]}/resolve/{COMMIT}/{name}"
            asked = f"GET /content/{digest}" if name.endswith(LARGE) else small  # large ones are redirected to
            assert asked in published.hub.requests, name
    assets = {Path(name).stem for name in fetched["datasets", "owner/objects"]}
    assert assets == set(published.expected)  # and no other one of the data set


def test_the_assets_are_those_that_open_clip_ranks_first(published):
    found = json.loads((published.run / "retrieved.json").read_text())["assets"]
    assert [asset["uid"] for asset in found] == list(published.expected)
    assert [asset["similarity"] for asset in found] == pytest.approx(list(published.expected.values()), abs=1e-4)


def test_the_run_has_a_turntable_a_mesh_and_scores_that_are_numbers(published):
    frames, _ = imageio_ffmpeg.count_frames_and_secs(published.run / "turntable-0.mp4")
    assert frames == TINY.output.turntable_frames
    mesh = trimesh.load(published.run / "mesh-0.glb", force="mesh")
    assert len(mesh.faces) and mesh.visual.material.baseColorTexture is not None
    (scores,) = json.loads((published.run / "scores.json").read_text())["objects"]
    assert scores.pop("not_available") == {}
    assert {key for quantity in ("clip", "view_accuracy", "a_lpips") for key in keys_of(quantity)} <= set(scores)
    assert all(math.isfinite(value) for value in scores.values())


def test_the_record_names_each_asset_with_its_licence_and_each_model_with_its_commit(published):
    record = json.loads((published.run / "record.json").read_text())
    licences = dict(zip(KINDS, LICENCES, strict=True))
    named = [(asset["uid"], asset["author"], asset["license"]) for asset in record["assets"]]
    assert named == [(uid, f"author of {uid}", licences[uid]) for uid in published.expected]
    assert {name: model["revision"] for name, model in record["models"].items()} == dict.fromkeys(ENTRIES, COMMIT)


def test_a_second_run_needs_no_network_and_is_equal(published):
    for name in ("retrieved.json", "scores.json", "settings.json", "mesh-0.glb", "turntable-0.mp4"):
        assert (published.offline / name).read_bytes() == (published.run / name).read_bytes(), name
