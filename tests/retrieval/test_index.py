"""Two-stage retrieval against a reference, and what an index must be to be trusted."""

import hashlib
import io
import json
import zlib

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from redream.files import sha256
from redream.retrieval.build import AssetRow, build
from redream.retrieval.clip import Clip
from redream.retrieval.fetch import finished
from redream.retrieval.index import AssetUnavailable, Index, IndexFormatError, retrieved_json

DIM, ASSETS = 8, 40


class TableClip(Clip):
    """Every text has a random direction of its own; the picture of asset i is the direction i of another table."""

    name, size = "table", 4

    def __init__(self, sha256="f" * 64):
        self.sha256 = sha256
        self.pictures = self._unit(torch.randn(ASSETS, DIM, generator=torch.Generator().manual_seed(1)))

    def embed_texts(self, texts):
        seeds = [zlib.crc32(text.encode()) for text in texts]
        return self._unit(torch.stack([torch.randn(DIM, generator=torch.Generator().manual_seed(s)) for s in seeds]))

    def embed_images(self, images):
        return self.pictures[(images[:, 0, 0, 0] * 1000).round().long()]

    @staticmethod
    def _unit(x):
        return torch.nn.functional.normalize(x, dim=1)


def captions(i: int) -> list[str]:
    return [f"asset {i} phrase {j}" for j in range(1 + i % 5)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "assets").mkdir()
    for i in range(ASSETS):
        (tmp_path / f"assets/{i}.glb").write_bytes(b"mesh %d" % i)
    rows = [
        AssetRow(f"u{i}", captions(i), f"author {i}", "CC0", f"link {i}", file=f"{i}.glb" if i else "")
        for i in range(ASSETS)
    ]

    def views(row: AssetRow) -> torch.Tensor:
        return torch.full((1, 3, 4, 4), int(row.uid[1:]) / 1000)

    build(rows, views, TableClip(), tmp_path / "index", root="../assets")
    return tmp_path / "index"


def reference(prompt: str, assets: int, candidates: int) -> list[str]:
    """Retrieval as one would write it without an index."""
    clip = TableClip()
    query = clip.embed_texts([prompt])[0]
    nearest = [float((clip.embed_texts(captions(i)) @ query).max()) for i in range(ASSETS)]
    nearest_rows = sorted(range(ASSETS), key=lambda i: -nearest[i])[:candidates]
    return [f"u{i}" for i in sorted(nearest_rows, key=lambda i: -float(clip.pictures[i] @ query))[:assets]]


@pytest.mark.parametrize("prompt", ["a purple owl", "a red car", "x"])
@pytest.mark.parametrize(("assets", "candidates"), [(3, 12), (1, 1), (3, 40), (3, 1000)])
def test_search_agrees_with_exhaustive_two_stage_retrieval(folder, prompt, assets, candidates):
    hits = Index.load(folder).search(prompt, TableClip(), assets, candidates)
    assert [hit.uid for hit in hits] == reference(prompt, assets, candidates)


def test_similarity_and_text_similarity_are_cosines_with_image_and_caption(folder):
    clip = TableClip()
    hit = Index.load(folder).search("a red car", clip, 1, 5)[0]
    query, place = clip.embed_texts(["a red car"])[0], int(hit.uid[1:])
    assert hit.similarity == pytest.approx(float(clip.pictures[place] @ query), abs=1e-6)
    assert hit.text_similarity == pytest.approx(float((clip.embed_texts(captions(place)) @ query).max()), abs=1e-6)


def test_an_asset_by_uid_has_the_similarity_that_a_search_gives_it(folder):
    index = Index.load(folder)
    for hit in index.search("a red car", TableClip(), 5, 12):
        expected = index.hit(hit.uid, "a red car", TableClip())
        assert (expected.uid, expected.caption, expected.license) == (hit.uid, hit.caption, hit.license)
        assert expected.similarity == pytest.approx(hit.similarity, abs=1e-6)
        assert expected.text_similarity == pytest.approx(hit.text_similarity, abs=1e-6)
    with pytest.raises(AssetUnavailable, match="no asset u9999"):
        index.hit("u9999", "a red car", TableClip())


