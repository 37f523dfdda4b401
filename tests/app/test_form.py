"""The form's values become settings, and settings become the form's values again."""

import pytest

from redream.app.form import MAX_OBJECTS, FormError, GenerationForm, max_iterations, vocabulary_help
from redream.settings import PRESETS
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
