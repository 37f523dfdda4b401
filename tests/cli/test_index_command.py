"""`python -m redream index`: libraries are built, merged, checked, extended and pushed from the command line."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hub_server import COMMIT
from objaverse_files import make_objaverse
from tiny_models import make_tiny_clip
from tiny_stack import tiny_glb

from assets_index.convert_objathor import convert
from redream.cli import main
from redream.retrieval import objaverse
from redream.retrieval.index import Index
from redream.retrieval.parts import PartMaker
from redream.stack.models import Models

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> str:
    """A stack whose CLIP is a tiny one; the rest of it is not there."""
    folder = tmp_path_factory.mktemp("stack")
    make_tiny_clip(folder / "clip")
    entries = {name: {"source": name} for name in ("prior", "index")}
    entries |= {"clips": {name: {"source": "clip"} for name in ("retrieval", "a", "b")}}
    entries |= {"perceptual": {"a": {"lpips": "vgg"}, "b": {"lpips": "alex"}}}
    (folder / "stack.json").write_text(json.dumps({"format": 1, "name": "clip", "preset": "mini", **entries}))
    return str(folder)


def index(*words) -> int:
    return main(["index", *map(str, words)])


def refused(capsys, *words) -> str:
    """The one sentence on stderr of a command that ends with 2."""
    try:
        status = index(*words)
    except SystemExit as error:
        status = error.code
    out, err = capsys.readouterr()
    assert status == 2 and out == "" and err.count("\n") == 1
    return err


def index_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_an_index_of_objaverse_is_built_checked_and_pushed(stack, hub_server, tmp_path, capsys):
    make_objaverse(90).publish(hub_server)
    out = tmp_path / "index"
    options = ["--stack", stack, "--licenses", "by,cc0", "--names", "--limit", 30]
    assert index("build", "objaverse", "--out", out, *options) == 0
    said = capsys.readouterr()
    assert "another licence" in said.out and "for adults only" in said.out and "30 assets" in said.out
    assert "Reading, 0 of" in said.err and "Embedding, 30 of 30 assets" in said.err
    assert index("check", out) == 0
    assert (
        "30 assets, 30 captions" in (said := capsys.readouterr().out) and "CC-BY-4.0" in said and "CC-BY-NC" not in said
    )
    assert index("push", out, "ann/index") == 0
    assert f"REDREAM_INDEX=ann/index@{COMMIT}" in capsys.readouterr().out


def test_shards_of_a_folder_are_merged(stack, tmp_path, capsys):
    (tmp_path / "assets").mkdir()
    for name, colour in (("red_owl", (200, 40, 40)), ("blue_car", (40, 60, 200)), ("green_mug", (40, 160, 60))):
        (tmp_path / "assets" / f"{name}.glb").write_bytes(tiny_glb(colour))
    build = ["build", "folder", tmp_path / "assets", "--stack", stack, "--license", "CC0", "--part-assets", 1]
    assert index(*build, "--out", tmp_path / "whole") == 0
    for number in (1, 2):
        assert index(*build, "--out", tmp_path / f"shard-{number}", "--shards", f"{number}/2") == 0
    assert "index merge" in capsys.readouterr().out
    assert index("merge", tmp_path / "shard-1", tmp_path / "shard-2", "--out", tmp_path / "merged") == 0
    assert "3 assets, 3 captions, 3 assets with pictures" in capsys.readouterr().out
    assert index_bytes(tmp_path / "merged") == index_bytes(tmp_path / "whole")


def test_glbs_are_added_to_the_library_that_the_environment_names(stack, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("REDREAM_LIBRARY", str(tmp_path / "mine"))
    (tmp_path / "owl.glb").write_bytes(tiny_glb((200, 40, 40)))
    assert index("add", tmp_path / "owl.glb", "--caption", "my owl", "--license", "CC0", "--stack", stack) == 0
    assert f"{tmp_path / 'mine'} has 1 assets" in capsys.readouterr().out
    assert [row["caption"] for row in Index.load(tmp_path / "mine").first(9)] == ["my owl"]


def test_ones_own_library_is_searched_together_with_the_stacks(tiny_stack, tmp_path, monkeypatch):
    monkeypatch.setenv("REDREAM_LIBRARY", str(tmp_path / "mine"))
    alone, stack = Models.load(tiny_stack, "cpu"), str(tiny_stack)
    assert len(alone.index) == 6 and not (tmp_path / "mine").exists()
    (tmp_path / "owl.glb").write_bytes(tiny_glb((200, 40, 40)))
    assert index("add", tmp_path / "owl.glb", "--caption", "a striped owl of mine", "--stack", stack) == 0
    models = Models.load(tiny_stack, "cpu")
    hits = models.index.search("a striped owl of mine", models.clip("retrieval"), 7, 7)
    assert len(models.index) == 7
    assert max(hits, key=lambda hit: hit.text_similarity).caption == "a striped owl of mine"
    assert models.provenance()["own library"]["source"] == "mine" and "own library" not in alone.provenance()


def test_what_cannot_be_used_is_refused_in_a_sentence(stack, tmp_path, capsys):
    out = ["--out", tmp_path / "out", "--stack", stack]
    assert "K/N" in refused(capsys, "build", "objaverse", *out, "--shards", "3/2")
    assert "no scenes" in refused(capsys, "build", "objaverse", *out, "--without", "scenes")
    assert "from 1 to 256" in refused(capsys, "build", "objaverse", *out, "--processes", "257")
    assert "not allowed with" in refused(capsys, "build", "objaverse", *out, "--processes", "2", "--address", "local")
    assert "0 is no positive whole number" in refused(capsys, "build", "objaverse", *out, "--limit", "0")
    assert "much is no positive number" in refused(capsys, "build", "objaverse", *out, "--max-size", "much")
    assert "no file no.parquet" in refused(capsys, "build", "objaverse", *out, "--pictures", "no.parquet")
    assert "no folder" in refused(capsys, "build", "folder", tmp_path / "none", *out)
    assert "no parts" in refused(capsys, "merge", tmp_path, "--out", tmp_path / "out")
    assert "index.json" in refused(capsys, "check", tmp_path)
    assert "none.glb" in refused(capsys, "add", tmp_path / "none.glb", "--stack", stack, "--library", tmp_path)


def test_the_help_names_all_captions_licences_and_flags(capsys):
    with pytest.raises(SystemExit):
        index("build", "objaverse", "--help")
    said = " ".join(capsys.readouterr().out.split())
    assert all(name in said for name in (*objaverse.CAPTIONS, *objaverse.FLAGS))
    assert ", ".join(objaverse.LICENSES) in said


def started(hub_server, cache: Path, *words) -> subprocess.Popen:
    """The command in a process of its own, with the local Hub."""
    environ = {"HF_ENDPOINT": hub_server.address, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}
    program = [sys.executable, "-m", "redream", "index", *map(str, words)]
    return subprocess.Popen(program, cwd=ROOT, env=os.environ | environ, stderr=subprocess.DEVNULL)


def killed(process: subprocess.Popen) -> None:
    process.kill()
    assert process.wait() == -signal.SIGKILL


def made_parts(out: Path) -> dict[str, int]:
    """The parts that are made, and when."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("parts/0*.parquet")}


