"""A stack's models: each is loaded once, whichever threads ask for it, and what is here is had without waiting."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from redream.distillation.prior import Prior
from redream.retrieval.clip import Clip, ClipError
from redream.stack.models import Models
from redream.stack.stack import Stack


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
