"""The page in a real browser: every tab used as a visitor would, refusals in sentences, and files that are not served."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import trimesh
from gradio_client import Client
from gradio_client.exceptions import AppError
from served import (
    ITERATIONS,
    LONG,
    ROOT,
    TABS,
    WAIT,
    button,
    compare,
    create_button,
    fill_iterations,
    finished,
    open_fold,
    open_tab,
    shoot,
    status_line,
    submit,
    sync_api,
    until,
    visitor,
    wait_until_done,
)

from redream.app.wiring import CHAINING_SECONDS

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_a_prompt_gives_assets_then_a_video_a_model_and_scores(page):
    page.get_by_role("button", name="a purple owl").click()
    sync_api.expect(page.get_by_label("Describe an object")).to_have_value("a purple owl")
    create_button(page).click()
    sync_api.expect(button(page, "Stop and keep")).to_be_visible(timeout=WAIT)
    sync_api.expect(page.locator(".card")).to_have_count(3, timeout=WAIT)
    sync_api.expect(page.locator(".card").first).to_contain_text(
        re.compile(r"similarity 0\.\d\d.*by Redream.*CC0", re.DOTALL)
    )
    sync_api.expect(page.locator(".preview img")).to_be_visible(timeout=WAIT)
    shoot(page, "during-a-run")

    sync_api.expect(page.locator(".scores tr")).to_have_count(5, timeout=WAIT)
    wait_until_done(page)
    sync_api.expect(page.get_by_text("CLIP score").first).to_be_visible()
    page.wait_for_function("document.querySelector('video')?.readyState >= 2", timeout=WAIT)
    video = page.locator("video")
    assert video.evaluate("v => v.duration") == pytest.approx(8 / 24, abs=0.1)  # TINY's frames, 24 in a second
    assert video.evaluate("v => v.loop && v.autoplay")
    assert page.get_by_test_id("model3d-download-link").get_attribute("href").endswith("mesh-0.glb")
    sync_api.expect(page.locator("canvas")).to_be_visible(timeout=WAIT)  # of the 3D viewer
    assert page.locator(".command textarea").input_value().startswith("python -m redream")
    page.get_by_role("button", name="Loss curves").click()
    sync_api.expect(page.locator(".curves svg")).to_have_count(5, timeout=WAIT)
    with page.expect_download() as record:
        button(page, "Download the record").click()
    assert json.loads(Path(record.value.path()).read_text())["prompt"] == "a purple owl"

    height = page.get_by_label("Height in mm")
    sync_api.expect(height).to_be_hidden()
    page.get_by_label("STL (3D printing)").check()
    height.fill("0")
    button(page, "Make the file").click()
    sync_api.expect(page.get_by_role("alert")).to_contain_text("10,000 millimetres", timeout=WAIT)
    height.fill("80")
    button(page, "Make the file").click()
    sync_api.expect(page.get_by_text("The STL is watertight")).to_be_visible(timeout=WAIT)
    sync_api.expect(page.get_by_role("alert")).to_be_hidden()
    shoot(page, "other-formats")
    with page.expect_download() as printed:
        button(page, "Download mesh-0.stl").click()
    assert trimesh.load_mesh(printed.value.path(), file_type="stl").extents[2] == pytest.approx(80, abs=1e-3)
    page.get_by_role("radio", name="OBJ").check()
    sync_api.expect(button(page, "Download mesh-0.stl")).to_be_hidden()


def test_a_run_goes_on_when_the_page_is_opened_again_also_in_another_browser_by_its_link(page, browser, app):
    page.get_by_label("ProlificDreamer (VSD)").check()
    submit(page, "a blue cat")
    sync_api.expect(button(page, "Stop and keep")).to_be_visible(timeout=WAIT)
    page.reload(wait_until="domcontentloaded")
    sync_api.expect(page.get_by_label("Describe an object")).to_have_value("a blue cat", timeout=WAIT)
    sync_api.expect(page.get_by_label("ProlificDreamer (VSD)")).to_be_checked()
    wait_until_done(page)
    sync_api.expect(page.get_by_text("This run uses no assets.")).to_be_visible()
    link = page.get_by_role("link", name="Link to this run").get_attribute("href")
    with visitor(browser, f"{app[0]}/{link[link.index('?') :]}") as other:
        sync_api.expect(other.get_by_label("Describe an object")).to_have_value("a blue cat", timeout=WAIT)
        wait_until_done(other)
        sync_api.expect(other.locator("canvas").first).to_be_visible(timeout=WAIT)  # of the 3D viewer
        button(other, "Compare without …").click()
        sync_api.expect(other.get_by_label("Prompt", exact=True)).to_have_value("a blue cat", timeout=WAIT)
        runs = len(list(app[1].glob("run-*")))
        compare(other, "ProlificDreamer (VSD)")
        sync_api.expect(other.locator(".grid .sprite")).to_have_count(1, timeout=WAIT)
        assert len(list(app[1].glob("run-*"))) == runs  # it is not made again
        open_tab(other, "Create")
        button(other, "Continue for 200 more").click()
        sync_api.expect(status_line(other)).to_contain_text(f"of {ITERATIONS + 200}", timeout=WAIT)
        button(other, "Stop and keep").click()
        wait_until_done(other, "Stopped. These are the results so far.")
        sync_api.expect(button(other, "Continue")).to_be_visible()


def test_a_stopped_run_keeps_its_results_and_can_be_continued(page):
    fill_iterations(page, LONG)
    submit(page, "a green dog")
    sync_api.expect(status_line(page)).to_contain_text("iteration", timeout=WAIT)
    button(page, "Stop and keep").click()
    wait_until_done(page, "Stopped. These are the results so far.")
    page.wait_for_function("document.querySelector('video')?.readyState >= 2", timeout=WAIT)
    button(page, "Continue").click()
    sync_api.expect(status_line(page)).to_contain_text("iteration", timeout=WAIT)
    button(page, "Stop and keep").click()
    wait_until_done(page, "Stopped. These are the results so far.")


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [("ironman", "The tiny model does not know the word ironman."), ("   ", "The prompt is empty")],
)
def test_a_bad_prompt_is_answered_by_a_sentence(page, prompt, sentence):
    submit(page, prompt)
    sync_api.expect(page.get_by_role("alert")).to_contain_text(sentence, timeout=WAIT)
    sync_api.expect(create_button(page)).to_be_visible()
    assert not page.get_by_text("Traceback").count()
    page.get_by_label("Describe an object").press("a")
    sync_api.expect(page.get_by_role("alert")).to_be_hidden()


def test_a_prompt_submitted_before_the_page_has_loaded_is_answered(browser, app):
    """The page's own first event, which looks for earlier runs, is held back until the visitor's is answered."""
    held, ended = [], []
    with browser.new_context() as context:
        page = context.new_page()
        page.route("**/queue/join*", lambda r: r.continue_() if "ironman" in r.request.post_data else held.append(r))
        for over in ("requestfinished", "requestfailed"):  # a stream of answers
            page.on(over, lambda request: ended.append(request) if "queue/data" in request.url else None)
        page.goto(app[0], wait_until="domcontentloaded")
        submit(page, "ironman")
        sync_api.expect(page.get_by_role("alert")).to_contain_text("does not know", timeout=WAIT)
        until(page, lambda: held and len(ended) == 1)
        held[0].continue_()
        until(page, lambda: len(ended) == 2)
        page.wait_for_timeout(300)  # milliseconds: what the last answer changes is drawn
        sync_api.expect(page.get_by_role("alert")).to_contain_text("does not know")


def test_a_prompt_submitted_before_an_earlier_one_is_answered_is_answered_too(page):
    held = []
    page.route("**/queue/join*", lambda r: held.append(r) if "ironman" in r.request.post_data else r.continue_())
    submit(page, "ironman")
    until(page, lambda: held)
    submit(page, "   ")
    held[0].continue_()
    sync_api.expect(page.get_by_role("alert")).to_contain_text("The prompt is empty", timeout=WAIT)


def test_markup_in_a_prompt_stays_text(page):
    submit(page, "<img src=x onerror=alert(1)>")
    sync_api.expect(page.get_by_role("alert")).to_contain_text("does not know", timeout=WAIT)
    assert not page.locator(".error-message img").count()


def test_methods_without_assets_switch_both_switches_off_and_say_why(page):
    switches = [page.get_by_label("Start from retrieved assets"), page.get_by_label("Adapt the model to their views")]
    page.get_by_label("DreamFusion (SDS)").check()
    for switch in switches:
        sync_api.expect(switch).to_be_disabled(timeout=WAIT)
        sync_api.expect(switch).not_to_be_checked(timeout=WAIT)
    sync_api.expect(page.get_by_text("DreamFusion (SDS) works without assets.")).to_have_count(2)
    page.get_by_label("ReDream", exact=True).first.check()
    for switch in switches:
        sync_api.expect(switch).to_be_enabled(timeout=WAIT)
        sync_api.expect(switch).to_be_checked(timeout=WAIT)


def test_the_dice_sets_a_random_seed(page):
    page.get_by_role("button", name="Random seed").click()
    sync_api.expect(page.get_by_label("Seed").first).not_to_have_value("0", timeout=WAIT)


def test_the_create_button_shows_an_estimate_that_follows_the_form(page):
    sync_api.expect(create_button(page)).to_contain_text(re.compile(r"about .* s on this CPU"), timeout=WAIT)
    before = create_button(page).text_content()
    fill_iterations(page, 5 * ITERATIONS)
    sync_api.expect(create_button(page)).not_to_have_text(before, timeout=WAIT)


def test_a_time_is_chosen_with_its_estimate_and_sets_the_iterations(page):
    long = page.get_by_role("radio", name=re.compile(r"^Long, about .* on this CPU$"))
    sync_api.expect(page.get_by_role("radio", name=re.compile("^Normal, about"))).to_be_checked(timeout=WAIT)
    before = create_button(page).text_content()
    long.check(timeout=WAIT)
    sync_api.expect(create_button(page)).not_to_have_text(before, timeout=WAIT)
    sync_api.expect(long).to_be_checked(timeout=WAIT)
    open_fold(page)
    iterations = page.get_by_role("spinbutton", name="number input for Iterations")
    assert int(iterations.input_value()) > ITERATIONS
    iterations.fill(str(5 * ITERATIONS + 1))
    iterations.press("Tab")
    sync_api.expect(long).not_to_be_checked(timeout=WAIT)


def test_several_objects_are_shown_one_at_a_time(page):
    open_fold(page)
    objects = page.get_by_role("spinbutton", name="number input for Objects at once (particles)")
    objects.fill("2")
    objects.press("Tab")  # a number counts when its field is left
    sync_api.expect(page.get_by_role("slider", name="range slider for Objects at once (particles)")).to_have_value("2")
    page.get_by_label("DreamFusion (SDS)").check()
    submit(page, "a red car")
    wait_until_done(page)
    page.get_by_label("2", exact=True).check()
    sync_api.expect(page.get_by_test_id("model3d-download-link")).to_have_attribute(
        "href", re.compile(r"mesh-1\.glb$"), timeout=WAIT
    )


def test_an_uploaded_glb_starts_a_run_and_a_malformed_one_is_refused_in_a_sentence(page, tmp_path):
    from tiny_stack import tiny_glb

    good, broken = tmp_path / "my owl.glb", tmp_path / "broken.glb"
    good.write_bytes(tiny_glb((90, 20, 160)))
    broken.write_bytes(b"glTF and then nothing")
    open_fold(page, "Assets: the nearest to the prompt")
    page.locator("input[type=file][accept*=glb]").first.set_input_files(broken)
    sync_api.expect(page.get_by_text("broken.glb").or_(page.get_by_text("broken"))).to_be_visible(timeout=WAIT)
    submit(page, "a purple owl")
    sync_api.expect(page.get_by_role("alert")).to_contain_text("GLB", timeout=WAIT)
    sync_api.expect(page.get_by_text("broken")).to_have_count(0, timeout=WAIT)  # it is not offered again
    page.locator("input[type=file][accept*=glb]").first.set_input_files(good)
    sync_api.expect(page.get_by_text("my owl")).to_be_visible(timeout=WAIT)
    submit(page, "a purple owl")
    sync_api.expect(page.locator(".card")).to_have_count(1, timeout=WAIT)
    wait_until_done(page)


def test_an_asset_chosen_in_the_library_starts_a_run(page):
    open_tab(page, "Library")
    sync_api.expect(page.locator("[data-uid]")).to_have_count(6, timeout=WAIT)
    page.get_by_label("Search the library").fill("a red vase")
    page.get_by_label("Search the library").press("Enter")
    page.locator("[data-uid=tiny-vase]").click()
    sync_api.expect(page.locator(".card.single")).to_contain_text("CC0", timeout=WAIT)
    shoot(page, "library")
    button(page, "Start from this").click()
    page.get_by_role("button", name="Assets: 1 chosen").wait_for(timeout=WAIT)
    sync_api.expect(page.get_by_text("a blue vase · Redream · CC0")).to_be_visible()
    submit(page, "a purple owl")
    retrieved = page.locator(".cards:not(.library) .card")
    sync_api.expect(retrieved).to_have_count(1, timeout=WAIT)
    sync_api.expect(retrieved).to_contain_text("vase")
    wait_until_done(page)


def test_the_assets_are_chosen_before_a_run_and_attributed_after_it(page):
    page.get_by_label("Describe an object").fill("a purple owl")
    open_fold(page, "Assets: the nearest to the prompt")
    page.get_by_label("Only licences that allow commercial use").check()
    button(page, "Show the assets for this prompt").click()
    page.get_by_role("button", name="Assets: 3 chosen").wait_for(timeout=WAIT)
    page.locator(".token-remove").first.click()
    page.get_by_role("button", name="Assets: 2 chosen").wait_for(timeout=WAIT)
    shoot(page, "assets-chosen")
    submit(page, "a purple owl")
    sync_api.expect(page.locator(".cards:not(.library) .card")).to_have_count(2, timeout=WAIT)
    wait_until_done(page)
    sync_api.expect(page.locator(".command textarea")).to_have_value(
        re.compile("--uid=tiny-.* --uid=tiny-.* --commercial-use")
    )
    attribution = page.locator(".attribution textarea")
    sync_api.expect(attribution).to_have_value(re.compile("^Made with Redream.*CC0 1.0", re.DOTALL))
    assert len(attribution.input_value().splitlines()) == 3
    shoot(page, "attribution")


def test_a_refused_prompt_leaves_the_current_run_on_the_page(page):
    page.get_by_label("DreamFusion (SDS)").check()
    fill_iterations(page, LONG)
    submit(page, "a red car")
    sync_api.expect(status_line(page)).to_contain_text("iteration", timeout=WAIT)
    page.reload(wait_until="domcontentloaded")
    sync_api.expect(status_line(page)).to_contain_text("iteration", timeout=WAIT)
    submit(page, "ironman")
    sync_api.expect(page.get_by_role("alert")).to_contain_text("does not know", timeout=WAIT)
    button(page, "Stop and keep").click()
    wait_until_done(page, "Stopped. These are the results so far.")


@pytest.mark.parametrize("reopened", [False, True], ids=["at once", "opened again"])
def test_a_prompt_submitted_during_a_run_is_queued_after_that_run(page, reopened):
    page.get_by_label("DreamFusion (SDS)").check()
    fill_iterations(page, LONG)
    submit(page, "a red car")
    sync_api.expect(status_line(page)).to_contain_text("iteration", timeout=WAIT)
    if reopened:
        page.reload(wait_until="domcontentloaded")
        sync_api.expect(status_line(page)).to_contain_text("iteration", timeout=WAIT)
        page.get_by_label("Describe an object").fill("typed at once")
        page.wait_for_timeout(1000 * CHAINING_SECONDS + 500)
        sync_api.expect(page.get_by_label("Describe an object")).to_have_value("typed at once")
    submit(page, "ironman")
    sync_api.expect(page.get_by_role("alert")).to_contain_text("does not know", timeout=WAIT)
    submit(page, "a red car")
    sync_api.expect(page.get_by_text("This object is being made already")).to_be_visible(timeout=WAIT)
    submit(page, "a blue mug")
    sync_api.expect(page.get_by_text("Its turn comes after the run that is shown.")).to_be_visible(timeout=WAIT)
    sync_api.expect(page.get_by_role("alert")).to_be_hidden()
    button(page, "Stop and keep").click()
    wait_until_done(page, "Stopped. These are the results so far.")
    sync_api.expect(page.locator(".command textarea")).to_have_value(re.compile("a red car"), timeout=WAIT)
    page.get_by_label("Your objects").click()
    sync_api.expect(page.get_by_role("option")).to_have_count(2)
    page.get_by_role("option", name="a blue mug").click()
    sync_api.expect(status_line(page)).to_contain_text("iteration", timeout=WAIT)
    button(page, "Stop and keep").click()
    wait_until_done(page, "Stopped. These are the results so far.")


def test_an_earlier_object_can_be_chosen_again(page):
    sync_api.expect(page.get_by_label("Your objects")).to_be_hidden()
    for prompt in ("a red car", "a blue mug"):
        finished(page, prompt, "DreamFusion (SDS)")
    page.get_by_label("Your objects").click()
    page.get_by_role("option", name="a red car").click()
    sync_api.expect(page.get_by_label("Describe an object")).to_have_value("a red car", timeout=WAIT)
    wait_until_done(page)
    sync_api.expect(page.locator(".command textarea")).to_have_value(re.compile("a red car"), timeout=WAIT)


def test_methods_are_compared_side_by_side_and_blind(page):
    finished(page, "a red car", "DreamFusion (SDS)")
    button(page, "Compare without …").click()
    sync_api.expect(page.get_by_label("Prompt", exact=True)).to_have_value("a red car", timeout=WAIT)
    compare(page, "ProlificDreamer (VSD)", "DreamFusion (SDS)")
    sync_api.expect(page.locator(".grid .sprite")).to_have_count(2, timeout=WAIT)  # one of them was there
    assert page.locator(".grid b").count() >= 4
    position = page.locator(".grid .sprite").first.evaluate("e => getComputedStyle(e).backgroundPosition")
    page.wait_for_function(
        "before => getComputedStyle(document.querySelector('.grid .sprite')).backgroundPosition !== before",
        arg=position,
    )
    page.get_by_role("button", name="Blind test").click()
    button(page, "Show two").click()
    sync_api.expect(page.locator(".blind-pair .sprite")).to_have_count(2, timeout=WAIT)
    shoot(page, "compare")
    button(page, "A").click()
    sync_api.expect(page.get_by_text(re.compile("A was .*, B was "))).to_be_visible(timeout=WAIT)
    sync_api.expect(page.get_by_text("1 of 1")).to_be_visible()


def test_samples_of_the_prior_are_shown_from_back_to_front(page):
    open_tab(page, "Prior")
    page.wait_for_timeout(1000)  # as in `open_fold`
    page.get_by_label("What the 2D model sees").fill("a red owl")
    button(page, "Show the samples").click()
    sync_api.expect(page.get_by_text("View: front")).to_be_visible(timeout=WAIT)
    sync_api.expect(page.locator(".prior-samples img")).to_have_count(2)
    page.get_by_role("spinbutton", name="number input for View: 0 back, 2 side, 4 front").fill("0")
    page.get_by_role("spinbutton", name="number input for View: 0 back, 2 side, 4 front").press("Tab")
    sync_api.expect(page.get_by_text("View: back")).to_be_visible(timeout=WAIT)


def test_runs_of_two_browsers_are_queued_and_each_browser_shows_its_own(browser, app):
    with visitor(browser, app[0]) as first, visitor(browser, app[0]) as second:
        fill_iterations(first, LONG)
        submit(first, "a red car")
        sync_api.expect(status_line(first)).to_contain_text("iteration", timeout=WAIT)
        submit(second, "a blue mug")
        sync_api.expect(status_line(second)).to_contain_text("1 run is before it", timeout=WAIT)
        button(first, "Stop and keep").click()
        wait_until_done(first, "Stopped. These are the results so far.")
        wait_until_done(second)
        links = {page.get_by_role("link", name="Link to this run").get_attribute("href") for page in (first, second)}
        assert len(links) == 2


ELSEWHERE = """
import sys
from redream import pipeline
from tiny_stack import TINY, make_outputs_small

