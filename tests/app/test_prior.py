"""Samples of the prior, as the page shows them."""

import pytest
import torch
from tiny_stack import TINY

from redream import pipeline
from redream.app import prior
from redream.runs.events import Progress
from redream.runs.queue import Worker
from redream.settings import PRESETS, by_method
from redream.stack.vocabulary import PromptError


@pytest.fixture(autouse=True)
def short(monkeypatch, tmp_path):
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path))
    monkeypatch.setitem(PRESETS, "mini", by_method(TINY))


def test_the_views_are_equal_to_samples_of_each_view_alone(models):
    *updates, result = pipeline.prior_samples("a red owl", 2, settings=TINY, models=models)
    assert all(isinstance(event, Progress) for event in updates) and len(result.before) == len(result.after) == 5
    for step, view in ((0, "back"), (2, "side"), (4, "front")):
        for samples, adapt in ((result.before, False), (result.after, True)):
            alone = pipeline.sample("a red owl", view, adapt, 2, settings=TINY, models=models)
            torch.testing.assert_close(samples[step], alone, atol=1e-5, rtol=0)


def test_the_page_gets_status_lines_and_then_samples_of_all_views(models):
    *updates, (status, samples) = prior.samples_html(Worker(models, pipeline.generate, pipeline.resume), "a red owl")
    assert all(line and not early for line, early in updates) and "progressbar" in updates[0][0]
    assert (
        status == ""
        and [f"View: {view}<" in html for view, html in zip(prior.VIEWS, samples, strict=True)] == [True] * 5
    )
    assert "Adapting the model to the views" in str(updates)


def test_a_prompt_that_names_no_known_kind_is_refused_at_once(models):
    with pytest.raises(PromptError):
        next(prior.samples_html(Worker(models, pipeline.generate, pipeline.resume), "ironman"))


def test_sampling_the_views_ends_without_a_result_when_it_is_stopped(models):
    events = pipeline.prior_samples("a red owl", 1, models=models, stop=lambda: True)
    assert not any(isinstance(event, pipeline.BeforeAfter) for event in events)
