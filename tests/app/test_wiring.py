"""Whatever goes wrong, a person or a script is told a sentence."""

import gradio as gr
import pytest

from redream.app.wiring import answering, reports_errors, streaming
from redream.stack.vocabulary import PromptError

UNFORESEEN = "Something in this program went wrong."


@pytest.mark.parametrize(
    ("error", "said"),
    [(PromptError("The prompt is empty."), "The prompt is empty."), (RuntimeError("x=3"), UNFORESEEN)],
)
def test_scripts_and_pages_are_told_a_sentence(error, said):
    def fail(*values):
        raise error

    def begin_and_fail(*values):
        yield {"a": 1}
        raise error

    with pytest.raises(gr.Error, match=said):
        answering(fail)()
    with pytest.raises(gr.Error, match=said):
        list(streaming(begin_and_fail)())
    error_box = gr.HTML()
    told = list(reports_errors(error_box, {"button": "back"})(begin_and_fail)())
    assert told[1] == {"a": 1} and said in told[-1][error_box] and told[-1]["button"] == "back"
    assert "x=3" not in str(told)


def test_what_went_well_takes_the_sentence_away():
    error_box = gr.HTML()
    assert list(reports_errors(error_box)(lambda: iter([{"a": 1}]))()) == [{error_box: ""}, {"a": 1}]
    by_itself = reports_errors(error_box, clears=False)(lambda: iter([{"a": 1}]))
    assert list(by_itself()) == [{error_box: gr.skip()}, {"a": 1}]
