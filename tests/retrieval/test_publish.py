"""An index is checked in every file that it names, and pushed so that it can be used from the Hub."""

import errno
import functools
import json
import os

import pyarrow.parquet as pq
import pytest
from hub_server import COMMIT
from objaverse_files import make_objaverse
from tiny_models import make_tiny_clip
from tiny_stack import tiny_glb

from redream import hub
from redream.files import FolderError, sha256
from redream.retrieval import publish
from redream.retrieval.assemble import build
from redream.retrieval.build import BuildError
from redream.retrieval.clip import Clip, embedding_of
from redream.retrieval.fetch import finished
from redream.retrieval.index import Index, IndexFormatError
from redream.retrieval.objaverse import Objaverse
from redream.retrieval.own import add
from redream.retrieval.parts import Job
from redream.retrieval.publish import check, push, upload


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return make_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def objaverse_index(clip_folder, hub_server, tmp_path):
    make_objaverse(60).publish(hub_server)
    job = Job(functools.partial(Clip.load, clip_folder))
    report = finished(build(Objaverse(), tmp_path / "index", job, embedding=embedding_of(clip_folder)))
    return tmp_path / "index", report


@pytest.fixture
def own_index(clip_folder, tmp_path):
    for name, colour in (("owl", (200, 40, 40)), ("car", (40, 60, 200))):
        (tmp_path / f"{name}.glb").write_bytes(tiny_glb(colour))
    job = Job(functools.partial(Clip.load, clip_folder))
    add(
        [tmp_path / "owl.glb", tmp_path / "car.glb"],
        [],
        tmp_path / "own",
        job,
        embedding=embedding_of(clip_folder),
        license="CC0",
    )
    return tmp_path / "own"


def test_a_check_counts_what_is_in_the_index(objaverse_index, own_index):
    folder, report = objaverse_index
    found = check(folder)
    assert (found.assets, found.captions, found.here) == (report.assets, report.captions, 0)
    assert sum(found.licenses.values()) == report.assets and found.unhashed == 0
    own = check(own_index)
    assert (own.assets, own.here, own.licenses, own.root) == (2, 2, {"CC0": 2}, "assets")


def test_a_check_finds_a_glb_that_is_gone_or_changed(own_index):
    glb = next((own_index / "assets").glob("*.glb"))
    content = glb.read_bytes()
    glb.write_bytes(content[:-1] + b"x")
    with pytest.raises(IndexFormatError, match=f"{glb.stem} is not the one"):
        check(own_index)
    glb.unlink()
    with pytest.raises(IndexFormatError, match=f"{glb.stem} is missing"):
        check(own_index)


def test_a_check_finds_assets_that_are_nowhere(own_index):
    table = pq.read_table(own_index / "assets.parquet")
    place = table.schema.get_field_index("file")
    pq.write_table(table.set_column(place, "file", [[""] * len(table)]), own_index / "assets.parquet")
    manifest = json.loads((own_index / "index.json").read_text())
    manifest["files"]["assets.parquet"] = sha256(own_index / "assets.parquet")
    (own_index / "index.json").write_text(json.dumps(manifest))
    with pytest.raises(IndexFormatError, match="does not say where"):
        check(own_index)


