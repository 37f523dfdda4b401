"""A stack's models: each is loaded once, whichever threads ask for it, and what is here is had without waiting."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from hub_server import Fault
from hub_stack import publish

from redream.distillation.prior import Prior
from redream.distillation.prior_files import PriorError
from redream.retrieval.clip import Clip, ClipError
from redream.stack import environment
from redream.stack.fetching import SetupStopped
from redream.stack.models import Models
from redream.stack.stack import Stack, StackError
from redream.stack.vocabulary import ParsedPrompt


@pytest.fixture
def models(tiny_stack):
    return Models.load(Stack.load(tiny_stack, environ={}), "cpu")


def test_threads_that_ask_at_once_share_one_model(models, monkeypatch):
    loaded, real = [], Clip.load

    def slowly(folder, *arguments):
        loaded.append(folder.name)
        time.sleep(0.1)
        return real(folder, *arguments)

    monkeypatch.setattr(Clip, "load", slowly)
    with ThreadPoolExecutor(4) as threads:
        clips = list(threads.map(lambda number: models.clip("retrieval"), range(4)))
        libraries = list(threads.map(lambda number: models.index, range(4)))
        nets = list(threads.map(lambda number: models.perceptual("a"), range(4)))
    assert loaded == ["clip-retrieval"]
    assert all(len(set(map(id, same))) == 1 for same in (clips, libraries, nets))


def test_a_loaded_model_is_returned_while_another_one_is_being_loaded(models, monkeypatch):
    clip, begun, go = models.clip("retrieval"), threading.Event(), threading.Event()
    real = Prior.load

    def slowly(*arguments):
        begun.set()
        go.wait(10)
        return real(*arguments)

    monkeypatch.setattr(Prior, "load", slowly)
    with ThreadPoolExecutor(2) as threads:
        prior = threads.submit(lambda: models.prior)
        assert begun.wait(10)
        try:
            assert threads.submit(models.clip, "retrieval").result(timeout=5) is clip
        finally:
            go.set()
        assert prior.result() is models.prior


def test_a_model_that_could_not_be_loaded_is_tried_again(models, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Clip, "load", lambda *arguments: (_ for _ in ()).throw(ClipError("not now")))
        with pytest.raises(ClipError):
            models.clip("a")
    assert models.clip("a").size > 0


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
UNET = "unet/diffusion_pytorch_model.safetensors"
USES = {  # how each model is loaded
    "prior/unet/diffusion_pytorch_model.safetensors": lambda models: models.prior,
    "prior/vae/diffusion_pytorch_model.safetensors": lambda models: models.prior,
    "prior/text_encoder/model.safetensors": lambda models: models.prior,
    "prior/unet/config.json": lambda models: models.prior,
    "clip-retrieval/open_clip_model.safetensors": lambda models: models.clip("retrieval"),
    "clip-score-b/open_clip_model.safetensors": lambda models: models.clip("b"),
    "index/assets.parquet": lambda models: models.index,
}


@pytest.fixture(scope="module")
def copied(tiny_stack, tmp_path_factory):
    """A copy of the tiny stack."""
    return shutil.copytree(tiny_stack, tmp_path_factory.mktemp("copy") / "tiny")


@contextmanager
def changed(file, change):
    """Change a file's content within a block."""
    whole = file.read_bytes()
    file.write_bytes(change(whole))
    try:
        yield
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("name", USES)
def test_a_pointer_in_place_of_a_file_is_named_with_the_command_that_fetches_it(copied, name):
    with changed(copied / name, lambda whole: POINTER), pytest.raises(StackError) as error:
        USES[name](Models.load(Stack.load(copied, environ={}), "cpu"))
    said = f"The file {name} cannot be used: a git-lfs pointer, not the file itself. Run: git lfs pull."
    assert str(error.value) == said


@pytest.mark.parametrize("name", [name for name in USES if name.endswith(".safetensors")])
def test_a_file_that_was_cut_off_is_named_with_its_sizes(copied, name):
    size = (copied / name).stat().st_size
    with changed(copied / name, lambda whole: whole[:-7]), pytest.raises(StackError) as error:
        USES[name](Models.load(Stack.load(copied, environ={}), "cpu"))
    said = f"The file {name} cannot be used: cut off, {size - 7:,} of {size:,} bytes. Restore it."
    assert str(error.value) == said


def test_a_file_that_is_damaged_within_is_a_sentence_too(copied):
    """Its size is right, so that the libraries which read it are the first to see the fault."""

    def zeros(whole: bytes) -> bytes:
        header = int.from_bytes(whole[:8], "little")
        return (
            whole[:8]
            + whole[8 : 8 + header].replace(b'"F32"', b'"F99"').replace(b'"F16"', b'"F99"')
            + whole[8 + header :]
        )

    for name, kind in (("clip-score-b/open_clip_model.safetensors", ClipError), (f"prior/{UNET}", PriorError)):
        with changed(copied / name, zeros), pytest.raises(kind):
            USES[name](Models.load(Stack.load(copied, environ={}), "cpu"))


