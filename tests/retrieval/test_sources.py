"""Reading published files: in their true formats, streamed, and strangers' files that are not what they should be."""

import gzip
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from objaverse_files import make_objaverse

from redream.retrieval import sources
from redream.retrieval.sources import SourceError

UID = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def made():
    return make_objaverse(120)


@pytest.fixture
def written(tmp_path, made):
    """Write a file of a data set, return its path."""

    def write(repository: str, name: str):
        path = tmp_path / name.rpartition("/")[2]
        path.write_bytes(made.repositories[repository][name])
        return path

    return write


def gzipped(path, values):
    path.write_bytes(gzip.compress(json.dumps(values).encode()))
    return path


def test_the_paths_of_all_glbs_are_read(written, made):
    table = sources.texts_by_uid(written("allenai/objaverse", "object-paths.json.gz"), "path")
    assert dict(zip(*table.to_pydict().values(), strict=True)) == made.paths


def test_captions_are_the_same_from_csv_and_json_but_for_hashes_of_objaverse_xl(written, made):
    for name, expected in (
        ("Cap3D_automated_Objaverse_full.csv", made.captions),
        ("Objaverse_files/cap3d_captions.json.gz", made.other_captions),
    ):
        table = sources.captions(written("tiange/Cap3D", name))
        assert dict(zip(*table.to_pydict().values(), strict=True)) == expected


def test_the_hash_of_every_glb_is_found_by_the_uid_at_the_end_of_its_address(written, made):
    table = sources.hashes(written("allenai/objaverse-xl", "objaverse_v1/object-metadata.parquet"))
    assert table["uid"].to_pylist() == list(made.records) and len(set(table["sha256"].to_pylist())) <= 7


def test_quality_flags_are_texts_in_the_file_and_truth_values_in_the_table(written, made):
    table = sources.quality(written("cindyxl/ObjaversePlusPlus", "annotated_800k.json")).to_pylist()
    assert [row["uid"] for row in table] == list(made.quality)
    for row in table:
        item = made.quality[row["uid"]]
        assert row["score"] == item["score"] and row["transparent"] == (item["is_transparent"] == "true")


def test_metadata_has_licence_faces_size_author_page_and_a_small_thumbnail(written, made):
    row = sources.metadata(written("allenai/objaverse", "metadata/000-000.json.gz")).to_pylist()[0]
    record = made.records[row["uid"]]
    assert row["license"] == record["license"] and row["author"] == "A. Grice"
    assert (row["faces"], row["size"]) == tuple(record["archives"]["glb"][key] for key in ("faceCount", "size"))
    assert row["source"] == record["viewerUrl"] and row["thumbnail"].endswith("/256.jpeg")


def test_fields_of_a_wrong_type_are_taken_as_absent(tmp_path):
    broken = {"license": 3, "isAgeRestricted": "no", "faceCount": -5, "user": "me", "thumbnails": {"images": [7, {}]}}
    broken |= {"archives": [], "viewerUrl": "javascript:alert(1)", "name": "a\nb\ud800\x00c" + "d" * 9999}
    table = sources.metadata(gzipped(tmp_path / "m.json.gz", {UID: broken, "x": {}, UID[::-1]: None}))
    row, empty = table.to_pylist()
    assert row["license"] is row["restricted"] is row["faces"] is row["size"] is None and row["author"] == ""
    assert row["source"] == f"https://sketchfab.com/3d-models/{UID}" and row["name"].startswith("a b c")
    assert len(row["name"]) <= sources.CAPTION_LIMIT and empty["uid"] == UID[::-1]


@pytest.mark.parametrize("text", ["", "{}", "[1, 2", '[{"UID": "a"', "[" * 5000, '[{"UID": 1}}]', "null"])
def test_json_that_is_no_whole_list_is_refused(tmp_path, text):
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(SourceError, match=r"list\.json"):
        list(sources.json_items(path))


def test_a_list_of_objects_is_read_bit_by_bit_wherever_a_block_ends(tmp_path, monkeypatch):
    items = [{"UID": f"{number}", "text": 'é"]}' * (number % 7)} for number in range(300)]
    path = tmp_path / "list.json"
    for indent in (None, 4):
        path.write_text(json.dumps([1, *items], indent=indent, ensure_ascii=False), encoding="utf-8")
        for block in (64, 97, 2**20):
            monkeypatch.setattr(sources, "BLOCK", block)
            assert list(sources.json_items(path)) == items


def test_the_memory_for_a_list_does_not_grow_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK", 2**14)
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"UID": UID, "score": n % 4, "is_scene": "false"} for n in range(20_000)]))
    tracemalloc.start()
    assert sum(1 for _ in sources.json_items(path)) == 20_000
    assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 4
    tracemalloc.stop()


def test_files_that_are_too_large_unpacked_or_not_are_not_read(tmp_path, monkeypatch):
    path = gzipped(tmp_path / "bomb.json.gz", {UID: "a" * 100_000})
    monkeypatch.setattr(sources, "JSON_LIMIT", 1000)
    with pytest.raises(SourceError, match="unpacked"):
        sources.texts_by_uid(path, "path")
    monkeypatch.setattr(sources, "SIZE_LIMIT", 10)
    with pytest.raises(SourceError, match="larger"):
        list(sources.csv_lines(path))


@pytest.mark.parametrize(
    "content", [b"", b"{}", gzip.compress(b"[1]", mtime=0), gzip.compress(b'{"a": 1', mtime=0)[:-9], b"\x1f\x8b"]
)
def test_what_is_no_gzipped_object_is_refused_in_a_sentence(tmp_path, content):
    path = tmp_path / "broken.json.gz"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"broken\.json\.gz"):
        sources.metadata(path)


def test_tables_that_are_no_parquet_or_have_other_columns_are_refused(tmp_path):
    path = tmp_path / "table.parquet"
    for write in (lambda: path.write_bytes(b"PAR1"), lambda: pq.write_table(pa.table({"a": [1]}), path)):
        write()
        for read in (sources.hashes, sources.image_embeddings):
            with pytest.raises(SourceError, match=r"table\.parquet"):
                read(path)
    pq.write_table(pa.table({"uid": [UID], "image": [[1.0]]}), path)
    with pytest.raises(SourceError, match="half-precision"):
        sources.image_embeddings(path)
    image = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(4, np.float16)), 4)
    pq.write_table(pa.table({"uid": [UID], "image": image}), path)
    assert sources.image_embeddings(path)["image"].to_pylist() == [[1.0] * 4]
    for broken in ({"uid": [7], "image": image}, {"uid": [None, UID], "image": image.take(pa.array([0, None]))}):
        pq.write_table(pa.table(broken), path)
        with pytest.raises(SourceError, match="no uid or no image"):
            sources.image_embeddings(path)
