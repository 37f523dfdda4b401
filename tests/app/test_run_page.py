"""What the page shows of a run: a status line for each event, cards, curves and score tables."""

import pytest
import torch

from redream.app.curves import POINTS, curves_html, thinned
from redream.app.run_page import PAUSED, RunPage
from redream.runs import events
from redream.runs.outputs import save_png
from redream.runs.queue import Queued
from redream.scoring.scores import QUANTITIES
from redream.settings import Settings

OWL = {"uid": "1", "caption": "an owl", "author": "Ann", "license": "CC0", "similarity": 0.3, "source": "owl.glb"}
SCORES = {"clip_a": 0.312, "clip_b": 0.28, "a_lpips_a": None, "a_lpips_b": None, "coverage": 0.25}
SCORES |= {"view_accuracy_a": 0.75, "view_accuracy_b": None, "not_available": {"a_lpips_a": "No weights."}}


@pytest.fixture
def page(tmp_path) -> RunPage:
    save_png(torch.rand(3, 4, 32), tmp_path / "asset-0.png")
    return RunPage(tmp_path)


def test_each_event_has_its_status_line(page):
    lines = [
        (Queued(1), "Waiting for its turn: 1 run is before it"),
        (Queued(3, 250.0), "Waiting for its turn: 3 runs are before it, about 4 min 10 s"),
        (events.Started("run-x", "an owl", Settings(), 0, 400), "Searching the library"),
        (events.Progress("warm-up", 1, 400), "Warm-up, iteration 1 of 400"),
        (events.Progress("distillation", 240, 400, 98.2), "Distillation, iteration 240 of 400, 1 min 38 s left"),
        (events.Progress("filming", 400, 400), "Rendering the turntable"),
        (events.Finished(stopped=True), "Stopped. There are no results yet."),
        (events.Artefact("turntable", 0, "turntable-0.mp4"), "Stopped. There are no results yet."),
        (events.Finished(stopped=True), "Stopped. These are the results so far."),
        (events.Finished(stopped=False), "Done."),
        (events.Failed("The Hub did not answer."), "The Hub did not answer."),
        (events.Paused(), PAUSED),
    ]
    for event, line in lines:
        page.update(event)
        assert page.status == line and line in page.state_html()
    assert page.ended and page.paused and page.files == {("turntable", 0): str(page.folder / "turntable-0.mp4")}
    page.update(events.Started("run-x", "an owl", Settings(), 200, 400))  # resumed
    assert not page.ended and not page.paused and not page.files


def test_the_progress_bar_is_as_long_as_the_fraction_that_is_done(page):
    assert "progressbar" not in page.state_html()
    page.update(events.Progress("distillation", 100, 400))
    assert 'style="width: 25.0%"' in page.state_html() and 'aria-valuenow="25"' in page.state_html()


def test_a_card_shows_caption_similarity_author_licence_and_front(page):
    page.update(events.Retrieved((OWL,), ("asset-0.png",)))
    card = page.assets_html()
    assert all(text in card for text in ("an owl", "similarity 0.30", "by Ann", "CC0", "data:image/png;base64,"))
    assert "front" not in card and "href" not in card
    page.update(events.Oriented(0, 90.0, 0.0, False, "asset-0.png"))
    assert "no clear front" in page.assets_html()


def test_a_preview_without_a_clip_score_is_shown_and_adds_no_point_to_the_curve(page):
    for iteration, clip_score in enumerate((0.1, None, 0.3)):
        page.update(events.Preview("preview.png", iteration, 0, 30.0, clip_score))
    assert "from 0.1 to 0.3" in page.curves_html() and page.preview.iteration == 2


def test_captions_authors_and_warnings_stay_text(page):
    bad = "<img src=x onerror='alert(1)'>"
    asset = OWL | {"caption": bad, "author": bad, "license": bad}
    page.update(events.Retrieved((asset,), ("asset-0.png",)))
    page.update(events.Warned(bad))
    assert "<img" not in page.assets_html() + page.state_html()


@pytest.mark.parametrize("source", ['https://x.org/"onclick="alert(1)', "https://x.org/'onclick='alert(1)"])
def test_a_links_address_cannot_leave_its_attribute(page, source):
    page.update(events.Retrieved((OWL | {"source": source},), ("asset-0.png",)))
    html = page.assets_html()
    assert 'href="https://x.org/' in html and 'rel="noopener noreferrer"' in html
    assert '"onclick' not in html and "'onclick" not in html


@pytest.mark.parametrize("source", ["javascript:alert(1)", "data:text/html,x", "owl.glb"])
def test_a_source_that_is_no_web_address_is_no_link(page, source):
    page.update(events.Retrieved((OWL | {"source": source},), ("asset-0.png",)))
    assert "href" not in page.assets_html() and "by Ann" in page.assets_html()


def test_scores_have_the_names_decimals_and_explanations_of_the_table_of_scores(page):
    assert page.scores_html() == ""
    page.update(events.Scored({"prompt": "an owl", "objects": [SCORES]}))
    table = page.scores_html()
    assert "0.312 · 0.280" in table and ">0.750<" in table and ">0.250<" in table
    for quantity in ("clip", "view_accuracy", "janus_rate", "a_lpips", "coverage"):
        assert QUANTITIES[quantity].name in table
    assert QUANTITIES["janus_rate"].explanation[1:] in table


def test_a_score_that_is_not_available_has_its_reason(page):
    page.update(events.Scored({"prompt": "an owl", "objects": [SCORES]}))
    assert "No weights." in page.scores_html()


def test_scores_stand_beside_those_of_true_objects_where_these_are_known(page):
    page.update(events.Scored({"prompt": "an owl", "objects": [SCORES]}))
    table = page.scores_html(0, {"clip_a": 0.8, "clip_b": 0.9, "coverage": 0.3})
    assert "0.800 · 0.900" in table and ">0.300<" in table
    assert table.count("True objects") == 2 and "True objects" not in page.scores_html(0)


def test_each_object_has_its_own_files_and_scores(page):
    for number in (0, 1):
        page.update(events.Artefact("mesh", number, f"mesh-{number}.glb"))
    page.update(events.Scored({"prompt": "an owl", "objects": [SCORES, SCORES | {"coverage": 0.5}]}))
    assert page.object_count == 2 and page.files["mesh", 1].endswith("mesh-1.glb")
    assert ">0.250<" in page.scores_html(0) and ">0.500<" in page.scores_html(1) and page.scores_html(2) == ""


def test_a_curve_needs_two_points_and_keeps_its_ends(page):
    assert "<svg" not in page.curves_html()
    for iteration in (1, 2, 3):
        losses = {"score": 4.0 - iteration, "variational": None}
        page.update(events.Progress("distillation", iteration, 3, None, losses))
    html = page.curves_html()
    assert html.count("<svg") == 1 and "from 3 to 1 over 2 iterations" in html
    assert 'points="0.0,2.0 110.0,28.0 220.0,54.0"' in html  # evenly across, straight down


def test_many_points_become_few_by_the_means_of_neighbours():
    few = thinned([(i, float(i % 2)) for i in range(1, 20 * POINTS + 1)])
    assert len(few) == POINTS and {value for _, value in few} == {0.5} and few[-1][0] == 20 * POINTS
    assert curves_html({"score": [(1, 2.0), (2, 2.0)]}).count('points="0.0,54.0 220.0,54.0"') == 1
