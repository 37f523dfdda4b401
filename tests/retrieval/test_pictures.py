"""Image embeddings that an index lacks are kept on the disk, whole or not at all."""

import numpy as np

from redream.retrieval.pictures import PictureMemory

ROW = {"uid": "../u 1", "sha256": "ab"}
VECTOR = np.array([0.6, 0.8, 0, 0], np.float32)


def test_what_is_remembered_is_recalled_for_the_same_asset_and_clip_only(tmp_path):
    memory = PictureMemory.of_clip(tmp_path, "a" * 64, 4)
    assert memory.recall(ROW) is None
    memory.remember(ROW, VECTOR)
    assert (memory.recall(ROW) == VECTOR).all()
    assert memory.recall(ROW | {"sha256": "cd"}) is None and memory.recall(ROW | {"uid": "u2"}) is None
    assert PictureMemory.of_clip(tmp_path, "b" * 64, 4).recall(ROW) is None
    assert all(memory.folder in path.parents for path in tmp_path.rglob("*.*"))  # a uid names no folder


def test_damaged_files_count_for_nothing(tmp_path):
    memory = PictureMemory(tmp_path, 4)
    memory.remember(ROW, VECTOR)
    (path,) = tmp_path.iterdir()
    for content in (b"", path.read_bytes()[:-1], path.read_bytes() + b"\0", np.full(4, np.nan, np.float32).tobytes()):
        path.write_bytes(content)
        assert memory.recall(ROW) is None
    memory.remember(ROW, VECTOR)
    assert (memory.recall(ROW) == VECTOR).all()
