"""What people ask for becomes settings and back."""

import pytest

from redream.app.form import MAX_OBJECTS, FormError, GenerationForm, known_words, max_iterations
from redream.settings import PRESETS
from redream.stack.stack import Stack


@pytest.mark.parametrize("name", PRESETS)
def test_a_wish_for_nothing_special_is_the_preset_and_settings_come_back_as_their_wish(name):
    preset = PRESETS[name]
    assert GenerationForm().settings(preset) == preset["redream"]
    for method in ("redream", "vsd", "sds"):
        wish = GenerationForm(method, True, method != "redream", 12, 2, 5, 33.0, method != "redream", 96)
        assert GenerationForm.of(wish.settings(preset), preset) == wish
        plain = GenerationForm.of(preset[method], preset)
        assert (
            plain.settings(preset) == preset[method] == GenerationForm(method).settings(preset)
            and plain.resolution == 0
        )


def test_the_switches_mean_nothing_without_assets_so_that_equal_runs_have_equal_settings():
    preset = PRESETS["mini"]
    assert GenerationForm("vsd", False, False, delta=False).settings(preset) == GenerationForm("vsd").settings(preset)
    assert GenerationForm("redream", False, False).settings(preset) != GenerationForm("redream").settings(preset)


def test_a_stack_with_a_vocabulary_says_what_it_can_be_asked_for(tiny_stack):
    said = known_words(Stack.load(tiny_stack, environ={}))
    assert said.startswith("The tiny model knows ") and "car, " in said and "; in " in said
    assert known_words(Stack.load("sd21", environ={})) is None


def test_one_visitor_gets_only_so_much():
    preset = PRESETS["mini"]
    with pytest.raises(FormError, match="limit here is 1,500"):
        GenerationForm(iterations=1501).settings(preset)
    with pytest.raises(FormError, match="limit here is 4"):
        GenerationForm(particles=5).settings(preset)
    largest = preset["redream"].with_(iterations=50_000, particles=8)
    assert GenerationForm.of(largest, preset).settings(preset).iterations == max_iterations(preset)
    assert GenerationForm.of(largest, preset).particles == MAX_OBJECTS
