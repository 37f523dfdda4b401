"""Errors reach people and scripts as one sentence."""

import gradio as gr
import pytest

from redream.app.wiring import raises_gradio_errors, reports_errors
from redream.stack.vocabulary import PromptError

UNFORESEEN = "Something in this program went wrong."
ERRORS = [(PromptError("The prompt is empty."), "The prompt is empty."), (RuntimeError("x=3"), UNFORESEEN)]


@pytest.mark.parametrize(("error", "sentence"), ERRORS)
def test_scripts_get_an_errors_sentence(error, sentence):
    def fail(*values):
        raise error

    def start_and_fail(*values):
        yield {"a": 1}
        raise error

    with pytest.raises(gr.Error, match=sentence):
        raises_gradio_errors(fail)()
    with pytest.raises(gr.Error, match=sentence):
        list(raises_gradio_errors(start_and_fail)())


@pytest.mark.parametrize(("error", "sentence"), ERRORS)
def test_the_error_box_gets_an_errors_sentence_together_with_further_updates(error, sentence):
    def start_and_fail(*values):
        yield {"a": 1}
        raise error

    error_box = gr.HTML()
    updates = list(reports_errors(error_box, {"button": "back"})(start_and_fail)())
    assert updates[1] == {"a": 1} and sentence in updates[-1][error_box] and updates[-1]["button"] == "back"
    assert "x=3" not in str(updates)


def test_an_event_clears_the_error_box_first_unless_it_is_set_not_to():
    def event():
        yield {"a": 1}

    error_box = gr.HTML()
    assert list(reports_errors(error_box)(event)()) == [{error_box: ""}, {"a": 1}]
    assert list(reports_errors(error_box, clears=False)(event)()) == [{error_box: gr.skip()}, {"a": 1}]