@pytest.mark.timeout(120)
def test_a_build_that_is_killed_within_a_part_makes_only_what_is_missing(stack, hub_server, tmp_path, monkeypatch):
    """The Hub lets it wait for a GLB of a part that is drawn at random, until it is killed. The same bytes come out."""
    make_objaverse(60).publish(hub_server)
    options = ["build", "objaverse", "--stack", stack, "--limit", 12, "--part-assets", 2, "--renders", 1, "--out"]
    assert index(*options, tmp_path / "whole") == 0
    rows = Index.load(tmp_path / "whole").table.first(12)
    glb = random.Random(0).choice([row["path"] for row in rows][4:])
    reached, released = threading.Event(), threading.Event()

    def wait_for_kill(file: str, *_: object, **__: object) -> None:
        if file == glb:
            reached.set()
            released.wait(60)

    monkeypatch.setattr(hub_server, "fault", wait_for_kill)
    process = started(hub_server, tmp_path / "hub-cache", *options, tmp_path / "killed")
    assert reached.wait(60)
    killed(process)
    released.set()
    before, asked = made_parts(tmp_path / "killed"), []
    make = PartMaker.make
    monkeypatch.setattr(PartMaker, "make", lambda self, *task: asked.append(task) or make(self, *task))
    assert 2 <= len(before) < 6
    assert index(*options, tmp_path / "killed") == 0
    assert len(asked) == 6 - len(before)
    assert index_bytes(tmp_path / "killed") == index_bytes(tmp_path / "whole")


