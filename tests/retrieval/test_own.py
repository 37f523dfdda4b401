"""A library of one's own, file by file, and a folder as records."""

import errno
import functools
import os
from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_tiny_clip
from tiny_stack import tiny_glb

from redream.files import FolderError, sha256
from redream.retrieval import own
from redream.retrieval.build import BuildError
from redream.retrieval.clip import Clip, embedding_of
from redream.retrieval.fetch import finished
from redream.retrieval.index import Index
from redream.retrieval.own import Folder, add
from redream.retrieval.parts import Job, unpack

COLOURS = {"red owl": (200, 40, 40), "blue car": (40, 60, 200), "green mug": (40, 160, 60)}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return make_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name.replace(' ', '_')}.glb" for name in COLOURS}
    for name, path in paths.items():
        path.write_bytes(tiny_glb(COLOURS[name]))
    return paths


@pytest.fixture
def add_to(clip_folder):
    """Add files to a library."""

    def add_to(library: Path, *paths: Path, captions=(), clip: Path = clip_folder, **rights) -> int:
        job = Job(functools.partial(Clip.load, clip))
        return add(list(paths), list(captions), library, job, embedding=embedding_of(clip), **rights)

    return add_to


def test_files_that_are_added_are_found_by_caption_and_their_glb_is_here(add_to, files, tmp_path, clip_folder):
    library = tmp_path / "library"
    assert add_to(library, files["red owl"], captions=["a red owl", "a bird"], author="ann", license="CC0") == 1
    assert add_to(library, files["blue car"], files["green mug"]) == 3
    index, clip = Index.load(library), Clip.load(clip_folder)
    for prompt, caption in (("a red owl", "a red owl"), ("a bird", "a red owl"), ("blue car", "blue car")):
        hit = max(index.search(prompt, clip, 3, 3), key=lambda hit: hit.text_similarity)
        assert hit.caption == caption and hit.text_similarity == pytest.approx(1, abs=1e-3)
    row = index.row(sha256(files["red owl"])[:32])
    assert (row["author"], row["license"], row["source"]) == ("ann", "CC0", "red_owl.glb")
    assert index.asset_path(row["uid"]).read_bytes() == files["red owl"].read_bytes()


def test_one_by_one_or_all_at_once_makes_the_same_library(add_to, files, tmp_path):
    for path in files.values():
        add_to(tmp_path / "one by one", path)
    add_to(tmp_path / "at once", *files.values())
    part, other = (unpack(tmp_path / name / "own.parquet")[0] for name in ("one by one", "at once"))
    assert part.table.equals(other.table) and np.array_equal(part.rows, other.rows)
    assert np.array_equal(part.images, other.images) and part.texts == pytest.approx(other.texts, abs=2e-3)


def test_a_file_that_is_added_again_takes_the_new_caption(add_to, files, tmp_path):
    for captions in (["a car", "a bird"], ["an owl"]):
        assert add_to(tmp_path / "library", *files.values(), captions=captions) == 3
    index = Index.load(tmp_path / "library")
    assert [row["caption"] for row in index.table.first(9)] == ["an owl"] * 3 and len(index.texts) == 3


def test_nothing_is_changed_by_a_file_that_cannot_be_used(add_to, files, tmp_path):
    add_to(tmp_path / "library", files["red owl"])
    before = {path: path.read_bytes() for path in (tmp_path / "library").rglob("*") if path.is_file()}
    (tmp_path / "bad.glb").write_bytes(b"glTF")
    for bad in (tmp_path / "bad.glb", tmp_path / "none.glb"):
        with pytest.raises(BuildError, match=bad.name):
            add_to(tmp_path / "library", files["blue car"], bad)
    assert {path: path.read_bytes() for path in (tmp_path / "library").rglob("*") if path.is_file()} == before


def test_a_library_that_cannot_be_written_is_said_and_stays_as_it_was(add_to, files, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match="file is a file, not a folder; mend that, or choose another folder"):
        add_to(tmp_path / "file", files["red owl"])
    add_to(tmp_path / "library", files["red owl"])

    def write(*_, **__) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(own, "write", write)
    with pytest.raises(FolderError, match="The disk with the folder .*library is full"):
        add_to(tmp_path / "library", files["blue car"])
    assert len(Index.load(tmp_path / "library")) == 1


def test_a_library_of_another_clip_is_refused(add_to, files, tmp_path):
    add_to(tmp_path / "library", files["red owl"])
    with pytest.raises(BuildError, match="another CLIP"):
        add_to(tmp_path / "library", files["blue car"], clip=make_tiny_clip(tmp_path / "clip", seed=1))


def test_an_index_that_was_built_as_a_whole_is_not_overwritten(add_to, files, tmp_path):
    add_to(tmp_path / "library", files["red owl"])
    (tmp_path / "library/own.parquet").unlink()
    with pytest.raises(BuildError, match="file by file"):
        add_to(tmp_path / "library", files["blue car"])
    assert len(Index.load(tmp_path / "library")) == 1


def test_captions_of_a_folder_come_from_a_list_that_must_fit(files, tmp_path):
    (tmp_path / "captions.csv").write_text('red_owl.glb,"an owl, red",a bird\n\nblue_car.glb,"  "\n')
    records = finished(Folder(tmp_path, tmp_path / "captions.csv").read())
    rows = {row["file"]: row["captions"] for row in records.table.to_pylist()}
    assert rows == {
        "red_owl.glb": ["an owl, red", "a bird"],
        "blue_car.glb": ["blue car"],
        "green_mug.glb": ["green mug"],
    }
    (tmp_path / "captions.csv").write_text("red_owl.glb,an owl\nother.glb,a car\n")
    with pytest.raises(BuildError, match=r"other\.glb"):
        finished(Folder(tmp_path, tmp_path / "captions.csv").read())
    with pytest.raises(BuildError, match="no folder"):
        finished(Folder(tmp_path / "none").read())
