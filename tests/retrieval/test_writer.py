"""An index of many assets, written part by part and searched in codes, against one that keeps its vectors."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import load_file, save_file

from redream.files import sha256, sha256_of_files
from redream.retrieval import writer
from redream.retrieval.clip import Clip
from redream.retrieval.index import Index, IndexFormatError
from redream.retrieval.writer import Part, write

DIM, ASSETS = 32, 3000
EMBEDDING = {"name": "planted", "sha256": "a" * 64}
LICENCES = ["by", "by-nc", None]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def vectors(seed: int) -> np.ndarray:
    """Unit vectors in clusters of ten."""
    generator = np.random.default_rng(seed)
    centres = unit(generator.standard_normal((ASSETS // 10, DIM))).repeat(10, axis=0)
    return unit(centres + 0.6 * unit(generator.standard_normal((ASSETS, DIM)))).astype(np.float32)


TEXTS = vectors(0)
IMAGES = unit(TEXTS + 0.7 * vectors(1)).astype(np.float32)


class PlantedClip(Clip):
    """The prompt "7" is a vector near the seventh caption."""

    sha256 = EMBEDDING["sha256"]

    def __init__(self) -> None:
        pass

    def embed_texts(self, prompts: list[str]) -> torch.Tensor:
        place = int(prompts[0])
        noise = unit(np.random.default_rng(place).standard_normal((1, DIM)))
        return torch.from_numpy(unit(TEXTS[place : place + 1] + 0.5 * noise).astype(np.float32))


def parts(size: int = 700, pictured: int = ASSETS):
    """Assets in parts of a size, of which the first ones have pictures."""
    for start in range(0, ASSETS, size):
        places = range(start, min(start + size, ASSETS))
        rows = [
            dict.fromkeys(("author", "source", "file", "path", "sha256"), "")
            | {"uid": f"u{i:05d}", "caption": f"thing {i}", "license": LICENCES[i % 3]}
            for i in places
        ]
        images = np.where(np.array(places)[:, None] < pictured, IMAGES[places], 0)
        yield Part(pa.Table.from_pylist(rows), TEXTS[places], np.arange(len(places)), images)


@pytest.fixture(scope="module")
def exact(tmp_path_factory) -> Index:
    folder = tmp_path_factory.mktemp("exact")
    write(parts, folder, embedding=EMBEDDING)
    return Index.load(folder)


@pytest.fixture(scope="module")
def coded(tmp_path_factory) -> Index:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "EXACT_CAPTIONS", 1000)
        patch.setattr(writer, "SAMPLE", 2000)
        folder = tmp_path_factory.mktemp("coded")
        write(parts, folder, embedding=EMBEDDING)
    return Index.load(folder)


def found(index: Index, prompt: int, assets: int = 3, **options) -> list[str]:
    return [hit.uid for hit in index.search(str(prompt), PlantedClip(), assets, 12, **options)]


def test_codes_find_the_assets_that_the_vectors_themselves_find(exact, coded):
    prompts = range(0, ASSETS, 30)
    text_stage = [len(set(found(exact, p, 12)) & set(found(coded, p, 12))) / 12 for p in prompts]
    best = [found(exact, p) == found(coded, p) for p in prompts]
    assert np.mean(text_stage) >= 0.97 and np.mean(best) >= 0.85


def test_cosines_of_codes_are_near_those_of_the_vectors(exact, coded):
    for uid in ("u00000", "u01234", "u02999"):
        one, other = (index.hit(uid, "7", PlantedClip()) for index in (exact, coded))
        assert one.similarity == pytest.approx(other.similarity, abs=0.01)
        assert one.text_similarity == pytest.approx(other.text_similarity, abs=0.02)


def test_a_coded_caption_takes_seven_and_a_half_bits_a_dimension_and_an_image_nine_and_a_half(coded):
    sizes = {name: (coded.folder / name).stat().st_size - 128 for name in ("text_codes.npy", "texts.npy", "images.npy")}
    assert sizes == {
        "text_codes.npy": ASSETS * DIM // 8,
        "texts.npy": ASSETS * int(DIM * 6.5) // 8,
        "images.npy": ASSETS * int(DIM * 9.5) // 8,
    }


def test_the_same_assets_in_parts_of_another_size_make_the_same_vectors(coded, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "EXACT_CAPTIONS", 1000)
    monkeypatch.setattr(writer, "SAMPLE", 2000)
    write(lambda: parts(999), tmp_path, embedding=EMBEDDING)
    assert sha256_of_files(tmp_path, (".npy", ".safetensors")) == sha256_of_files(
        coded.folder, (".npy", ".safetensors")
    )


def test_only_assets_of_the_wanted_licences_are_found_and_as_many_as_without(exact, coded):
    for index in (exact, coded):
        rows = [index.row(uid) for uid in found(index, 7, 12, licences=["by"])]
        assert [row["license"] for row in rows] == ["by"] * 12
        assert index.table.licences == ["by", "by-nc"]
    allowed = [i for i in np.argsort(-TEXTS @ PlantedClip().embed_texts(["7"])[0].numpy()) if i % 3 == 0][:12]
    assert set(found(exact, 7, 12, licences=["by"])) == {f"u{i:05d}" for i in allowed}
    assert found(exact, 7, licences=["cc0"]) == []


def test_assets_without_a_picture_come_last_by_their_captions(tmp_path):
    write(lambda: parts(pictured=1500), tmp_path, embedding=EMBEDDING)
    hits = Index.load(tmp_path).search("1501", PlantedClip(), 12, 12)
    lacking = [hit for hit in hits if hit.similarity is None]
    assert lacking and all(int(hit.uid[1:]) >= 1500 for hit in lacking) and hits[-len(lacking) :] == lacking
    assert [hit.text_similarity for hit in lacking] == sorted((hit.text_similarity for hit in lacking), reverse=True)


@pytest.mark.parametrize("pictured", [0, ASSETS])
def test_an_index_may_have_no_pictures_at_all(tmp_path, monkeypatch, pictured):
    monkeypatch.setattr(writer, "EXACT_CAPTIONS", 1000)
    write(lambda: parts(pictured=pictured), tmp_path, embedding=EMBEDDING)
    hits = Index.load(tmp_path).search("7", PlantedClip(), 3, 12)
    assert [hit.similarity is None for hit in hits] == [not pictured] * 3


def test_assets_may_have_no_licence_at_all(tmp_path):
    def unlicensed():
        for part in parts():
            place = part.table.schema.get_field_index("license")
            yield replace(part, table=part.table.set_column(place, "license", pa.nulls(len(part.table))))

    write(unlicensed, tmp_path, embedding=EMBEDDING)
    index = Index.load(tmp_path)
    assert index.table.licences == [] and found(index, 7, licences=["by"]) == [] and len(found(index, 7)) == 3


def test_a_build_that_breaks_off_leaves_no_index(tmp_path):
    def broken():
        yield next(parts())
        if (tmp_path / "assets.parquet").exists() or list(tmp_path.glob(".assets*")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(broken, tmp_path, embedding=EMBEDDING)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("most_exact", [ASSETS, 1000])
def test_an_index_stays_usable_until_the_new_one_is_complete(tmp_path, monkeypatch, most_exact):
    monkeypatch.setattr(writer, "EXACT_CAPTIONS", most_exact)
    write(lambda: parts(pictured=1500), tmp_path, embedding=EMBEDDING)
    before = sha256_of_files(tmp_path)

    def killed(folder, manifest):
        assert {name: digest for name, digest in sha256_of_files(tmp_path).items() if name in before} == before
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writer, "write_json", killed)  # the last thing before the files take their places
        write(parts, tmp_path, embedding=EMBEDDING)
    assert sha256_of_files(tmp_path) == before
    write(parts, tmp_path, embedding=EMBEDDING)
    assert len(Index.load(tmp_path).images) == ASSETS and set(sha256_of_files(tmp_path)) == set(before)


def test_coders_of_another_shape_are_refused(coded, tmp_path):
    for file in coded.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(manifest | {"dim": 28}))
    with pytest.raises(IndexFormatError, match="coders.safetensors of this index is not what its manifest says"):
        Index.load(tmp_path)
    coders = load_file(tmp_path / "coders.safetensors")
    coders["text_bits"][0] = 17
    save_file(coders, tmp_path / "coders.safetensors")
    manifest["files"]["coders.safetensors"] = sha256(tmp_path / "coders.safetensors")
    (tmp_path / "index.json").write_text(json.dumps(manifest))
    with pytest.raises(IndexFormatError, match="coders.safetensors of this index is not what its manifest says"):
        Index.load(tmp_path)