def test_hits_are_different_assets_in_falling_similarity(folder):
    hits = Index.load(folder).search("asset 4 phrase 0", TableClip(), 12, 12)
    assert len({hit.uid for hit in hits}) == 12
    assert [hit.similarity for hit in hits] == sorted((hit.similarity for hit in hits), reverse=True)


def test_a_run_records_prompt_and_provenance(folder):
    record = retrieved_json("a car", Index.load(folder).search("a car", TableClip(), 3, 12))
    assert record["prompt"] == "a car" and len(record["assets"]) == 3
    assert set(record["assets"][0]) == {"uid", "caption", "author", "license", "similarity", "source"}
    assert json.loads(json.dumps(record)) == record


def test_an_index_refuses_another_clip_than_the_one_that_built_it(folder):
    with pytest.raises(IndexFormatError, match="made with another CLIP"):
        Index.load(folder).search("a car", TableClip(sha256="0" * 64), 3, 12)


def change(folder, name: str, content: bytes) -> None:
    """Replace a file, and its checksum with it."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "index.json").read_text())
    manifest["files"][name] = sha256(folder / name)
    (folder / "index.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["texts.npy", "image_assets.npy", "assets.parquet"])
def test_altered_and_missing_files_are_refused(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(IndexFormatError, match="is not the one its manifest describes"):
        Index.load(folder)
    (folder / name).unlink()
    with pytest.raises(IndexFormatError, match="is missing"):
        Index.load(folder)


def array_file(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        array_file(np.zeros((ASSETS - 1, DIM), np.float32)),
        array_file(np.zeros((DIM, ASSETS), np.float32)),
        array_file(np.zeros((ASSETS, DIM), np.int32)),
        array_file(np.asfortranarray(np.zeros((ASSETS, DIM), np.float32))),
        array_file(np.full((ASSETS, 2), None)),  # a pickle
        b"x" * (ASSETS * DIM * 4 + 128),
    ],
)
def test_an_array_of_another_kind_or_size_is_refused_though_its_checksum_is_right(folder, content):
    change(folder, "images.npy", content)
    with pytest.raises(IndexFormatError, match="images.npy of this index .* build it again"):
        Index.load(folder)


@pytest.mark.parametrize("rows", [[-1], [ASSETS], [0, 0]])
def test_pictures_of_no_asset_or_twice_of_one_are_refused(folder, rows):
    change(folder, "image_assets.npy", array_file(np.array([*rows, *range(len(rows), ASSETS)], np.int32)))
    with pytest.raises(IndexFormatError, match="pictures of this index do not belong to its assets"):
        Index.load(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 3}, "format 3"),
        ({"coding": "pickle"}, "format 2, pickle"),
        ({"assets": ASSETS + 1}, "do not belong to its assets"),
        ({"captions": 1}, "not what its manifest says"),
        ({"files": {}}, "must name exactly"),
        ({"root": "../../elsewhere"}, "neither in its folder nor beside it"),
        ({"root": "/etc"}, "neither in its folder nor beside it"),
        ({"dim": None}, "no complete index.json"),
        ({"dim": "wide"}, "no complete index.json"),
        ({"embedding": {"name": "x"}}, "no complete index.json"),
    ],
)
def test_a_wrong_manifest_is_refused(folder, change, sentence):
    manifest = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(manifest | change))
    with pytest.raises(IndexFormatError, match=sentence):
        Index.load(folder)


def test_a_file_that_is_no_parquet_table_is_refused(folder):
    change(folder, "assets.parquet", b"uid,caption")
    with pytest.raises(IndexFormatError, match="not a Parquet file"):
        Index.load(folder)


def test_a_folder_without_a_manifest_is_no_index(tmp_path):
    with pytest.raises(IndexFormatError, match="no complete index.json"):
        Index.load(tmp_path)


def test_local_assets_are_checked_before_they_are_handed_out(folder):
    index = Index.load(folder)
    assert index.asset_path("u3").read_bytes() == b"mesh 3"
    (folder.parent / "assets/3.glb").write_bytes(b"another mesh")
    with pytest.raises(AssetUnavailable, match="not the one that was indexed"):
        index.asset_path("u3")
    with pytest.raises(AssetUnavailable, match="no asset u99"):
        index.asset_path("u99")


def former(folder) -> Index:
    """The same index in format 1."""
    index, manifest = Index.load(folder), json.loads((folder / "index.json").read_text())
    text = faiss.IndexIDMap(faiss.IndexFlatIP(DIM))
    text.add_with_ids(np.array(index.texts.vectors), index.text_assets.astype(np.int64))
    image = faiss.IndexFlatIP(DIM)
    image.add(np.array(index.images.vectors))
    for name, stage in (("text.faiss", text), ("image.faiss", image)):
        faiss.write_index(stage, str(folder / name))
    files = {name: sha256(folder / name) for name in ("text.faiss", "image.faiss", "assets.parquet")}
    kept = {key: value for key, value in manifest.items() if key not in ("coding", "pictures")}
    (folder / "index.json").write_text(json.dumps(kept | {"format": 1, "files": files}))
    return Index.load(folder)


def test_format_1_is_read_and_finds_the_same(folder):
    hits = Index.load(folder).search("a red car", TableClip(), 5, 12)
    assert former(folder).search("a red car", TableClip(), 5, 12) == hits


def test_a_faiss_file_of_another_kind_or_size_is_refused_though_its_checksum_is_right(folder):
    former(folder)
    short = (folder / "image.faiss").read_bytes()[: -DIM * 4]
    change(folder, "image.faiss", short)
    with pytest.raises(IndexFormatError, match="image.faiss of this index .* build it again"):
        Index.load(folder)
    flat = faiss.IndexLSH(DIM, 8)
    flat.add(np.zeros((ASSETS, DIM), np.float32))
    change(folder, "image.faiss", faiss.serialize_index(flat).tobytes())
    with pytest.raises(IndexFormatError, match="image.faiss of this index .* build it again"):
        Index.load(folder)


def with_repository(folder, row: dict, **repository) -> Index:
    """The index with a Hub repository, and with u0's row changed."""
    table = pq.read_table(folder / "assets.parquet").to_pylist()
    table = [known | {"path": None} | (row if known["uid"] == "u0" else {}) for known in table]
    pq.write_table(pa.Table.from_pylist(table), folder / "assets.parquet")
    manifest = json.loads((folder / "index.json").read_text()) | {"repository": repository}
    manifest["files"]["assets.parquet"] = sha256(folder / "assets.parquet")
    (folder / "index.json").write_text(json.dumps(manifest))
    return Index.load(folder)


