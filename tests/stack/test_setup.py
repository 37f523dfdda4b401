"""Setup: the real client fetches a whole stack into a fresh cache; cut, stopped and faulty downloads; an index that is built."""

import functools
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Fault
from hub_stack import publish
from huggingface_hub import constants
from objaverse_files import make_objaverse

from redream import hub
from redream.retrieval import assemble, fetch
from redream.retrieval.assemble import build
from redream.retrieval.clip import Clip, embedding_of
from redream.retrieval.index import Index
from redream.retrieval.objaverse import Objaverse
from redream.retrieval.parts import Job, PartMaker
from redream.scoring import perceptual
from redream.stack import fetching
from redream.stack.fetching import SetupProgress, SetupStopped
from redream.stack.inventory import NeededFile, missing_files, total_size
from redream.stack.models import Models
from redream.stack.setup import setup
from redream.stack.stack import Stack, built_index

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small chunks, and updates and further attempts at once."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.setattr(hub.faults, "RETRY_WAITS", (0.01, 0.01))
    monkeypatch.setattr(fetching, "UPDATE_SECONDS", 0.0)
    monkeypatch.setattr(fetching, "POLL_SECONDS", 0.01)


@pytest.fixture
def stack(hub_server, tiny_stack, tmp_path, monkeypatch) -> Stack:
    return publish(hub_server, tiny_stack, tmp_path, monkeypatch)


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Set at the end, so that a server that waits for it goes on."""
    event = threading.Event()
    yield event
    event.set()


def finish(steps) -> tuple[list[SetupProgress], tuple[str, ...]]:
    """All updates of a setup, and what it returns."""
    updates = []
    while True:
        try:
            updates.append(next(steps))
        except StopIteration as end:
            return updates, end.value


def test_setup_fetches_everything_and_nothing_is_missing_afterwards(stack, hub_server):
    size = total_size(missing_files(stack))
    updates, failures = finish(setup(stack))
    assert failures == () and missing_files(stack) == []
    assert updates[-1].done == updates[-1].total >= size > 0
    assert [update.done for update in updates] == sorted(update.done for update in updates)
    hub_server.stop()
    models = Models.load(stack, "cpu")
    assert models.prior.size == 64 and len(models.index) == 6 and models.clip("b").size == 32
    assert models.perceptual("b") is not None
    assert finish(setup(stack)) == ([], ())


def test_a_cut_is_gone_on_with_at_once(stack, hub_server, tiny_stack):
    hub_server.faults[UNET] = Fault(cut=30_000)
    assert finish(setup(stack))[1] == ()
    assert len(hub_server.ranges) == 1
    assert (stack.folder(stack.prior) / UNET).read_bytes() == (tiny_stack / "prior" / UNET).read_bytes()


def test_a_stop_is_honoured_within_two_seconds_and_the_next_setup_goes_on_there(
    stack, hub_server, tiny_stack, released
):
    hub_server.faults[UNET] = Fault(cut=30_000, pause=released.wait)
    begin, stopped = time.monotonic(), []

    def stop() -> bool:
        if _parts() and not stopped:
            stopped.append(time.monotonic())
        return bool(stopped) and time.monotonic() > stopped[0] + 0.3

    with pytest.raises(SetupStopped, match="goes on from there"):
        finish(setup(stack, stop))
    assert time.monotonic() - begin < 10 and time.monotonic() - stopped[0] < 2
    released.set()
    _wait_for_the_thread()
    (part,) = _parts()
    assert part.stat().st_size > 0
    updates, failures = finish(setup(stack))
    assert failures == () and missing_files(stack) == []
    start = int(hub_server.ranges[-1].removeprefix("bytes=").rstrip("-"))
    assert 0 < start <= 30_000 and updates[-1].done == updates[-1].total
    assert (stack.folder(stack.prior) / UNET).read_bytes() == (tiny_stack / "prior" / UNET).read_bytes()


def test_a_damaged_file_in_the_cache_is_fetched_again(stack):
    finish(setup(stack))
    blob = (stack.folder(stack.clips["a"]) / "open_clip_model.safetensors").resolve()
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1])
    backbone = perceptual.backbone_file("alex")
    backbone.write_bytes(b"half of it")
    assert {file.entry for file in missing_files(stack)} == {"clips.a", "perceptual.b"}
    assert finish(setup(stack))[1] == () and missing_files(stack) == [] and blob.read_bytes() == whole


def test_a_thing_that_cannot_be_had_is_a_sentence_and_the_rest_comes(stack, hub_server):
    name = perceptual.BACKBONES["alex"]
    hub_server.faults[UNET] = Fault(status=503, times=99)
    hub_server.add("owner/torchvision", {name: b"other bytes"})
    del hub_server.repositories["models", "owner/clip-score-b"]
    _, failures = finish(setup(stack))
    assert len(failures) == 3 and all(sentence.count("\n") == 0 for sentence in failures)
    assert "error 503" in failures[0] and "no public repository owner/clip-score-b" in failures[1]
    assert failures[2] == f"The file {name} came with wrong bytes and was removed; try again."
    assert {file.entry for file in missing_files(stack)} == {"prior", "clips.b", "perceptual.b"}
    hub_server.add("owner/torchvision", {})
    assert f"LPIPS's file {name} could not be fetched" in finish(setup(stack))[1][-1]


def test_a_hub_that_does_not_answer_ends_setup_in_a_sentence(stack, hub_server, monkeypatch):
    hub_server.stop()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # else the client tries for half a minute
    with pytest.raises(hub.HubUnreachable, match="The Hub did not answer"):
        finish(setup(stack))


def test_a_damaged_folder_is_named_as_setup_cannot_fetch_it(tiny_stack, tmp_path):
    shutil.copytree(tiny_stack, tmp_path / "tiny")
    (tmp_path / "tiny/prior/model_index.json").unlink()
    _, failures = finish(setup(Stack.load(tmp_path / "tiny", environ={})))
    assert failures == ("This file cannot be fetched; restore it: prior: model_index.json: missing.",)


def test_an_index_that_nobody_published_is_built_or_a_sentence_says_what_to_do(
    hub_server, tiny_stack, tmp_path, monkeypatch
):
    stack = publish(hub_server, tiny_stack, tmp_path, monkeypatch, with_index=False)
    _, failures = finish(setup(stack))
    assert len(failures) == 1 and "no public repository allenai/objaverse" in failures[0]
    assert {file.entry for file in missing_files(stack)} == {"index"}

    make_objaverse(60).publish(hub_server)
    updates, failures = finish(setup(stack))
    assert failures == () and ("index: reading", "files") in {(update.stage, update.unit) for update in updates}
    published = Models.load(Stack.load(tmp_path), "cpu")
    assert len(published.index) > 20 and missing_files(Stack.load(tmp_path)) == []

    clip_folder = stack.folder(stack.clips["retrieval"])
    job, embedding = Job(functools.partial(Clip.load, clip_folder)), embedding_of(clip_folder)
    fetch.finished(build(Objaverse(min_score=1, without=("scene",)), tmp_path / "same", job, embedding=embedding))
    for path in (tmp_path / "same").iterdir():
        assert path.read_bytes() == (published.index.folder / path.name).read_bytes()


def test_the_building_of_an_index_is_stopped_within_two_seconds_and_gone_on_with(
    hub_server, tiny_stack, tmp_path, monkeypatch, released
):
    stack = publish(hub_server, tiny_stack, tmp_path, monkeypatch, with_index=False)
    make_objaverse(60).publish(hub_server)
    parts, begun = built_index(stack.name) / "parts", []
    monkeypatch.setattr(assemble, "build", functools.partial(build, part_assets=8))
    make = PartMaker.make

    def wait_in_the_third_part(self, *task):
        begun.append(task)
        if len(begun) == 3:
            released.wait(20)
        return (yield from make(self, *task))

    monkeypatch.setattr(PartMaker, "make", wait_in_the_third_part)
    stopped = []

    def stop() -> bool:
        if len(begun) == 3 and not stopped:
            stopped.append(time.monotonic())
        return bool(stopped)

    with pytest.raises(SetupStopped, match="goes on from there"):
        finish(setup(stack, stop))
    assert time.monotonic() - stopped[0] < 2 and len(list(parts.glob("0*.parquet"))) == 2
    released.set()
    _wait_for_the_thread()
    assert finish(setup(stack))[1] == () and missing_files(Stack.load(tmp_path)) == []
    assert len(begun) == 1 + -(-len(Index.load(parts.parent)) // 8)  # the third one was begun twice


def test_a_hub_that_is_ill_does_not_make_an_index_be_built(stack, hub_server):
    hub_server.faults["texts.npy"] = Fault(status=503, times=99)

    def build_index(*arguments):
        raise AssertionError

    _, failures = finish(setup(stack, build_index=build_index))
    assert len(failures) == 1 and "error 503" in failures[0]


def test_seconds_left_are_what_is_missing_by_the_speed_without_what_was_here_before(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(fetching.time, "monotonic", lambda: 10 + clock[0])
    missing = [NeededFile("prior", name, "missing", 900, True) for name in ("a", "b")]
    counts = fetching.Counts(missing)
    counts.add("prior", "a", 400, 1000)  # 400 of its 1000 bytes are here from before
    assert counts.progress("prior").seconds_left is None
    clock[0] = 2.0
    counts.add("prior", "a", 200, None)
    progress = counts.progress("prior")
    assert (progress.done, progress.total, progress.bytes_per_second) == (600, 1900, 100.0)
    assert progress.seconds_left == pytest.approx(13.0)
    counts.give_up("prior")  # b, and the rest of a, are not waited for
    assert counts.progress("clips.a").seconds_left == 0


def _parts() -> list[Path]:
    return list(Path(constants.HF_HUB_CACHE).glob("*/blobs/*.part"))


def _wait_for_the_thread() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("setup "):
            thread.join(10)
            assert not thread.is_alive()
