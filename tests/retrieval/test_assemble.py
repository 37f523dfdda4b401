"""Large builds: the same bytes whether in one go, interrupted, in shards, in processes or on Ray."""

import errno
import functools
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from objaverse_files import make_objaverse
from tiny_models import make_tiny_clip
from tiny_stack import tiny_glb

from assets_index.convert_objathor import convert
from redream.files import FolderError
from redream.retrieval import assemble, workers
from redream.retrieval.assemble import Report, Shard, Work, build, merge
from redream.retrieval.build import BuildError
from redream.retrieval.clip import Clip, embedding_of
from redream.retrieval.fetch import finished
from redream.retrieval.index import Index
from redream.retrieval.objaverse import Objaverse
from redream.retrieval.own import Folder
from redream.retrieval.parts import Job

COUNT, PART = 150, 32


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return make_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def made():
    return make_objaverse(COUNT, seed=2)


@pytest.fixture
def start(clip_folder, made, hub_server):
    """Begin a build of the small Objaverse in a folder."""
    made.publish(hub_server)

    def start(out: Path, source: Objaverse | None = None, **options):
        job = Job(functools.partial(Clip.load, clip_folder))
        return build(source or Objaverse(), out, job, embedding=embedding_of(clip_folder), part_assets=PART, **options)

    return start


@pytest.fixture
def start_folder(clip_folder, tmp_path):
    """Begin a build of a folder with four GLBs, one of which is broken and one is there twice."""
    assets = tmp_path / "assets"
    (assets / "more").mkdir(parents=True)
    for name, glb in (
        ("red_owl.glb", tiny_glb((200, 40, 40))),
        ("more/copy.glb", tiny_glb((200, 40, 40))),
        ("more/blue box-2.glb", tiny_glb((40, 40, 200), round_one=False)),
        ("broken.glb", b"glTF"),
    ):
        (assets / name).write_bytes(glb)

    def start(out: Path, **options):
        job = Job(functools.partial(Clip.load, clip_folder), "renders", root=assets)
        source = Folder(assets, license="CC0")
        return build(source, out, job, embedding=embedding_of(clip_folder), part_assets=1, **options)

    return start


def index_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_build_makes_an_index_that_finds_what_exact_search_finds(start, clip_folder, made, tmp_path):
    report = finished(start(tmp_path / "out"))
    index, clip = Index.load(tmp_path / "out"), Clip.load(clip_folder)
    table = pq.read_table(tmp_path / "out/assets.parquet").to_pylist()
    assert report.assets == len(table) == len(index) and report.assets + sum(report.left_out.values()) == COUNT
    assert [row["uid"] for row in table] == sorted(row["uid"] for row in table)
    texts = clip.embed_texts([row["caption"] for row in table]).half().float().numpy()
    for prompt in ("a red owl", "a blue car"):
        cosine = texts @ clip.embed_texts([prompt])[0].numpy()
        hits = index.search(prompt, clip, 12, 12)
        assert sorted(hit.text_similarity for hit in hits) == pytest.approx(sorted(np.sort(cosine)[-12:]), abs=1e-3)
    manifest = json.loads((tmp_path / "out/index.json").read_text())
    assert manifest["repository"]["source"] == "allenai/objaverse" and not (tmp_path / "out/parts").exists()
    assert index.row(table[0]["uid"])["path"] == made.paths[table[0]["uid"]]


def test_a_build_that_was_interrupted_anywhere_goes_on_to_the_same_bytes(start, tmp_path, hub_server):
    finished(start(tmp_path / "whole"))
    stages = set()
    for count in (1, 4, 9, 4, 5):  # updates until it is given up
        steps = start(tmp_path / "cut")
        for _, progress in zip(range(count), steps, strict=False):
            stages.add(progress.stage)
        steps.close()
    (tmp_path / "cut/parts/.00004-0123.parquet").write_bytes(b"cut by a power failure")
    requests = len(hub_server.requests)
    finished(start(tmp_path / "cut"))
    assert len(hub_server.requests) == requests  # what was read is not read again
    assert index_bytes(tmp_path / "cut") == index_bytes(tmp_path / "whole") and stages == {"reading", "embedding"}
    assert not (tmp_path / "cut/parts").exists()


