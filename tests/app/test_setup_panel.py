"""What the stack for a GPU lacks is shown and fetched by the app's owner, never by a visitor of a Space."""

import threading

import gradio as gr
import pytest

from redream.app import setup_panel
from redream.app.setup_panel import FETCH, STOP, SetupJob, SetupPanel, panel_html
from redream.errors import RedreamError
from redream.stack.fetching import SetupProgress, SetupStopped
from redream.stack.inventory import NeededFile
from redream.stack.stack import Stack

PRIOR = NeededFile("prior", "unet/<model>.safetensors", "missing", 1_730_000_000, True)
LPIPS = NeededFile("perceptual.a", "vgg16-397923af.pth", "missing", 553_000_000, True)


class Fetching:
    """A setup that reports once, and goes on once `go_on` is set."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.calls = threading.Event(), threading.Event(), 0

    def __call__(self, stack, stop):
        self.calls += 1
        yield SetupProgress("fetching prior", 10**9, 2 * 10**9, "bytes", 20.0, 5e7)
        self.begun.set()
        while not self.go_on.wait(0.01):
            if stop():
                raise SetupStopped("Setup was stopped.")
        return ("There is no index.",)


@pytest.fixture
def fetching():
    fetching = Fetching()
    yield fetching
    fetching.go_on.set()


@pytest.fixture
def job(fetching, monkeypatch):
    monkeypatch.setattr(setup_panel, "missing_files", lambda stack: [LPIPS])  # when it has ended
    monkeypatch.delenv("SPACE_ID", raising=False)
    return SetupJob(Stack.load("sd21", environ={}), [PRIOR, LPIPS], fetching)


def test_the_panel_says_what_is_missing_how_large_it_is_and_how_long_it_takes(job):
    html = panel_html(job)
    assert "the stack sd21 lacks files: prior, perceptual.a. They are about 2.3 GB" in html
    assert "which take 3 min 3 s at 100 Mbit/s. The miniature works meanwhile." in html
    assert "unet/&lt;model&gt;.safetensors, 1.7 GB: missing" in html
    job.missing = (LPIPS,)
    assert "A-LPIPS is left out meanwhile." in panel_html(job)
    job.missing = ()
    assert "Everything is here. Start the app again" in panel_html(job)


def test_a_job_is_begun_once_shows_its_progress_and_ends_with_what_could_not_be_had(job, fetching):
    job.start()
    assert fetching.begun.wait(10)
    job.start()
    assert fetching.calls == 1 and "Fetching prior: 1.0 GB of 2.0 GB, 20 s left" in panel_html(job)
    fetching.go_on.set()
    job._thread.join(10)
    html = panel_html(job)
    assert "There is no index." in html and "11 s at the 50 MB/s measured so far" in html and "prior" not in html


def test_one_button_starts_and_stops(job, fetching):
    with gr.Blocks() as demo:
        panel = SetupPanel(demo, job)
    updates = panel.press(FETCH)
    assert updates[panel.button]["value"] == STOP and updates[panel.timer].active
    assert fetching.begun.wait(10)
    assert panel.press(STOP)[panel.button]["interactive"] is False or not job.is_running
    job._thread.join(2)
    assert not job.is_running
    updates = panel.update()
    assert updates[panel.button]["value"] == FETCH and not updates[panel.timer].active
    assert "Setup was stopped." in updates[panel.text]
    panel.press(FETCH)  # goes on
    assert fetching.calls == 2


def test_an_error_is_a_sentence_of_the_panel(job, monkeypatch):
    def fail(stack, stop):
        raise RedreamError("The Hub did not answer.")
        yield

    job._setup = fail
    job.start()
    job._thread.join(10)
    assert "The Hub did not answer." in panel_html(job)


def test_a_visitor_of_a_space_can_start_nothing(job, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "owner/space")
    with gr.Blocks() as demo:
        SetupPanel(demo, job)
    assert not demo.fns and not [block for block in demo.blocks.values() if isinstance(block, gr.Button)]
    assert "preload_from_hub" in panel_html(job, setup_panel.ON_A_SPACE)
