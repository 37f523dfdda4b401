"""What a person or a script is told when something cannot be done: always a sentence."""

import functools
import logging
from collections.abc import Callable

import gradio as gr

from redream import pipeline
from redream.screen.markup import problem


def sentence(error: Exception) -> str:
    """An error in words; one that was not foreseen goes to the log."""
    if pipeline.is_named(error):
        return str(error)
    logging.getLogger(__name__).error("A wish failed", exc_info=error)
    return "Something in this program went wrong. Try again; if it stays, its log says more."


def streaming(call: Callable) -> Callable:
    """A generator for scripts, which are told an error's sentence."""

    @functools.wraps(call)
    def told(*values):
        try:
            yield from call(*values)
        except ValueError as error:
            raise gr.Error(sentence(error), print_exception=False) from error

    return told


def answering(call: Callable) -> Callable:
    """The same for a function."""

    @functools.wraps(call)
    def answer(*values):
        try:
            return call(*values)
        except ValueError as error:
            raise gr.Error(sentence(error), print_exception=False) from error

    return answer


def saying(trouble: gr.HTML) -> Callable:
    """For events that yield updates: an error's sentence stands in `trouble`, and is gone when all is well."""

    def wrap(event: Callable) -> Callable:
        @functools.wraps(event)
        def said(*values):
            try:
                yield {trouble: gr.update(visible=False)}
                yield from event(*values)
            except ValueError as error:
                yield {trouble: gr.update(value=problem(sentence(error)), visible=True)}

        return said

    return wrap
