"""The app in a process of its own, over the tests' tiny stack, and the steps of its visitors."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from redream.app.comparison import COMPARED
from redream.settings import VARIANTS

sync_api = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).parents[2]
ITERATIONS = 24
LONG = 2000  # iterations, of runs that are stopped
# The app over a stack whose preset is the tests' tiny one, on a computer whose GPU lacks a file of 8.7 GB that never comes.
START = f"""
import dataclasses
import functools
import time

from redream import settings
from redream.app import form
from tiny_stack import TINY, make_outputs_small

PRESET = TINY.with_(iterations={ITERATIONS}, output={{"preview_every": 4, "checkpoint_every": 8}})
settings.PRESETS["mini"] = settings.by_method(PRESET)
form.max_iterations = lambda preset: {LONG}
make_outputs_small()

import app
from redream.app import setup_panel
from redream.stack.inventory import NeededFile
from redream.stack.fetching import SetupProgress, SetupStopped

missing = (NeededFile("prior", "unet/model.safetensors", "missing", 8_700_000_000, True),)
diagnosis = dataclasses.replace(app.choose_stack(), missing=missing)


def setup(stack, stop):
    for megabytes in range(100, 8_700):
        yield SetupProgress("fetching prior", megabytes * 10**6, 8_700_000_000, "bytes", 75.0, 10**8)
        time.sleep(0.1)
        if stop():
            raise SetupStopped("Setup was stopped.")


app.choose_stack = lambda: diagnosis
app.SetupJob = functools.partial(setup_panel.SetupJob, setup=setup)
setup_panel.missing_files = lambda stack: missing
app.main()
"""
TABS = ("Create", "Compare", "Library", "Prior", "About")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
QUIET += ("--disable-component-update", "--disable-sync")
WAIT = 60_000  # milliseconds
# Pages draw at most ten times a second: without a GPU the 3D viewer would otherwise take a core for itself.
SLOW_FRAMES = """
window.requestAnimationFrame = draw => setTimeout(() => draw(performance.now()), 100);
window.cancelAnimationFrame = clearTimeout;
"""


@contextmanager
def serving(stack: Path, runs: Path, uploads: Path, start: str = START) -> Iterator[str]:
    """The app's address; it ends with the block. `start`: the Python code that starts it."""
    port = free_port()
    environ = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "REDREAM_STACK": str(stack),
        "REDREAM_RUNS": str(runs),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(uploads),
        "OMP_NUM_THREADS": "1",
    }
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-c", start], env=environ, cwd=runs, start_new_session=True)
    try:
        wait_for_address(address, process)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # and what it has forked: ZeroGPU's workers outlive it
        process.wait(10)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for_address(address: str, process: subprocess.Popen) -> None:
    for _ in range(300):
        assert process.poll() is None, "the app ended"
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError("the app did not start")


@contextmanager
def visitor(browser, address: str, width: int = 1280, color_scheme: str = "light", headers: dict | None = None):
    """A new visitor's page. One who comes after another has left gets the page's scripts from that one's cache, which
    saves most of the time of a first visit, and nothing else.
    """
    context = next((context for context in browser.contexts if not context.pages), None)
    if context is None:
        context = browser.new_context()
        context.add_init_script(SLOW_FRAMES)
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=color_scheme)
    page.set_extra_http_headers(headers or {})
    page.goto(address, wait_until="domcontentloaded")
    page.get_by_label("Describe an object").wait_for(timeout=WAIT)
    try:
        yield page
    finally:
        page.evaluate("localStorage.clear()")
        page.close()
        context.clear_cookies()


def shoot(page, name: str) -> None:
    if folder := os.environ.get("REDREAM_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def submit(page, prompt: str) -> None:
    page.get_by_label("Describe an object").fill(prompt)
    page.get_by_label("Describe an object").press("Enter")


def button(page, name: str):
    return page.get_by_role("button", name=name, exact=True)


def create_button(page):
    return page.get_by_role("button", name=re.compile("^Create"))


def status_line(page):
    return page.locator(".run-state .status-line")


def wait_until_done(page, status: str = "Done.") -> None:
    sync_api.expect(status_line(page)).to_have_text(status, timeout=WAIT)
    sync_api.expect(create_button(page)).to_be_visible(timeout=WAIT)


def until(page, condition) -> None:
    for _ in range(WAIT // 100):
        if condition():
            return
        page.wait_for_timeout(100)
    raise AssertionError("the condition was not met in time")


def open_tab(page, name: str) -> None:
    """Open a tab, also one behind the menu for tabs that have no room."""
    if page.get_by_role("tab", name=name, exact=True).is_visible():
        page.get_by_role("tab", name=name, exact=True).click()
    else:
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown").get_by_text(name, exact=True).click()


def open_fold(page, name: str = "Advanced settings") -> None:
    """Open a fold. Gradio builds its widgets only now and sets their first values a moment after they are there: a number
    filled in at once is lost in one of twelve cases, one filled in 50 ms later in none of twelve."""
    page.get_by_role("button", name=name).click()
    page.wait_for_timeout(1000)


def fill_iterations(page, count: int) -> None:
    open_fold(page)
    page.get_by_role("spinbutton", name="number input for Iterations").fill(str(count))
    page.get_by_role("spinbutton", name="number input for Iterations").press("Tab")


def finished(page, prompt: str, method: str = "ReDream") -> None:
    """Create an object with the method's default settings (others have no such command), and wait until it is finished."""
    page.get_by_label(method, exact=True).first.check()
    submit(page, prompt)
    sync_api.expect(page.locator(".command textarea")).to_have_value(re.compile(prompt), timeout=WAIT)
    wait_until_done(page)


def compare(page, *methods: str, prompt: str | None = None) -> None:
    """In the tab Compare, which has just been opened: compare these methods, with another prompt if there is one."""
    page.wait_for_timeout(1000)  # as in `open_fold`
    if prompt is not None:
        page.get_by_label("Prompt", exact=True).fill(prompt)
    for label in (VARIANTS[variant].label for variant in COMPARED):
        page.get_by_role("checkbox", name=label, exact=True).set_checked(label in methods)
    page.get_by_role("button", name=re.compile("^Compare( —|$)")).click()
