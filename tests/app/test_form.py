"""What people ask for becomes settings and back."""

import pytest

from redream.app.form import MOST_OBJECTS, Wish, WishError, known_words, most_iterations
from redream.settings import PRESETS
from redream.stack.stack import Stack


@pytest.mark.parametrize("name", PRESETS)
def test_a_wish_for_nothing_special_is_the_preset_and_settings_come_back_as_their_wish(name):
    preset = PRESETS[name]
    assert Wish().settings(preset) == preset["redream"]
    for method in ("redream", "vsd", "sds"):
        wish = Wish(method, True, method != "redream", 12, 2, 5, 33.0, method != "redream", 96)
        assert Wish.of(wish.settings(preset), preset) == wish
        plain = Wish.of(preset[method], preset)
        assert plain.settings(preset) == preset[method] == Wish(method).settings(preset) and plain.resolution == 0


def test_the_switches_mean_nothing_without_assets_so_that_equal_runs_have_equal_settings():
    preset = PRESETS["mini"]
    assert Wish("vsd", False, False, delta=False).settings(preset) == Wish("vsd").settings(preset)
    assert Wish("redream", False, False).settings(preset) != Wish("redream").settings(preset)


def test_a_stack_with_a_vocabulary_says_what_it_can_be_asked_for(tiny_stack):
    said = known_words(Stack.load(tiny_stack, environ={}))
    assert said.startswith("The tiny model knows ") and "car, " in said and "; in " in said
    assert known_words(Stack.load("sd21", environ={})) is None


def test_one_visitor_gets_only_so_much():
    preset = PRESETS["mini"]
    with pytest.raises(WishError, match="limit here is 1,500"):
        Wish(iterations=1501).settings(preset)
    with pytest.raises(WishError, match="limit here is 4"):
        Wish(particles=5).settings(preset)
    largest = preset["redream"].with_(iterations=50_000, particles=8)
    assert Wish.of(largest, preset).settings(preset).iterations == most_iterations(preset)
    assert Wish.of(largest, preset).particles == MOST_OBJECTS