make_outputs_small()
settings = TINY.with_(iterations=2000, output={"preview_every": 20})
for event in pipeline.generate("a blue mug", stack=sys.argv[1], settings=settings):
    pass
"""


def test_a_run_of_another_program_is_shown_as_it_goes_on_and_can_be_stopped(browser, app, tiny_stack):
    known, environ = set(app[1].glob("run-*")), os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    environ |= {"REDREAM_RUNS": str(app[1]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", ELSEWHERE, str(tiny_stack)], env=environ) as process:
        try:
            end = time.monotonic() + WAIT / 1000
            while not (new := [run for run in app[1].glob("run-*/events.jsonl") if run.parent not in known]):
                assert time.monotonic() < end
                time.sleep(0.1)
            with visitor(browser, f"{app[0]}/?run={new[0].parent.name}") as page:
                sync_api.expect(page.locator(".run-state")).to_contain_text("Another program", timeout=WAIT)
                sync_api.expect(page.locator(".preview img")).to_be_visible(timeout=WAIT)
                sync_api.expect(status_line(page)).to_contain_text(re.compile(r"iteration \d+ of 2000"), timeout=WAIT)
                shoot(page, "a-run-of-another-program")
                button(page, "Stop and keep").click()
                wait_until_done(page, "Stopped. These are the results so far.")
                sync_api.expect(page.locator(".run-state")).not_to_contain_text("Another program")
                sync_api.expect(button(page, "Continue")).to_be_visible()
        finally:
            process.kill()


def test_on_a_phone_a_new_run_scrolls_the_results_into_view(browser, app):
    with visitor(browser, app[0], width=390) as page:
        sync_api.expect(page.get_by_role("heading", name="Optimisation")).not_to_be_in_viewport()
        submit(page, "a red car")
        sync_api.expect(page.get_by_role("heading", name="Optimisation")).to_be_in_viewport(timeout=WAIT)
        wait_until_done(page)
        page.reload(wait_until="domcontentloaded")
        sync_api.expect(page.get_by_role("link", name="Link to this run")).to_be_visible(timeout=WAIT)
        sync_api.expect(page.get_by_label("Describe an object")).to_be_in_viewport()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_tab_is_wider_than_a_phone(browser, app, theme):
    with visitor(browser, app[0], width=390, color_scheme=theme) as page:
        for tab in TABS:
            open_tab(page, tab)
            page.wait_for_timeout(500)
            shoot(page, f"phone-{theme}-{tab.lower()}")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
        dark = page.evaluate("document.body.classList.contains('dark')")
        assert dark == (theme == "dark")


def test_the_endpoints_are_documented_and_answer(app):
    client = Client(app[0], verbose=False, analytics_enabled=False)
    known = client.view_api(return_format="dict")["named_endpoints"]
    assert set(known) == {"/retrieve", "/generate", "/continue", "/stop", "/scores", "/export"}
    assert all(len(endpoint["description"]) > 20 for endpoint in known.values())
    names = [parameter["parameter_name"] for parameter in known["/generate"]["parameters"]]
    assert names[:8] == ["prompt", "method", "initialise", "adapt", "particles", "iterations", "seed", "asset"]
    assert names[8:] == ["minutes", "uids", "commercial_use"]
    assets = client.predict("a purple owl", 2, api_name="/retrieve")
    assert len(assets) == 2 and assets[0]["license"] == "CC0"
    job = client.submit("a purple owl", particles=2, iterations=4, api_name="/generate")
    state, videos, models = job.result(120)
    assert state["ended"] and state["done"] == 1 and len(job.outputs()) > 2
    assert all(Path(file).suffix == ".mp4" for file in videos) and len(videos) == len(models) == 2
    assert all(Path(file).read_bytes().startswith(b"glTF") for file in models)
    assert client.predict(state["run"], api_name="/scores")["objects"][0]["clip_a"] == state["scores"][0]["clip_a"]
    file, sentence = client.predict(state["run"], "stl", 60, 1, api_name="/export")
    assert Path(file).name == "mesh-1.stl" and "60 mm" in sentence
    further, *_ = client.submit(state["run"], 2, api_name="/continue").result(120)
    assert further["run"] == state["run"] and further["done"] == 1
    for request, sentence in (
        ({"prompt": "ironman"}, "does not know the word"),
        ({"prompt": "owl", "particles": 5}, "limit here is 4"),
    ):
        with pytest.raises(AppError, match=sentence):
            client.predict(**request, api_name="/generate")
    with pytest.raises(AppError, match="no such run"):
        client.predict("../x", api_name="/scores")
    with pytest.raises(AppError, match="no such run"):
        client.predict(f"../runs/{state['run']}", "stl", api_name="/export")
    with pytest.raises(AppError, match="no such model"):
        client.predict(state["run"], "stl", 60, 2, api_name="/export")


def test_a_script_can_stop_a_run_and_gets_its_results(app):
    client = Client(app[0], verbose=False, analytics_enabled=False)
    job = client.submit("a purple owl", "sds", particles=4, iterations=LONG, api_name="/generate")
    while not job.outputs() or "iteration" not in job.outputs()[-1][0]["state"]:
        time.sleep(0.2)
    run = job.outputs()[-1][0]["run"]
    assert client.predict(run, api_name="/stop") == {"stopping": True}
    state, videos, models = job.result(120)
    assert state["state"].startswith("Stopped.") and len(videos) == len(models) == 4
    assert client.predict(run, api_name="/stop") == {"stopping": False}


def test_only_files_of_runs_are_served_and_only_by_run_ids(app):
    address, folder = app
    client = Client(address, verbose=False, analytics_enabled=False)
    state, *_ = client.submit("a red car", "sds", iterations=2, api_name="/generate").result(120)
    inside = folder / state["run"] / "turntable-0.mp4"
    assert urllib.request.urlopen(f"{address}/gradio_api/file={inside}").status == 200
    (folder / "link").symlink_to("/etc")
    tries = [ROOT / "app.py", "/etc/hostname", folder, folder.parent, folder / "link" / "hostname"]
    tries += [f"{inside.parent}/../../../../etc/hostname", folder / "run-AAAAAAAAAAAAAAAA" / "turntable-0.mp4"]
    for outside in tries:
        with pytest.raises(urllib.error.HTTPError, match="40[034]"):
            urllib.request.urlopen(f"{address}/gradio_api/file={outside}")