def test_a_check_finds_a_changed_byte(objaverse_index):
    folder, _ = objaverse_index
    content = bytearray((folder / "assets.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "assets.parquet").write_bytes(content)
    with pytest.raises(IndexFormatError):
        check(folder)


def test_a_check_finds_a_changed_byte_of_a_large_file_that_was_right_before(objaverse_index, hub_server, monkeypatch):
    folder, _ = objaverse_index
    monkeypatch.setattr(hub.repositories, "REMEMBERED", 1)
    check(folder)
    file, stat = folder / "texts.npy", (folder / "texts.npy").stat()
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # as a disk may do it: size and time are the same
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    Index.load(folder)
    before = len(hub_server.requests)
    for use in (check, lambda folder: push(folder, "ann/index")):
        with pytest.raises(IndexFormatError, match=r"texts\.npy is not the one its manifest describes"):
            use(folder)
    assert len(hub_server.requests) == before


def test_what_is_pushed_can_be_used_from_the_hub(objaverse_index, hub_server, clip_folder, tmp_path):
    folder, report = objaverse_index
    assert push(folder, "ann/index") == COMMIT
    fetched = hub.resolve("ann/index", base=tmp_path, revision=COMMIT).folder
    index = Index.load(fetched)
    clip = Clip.load(clip_folder)
    assert len(index) == report.assets
    assert index.search("a red owl", clip, 3, 9) == Index.load(folder).search("a red owl", clip, 3, 9)
    card = hub_server.repositories["models", "ann/index"]["README.md"].decode()
    assert "allenai/objaverse" in card and "CC-BY-4.0" in card
    assert f"tiange/Cap3D), commit `{COMMIT}`, published under ODC-By 1.0" in card and "ObjaversePlusPlus" not in card
    sources = json.loads((folder / "index.json").read_text())["sources"]
    assert sources == dict.fromkeys(("allenai/objaverse", "allenai/objaverse-xl", "tiange/Cap3D"), COMMIT)


def test_a_library_of_ones_own_is_pushed_with_its_glbs_and_nothing_else(own_index, hub_server, tmp_path, monkeypatch):
    (own_index / "README.md").write_text("# Mine\n")
    glb = next((own_index / "assets").glob("*.glb"))
    for name in (f".{glb.stem}-01234567.glb", "another.glb", ".lock"):  # left by a kill, or put there
        (own_index / "assets" / name).write_bytes(glb.read_bytes())
    monkeypatch.setattr(hub.repositories, "REMEMBERED", 1)
    check(own_index)
    assert (own_index / hub.repositories.VERIFIED).is_file()  # it is of this computer only
    push(own_index, "ann/own")
    files = hub_server.repositories["models", "ann/own"]
    glbs = {f"assets/{row['file']}" for row in Index.load(own_index).table.first(9)}
    manifest = json.loads((own_index / "index.json").read_text())
    assert set(files) == {"README.md", "index.json", *manifest["files"], *glbs} and files["README.md"] == b"# Mine\n"
    index = Index.load(hub.resolve("ann/own", base=tmp_path, revision="main").folder)
    assert all(index.asset_path(row["uid"]).is_file() for row in index.table.first(9))


def test_a_folder_that_takes_no_card_is_said(own_index, hub_server, monkeypatch):
    def write_text(*_) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(publish, "write_text", write_text)
    with pytest.raises(FolderError, match="You may not write to the folder .*own; mend that, or put a README"):
        push(own_index, "ann/own")
    assert not hub_server.requests


def test_glbs_beside_the_index_cannot_be_pushed(own_index, hub_server, tmp_path):
    manifest = json.loads((own_index / "index.json").read_text())
    (own_index / "assets").rename(tmp_path / "assets")
    (own_index / "index.json").write_text(json.dumps(manifest | {"root": "../assets"}))
    with pytest.raises(BuildError, match="beside its folder"):
        push(own_index, "ann/own")
    assert not hub_server.requests


def test_what_is_pushed_comes_back_and_nothing_else_of_the_folder(hub_server, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in {"index.json": b"{}", "assets.parquet": b"rows" * 999, "secret.txt": b"no"}.items():
        (folder / name).write_bytes(content)
    names_pushed = ["index.json", "assets.parquet"]
    assert upload(folder, "ann/index", names_pushed) == COMMIT
    fetched = hub.resolve("ann/index", base=tmp_path, revision="main").folder
    assert {path.name for path in fetched.iterdir()} == set(names_pushed)
    assert (fetched / "assets.parquet").read_bytes() == b"rows" * 999

    uploads = [request for request in hub_server.requests if request.startswith("PUT")]
    (folder / "index.json").write_bytes(b'{"a": 1}')
    upload(folder, "ann/index", names_pushed)
    assert [request for request in hub_server.requests if request.startswith("PUT")] == uploads  # it was there
    assert hub_server.repositories["models", "ann/index"]["index.json"] == b'{"a": 1}'


@pytest.mark.parametrize(
    ("name", "status", "sentence"),
    [
        ("ann/index", 401, "log in"),
        ("ann/index", 403, "log in"),
        ("ann/index", 422, "error 422"),
        ("index", None, "owner/name"),
    ],
)
def test_an_upload_that_is_not_taken_is_said_in_a_sentence(hub_server, tmp_path, name, status, sentence):
    (tmp_path / "index.json").write_text("{}")
    hub_server.write_status = status
    with pytest.raises(hub.HubError, match=sentence):
        upload(tmp_path, name, ["index.json"])


def test_an_upload_to_a_hub_that_does_not_answer_is_said_in_a_sentence(hub_server, tmp_path):
    hub_server.stop()
    with pytest.raises(hub.HubError, match="did not answer"):
        upload(tmp_path, "ann/index", ["index.json"])