@pytest.fixture
def two_thousand(stack, hub_server, tmp_path) -> list[str]:
    """2,000 records in the formats of their publishers, and a command that takes all of these."""
    made = make_objaverse(2000, seed=3)
    made.publish(hub_server)
    (tmp_path / "clip_features.pkl").write_bytes(made.clip_features)
    convert(tmp_path / "clip_features.pkl", tmp_path / "objathor.parquet")
    options = f"--captions cap3d,cap3d-json --names --min-score 1 --without scene,multi_object --part-assets 20 --stack {stack}"
    return ["build", "objaverse", *options.split(), "--pictures", str(tmp_path / "objathor.parquet"), "--out"]


@pytest.mark.long
def test_two_thousand_records_of_objaverse_killed_at_random_and_ended_by_two_processes(
    two_thousand, hub_server, tmp_path, capsys
):
    """The same bytes as in one go; so are those of two merged shards. What comes out is whole, and is pushed as it is."""
    assert index(*two_thousand, tmp_path / "whole") == 0
    said = capsys.readouterr().out
    taken = len(Index.load(tmp_path / "whole"))
    left_out = sum(int(line.split()[2].replace(",", "")) for line in said.splitlines() if line.startswith("Left out"))
    assert taken + left_out == 2000 and taken > 600

    out, generator, before = tmp_path / "killed", random.Random(0), {}
    for parts in sorted(generator.sample(range(1, taken // 40), 3)):  # in the first half of them
        process = started(hub_server, tmp_path / "hub-cache", *two_thousand, out)
        while process.poll() is None and len(made_parts(out)) < parts:
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.02))
        killed(process)
        assert before.items() <= made_parts(out).items() and (out / "parts/plan.json").is_file()
        before = made_parts(out)
    assert index(*two_thousand, out, "--processes", 2) == 0
    assert index_bytes(out) == index_bytes(tmp_path / "whole")

    for number in (1, 2):
        assert index(*two_thousand, tmp_path / f"shard-{number}", "--shards", f"{number}/2") == 0
    assert index("merge", tmp_path / "shard-1", tmp_path / "shard-2", "--out", tmp_path / "merged") == 0
    assert index_bytes(tmp_path / "merged") == index_bytes(out)
    (out / ".verified.json").write_text("{}")
    assert index("check", out) == 0 and index("push", out, "ann/index") == 0
    pushed = hub_server.repositories["models", "ann/index"]
    assert set(pushed) == {*index_bytes(out)} - {".verified.json"}
    assert all(pushed[name] == content for name, content in index_bytes(out).items() if name in pushed)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="needs Ray (requirements-ray.txt)")
def test_two_thousand_records_of_objaverse_by_a_ray_cluster(two_thousand, tmp_path):
    """The same bytes as here."""
    for name, options in (("here", []), ("ray", ["--address", "local"])):
        assert index(*two_thousand, tmp_path / name, *options) == 0
    assert index_bytes(tmp_path / "ray") == index_bytes(tmp_path / "here")
