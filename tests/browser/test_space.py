"""The page on a ZeroGPU Space, with the real package `spaces` and a stand-in for what is behind it."""

import itertools
import re
import secrets
import urllib.request

import pytest
from served import (
    START,
    WAIT,
    button,
    compare,
    fill_iterations,
    free_port,
    open_tab,
    serving,
    shoot,
    status_line,
    submit,
    sync_api,
    visitor,
    wait_until_done,
)

from redream.runs import events
from redream.runs.run import Run

pytestmark = [pytest.mark.browser, pytest.mark.slow]

IN_CALLS = 10  # iterations of a call, so that a run takes three
ON_ZEROGPU = """
import functools
import device_api

device_api.serve({port})
import app
from redream.app import zerogpu
from redream.runs.session import Session

device_api.leave_out_the_gpu()
zerogpu.load = functools.partial(zerogpu.load, device="cpu")
Session._time_is_over = device_api.over_after({in_calls})
"""


@pytest.fixture(scope="module")
def device_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def app(tiny_stack, tmp_path_factory, device_port):
    """The Space's address, and the folder of its runs."""
    folder, uploads = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("gradio")
    start = ON_ZEROGPU.format(port=device_port, in_calls=IN_CALLS) + START
    with serving(tiny_stack, folder, uploads, start) as address:
        yield address, folder


@pytest.fixture
def rules(device_port):
    """Change what ZeroGPU grants: left, the seconds of the visitor's quota; once, whether a request is good for one call."""

    def change(parameters: str = "") -> None:
        urllib.request.urlopen(f"http://127.0.0.1:{device_port}/rules?{parameters}", b"").close()

    yield change
    change()


def give_each_request_a_token(page) -> None:
    """As the Hub does."""
    numbers = itertools.count()

    def add(route) -> None:
        route.continue_(headers=route.request.headers | {"x-ip-token": f"a.{secrets.token_hex(4)}.{next(numbers)}"})

    page.route("**/queue/join*", add)


def latest_run(folder) -> Run:
    return Run.open(max(folder.glob("run-*"), key=lambda path: path.stat().st_mtime))


def test_the_page_asks_for_one_call_after_the_other_until_the_run_is_finished(page, app, rules):
    give_each_request_a_token(page)
    rules("once=1")
    submit(page, "a red owl")
    sync_api.expect(button(page, "Stop and keep")).to_be_visible(timeout=WAIT)
    sync_api.expect(status_line(page)).to_contain_text("iteration", timeout=WAIT)
    shoot(page, "during-a-call")
    wait_until_done(page)
    pauses = [event for event in latest_run(app[1]).events() if isinstance(event, events.Paused)]
    assert len(pauses) == 3 + 2  # each call is prepared on the CPU first, and two ended before the run
    sync_api.expect(page.locator(".scores tr")).to_have_count(5, timeout=WAIT)


def test_each_call_of_compared_runs_has_a_request_of_its_own(page, rules):
    give_each_request_a_token(page)
    rules("once=1")
    open_tab(page, "Compare")
    compare(page, "ProlificDreamer (VSD)", prompt="a red car")
    sync_api.expect(page.locator(".grid .sprite")).to_have_count(1, timeout=2 * WAIT)
    shoot(page, "compared-in-calls")


def test_a_spent_quota_is_a_sentence_and_continue_goes_on_once_there_is_some_again(browser, app, rules):
    """The Hub adds a header to the requests of a visitor it knows."""
    rules("left=20")
    with visitor(browser, app[0], headers={"x-ip-token": "a.b.c"}) as page:
        submit(page, "a blue cat")
        sync_api.expect(status_line(page)).to_contain_text("20 s of your GPU quota are left", timeout=WAIT)
        sync_api.expect(button(page, "Continue")).to_be_visible(timeout=WAIT)
        shoot(page, "quota-spent")
        rules()
        button(page, "Continue").click()
        wait_until_done(page)


def test_stop_ends_a_call_and_keeps_the_results(page, app):
    fill_iterations(page, 100)
    submit(page, "a green dog")
    sync_api.expect(status_line(page)).to_contain_text(re.compile("iteration [1-9]"), timeout=WAIT)
    button(page, "Stop and keep").click()
    wait_until_done(page, "Stopped. These are the results so far.")
    assert 0 < latest_run(app[1]).read_json("record.json")["done"] < 100
