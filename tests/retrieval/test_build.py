"""Building an index, with a fake CLIP whose embeddings are known."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import trimesh

from redream.files import sha256
from redream.retrieval.build import AssetRow, BuildError, build, ring_pictures
from redream.retrieval.clip import Clip
from redream.retrieval.index import Index
from redream.scene.assets import from_mesh


class WordClip(Clip):
    """A text is the direction of its first letter; an image that of its mean colour."""

    name, sha256, size = "words", "0" * 64, 8

    def __init__(self):
        pass

    def embed_texts(self, texts):
        return torch.stack([torch.eye(26)[ord(text[0]) - ord("a")] for text in texts])

    def embed_images(self, images):
        colour = torch.cat([images.mean(dim=(2, 3)), torch.zeros(len(images), 23)], dim=1)
        return torch.nn.functional.normalize(colour, dim=1)


def rows() -> list[AssetRow]:
    return [
        AssetRow("1", ["apple", "big apple", "crimson apple"], "ann", "CC0", "1.glb", extra={"kind": "apple"}),
        AssetRow("2", ["boat"], "bob", "CC-BY-4.0", "https://example.org/2", extra={"kind": "boat"}),
    ]


def views(row: AssetRow) -> torch.Tensor:
    """Two pictures, one red and one green (of the second asset: both green)."""
    images = torch.zeros(2, 3, 8, 8)
    images[0, 0 if row.uid == "1" else 1], images[1, 1] = 1, 1
    return images


def test_every_caption_leads_to_its_asset(tmp_path):
    build(rows(), views, WordClip(), tmp_path)
    index = Index.load(tmp_path)
    assert len(index) == 2 and index.text_assets.tolist() == [0, 0, 0, 1]
    assert len(index.texts) == 4 and index.row("1")["caption"] == "apple" and index.row("2")["kind"] == "boat"


def test_an_image_embedding_is_the_normalised_mean_of_the_views(tmp_path):
    build(rows(), views, WordClip(), tmp_path)
    images = np.load(tmp_path / "images.npy")
    assert images[0, :3] == pytest.approx([0.5**0.5, 0.5**0.5, 0])
    assert images[1, :3] == pytest.approx([0, 1, 0])


def test_the_manifest_holds_the_checksum_of_every_file(tmp_path):
    build(rows(), views, WordClip(), tmp_path)
    manifest = json.loads((tmp_path / "index.json").read_text())
    assert manifest["files"] == {name: sha256(tmp_path / name) for name in manifest["files"]}
    assert (manifest["dim"], manifest["assets"], manifest["captions"]) == (26, 2, 4)
    assert not list(tmp_path.glob(".*"))  # nothing partial is left


def test_the_repository_of_assets_without_a_file_is_that_of_the_index(tmp_path):
    repository = {"source": "ann/assets", "revision": "main", "kind": "dataset"}
    build(rows(), views, WordClip(), tmp_path, repository=repository)
    assert Index.load(tmp_path).repository == repository


def test_the_same_assets_build_the_same_index(tmp_path):
    for name in ("one", "two"):
        build(rows(), views, WordClip(), tmp_path / name)
    assert (tmp_path / "one/index.json").read_text() == (tmp_path / "two/index.json").read_text()


def test_local_files_get_their_checksum_into_the_table(tmp_path):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets/1.glb").write_bytes(b"mesh")
    row = AssetRow("1", ["apple"], "ann", "CC0", "1.glb", file="1.glb")
    build([row], views, WordClip(), tmp_path / "index", root="../assets")
    table = pq.read_table(tmp_path / "index/assets.parquet").to_pylist()
    assert table[0]["sha256"] == sha256(tmp_path / "assets/1.glb")


def test_a_failed_build_leaves_no_index_behind(tmp_path):
    build(rows(), views, WordClip(), tmp_path)
    lost = [AssetRow("3", ["cup"], "cy", "CC0", "3.glb", file="3.glb")]
    with pytest.raises(BuildError, match="not in the library's folder"):
        build(lost, views, WordClip(), tmp_path)
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize(
    "broken",
    [[], [AssetRow("1", [], "", "", "")], [AssetRow("1", ["a"], "", "", "")] * 2],
    ids=["none", "no caption", "twice"],
)
def test_assets_that_make_no_index_are_refused(tmp_path, broken):
    with pytest.raises(BuildError):
        build(broken, views, WordClip(), tmp_path / "index")


def test_progress_is_reported_for_every_asset(tmp_path):
    received = []
    build(rows(), views, WordClip(), tmp_path, progress=lambda row: received.append(row.uid))
    assert received == ["1", "2"]


def test_ring_pictures_go_once_around():
    """A ball is the same from everywhere; what stands on its front is seen from there alone."""
    ball = trimesh.creation.icosphere(2, 0.3)
    ball.visual.vertex_colors = [0, 0, 0, 255]
    images = ring_pictures(from_mesh(ball), 8)
    assert images.shape == (8, 3, 8, 8) and torch.allclose(images.mean(dim=(1, 2, 3)), images.mean(), atol=0.02)
    nose = trimesh.creation.box((0.1, 0.1, 0.1)).apply_translation((0.32, 0, 0))
    nose.visual.vertex_colors = [255, 255, 255, 255]
    received = ring_pictures(from_mesh(trimesh.util.concatenate([ball, nose])), 8)[:, :, 3:5, 3:5].mean(dim=(1, 2, 3))
    assert received.argmax() == 0 and received[3:6].max() == 0
