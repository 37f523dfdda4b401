"""The page in a real browser: from a prompt to a video, a model and scores; and refusals in sentences."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.browser, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
# The app over a stack whose preset is the tests' tiny one.
START = "import redream.settings as s; from tiny_stack import TINY; s.PRESETS['mini'] = TINY.with_(iterations={}); " + (
    "import app; app.main()"
)
ITERATIONS = 30
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
QUIET += ("--disable-component-update", "--disable-sync")
WAIT = 60_000  # milliseconds


@pytest.fixture(scope="module")
def app(tiny_stack, tmp_path_factory, free_port):
    """The app's address, and the folder of its runs."""
    folder = tmp_path_factory.mktemp("runs")
    environ = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "REDREAM_STACK": str(tiny_stack),
        "REDREAM_RUNS": str(folder),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(free_port),
        "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("gradio")),
        "OMP_NUM_THREADS": "1",
    }
    address = f"http://127.0.0.1:{free_port}"
    process = subprocess.Popen([sys.executable, "-c", START.format(ITERATIONS)], env=environ, cwd=folder)
    try:
        wait_for(address, process)
        yield address, folder
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(address: str, process: subprocess.Popen) -> None:
    for _ in range(300):
        assert process.poll() is None, "the app ended"
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError("the app did not start")


@pytest.fixture(scope="module")
def browser(chromium):
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=list(QUIET))
        yield opened
        opened.close()


@pytest.fixture
def page(browser, app, request):
    """A fresh visitor's page; with REDREAM_SHOTS a picture of how it was left is put into that folder."""
    with visitor(browser, app[0]) as page:
        yield page
        shoot(page, request.node.originalname)


@contextmanager
def visitor(browser, address: str, width: int = 1280):
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    page.goto(address, wait_until="domcontentloaded")
    page.get_by_label("Describe an object").wait_for(timeout=WAIT)
    yield page
    context.close()


def shoot(page, name: str) -> None:
    if folder := os.environ.get("REDREAM_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def ask(page, prompt: str) -> None:
    page.get_by_label("Describe an object").fill(prompt)
    page.get_by_label("Describe an object").press("Enter")


def button(page, name: str):
    return page.get_by_role("button", name=name, exact=True)


def test_a_prompt_becomes_assets_then_a_video_a_model_and_scores(page):
    page.get_by_role("button", name="a purple owl").click()
    sync_api.expect(page.get_by_label("Describe an object")).to_have_value("a purple owl")
    button(page, "Create").click()
    sync_api.expect(button(page, "Stop and keep")).to_be_visible(timeout=WAIT)
    sync_api.expect(page.locator(".card")).to_have_count(3, timeout=WAIT)
    sync_api.expect(page.locator(".card").first).to_contain_text(
        re.compile(r"similarity 0\.\d\d.*by Redream.*CC0", re.DOTALL)
    )
    sync_api.expect(page.locator(".preview img")).to_be_visible(timeout=WAIT)
    shoot(page, "while-it-forms")

    sync_api.expect(page.locator(".scores tr")).to_have_count(4, timeout=WAIT)
    sync_api.expect(page.locator(".now")).to_have_text("Done.", timeout=WAIT)
    sync_api.expect(page.get_by_text("Likeness to the prompt")).to_be_visible()
    page.wait_for_function("document.querySelector('video')?.readyState >= 2", timeout=WAIT)
    video = page.locator("video")
    assert video.evaluate("v => v.duration") == pytest.approx(8 / 24, abs=0.1)  # TINY's frames, 24 in a second
    assert video.evaluate("v => v.loop && v.autoplay")
    assert page.get_by_test_id("model3d-download-link").get_attribute("href").endswith("mesh-0.glb")
    sync_api.expect(button(page, "Create")).to_be_visible()


def test_a_page_that_is_opened_again_shows_its_run_and_what_was_asked(page):
    page.get_by_label("ProlificDreamer (VSD)").check()
    ask(page, "a blue cat")
    sync_api.expect(button(page, "Stop and keep")).to_be_visible(timeout=WAIT)
    page.reload(wait_until="domcontentloaded")
    sync_api.expect(page.get_by_label("Describe an object")).to_have_value("a blue cat", timeout=WAIT)
    sync_api.expect(page.get_by_label("ProlificDreamer (VSD)")).to_be_checked()
    sync_api.expect(page.locator(".scores tr")).to_have_count(4, timeout=WAIT)
    sync_api.expect(page.get_by_text("This run uses no assets.")).to_be_visible()


def test_a_run_that_is_stopped_keeps_what_there_is(page):
    page.get_by_role("slider").fill(str(5 * ITERATIONS))
    ask(page, "a green dog")
    sync_api.expect(page.locator(".now")).to_contain_text("iteration", timeout=WAIT)
    button(page, "Stop and keep").click()
    sync_api.expect(page.locator(".now")).to_have_text(
        "Stopped. These are the results of what there was.", timeout=WAIT
    )
    page.wait_for_function("document.querySelector('video')?.readyState >= 2", timeout=WAIT)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("ironman", "The tiny model does not know the word ironman."), ("   ", "The prompt is empty")],
)
def test_a_bad_prompt_is_answered_by_a_sentence(page, prompt, said):
    ask(page, prompt)
    sync_api.expect(page.get_by_role("alert")).to_contain_text(said, timeout=WAIT)
    sync_api.expect(button(page, "Create")).to_be_visible()
    assert not page.get_by_text("Traceback").count()