def test_a_part_that_is_made_is_not_made_again(start, tmp_path, monkeypatch):
    asked = []
    make = workers.PartMaker.make
    monkeypatch.setattr(workers.PartMaker, "make", lambda self, *task: asked.append(len(task[0])) or make(self, *task))
    steps = start(tmp_path / "out")
    while len(list((tmp_path / "out/parts").glob("0*.parquet"))) < 2:
        next(steps)
    steps.close()
    first, *_ = (progress for progress in start(tmp_path / "out") if progress.stage == "embedding")
    assert first.done == 2 * PART and sum(asked) == first.total


def test_a_part_that_a_power_failure_emptied_is_made_again(start, tmp_path):
    finished(start(tmp_path / "whole"))
    finished(start(tmp_path / "out", shard=Shard(1, 2)))
    (tmp_path / "out/parts/00000.parquet").write_bytes(b"")
    (tmp_path / "out/parts/00002.parquet").write_bytes(b"PAR1")
    assert finished(start(tmp_path / "out", shard=Shard(2, 2))).missing == 2
    finished(start(tmp_path / "out"))
    assert index_bytes(tmp_path / "out") == index_bytes(tmp_path / "whole")


def test_records_that_a_power_failure_damaged_are_made_again_and_their_parts_are_kept(start, tmp_path):
    finished(start(tmp_path / "whole"))
    finished(start(tmp_path / "out", shard=Shard(1, 2)))
    records, part = tmp_path / "out/parts/records.parquet", tmp_path / "out/parts/00000.parquet"
    content, made = records.read_bytes(), part.stat().st_mtime_ns
    for damaged in (b"", content[:-100] + bytes(100)):
        records.write_bytes(damaged)
        finished(start(tmp_path / "out", shard=Shard(1, 2)))
        assert records.read_bytes() == content and part.stat().st_mtime_ns == made
    records.unlink()
    finished(start(tmp_path / "out"))
    assert index_bytes(tmp_path / "out") == index_bytes(tmp_path / "whole")


def test_parts_of_other_records_are_made_again(start, tmp_path):
    finished(start(tmp_path / "out", shard=Shard(1, 2)))
    plan = tmp_path / "out/parts/plan.json"
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"records": "0" * 64}))
    assert finished(start(tmp_path / "out", shard=Shard(2, 2))).missing  # the first shard's are gone


def test_of_two_programs_in_one_folder_one_writes_the_index(start, tmp_path):
    finished(start(tmp_path / "out", shard=Shard(1, 2)))
    with FileLock(tmp_path / "out/parts/.lock"), pytest.raises(BuildError, match="Another program writes"):
        finished(start(tmp_path / "out", shard=Shard(2, 2)))
    assert not (tmp_path / "out/index.json").exists()
    finished(start(tmp_path / "out"))
    assert not (tmp_path / "out/parts").exists() and len(Index.load(tmp_path / "out"))


def test_progress_grows_and_ends_at_all_assets(start, tmp_path):
    progress = [p for p in start(tmp_path / "out") if p.stage == "embedding"]
    done = [p.done for p in progress]
    assert done == sorted(done) and done[-1] == progress[-1].total and progress[-1].seconds_left == 0


