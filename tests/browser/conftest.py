"""Fixtures for what talks to the running app."""

import pytest
from served import serving


@pytest.fixture(scope="module")
def app(tiny_stack, tmp_path_factory):
    """The app's address, and the folder of its runs."""
    folder = tmp_path_factory.mktemp("runs")
    with serving(tiny_stack, folder, tmp_path_factory.mktemp("gradio")) as address:
        yield address, folder
