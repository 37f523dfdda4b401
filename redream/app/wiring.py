"""How Gradio events are wired, and how errors reach people and scripts: always as one sentence."""

import functools
import inspect
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import gradio as gr

from redream.app.components import render
from redream.errors import RedreamError

STREAMING = {"concurrency_limit": None, "show_progress": "hidden"}  # one worker makes runs, any number may follow them
PRIVATE = {"api_visibility": "private"}
# Other formats are made one after the other: each takes seconds of a core, and a file's name in a run's folder is the same
# for every visitor.
EXPORTING = {"concurrency_limit": 1, "concurrency_id": "export", "show_progress": "hidden"}
CHAINING_SECONDS = 1.0  # within which the page has begun the other event
UNQUEUED = {"queue": False, "show_progress": "hidden"} | PRIVATE
# For events that come again before they are answered: they are answered once more afterwards, where Gradio otherwise
# drops them. Not for what takes `gr.EventData`, of which Gradio gives the second answer none, nor for what must not be
# done twice by a double click.
RETRIGGER = {"trigger_mode": "always_last"}


def error_sentence(error: Exception) -> str:
    """A named error's message; any other error is logged, and a general sentence stands for it."""
    if isinstance(error, RedreamError):
        return str(error)
    logging.getLogger(__name__).error("An event failed", exc_info=error)
    return "Something in this program went wrong. Try again; if it stays, its log says more."


def error_html(error: Exception, more: str = "") -> str:
    """An error's sentence and a further one, as the page shows them."""
    return render("error.html", text=f"{error_sentence(error)} {more}".strip())


def error_box() -> gr.HTML:
    """The place of a tab's errors. It is always visible, at most empty: Gradio may lose one of two updates that come in
    the same moment and make something visible that was not."""
    return gr.HTML(elem_classes="error-box")


def reports_errors(error_box: gr.HTML, on_error: Mapping | None = None, clears: bool = True) -> Callable:
    """Decorate an event that yields updates: an error's sentence goes to `error_box`, together with the updates
    `on_error`. With `clears`, an earlier sentence is removed before the event runs."""

    def decorate(event: Callable) -> Callable:
        @functools.wraps(event)
        def reporting(*values):
            try:
                yield {error_box: "" if clears else gr.skip()}
                yield from event(*values)
            except Exception as error:  # noqa: BLE001 - whatever it was, the page says so
                yield {error_box: error_html(error), **(on_error or {})}

        return reporting

    return decorate


def raises_gradio_errors(call: Callable) -> Callable:
    """The same function or generator for scripts: its errors are `gr.Error`s with one sentence."""

    @functools.wraps(call)
    def function(*values):
        with _as_gradio_errors():
            return call(*values)

    @functools.wraps(call)
    def generator(*values):
        with _as_gradio_errors():
            yield from call(*values)

    return generator if inspect.isgeneratorfunction(call) else function


@contextmanager
def _as_gradio_errors() -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        raise gr.Error(error_sentence(error), print_exception=False) from error


def chained_updates(updates: Mapping) -> Iterator[dict]:
    """Updates at which the page begins another event. Gradio closes a page's stream of updates when its last event ends: if
    this one ended at once, a page that learns of that late, as behind a proxy, would wait for ever for the other one's
    updates, which it expects from the closed stream. At the end Gradio sends the last ones again: they are none, so that they
    replace nothing that was typed meanwhile."""
    yield dict(updates)
    time.sleep(CHAINING_SECONDS)
    yield {component: gr.skip() for component in updates}


def delayed_updates(updates: Mapping, viewer: gr.Model3D) -> Iterator[dict]:
    """All updates at once, then those of a 3D viewer alone: Gradio gives up loading the viewer's code if anything else is
    updated meanwhile, even the beginning or end of an event."""
    yield {**updates, viewer: gr.skip()}
    time.sleep(0.5)
    yield {viewer: updates[viewer]}
    time.sleep(2)
    yield {viewer: gr.skip()}
