"""Parts: what is embedded, which pictures, what is left out, and the file they are kept in."""

import functools
import hashlib
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import torch
from hub_server import COMMIT, Fault
from PIL import Image
from tiny_models import make_tiny_clip
from tiny_stack import tiny_glb

from redream import hub
from redream.retrieval import parts
from redream.retrieval.build import BuildError, ring_pictures
from redream.retrieval.clip import Clip
from redream.retrieval.parts import Job, PartMaker, pack, thumbnail, unpack
from redream.retrieval.writer import Part
from redream.scene.assets import load
from redream.scene.glb_reader import GlbReader

GLBS = {"a": tiny_glb((200, 40, 40)), "b": tiny_glb((40, 60, 200), round_one=False), "c": b"not a GLB", "d": b""}
COLUMNS = ["author", "license", "source", "file", "path", "sha256", "faces"]
REPOSITORY = {"source": "owner/assets", "revision": COMMIT, "kind": "dataset"}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return make_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def job(clip_folder):
    return functools.partial(Job, functools.partial(Clip.load, clip_folder))


@pytest.fixture
def assets_hub(hub_server, monkeypatch):
    monkeypatch.setattr(hub.faults, "RETRY_WAITS", (0.0,))  # threads share a client, which huggingface_hub may close
    hub_server.add("owner/assets", {f"glbs/{uid}.glb": glb for uid, glb in GLBS.items() if glb}, "datasets")
    return hub_server


def records(uids="ab", **columns) -> pa.Table:
    rows = [
        {
            "uid": uid,
            "author": "ann",
            "license": "CC0",
            "source": f"{uid}.glb",
            "file": "",
            "path": f"glbs/{uid}.glb",
            "sha256": hashlib.sha256(GLBS[uid]).hexdigest(),
            "faces": 9,
            "thumbnail": None,
            "captions": [f"a red {uid}", "an owl"],
        }
        | {name: values[uid] for name, values in columns.items()}
        for uid in uids
    ]
    return pa.Table.from_pylist(rows)


def made(job: Job, *arguments, folder) -> tuple[Part, dict]:
    (folder / "part.parquet").write_bytes(PartMaker(job).made(*arguments))
    return unpack(folder / "part.parquet")


def test_a_part_comes_back_from_its_file_as_it_was(tmp_path):
    rng = np.random.default_rng(0)
    table = pa.table({"uid": ["a", "b", "c"], "caption": ["x", "y", "z"], "faces": [1, None, 3]})
    rows = np.array([0, 0, 2, 2, 2])
    images = rng.standard_normal((3, 8)).astype(np.float16)
    images[1] = 0
    part = Part(table, rng.standard_normal((5, 8)).astype(np.float16), rows, images)
    (tmp_path / "part.parquet").write_bytes(pack(part, {"an unusable GLB": 2}))
    back, left_out = unpack(tmp_path / "part.parquet")
    assert back.table.equals(table) and left_out == {"an unusable GLB": 2}
    for name in ("texts", "rows", "images"):
        assert np.array_equal(getattr(back, name), getattr(part, name))


def test_captions_are_embedded_as_the_clip_does_and_the_first_is_shown(job, clip_folder, tmp_path):
    part, left_out = made(job(), records("abcd"), folder=tmp_path)
    texts = [text for uid in "abcd" for text in (f"a red {uid}", "an owl")]
    assert part.texts == pytest.approx(Clip.load(clip_folder).embed_texts(texts).numpy(), abs=1e-3)
    assert part.rows.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and left_out == {}
    assert part.table["caption"].to_pylist() == texts[::2] and not part.images.any()
    assert part.table.column_names == ["uid", "caption", *COLUMNS]


@pytest.mark.parametrize("renders", [1, 2])
def test_renders_are_the_ring_of_pictures_and_do_not_stay(job, clip_folder, tmp_path, assets_hub, renders, monkeypatch):
    """The two processes that render are threads here, which get what processes would get."""

    class Threads(ThreadPoolExecutor):
        def submit(self, function, *arguments):
            return super().submit(*pickle.loads(pickle.dumps((function, *arguments))))

    def pool(processes: int, start: Callable[[], None]) -> Threads:
        start()
        return Threads(processes)

    monkeypatch.setattr(parts, "worker_pool", pool)
    part, _ = made(job("renders", renders, repository=REPOSITORY), records("ab"), folder=tmp_path)
    clip = Clip.load(clip_folder)
    for row, uid in enumerate("ab"):
        mean = clip.embed_images(ring_pictures(load(GLBS[uid]), clip.size)).mean(dim=0)
        assert part.images[row] == pytest.approx(torch.nn.functional.normalize(mean, dim=0).numpy(), abs=2e-3)
    assert hub.HubFile("owner/assets", "glbs/a.glb", COMMIT, "dataset").cached() is None


def test_assets_with_the_same_glb_are_rendered_side_by_side(job, clip_folder, assets_hub):
    """The second one ends while the first one is used."""
    copy = {"path": "glbs/copy.glb", "file": "", "uid": "copy", "sha256": ""}
    assets_hub.repositories["datasets", "owner/assets"][copy["path"]] = GLBS["a"]
    (row,) = records("a").to_pylist()
    is_right = parts.RemoteAsset.is_right

    def render(record: dict):
        with GlbReader() as reader:
            return parts.render_asset(record, None, REPOSITORY, 32, reader)

    def check(self, path):
        if self.uid == "a":
            assert not isinstance(render(copy), str)
        return is_right(self, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts.RemoteAsset, "is_right", check)
        assert not isinstance(render(row), str)


