"""Files are complete or absent, and known by their hashes."""

import hashlib

import pytest

from redream.files import (
    data_folder,
    digest,
    read_json,
    remove_leftovers,
    replacing,
    sha256,
    sha256_of_files,
    write_json,
)


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
