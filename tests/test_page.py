"""What a screen shows of a run: sentences in order, and texts from outside that stay texts."""

import pytest
import torch

from redream import events as told
from redream import page
from redream.jobs import Waiting
from redream.page import Page
from redream.results import save_png
from redream.settings import Settings

OWL = {"uid": "1", "caption": "an owl", "author": "Ann", "license": "CC0", "similarity": 0.3, "source": "owl.glb"}
SCORES = {"clip_a": 0.312, "clip_b": 0.28, "a_lpips_a": None, "a_lpips_b": None, "coverage": 0.25}
SCORES |= {"view_agreement_a": 0.75, "view_agreement_b": None, "not_available": {"a_lpips_a": "No weights."}}


@pytest.fixture
def shown(tmp_path) -> Page:
    save_png(torch.rand(3, 4, 32), tmp_path / "asset-0.png")
    return Page(tmp_path)


def test_each_event_has_its_line(shown):
    lines = [
        (Waiting(1), "Waiting for its turn: 1 run is before it"),
        (told.Started("run-x", "an owl", Settings(), 0, 400), "Looking through the library"),
        (told.Progress("painting", 240, 400, 98.2), "Painting, iteration 240 of 400, 1 min 38 s left"),
        (told.Progress("filming", 400, 400), "Filming the turntable"),
        (told.Finished(stopped=True), "Stopped. Nothing had formed yet."),
        (told.Artefact("turntable", 0, "turntable-0.mp4"), "Stopped. Nothing had formed yet."),
        (told.Finished(stopped=False), "Done."),
        (told.Failed("The Hub did not answer."), "The Hub did not answer."),
    ]
    for event, line in lines:
        shown.tell(event)
        assert shown.state == line and line in shown.state_html()
    assert shown.ended and shown.files == {"turntable": str(shown.folder / "turntable-0.mp4")}
    shown.tell(told.Started("run-x", "an owl", Settings(), 200, 400))  # resumed
    assert not shown.ended


def test_the_bar_is_as_long_as_what_is_done(shown):
    assert "progressbar" not in shown.state_html()
    shown.tell(told.Progress("painting", 100, 400))
    assert "width: 25.0%" in shown.state_html()


def test_a_card_says_what_the_asset_is_and_whose(shown):
    shown.tell(told.Retrieved((OWL,), ("asset-0.png",)))
    card = shown.assets_html()
    assert all(words in card for words in ("an owl", "similarity 0.30", "by Ann", "CC0", "data:image/png;base64,"))
    assert "front" not in card and "href" not in card
    shown.tell(told.Oriented(0, 90.0, 0.0, False, "asset-0.png"))
    assert "no clear front" in shown.assets_html()


def test_texts_and_links_from_outside_stay_texts_and_links(shown):
    bad = "<img src=x onerror='alert(1)'>"
    asset = OWL | {"caption": bad, "author": bad, "license": bad, "source": "https://x.org/'onclick='alert(1)"}
    shown.tell(told.Retrieved((asset,), ("asset-0.png",)))
    assert "<img" not in shown.assets_html() and "'onclick" not in shown.assets_html()
    shown.tell(told.Retrieved((OWL | {"source": "javascript:alert(1)"},), ("asset-0.png",)))
    assert "javascript" not in shown.assets_html()
    shown.tell(told.Warned(bad))
    assert "<img" not in shown.state_html() + page.problem_html(f"This is unknown: *{bad}*.")
    assert "the word <em>x</em>." in page.problem_html("the word *x*.")


def test_a_score_that_cannot_be_had_says_why(shown):
    assert shown.scores_html() == ""
    shown.tell(told.Scored({"prompt": "an owl", "objects": [SCORES]}))
    table = shown.scores_html()
    assert "0.312 · 0.280" in table and "No weights." in table and ">75%<" in table and ">25%<" in table


def test_durations_are_words():
    words = [page.in_words(seconds) for seconds in (-1.0, 37.6, 60.0, 3599.9)]
    assert words == ["0 s", "38 s", "1 min 0 s", "60 min 0 s"]
