"""What the prior sees, as a page tells it; and what the page says about itself."""

import pytest
import torch
from tiny_stack import TINY

from redream import pipeline
from redream.app import about, prior
from redream.runs.events import Progress
from redream.runs.queue import Worker
from redream.scoring.scores import SCORES
from redream.settings import PRESETS, by_method
from redream.stack.vocabulary import PromptError


@pytest.fixture(autouse=True)
def short(monkeypatch, tmp_path):
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path))
    monkeypatch.setitem(PRESETS, "mini", by_method(TINY))


def test_the_sides_are_what_sampling_them_one_by_one_gives(models):
    *told, seen = pipeline.views("a red owl", 2, settings=TINY, models=models)
    assert [event.stage for event in told] == ["sampling", "learning the views", "learning the views", "sampling"]
    assert all(isinstance(event, Progress) for event in told) and len(seen.before) == len(seen.after) == 5
    for place, view in ((0, "back"), (2, "side"), (4, "front")):
        for pictures, adapt in ((seen.before, False), (seen.after, True)):
            own = pipeline.sample("a red owl", view, adapt, 2, settings=TINY, models=models)
            torch.testing.assert_close(pictures[place], own, atol=1e-5, rtol=0)


def test_a_page_is_told_how_far_it_is_and_at_last_all_five_sides(models):
    *told, (line, found) = prior.prior_samples(Worker(models), "a red owl")
    assert all(words and not nothing for words, nothing in told) and "progressbar" in told[0][0]
    assert line == "" and [name in html for name, html in zip(prior.NAMES, found, strict=True)] == [True] * 5
    with pytest.raises(PromptError):
        next(prior.prior_samples(Worker(models), "ironman"))


def test_it_ends_early_when_it_is_stopped(models):
    assert not any(
        isinstance(e, pipeline.BeforeAfter) for e in pipeline.views("a red owl", 1, models=models, stop=lambda: True)
    )


def test_the_page_about_itself_explains_every_score_and_says_what_it_runs_on(models):
    shown = about.page_html(models.stack, "There is no <CUDA> device.")
    assert all(score.label.replace("'", "&#x27;") in shown for score in SCORES.values())
    assert "tiny: There is no &lt;CUDA&gt; device." in shown and "torch" in shown
