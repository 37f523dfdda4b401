"""What scripts call says what it does: every parameter is described."""

import inspect

import pytest
from gradio.utils import get_function_description

from redream.app.api import Endpoints

CALLS = ("retrieve", "generate", "resume", "stop", "scores")


@pytest.mark.parametrize("name", CALLS)
def test_every_call_and_each_of_its_parameters_is_described(name):
    call = getattr(Endpoints, name)
    description, parameters, _ = get_function_description(call)
    assert len(description) > 20 and set(parameters) == set(inspect.signature(call).parameters)
    assert [name for name, words in parameters.items() if not words] == ["self"]
