"""The form's values become settings, and settings become the form's values again."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from redream import pipeline
from redream.app.form import (
    MAX_OBJECTS,
    FormError,
    GenerationForm,
    estimate,
    fitting,
    max_iterations,
    preset_of,
    timed_forms,
    vocabulary_help,
    with_estimate,
)
from redream.runs.queue import Worker
from redream.runs.schedule import ScheduleError
from redream.settings import PRESETS
from redream.stack.models import Models
from redream.stack.stack import Stack


@pytest.mark.parametrize("name", PRESETS)
def test_an_empty_form_gives_the_preset(name):
    preset = PRESETS[name]
    assert GenerationForm().settings(preset) == preset["redream"]
    for method in ("redream", "vsd", "sds"):
        assert GenerationForm(method).settings(preset) == preset[method]


@pytest.mark.parametrize("name", PRESETS)
def test_settings_give_back_the_form_they_were_made_from(name):
    preset = PRESETS[name]
    for method in ("redream", "vsd", "sds"):
        form = GenerationForm(method, True, method != "redream", 12, 2, 5, 33.0, method != "redream", 96)
        assert GenerationForm.of(form.settings(preset), preset) == form
        default = GenerationForm.of(preset[method], preset)
        assert default.settings(preset) == preset[method] and default.resolution == 0


def test_the_switches_mean_nothing_without_assets_so_that_equal_runs_have_equal_settings():
    preset = PRESETS["mini"]
    assert GenerationForm("vsd", False, False, delta=False).settings(preset) == GenerationForm("vsd").settings(preset)
    assert GenerationForm("redream", False, False).settings(preset) != GenerationForm("redream").settings(preset)


def test_iterations_bring_their_adaptation_steps_and_a_step_of_the_resolution_is_the_last_one():
    settings = GenerationForm(iterations=5000, resolution=256).settings(PRESETS["sd21"])
    assert settings.adaptation.steps == 250
    assert settings.rendering.resolutions == ((0.0, 64), (0.2, 128), (0.4, 256))
    assert GenerationForm.of(settings, PRESETS["sd21"]).resolution == 256


class Eta:
    """Knows that an iteration takes a tenth of a second, one at 512 px two seconds, and everything else ten."""

    def seconds(self, settings):
        at_512 = sum(1 - start for start, pixels in settings.rendering.resolutions if pixels == 512)
        return 10 + settings.iterations * (0.1 + 1.9 * at_512)


def worker_of(stack: str, eta) -> Worker:
    worker = Worker(Models.load(Stack.load(stack, environ={}), "cpu"), pipeline.generate, pipeline.resume)
    worker.eta = eta
    return worker


@pytest.mark.parametrize("stack", ["mini", "sd21"])
def test_quick_and_long_take_half_and_twice_the_time_of_the_preset_which_is_normal(stack):
    worker = worker_of(stack, Eta())
    preset = preset_of(worker)
    forms = timed_forms(GenerationForm(seed=5), worker)
    assert forms["Normal"].settings(preset) == preset["redream"].with_(seed=5)
    quick, normal, long = (worker.eta.seconds(form.settings(preset)) for form in forms.values())
    assert quick == pytest.approx(normal / 2, rel=0.01) and long == pytest.approx(2 * normal, rel=0.01)
    for form in forms.values():  # as the page sees it when it fills the form with the run
        assert timed_forms(GenerationForm.of(form.settings(preset), preset), worker) == {
            name: replace(other, guidance=0.0) for name, other in forms.items()
        }


def test_times_are_in_proportion_of_iterations_while_nothing_is_known():
    worker = worker_of("mini", SimpleNamespace(seconds=lambda settings: None))
    assert [form.iterations for form in timed_forms(GenerationForm(), worker).values()] == [150, 300, 600]
    assert estimate(worker, [PRESETS["mini"]["redream"]]) == "" and with_estimate("Create", "") == "Create"


def test_a_time_from_outside_is_kept_within_the_limits_of_a_visitor():
    worker, settings = worker_of("mini", Eta()), PRESETS["mini"]["redream"]
    assert fitting(settings, 0.5, worker).iterations == 200
    assert fitting(settings, 1e6, worker).iterations == max_iterations(PRESETS["mini"])
    with pytest.raises(ScheduleError, match="too short"):
        fitting(settings, 0.2, worker)


def test_a_stack_with_a_vocabulary_names_its_kinds_and_colours(tiny_stack):
    sentence = vocabulary_help(Stack.load(tiny_stack, environ={}))
    assert sentence.startswith("The tiny model knows ") and "car, " in sentence and "; in " in sentence
    assert vocabulary_help(Stack.load("sd21", environ={})) is None


def test_a_visitor_has_limits_of_iterations_and_objects():
    preset = PRESETS["mini"]
    with pytest.raises(FormError, match="limit here is 1,500"):
        GenerationForm(iterations=1501).settings(preset)
    with pytest.raises(FormError, match="limit here is 4"):
        GenerationForm(particles=5).settings(preset)
    largest = preset["redream"].with_(iterations=50_000, particles=8)
    assert GenerationForm.of(largest, preset).settings(preset).iterations == max_iterations(preset)
    assert GenerationForm.of(largest, preset).particles == MAX_OBJECTS
