"""Fixtures of the tests that talk to the running app."""

import json
import urllib.request

import pytest
from served import QUIET, serving, shoot, sync_api, visitor


@pytest.fixture(scope="session")
def app(tiny_stack, tmp_path_factory):
    """The app's address, and the folder of its runs."""
    folder = tmp_path_factory.mktemp("runs")
    with serving(tiny_stack, folder, tmp_path_factory.mktemp("gradio")) as address:
        yield address, folder


@pytest.fixture(scope="module")
def browser(chromium):
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=list(QUIET))
        yield opened
        opened.close()


@pytest.fixture(autouse=True)
def stops_remaining_runs(app):
    """Runs that a test leaves are stopped: they would keep the following tests waiting, so that all of them failed."""
    yield
    address, folder = app
    for run in folder.glob("run-*"):
        body = json.dumps({"data": [run.name]}).encode()
        call = urllib.request.Request(f"{address}/gradio_api/call/stop", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(call).close()


@pytest.fixture
def page(browser, app, request):
    """A new visitor's page. Its console, failed requests and last text are printed, which pytest shows for a test that
    fails; with REDREAM_SHOTS a last screenshot is put into that folder.
    """
    with visitor(browser, app[0]) as page:
        page.on("console", lambda message: print("console:", message.text))
        page.on("framenavigated", lambda frame: print("opened:", frame.url))
        page.on("requestfailed", lambda request: print("failed request:", request.url, request.failure))
        yield page
        shoot(page, request.node.originalname)
        print("last text:", page.get_by_role("main").inner_text())
