"""What a screen shows of a run: sentences in order, and texts from outside that stay texts."""

import pytest
import torch

from redream.app import components
from redream.app.curves import POINTS, curves_html, thinned
from redream.app.run_page import Page
from redream.runs import events
from redream.runs.outputs import save_png
from redream.runs.queue import Waiting
from redream.settings import Settings

OWL = {"uid": "1", "caption": "an owl", "author": "Ann", "license": "CC0", "similarity": 0.3, "source": "owl.glb"}
SCORES = {"clip_a": 0.312, "clip_b": 0.28, "a_lpips_a": None, "a_lpips_b": None, "coverage": 0.25}
SCORES |= {"view_accuracy_a": 0.75, "view_accuracy_b": None, "not_available": {"a_lpips_a": "No weights."}}


@pytest.fixture
def shown(tmp_path) -> Page:
    save_png(torch.rand(3, 4, 32), tmp_path / "asset-0.png")
    return Page(tmp_path)


def test_each_event_has_its_line(shown):
    lines = [
        (Waiting(1), "Waiting for its turn: 1 run is before it"),
        (Waiting(3, 250.0), "Waiting for its turn: 3 runs are before it, about 4 min 10 s"),
        (events.Started("run-x", "an owl", Settings(), 0, 400), "Looking through the library"),
        (events.Progress("distillation", 240, 400, 98.2), "Distillation, iteration 240 of 400, 1 min 38 s left"),
        (events.Progress("filming", 400, 400), "Filming the turntable"),
        (events.Finished(stopped=True), "Stopped. Nothing had formed yet."),
        (events.Artefact("turntable", 0, "turntable-0.mp4"), "Stopped. Nothing had formed yet."),
        (events.Finished(stopped=False), "Done."),
        (events.Failed("The Hub did not answer."), "The Hub did not answer."),
    ]
    for event, line in lines:
        shown.tell(event)
        assert shown.state == line and line in shown.state_html()
    assert shown.ended and shown.files == {("turntable", 0): str(shown.folder / "turntable-0.mp4")}
    shown.tell(events.Started("run-x", "an owl", Settings(), 200, 400))  # resumed
    assert not shown.ended


def test_the_bar_is_as_long_as_what_is_done(shown):
    assert "progressbar" not in shown.state_html()
    shown.tell(events.Progress("distillation", 100, 400))
    assert "width: 25.0%" in shown.state_html()


def test_a_card_says_what_the_asset_is_and_whose(shown):
    shown.tell(events.Retrieved((OWL,), ("asset-0.png",)))
    card = shown.assets_html()
    assert all(words in card for words in ("an owl", "similarity 0.30", "by Ann", "CC0", "data:image/png;base64,"))
    assert "front" not in card and "href" not in card
    shown.tell(events.Oriented(0, 90.0, 0.0, False, "asset-0.png"))
    assert "no clear front" in shown.assets_html()


def test_a_preview_whose_likeness_is_no_number_is_shown_and_not_drawn(shown):
    for iteration, likeness in enumerate((0.1, None, 0.3)):
        shown.tell(events.Preview("preview.png", iteration, 0, 30.0, likeness))
    assert "from 0.1 to 0.3" in shown.curves_html() and shown.preview.iteration == 2


def test_texts_and_links_from_outside_stay_texts_and_links(shown):
    bad = "<img src=x onerror='alert(1)'>"
    asset = OWL | {"caption": bad, "author": bad, "license": bad, "source": "https://x.org/'onclick='alert(1)"}
    shown.tell(events.Retrieved((asset,), ("asset-0.png",)))
    assert "<img" not in shown.assets_html() and "'onclick" not in shown.assets_html()
    shown.tell(events.Retrieved((OWL | {"source": "javascript:alert(1)"},), ("asset-0.png",)))
    assert "javascript" not in shown.assets_html()
    shown.tell(events.Warned(bad))
    assert "<img" not in shown.state_html() + components.problem(f"This is unknown: *{bad}*.")
    assert "the word <em>x</em>." in components.problem("the word *x*.")


def test_a_score_that_cannot_be_had_says_why(shown):
    assert shown.scores_html() == ""
    shown.tell(events.Scored({"prompt": "an owl", "objects": [SCORES]}))
    table = shown.scores_html()
    assert "0.312 · 0.280" in table and "No weights." in table and ">75%<" in table and ">25%<" in table


def test_scores_stand_beside_those_of_true_objects_where_they_are_known(shown):
    shown.tell(events.Scored({"prompt": "an owl", "objects": [SCORES]}))
    table = shown.scores_html(0, {"clip_a": 0.8, "clip_b": 0.9, "coverage": 0.3})
    assert "True objects: 0.800 · 0.900" in table and "True objects: 30%" in table and table.count("True objects") == 2
    assert "True objects" not in shown.scores_html(0)


def test_durations_are_words():
    words = [components.in_words(seconds) for seconds in (-1.0, 37.6, 60.0, 3599.9, 7500.0)]
    assert words == ["0 s", "38 s", "1 min 0 s", "1 h 0 min", "2 h 5 min"]


def test_each_object_has_its_own_files_and_scores(shown):
    for number in (0, 1):
        shown.tell(events.Artefact("mesh", number, f"mesh-{number}.glb"))
    shown.tell(events.Scored({"prompt": "an owl", "objects": [SCORES, SCORES | {"coverage": 0.5}]}))
    assert shown.objects == 2 and shown.files["mesh", 1].endswith("mesh-1.glb")
    assert ">25%<" in shown.scores_html(0) and ">50%<" in shown.scores_html(1) and shown.scores_html(2) == ""


def test_curves_are_drawn_of_what_has_two_points_and_keep_their_ends(shown):
    assert "<svg" not in shown.curves_html()
    for iteration in (1, 2, 3):
        shown.tell(events.Progress("distillation", iteration, 3, None, {"score": 4.0 - iteration, "variational": None}))
    drawn = shown.curves_html()
    assert drawn.count("<svg") == 1 and "from 3 to 1 over 2 iterations" in drawn
    assert "points='0.0,2.0 110.0,28.0 220.0,54.0'" in drawn  # evenly across, straight down


def test_many_points_become_few_by_the_means_of_neighbours():
    few = thinned([(i, float(i % 2)) for i in range(1, 20 * POINTS + 1)])
    assert len(few) == POINTS and {value for _, value in few} == {0.5} and few[-1][0] == 20 * POINTS
    assert curves_html({"score": [(1, 2.0), (2, 2.0)]}).count("points='0.0,54.0 220.0,54.0'") == 1