def test_shards_in_several_folders_are_merged_to_the_same_bytes(start, tmp_path):
    whole = finished(start(tmp_path / "whole"))
    folders = [tmp_path / f"shard-{number}" for number in (1, 2, 3)]
    reports = [finished(start(folder, shard=Shard(number, 3))) for number, folder in enumerate(folders, 1)]
    assert sum(report.assets for report in reports) == whole.assets and all(report.missing for report in reports)
    with pytest.raises(BuildError, match="parts are not made yet"):
        finished(merge(folders[:2], tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert finished(merge(folders[::-1], tmp_path / "out")) == whole
    assert index_bytes(tmp_path / "out") == index_bytes(tmp_path / "whole")


def test_shards_in_one_folder_make_the_index_once_all_are_there(start, tmp_path):
    assert finished(start(tmp_path / "out", shard=Shard(2, 2))).missing
    assert not finished(start(tmp_path / "out", shard=Shard(1, 2))).missing
    Index.load(tmp_path / "out")


def test_parts_of_other_builds_are_not_mixed_in(start, tmp_path):
    finished(start(tmp_path / "a", shard=Shard(1, 2)))
    finished(start(tmp_path / "b", Objaverse(names=True), shard=Shard(2, 2)))
    with pytest.raises(BuildError, match="of another build"):
        finished(merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out"))
    with pytest.raises(BuildError, match="of a build with other options"):
        finished(start(tmp_path / "a", Objaverse(names=True)))
    with pytest.raises(BuildError, match="no parts in c"):
        finished(merge([tmp_path / "a", tmp_path / "c"], tmp_path / "out"))


def test_a_finished_index_is_not_overwritten(start, tmp_path):
    finished(start(tmp_path / "out"))
    for steps in (start(tmp_path / "out"), merge([tmp_path / "shard"], tmp_path / "out")):
        with pytest.raises(BuildError, match="already"):
            finished(steps)


def test_a_build_without_any_asset_says_why(start, tmp_path):
    with pytest.raises(BuildError, match="another licence"):
        finished(start(tmp_path / "out", Objaverse(licenses=())))
    assert not (tmp_path / "out").exists()


def test_converted_image_embeddings_become_those_of_the_index(start, made, tmp_path):
    (tmp_path / "f.pkl").write_bytes(made.clip_features)
    convert(tmp_path / "f.pkl", tmp_path / "f.parquet")
    report = finished(start(tmp_path / "out", images=tmp_path / "f.parquet"))
    index, pictured = Index.load(tmp_path / "out"), 0
    for row in index.table.first(len(index)):
        uid, place = row["uid"], np.flatnonzero(index.image_assets == index.table.place(row["uid"]))
        pictured += len(place)
        if uid in made.features:
            (image,) = index.images.take(place)
            views = made.features[uid].astype(np.float32)
            mean = (views / np.linalg.norm(views, axis=1, keepdims=True)).mean(axis=0)
            assert image == pytest.approx(mean / np.linalg.norm(mean), abs=2e-3)
        else:
            assert not len(place)
    assert pictured == report.pictured > 0


def test_a_writer_that_fails_leaves_the_parts_and_raises(start, tmp_path, monkeypatch):
    monkeypatch.setattr(assemble, "write", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        finished(start(tmp_path / "out"))
    assert list((tmp_path / "out/parts").glob("0*.parquet"))


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs a system that can reserve space")
def test_a_disk_that_is_too_full_for_the_index_is_said_and_the_build_goes_on_from_its_parts(
    start, tmp_path, monkeypatch
):
    """Without it, a store into a file that is mapped would end the process."""
    finished(start(tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(FolderError, match="The disk with the folder .* is full"):
        patch.setattr(os, "posix_fallocate", no_space)
        finished(start(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["parts"]
    monkeypatch.setattr(assemble, "_made", None)  # no part is made again
    finished(start(tmp_path / "out"))
    assert index_bytes(tmp_path / "out") == index_bytes(tmp_path / "whole")


@pytest.mark.parametrize("name", ["records.parquet", "plan.json", "00000.parquet"])
def test_a_disk_that_is_full_before_is_said_too(start, tmp_path, monkeypatch, name):
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: no_space() if new.name == name else replace(old, new))
    with pytest.raises(FolderError, match="The disk with the folder .* is full"):
        finished(start(tmp_path / "out"))


def test_a_folder_that_takes_no_file_is_said_before_anything_is_read(start, tmp_path, hub_server):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file/index"):
        with pytest.raises(FolderError, match="file is a file, not a folder; mend that, or choose another"):
            finished(start(out))
    assert not hub_server.requests
    finished(start(tmp_path / "shard", shard=Shard(1, 2)))
    finished(start(tmp_path / "other", shard=Shard(2, 2)))
    with pytest.raises(FolderError, match="file is a file, not a folder"):
        finished(merge([tmp_path / "shard", tmp_path / "other"], tmp_path / "file"))


def test_a_writer_is_stopped_at_its_next_part(start, tmp_path, monkeypatch):
    monkeypatch.setattr(assemble, "POLL_SECONDS", 0.01)

    def slowly(parts, *_, **__):
        while True:
            list(parts())

    monkeypatch.setattr(assemble, "write", slowly)
    steps = start(tmp_path / "out")
    while next(steps).stage != "writing":
        pass
    steps.close()
    assert list((tmp_path / "out/parts").glob("0*.parquet"))


def test_a_write_that_was_killed_leaves_nothing_behind_and_one_whose_parts_were_being_removed_is_done(start, tmp_path):
    finished(start(tmp_path / "whole"))
    finished(start(tmp_path / "out", shard=Shard(1, 2)))
    (tmp_path / "out/.texts-01234567.npy").write_bytes(b"half of the vectors")
    finished(start(tmp_path / "out", shard=Shard(2, 2)))
    assert index_bytes(tmp_path / "out") == index_bytes(tmp_path / "whole")
    (tmp_path / "out/parts").mkdir()
    (tmp_path / "out/parts/00001.parquet").write_bytes(b"not removed yet")
    with pytest.raises(BuildError, match="already"):
        finished(start(tmp_path / "out"))


def test_a_folder_becomes_an_index_with_names_as_captions_and_reasons_for_what_is_left_out(start_folder, tmp_path):
    report = finished(start_folder(tmp_path / "index"))
    assert report == Report(2, 2, 2, {"the same file twice": 1, "an unusable GLB": 1})
    index = Index.load(tmp_path / "index")
    rows = {row["caption"]: row for row in index.table.first(9)}
    assert set(rows) == {"red owl", "blue box 2"} or set(rows) == {"copy", "blue box 2"}
    for row in rows.values():
        assert row["license"] == "CC0" and index.asset_path(row["uid"]).is_file()


def test_a_folder_that_the_index_could_not_reach_is_refused(start_folder, tmp_path):
    with pytest.raises(BuildError, match="in the index's folder or beside it"):
        finished(start_folder(tmp_path / "far/away/index"))


@pytest.mark.slow
def test_worker_processes_make_the_same_bytes(start_folder, tmp_path):
    finished(start_folder(tmp_path / "one"))
    finished(start_folder(tmp_path / "two", processes=2))
    assert index_bytes(tmp_path / "one") == index_bytes(tmp_path / "two")


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="needs Ray (requirements-ray.txt)")
def test_a_ray_cluster_makes_the_same_bytes(start, start_folder, tmp_path):
    for name, begin in (("objaverse", start), ("folder", start_folder)):
        finished(begin(tmp_path / name))
        finished(begin(tmp_path / f"{name}-ray", address="local"))
        assert index_bytes(tmp_path / name) == index_bytes(tmp_path / f"{name}-ray")


@pytest.mark.skipif(bool(importlib.util.find_spec("ray")), reason="needs an environment without Ray")
def test_an_address_without_ray_says_what_to_install(start, tmp_path):
    with pytest.raises(BuildError, match=r"requirements-ray\.txt"):
        finished(start(tmp_path / "out", address="auto"))


def test_records_are_kept_part_by_part(start, tmp_path):
    finished(start(tmp_path / "out", shard=Shard(1, 9)))
    work = Work.open(tmp_path / "out/parts")
    uids = [uid for number in work.parts for uid in work.records(number)["uid"].to_pylist()]
    assert uids == sorted(uids) and len(uids) == work.plan["assets"] and len(work.records(0)) == PART
