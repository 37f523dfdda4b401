"""How events are wired and answered: what cannot be done is always told in a sentence."""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import gradio as gr

from redream.app.components import problem
from redream.errors import RedreamError

STREAMING = {"concurrency_limit": None, "show_progress": "hidden"}  # one worker makes the runs, any number may look on
PRIVATE = {"api_visibility": "private"}
UNQUEUED = {"queue": False, "show_progress": "hidden"} | PRIVATE
# For events that come again before they are answered: they are answered once more afterwards, where Gradio otherwise
# drops them. Not for what takes `gr.EventData`, of which Gradio gives the second answer none, nor for what must not be
# done twice by a double click.
RETRIGGER = {"trigger_mode": "always_last"}


def sentence(error: Exception) -> str:
    """An error in words; one that was not foreseen goes to the log."""
    if isinstance(error, RedreamError):
        return str(error)
    logging.getLogger(__name__).error("A wish failed", exc_info=error)
    return "Something in this program went wrong. Try again; if it stays, its log says more."


def error_html(error: Exception, more: str = "") -> str:
    """The sentence, and what `more` there is to say, as a page shows it."""
    return problem(f"{sentence(error)} {more}".strip())


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        raise gr.Error(sentence(error), print_exception=False) from error


def answering(call: Callable) -> Callable:
    """A function for scripts, which are told an error's sentence."""

    @functools.wraps(call)
    def answer(*values):
        with _told():
            return call(*values)

    return answer


def streaming(call: Callable) -> Callable:
    """The same for a generator."""

    @functools.wraps(call)
    def stream(*values):
        with _told():
            yield from call(*values)

    return stream


def reports_errors(error_box: gr.HTML, otherwise: Mapping | None = None, clears: bool = True) -> Callable:
    """For events that yield updates: an error's sentence stands in `error_box`, and with it come the updates `otherwise`.
    Before anything else an earlier sentence is taken away, if it `clears`.

    `error_box` is always visible, at most empty: Gradio may lose one of two updates that come in the same moment and make
    something visible that was not."""

    def wrap(event: Callable) -> Callable:
        @functools.wraps(event)
        def said(*values):
            try:
                yield {error_box: "" if clears else gr.skip()}
                yield from event(*values)
            except Exception as error:  # noqa: BLE001 - whatever it was, a person is told
                yield {error_box: error_html(error), **(otherwise or {})}

        return said

    return wrap


def delayed_updates(updates: Mapping, viewer: gr.Model3D) -> Iterator[dict]:
    """Updates of a page that an event shows at once, those of a 3D viewer by themselves: Gradio gives up loading its code
    if anything else is told to it meanwhile, also that the event has begun or ended."""
    yield {**updates, viewer: gr.skip()}
    time.sleep(0.5)
    yield {viewer: updates[viewer]}
    time.sleep(2)
    yield {viewer: gr.skip()}
