"""Endpoints describe themselves and each of their parameters to clients."""

import inspect

import pytest
from gradio.utils import get_function_description

from redream.app.api import Endpoints


@pytest.mark.parametrize("name", ["retrieve", "generate", "resume", "stop", "scores"])
def test_every_endpoint_and_each_of_its_parameters_is_described(name):
    call = getattr(Endpoints, name)
    description, parameters, _ = get_function_description(call)
    assert len(description) > 20 and set(parameters) == set(inspect.signature(call).parameters)
    assert [name for name, text in parameters.items() if not text] == ["self"]
