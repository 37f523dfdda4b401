"""Several indexes searched as one: the same as one index of all their assets."""

import json
import zlib

import pytest
import torch

from redream.retrieval.build import AssetRow, build
from redream.retrieval.clip import Clip
from redream.retrieval.fetch import finished
from redream.retrieval.index import AssetUnavailable, Index, IndexFormatError
from redream.retrieval.joined import JoinedIndex, with_own

ASSETS, DIM = 30, 8
LICENCES = ("CC0", "CC BY-NC 4.0", "CC BY 4.0")


class RandomClip(Clip):
    """Every text, and every grey level, has a random direction of its own."""

    name, size, sha256 = "random", 4, "f" * 64

    def __init__(self):
        pass

    def embed_texts(self, texts):
        return torch.stack([direction(zlib.crc32(text.encode())) for text in texts])

    def embed_images(self, images):
        return torch.stack([direction(round(float(image.mean()) * 1000)) for image in images])


def direction(seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(DIM, generator=torch.Generator().manual_seed(seed)), dim=0)


def index_of(folder, numbers) -> Index:
    (folder / "assets").mkdir(parents=True)
    for n in numbers:
        (folder / f"assets/{n}.glb").write_bytes(b"mesh %d" % n)
    rows = [
        AssetRow(f"u{n:02}", [f"asset {n} {k}" for k in range(1 + n % 3)], "", LICENCES[n % 3], f"link {n}", f"{n}.glb")
        for n in numbers
    ]
    build(rows, lambda row: torch.full((1, 3, 4, 4), int(row.uid[1:]) / 1000), RandomClip(), folder, root="assets")
    return Index.load(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Index:
    return index_of(tmp_path_factory.mktemp("whole"), range(ASSETS))


@pytest.fixture(scope="module")
def joined(tmp_path_factory) -> JoinedIndex:
    """The assets of `whole` in two indexes, five of them in both."""
    base = tmp_path_factory.mktemp("joined")
    return JoinedIndex((index_of(base / "a", range(20)), index_of(base / "b", range(15, ASSETS))))


@pytest.mark.parametrize("prompt", ["a purple owl", "a red car", "asset 22 0"])
@pytest.mark.parametrize(("assets", "candidates"), [(3, 12), (1, 1), (5, 5), (30, 30), (3, 1000)])
@pytest.mark.parametrize("licences", [None, ["CC0"]])
def test_a_search_is_that_of_one_index_of_all_assets(joined, whole, prompt, assets, candidates, licences):
    found, expected = (
        index.search(prompt, RandomClip(), assets, candidates, licences)[:assets] for index in (joined, whole)
    )
    assert [hit.uid for hit in found] == [hit.uid for hit in expected]
    assert [hit.similarity for hit in found] == pytest.approx([hit.similarity for hit in expected], abs=1e-6)


def test_rows_hits_and_files_are_those_of_the_index_that_has_them(joined, whole):
    for uid in ("u00", "u17", "u29"):
        assert joined.row(uid) == whole.row(uid)
        assert joined.hit(uid, "an owl", RandomClip()).similarity == pytest.approx(
            whole.hit(uid, "an owl", RandomClip()).similarity, abs=1e-6
        )
        assert joined.asset_path(uid).read_bytes() == whole.asset_path(uid).read_bytes() and joined.is_here(uid)
    assert finished(joined.fetch(["u00", "u29"])) == {}
    assert joined.licences == whole.licences and joined.commercial_licences == ["CC BY 4.0", "CC0"]
    assert [row["uid"] for row in joined.first(3)] == ["u00", "u01", "u02"]
    with pytest.raises(AssetUnavailable, match="no asset u99"):
        joined.row("u99")


def test_a_library_joins_only_an_index_of_its_clip(tmp_path, whole):
    own = index_of(tmp_path / "own", range(40, 43))
    assert with_own(whole, tmp_path / "nothing") is whole
    assert len(with_own(whole, own.folder)) == ASSETS + 3
    assert with_own(whole, own.folder).search("asset 41 0", RandomClip(), ASSETS, 99)[0].uid
    manifest = json.loads((own.folder / "index.json").read_text())
    manifest["embedding"]["sha256"] = "0" * 64
    (own.folder / "index.json").write_text(json.dumps(manifest))
    assert with_own(whole, own.folder) is whole


def test_a_damaged_library_is_named(tmp_path, whole):
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(IndexFormatError, match="Your own library in .* cannot be used"):
        with_own(whole, tmp_path)