def test_a_glb_that_was_in_the_cache_stays_there(job, tmp_path, assets_hub):
    file = hub.HubFile("owner/assets", "glbs/a.glb", COMMIT, "dataset")
    file.fetch()
    made(job("renders", repository=REPOSITORY), records("a"), folder=tmp_path)
    assert file.cached() is not None


def test_assets_that_turn_out_unusable_are_left_out_and_counted(job, tmp_path, assets_hub):
    wrong = {uid: "0" * 64 if uid == "b" else hashlib.sha256(GLBS[uid]).hexdigest() for uid in "abcd"}
    part, left_out = made(job("renders", repository=REPOSITORY), records("abcd", sha256=wrong), folder=tmp_path)
    assert part.table["uid"].to_pylist() == ["a"] and part.rows.tolist() == [0, 0] and len(part.images) == 1
    assert left_out == {parts.UNUSABLE: 1, parts.MISSING: 1, parts.CHANGED: 1}


def test_a_hub_that_fails_ends_the_part_and_leaves_nobody_out(job, assets_hub):
    assets_hub.faults["glbs/b.glb"] = Fault(status=503, times=99)
    with pytest.raises(hub.HubError):
        PartMaker(job("renders", repository=REPOSITORY)).made(records("ab"))


def test_embeddings_that_there_are_need_no_picture(job, tmp_path, assets_hub):
    known = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float16)
    image = pa.FixedSizeListArray.from_arrays(pa.array(known.ravel()), 16)
    images = pa.table({"uid": ["c", "a"], "image": image})
    part, left_out = made(job("renders", repository=REPOSITORY), records("abc"), images, folder=tmp_path)
    assert np.array_equal(part.images[[2, 0]], known) and part.images[1].any() and left_out == {}
    assert not any("/glbs/a.glb" in request or "/glbs/c.glb" in request for request in assets_hub.requests)


def test_embeddings_of_another_clip_are_refused(job):
    image = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(8, np.float16)), 8)
    with pytest.raises(BuildError, match="16 numbers"):
        PartMaker(job()).made(records("a"), pa.table({"uid": ["a"], "image": image}))


def picture(size: tuple[int, int], colour: tuple[int, int, int], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def test_thumbnails_are_embedded_by_their_middle_square(job, clip_folder, tmp_path, hub_server, monkeypatch):
    wide = Image.new("RGB", (160, 90), (0, 0, 255))
    wide.paste((255, 0, 0), (35, 0, 125, 90))
    file = io.BytesIO()
    wide.save(file, "PNG")
    hub_server.add("owner/pictures", {"a.png": file.getvalue(), "b.png": b"broken"})
    address = f"{hub_server.address}/owner/pictures/resolve/main/"
    monkeypatch.setattr(parts, "THUMBNAILS", address)
    found = {"a": f"{address}a.png", "b": f"{address}b.png", "c": f"{address}none.png", "d": None}
    part, left_out = made(job("thumbnails"), records("abcd", thumbnail=found), folder=tmp_path)
    red = torch.zeros(1, 3, 32, 32)
    red[:, 0] = 1
    assert part.images[0] == pytest.approx(Clip.load(clip_folder).embed_images(red)[0].numpy(), abs=2e-3)
    assert not part.images[1:].any() and left_out == {}


def test_thumbnails_of_other_hosts_are_not_asked_for_and_large_ones_not_read(hub_server, monkeypatch):
    hub_server.add("owner/pictures", {"a.png": picture((64, 64), (9, 9, 9)), "long.png": picture((8192, 2), (9, 9, 9))})
    address = f"{hub_server.address}/owner/pictures/resolve/main/"
    for other in (f"{address}a.png", "file:///etc/passwd", "https://media.sketchfab.com.evil/a.png", "", None):
        assert thumbnail(other, 32) is None
    assert not hub_server.requests
    monkeypatch.setattr(parts, "THUMBNAILS", address)
    assert thumbnail(f"{address}a.png", 32).shape == (1, 3, 32, 32) and thumbnail(f"{address}long.png", 32) is None
    monkeypatch.setattr(parts, "THUMBNAIL_LIMIT", 10)
    assert thumbnail(f"{address}a.png", 32) is None


def test_thumbnails_that_fail_for_now_are_asked_for_again_and_leave_no_asset_without_a_picture(
    job, hub_server, monkeypatch
):
    monkeypatch.setattr(hub.faults, "RETRY_WAITS", (0.0,))
    hub_server.add("owner/pictures", {"a.png": picture((64, 64), (9, 9, 9))})
    address = f"{hub_server.address}/owner/pictures/resolve/main/a.png"
    monkeypatch.setattr(parts, "THUMBNAILS", address)
    for status in (429, 503):
        hub_server.faults["a.png"] = Fault(status=status)
        assert thumbnail(address, 32) is not None
        hub_server.faults["a.png"] = Fault(status=status, times=2)
        with pytest.raises(BuildError, match="Sketchfab does not answer"):
            thumbnail(address, 32)
    hub_server.stop()
    with pytest.raises(BuildError, match="The same command goes on"):
        PartMaker(job("thumbnails")).made(records("a", thumbnail={"a": address}))


def test_a_part_that_is_given_up_leaves_the_number_of_threads_as_it_was(job):
    torch.set_num_threads(2)
    try:
        steps = PartMaker(job()).make(records("ab"))
        next(steps)
        assert torch.get_num_threads() == 1
        steps.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
