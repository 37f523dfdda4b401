"""The README's snippets for programs, run as they are written against the served app."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:7860"

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_curl_commands_of_the_readme_retrieve_assets(app):
    """The first one returns an event's id, the second one, in a comment below it, the event's data."""
    post, get = (
        command.replace(ADDRESS, app[0]) for command in re.findall(r"(?:^|: )(curl .*)$", README, re.MULTILINE)
    )
    event = json.loads(_run(post))["event_id"]
    data = re.search(r"^data: (.*)$", _run(get.replace("/ID", f"/{event}")), re.MULTILINE)[1]
    assert len(json.loads(data)[0]) == 3


def test_the_gradio_client_example_of_the_readme_makes_an_object(app):
    (example,) = re.findall(r"^```python\n(from gradio_client .*?)^```", README, re.MULTILINE | re.DOTALL)
    variables = {}
    exec(example.replace(ADDRESS, app[0]), variables)  # noqa: S102
    assert variables["state"]["done"] == 1 and variables["state"]["scores"]
    assert Path(variables["turntables"][0]).suffix == ".mp4" and Path(variables["models"][0]).suffix == ".glb"


def _run(command: str) -> str:
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True, timeout=60).stdout
