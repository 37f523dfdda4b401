"""Files are complete or absent, and known by their hashes."""

import errno
import functools
import hashlib
import os
import tempfile
from pathlib import Path

import pytest

from redream.files import (
    FolderError,
    data_folder,
    digest,
    read_json,
    remove_leftovers,
    replacing,
    require_space,
    require_writable,
    sha256,
    sha256_of_files,
    write_json,
    writing_to,
)
from redream.runs.run import runs_folder


def test_a_failed_write_leaves_the_earlier_file_and_no_other(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"n": 1})
    with pytest.raises(OSError, match="disk full"), replacing(file) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert read_json(file) == {"n": 1} and list(tmp_path.iterdir()) == [file]


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path):
    def begin(name: str):
        block = replacing(tmp_path / name)
        block.__enter__().write_text("half")
        return block  # neither ended nor collected: as if the process had been killed

    blocks = [begin(name) for name in ("texts.npy", "texts.npy", "images.npy", "a[b].json")]
    (tmp_path / "texts.npy").write_text("whole")
    remove_leftovers(tmp_path / "texts.npy")
    remove_leftovers(tmp_path / "a[b].json")
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} == {"texts.npy", ".images"} and blocks


def test_json_that_is_missing_or_malformed_reads_as_none(tmp_path):
    (tmp_path / "a.json").write_text("{")
    assert read_json(tmp_path / "a.json") is None and read_json(tmp_path / "b.json") is None


def test_hashes_of_a_folder_can_be_limited_by_suffix_and_size(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, content in (("a.json", b"a"), ("sub/b.json", b"bb"), ("c.bin", b"c")):
        (tmp_path / name).write_bytes(content)
    everything = sha256_of_files(tmp_path)
    assert everything == {n: sha256(tmp_path / n) for n in ("a.json", "c.bin", "sub/b.json")}
    assert everything["a.json"] == hashlib.sha256(b"a").hexdigest()
    assert set(sha256_of_files(tmp_path, (".json",))) == {"a.json", "sub/b.json"}
    assert set(sha256_of_files(tmp_path, max_bytes=1)) == {"a.json", "c.bin"}


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    assert len(digest(None)) == 12


def test_a_user_s_data_is_in_the_folder_of_the_environment_or_of_the_platform(tmp_path):
    assert data_folder({"REDREAM_DATA": str(tmp_path)}) == tmp_path
    assert data_folder({}).name == "redream" and data_folder({}).is_absolute()


def refuse(number: int, *arguments, **options) -> None:
    raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    "number, sentence",
    [
        (errno.ENOSPC, "The disk with the folder {} is full"),
        (errno.EACCES, "You may not write to the folder {}"),
        (errno.EROFS, "You may not write to the folder {}"),
        (errno.EIO, "The folder {} cannot be written to (Input/output error)"),
    ],
)
def test_a_folder_that_takes_no_file_is_said_with_the_reason_and_the_advice(tmp_path, monkeypatch, number, sentence):
    require_writable(tmp_path / "new/runs", "choose another")
    assert list((tmp_path / "new/runs").iterdir()) == []
    monkeypatch.setattr(tempfile, "TemporaryFile", functools.partial(refuse, number))
    with pytest.raises(FolderError) as error:
        require_writable(tmp_path, "choose another")
    assert str(error.value) == f"{sentence.format(tmp_path)}; choose another."
    with pytest.raises(FolderError) as error, writing_to(tmp_path, "choose another"):
        refuse(number)
    assert str(error.value) == f"{sentence.format(tmp_path)}; choose another."


def test_only_errors_of_the_folder_become_its_sentence(tmp_path):
    with pytest.raises(ConnectionError), writing_to(tmp_path, "choose another"):
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


def test_a_file_system_that_reserves_no_space_is_left_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"abc")
    for number in (errno.EOPNOTSUPP, errno.EINVAL):
        monkeypatch.setattr(os, "posix_fallocate", functools.partial(refuse, number))
        require_space(tmp_path / "file")
    monkeypatch.setattr(os, "posix_fallocate", functools.partial(refuse, errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        require_space(tmp_path / "file")
    monkeypatch.delattr(os, "posix_fallocate")
    require_space(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"abc"


@pytest.mark.parametrize(
    "name, sentence", [("file", "is a file, not a folder"), ("file/a/b", "would lie below a file")]
)
def test_a_file_in_the_place_of_a_folder_is_said(tmp_path, name, sentence):
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match=sentence):
        require_writable(tmp_path / name, "choose another")


def test_the_home_folder_may_be_named_by_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REDREAM_RUNS", "~/my runs")
    assert runs_folder() == tmp_path / "my runs"
    assert data_folder({"REDREAM_DATA": "~/data"}) == tmp_path / "data" and isinstance(data_folder({}), Path)