def test_an_asset_without_a_file_comes_from_the_repository_that_the_manifest_names(folder, hub_server):
    hub_server.add("owner/objects", {"glbs/u0.glb": b"mesh"}, "datasets")
    row = {"path": "glbs/u0.glb", "sha256": hashlib.sha256(b"mesh").hexdigest()}
    index = with_repository(folder, row, source="owner/objects", revision="main")
    assert not index.is_here("u0") and index.is_here("u1")
    assert index.asset_path("u0").read_bytes() == b"mesh" and index.is_here("u0")
    hub_server.stop()
    assert index.asset_path("u0").read_bytes() == b"mesh"


def test_an_asset_whose_file_on_the_hub_is_another_one_is_unavailable(folder, hub_server):
    hub_server.add("owner/objects", {"glbs/u0.glb": b"mesh"}, "datasets")
    index = with_repository(folder, {"path": "glbs/u0.glb", "sha256": "0" * 64}, source="owner/objects")
    with pytest.raises(AssetUnavailable, match="not the one that was indexed"):
        index.asset_path("u0")
    assert not index.is_here("u0")


def test_an_asset_of_which_nothing_says_where_it_is_is_unavailable(folder):
    index = Index.load(folder)
    with pytest.raises(AssetUnavailable, match="does not say where asset u0 is"):
        index.asset_path("u0")
    assert list(finished(index.fetch(["u0", "u1"]))) == ["u0"] and not index.is_here("u0")


@pytest.mark.parametrize("repository", [{"source": "no id"}, {"revision": "main"}, {"source": "a/b", "code": "x"}])
def test_a_manifest_with_a_wrong_repository_is_refused(folder, repository):
    with pytest.raises(IndexFormatError, match="names no Hub repository"):
        with_repository(folder, {}, **repository)