def test_a_damaged_perceptual_net_is_none_and_its_fault_is_kept(copied):
    models = Models.load(Stack.load(copied, environ={}), "cpu")
    with changed(copied / "perceptual-a/model.safetensors", lambda whole: POINTER):
        assert models.perceptual("a") is None and models.perceptual("b") is not None
    assert list(models.unavailable) == ["perceptual.a"] and "a git-lfs pointer" in models.unavailable["perceptual.a"]


def damaged(content: bytes, how: str) -> bytes:
    return {"cut off": content[: len(content) // 2], "empty": b"", "a web page": b"<html>Please log in</html>"}[how]


@pytest.mark.parametrize("how", ["cut off", "empty", "a web page"])
@pytest.mark.parametrize("name", ["index.json", "assets.parquet", "texts.npy"])
def test_a_damaged_file_of_the_library_in_the_cache_is_fetched_again(
    hub_server, tiny_stack, tmp_path, monkeypatch, name, how
):
    stack = publish(hub_server, tiny_stack, tmp_path, monkeypatch)
    assert len(Models.load(stack, "cpu").index) == 6
    file = (stack.folder(stack.index) / name).resolve()
    whole = file.read_bytes()
    file.write_bytes(damaged(whole, how))
    assert len(Models.load(stack, "cpu").index) == 6
    assert (stack.folder(stack.index) / name).read_bytes() == whole


def test_a_stalled_download_ends_with_a_stop_and_holds_up_no_other_model(hub_server, tiny_stack, tmp_path, monkeypatch):
    stack, released = publish(hub_server, tiny_stack, tmp_path, monkeypatch), threading.Event()
    hub_server.faults[UNET] = Fault(cut=30_000, pause=lambda: released.wait(20), times=99)
    models, stopped = Models.load(stack, "cpu"), []

    def stop() -> bool:
        return bool(stopped) and time.monotonic() > stopped[0]

    prior = threading.Thread(target=lambda: models.prior, daemon=True)  # as while the app starts
    prior.start()
    for _ in range(2):  # the next run does not wait for the one before either
        stopped[:] = [time.monotonic() + 0.5]
        with pytest.raises(SetupStopped):
            list(models.fetching("prior", stop))
        assert time.monotonic() - stopped[0] < 2
    assert models.clip("a").size > 0
    hub_server.faults.clear()
    released.set()
    prior.join(30)
    assert models.prior.size == 64


def test_a_stop_ends_the_fetching_of_tokenizers_too(tiny_stack, monkeypatch):
    """Then the prompt stays as it is, and the tokenizer is asked for again the next time."""
    release, asked = threading.Event(), []
    models = Models.load(Stack.load(tiny_stack, environ={"REDREAM_PRIOR": "owner/prior"}), "cpu")
    resolve = Stack.resolve

    def stall(stack, entry, *arguments):
        if entry.source != "owner/prior":
            return resolve(stack, entry, *arguments)
        asked.append(entry.source)
        release.wait(10)
        return resolve(stack, Stack.load(tiny_stack, environ={}).prior, *arguments)

    monkeypatch.setattr(Stack, "resolve", stall)
    long = ParsedPrompt("a purple owl " * 99)
    short = models.truncated(long, stop=lambda: bool(asked))
    assert "tokenizer of prior" not in models._loaded and "tokenizer of clips.a" in models._loaded
    release.set()
    assert len(models.truncated(long).prompt) <= len(short.prompt) and "tokenizer of prior" in models._loaded


@pytest.mark.parametrize(
    "device, environ, compiles",
    [
        ("cuda", {"REDREAM_COMPILE": "1"}, True),
        ("cuda:1", {"REDREAM_COMPILE": "1"}, True),
        ("cpu", {"REDREAM_COMPILE": "1"}, False),
        ("cuda", {}, False),
        ("cuda", {"REDREAM_COMPILE": "0"}, False),
        ("cuda", {"REDREAM_COMPILE": "1", "SPACES_ZERO_GPU": "true"}, False),
    ],
)
def test_the_unet_is_compiled_where_asked_for_and_where_it_pays(monkeypatch, device, environ, compiles):
    for name in ("REDREAM_COMPILE", "SPACES_ZERO_GPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert environment.compiles(device) == compiles


def test_a_prior_that_is_asked_for_compiled_is(models, monkeypatch):
    monkeypatch.setattr(environment, "compiles", lambda device: True)
    assert models.prior.is_compiled
