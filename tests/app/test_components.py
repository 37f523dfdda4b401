"""Templates escape every value, links lead to the web only, and durations are words."""

import jinja2
import pytest

from redream.app.components import data_uri, duration, hint, queue_status, render
from redream.app.wiring import error_html
from redream.errors import RedreamError

HOSTILE = "<img src=x onerror='alert(1)'>\"'&"


@pytest.mark.parametrize(
    ("template", "values"),
    [
        ("hint.html", {"text": HOSTILE}),
        ("error.html", {"text": f"This is unknown: *{HOSTILE}*."}),
        ("run_state.html", {"status": HOSTILE, "progress": 0.5, "warnings": [HOSTILE]}),
        ("blind_answer.html", {"a": HOSTILE, "b": HOSTILE, "preferred": HOSTILE}),
        ("prior_state.html", {"status": HOSTILE, "progress": 0.5}),
        (
            "library_asset.html",
            {
                "asset": dict.fromkeys(("caption", "author", "license", "source"), HOSTILE),
                "image": "data:",
                "details": [HOSTILE],
            },
        ),
        (
            "about.html",
            {
                "pictures": {},
                "scores": [{"name": HOSTILE, "labels": [HOSTILE], "explanation": HOSTILE}],
                "facts": {HOSTILE: HOSTILE},
            },
        ),
    ],
)
def test_hostile_values_stay_text(template, values):
    html = render(template, **values)
    assert "<img" not in html and "onerror='" not in html and "&lt;img" in html


def test_a_value_that_a_template_lacks_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        render("preview.html", image="data:")


def test_text_between_asterisks_is_emphasised():
    assert "the word <em>x</em>." in error_html(RedreamError("the word *x*."))
    assert "2 * 3" in hint("2 * 3")


def test_a_picture_is_part_of_the_page(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert data_uri(tmp_path / "a.png") == "data:image/png;base64,eA=="
    assert data_uri(tmp_path / "a.jpg") == "data:image/jpeg;base64,eA=="


def test_durations_are_words():
    texts = [duration(seconds) for seconds in (-1.0, 37.6, 60.0, 3599.9, 7500.0)]
    assert texts == ["0 s", "38 s", "1 min 0 s", "1 h 0 min", "2 h 5 min"]


def test_a_queue_position_is_a_sentence():
    assert queue_status(1, None) == "Waiting for its turn: 1 run is before it"
    assert queue_status(3, 250.0) == "Waiting for its turn: 3 runs are before it, about 4 min 10 s"