def test_markup_in_a_prompt_stays_text(page):
    ask(page, "<img src=x onerror=alert(1)>")
    sync_api.expect(page.get_by_role("alert")).to_contain_text("does not know", timeout=WAIT)
    assert not page.locator(".problem img").count()


def test_methods_without_assets_switch_both_switches_off_and_say_why(page):
    switches = [page.get_by_label("Start from retrieved assets"), page.get_by_label("Teach the model their views")]
    page.get_by_label("DreamFusion (SDS)").check()
    for switch in switches:
        sync_api.expect(switch).to_be_disabled(timeout=WAIT)
        sync_api.expect(switch).not_to_be_checked(timeout=WAIT)
    sync_api.expect(page.get_by_text("DreamFusion (SDS) works without assets.")).to_have_count(2)
    page.get_by_label("ReDream", exact=True).check()
    for switch in switches:
        sync_api.expect(switch).to_be_enabled(timeout=WAIT)
        sync_api.expect(switch).to_be_checked(timeout=WAIT)


def test_the_dice_throws_a_seed(page):
    page.get_by_role("button", name="Random seed").click()
    sync_api.expect(page.get_by_label("Seed")).not_to_have_value("0", timeout=WAIT)


def test_the_page_fits_a_phone(browser, app):
    with visitor(browser, app[0], width=390) as page:
        ask(page, "a red car")
        sync_api.expect(page.locator(".scores tr")).to_have_count(4, timeout=WAIT)
        shoot(page, "phone")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_both_endpoints_are_documented_and_answer(app):
    client = Client(app[0], verbose=False, analytics_enabled=False)
    known = client.view_api(return_format="dict")["named_endpoints"]
    assert set(known) == {"/retrieve", "/generate"}
    names = [parameter["parameter_name"] for parameter in known["/generate"]["parameters"]]
    assert names == ["prompt", "method", "initialise", "adapt", "iterations", "seed"]
    found = client.predict("a purple owl", 2, api_name="/retrieve")
    assert len(found) == 2 and found[0]["license"] == "CC0"
    job = client.submit("a purple owl", iterations=10, api_name="/generate")
    state, video, mesh, scores = job.result(60)
    assert state == "Done." and len(job.outputs()) > 2
    path = video["video"] if isinstance(video, dict) else video
    assert Path(path).suffix == ".mp4" and Path(mesh).read_bytes().startswith(b"glTF") and "clip_a" in scores
    with pytest.raises(AppError, match="does not know the word"):
        client.predict("ironman", api_name="/generate")


def test_only_runs_are_served(app):
    address, folder = app
    inside = next(folder.glob("run-*/turntable-0.mp4"))
    assert urllib.request.urlopen(f"{address}/gradio_api/file={inside}").status == 200
    for outside in (ROOT / "app.py", "/etc/hostname", folder.parent):
        with pytest.raises(urllib.error.HTTPError, match="40[34]"):
            urllib.request.urlopen(f"{address}/gradio_api/file={outside}")
