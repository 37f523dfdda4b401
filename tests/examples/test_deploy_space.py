"""examples.deploy_space and the README's `hf` commands against a Hub that only takes notes."""

import re
import shlex
import subprocess
from pathlib import Path

import httpx
from huggingface_hub.cli import hf, repos, upload
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import filter_repo_objects

from examples import deploy_space
from redream.stack.inventory import files_in
from redream.stack.stack import Stack

ROOT = Path(__file__).parents[2]
NEEDED = (
    "app.py",
    "README.md",
    "requirements.txt",
    "packages.txt",
    "redream/app/zerogpu.py",
    "redream/app/static/page.css",
)
NEEDED += ("assets_index/mini/stack.json", "assets_index/sd21/stack.json", "examples/page.jpg")


class Address(str):
    repo_id = "ann/redream"


class FakeHub:
    """`HfApi`'s methods that make a Space; `calls` are their names and arguments."""

    def __init__(self, token=None):
        self.token, self.calls = token, []

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", repo_id, options))
        return Address("https://huggingface.co/spaces/ann/redream")

    def upload_folder(self, **options):
        self.calls.append(("upload_folder", options))


def uploaded(ignore_patterns) -> set[str]:
    """The files of this checkout, with some that are no part of it, that an upload would take."""
    tracked = subprocess.run(["git", "ls-files"], check=True, cwd=ROOT, capture_output=True, text=True).stdout.split()
    others = [".venv/bin/python", "runs/run-ABCDEFGHIJKLMNOP/settings.json"]
    return set(filter_repo_objects([*tracked, *NEEDED, *others], ignore_patterns=ignore_patterns))


def test_the_script_makes_a_zerogpu_space_and_uploads_what_the_app_needs(monkeypatch, capsys):
    hubs = []
    monkeypatch.setattr(deploy_space, "HfApi", lambda token: hubs.append(FakeHub(token)) or hubs[0])
    assert deploy_space.main(["redream", "--token", "hf_x", "--private"]) == 0
    (_, name, options), (_, upload) = hubs[0].calls
    assert (hubs[0].token, name, options["space_sdk"], options["space_hardware"]) == (
        "hf_x",
        "redream",
        "gradio",
        "zero-a10g",
    )
    assert options["exist_ok"] and options["private"] and options["repo_type"] == upload["repo_type"] == "space"
    assert (upload["repo_id"], upload["folder_path"]) == ("ann/redream", ROOT)
    files = uploaded(upload["ignore_patterns"])
    assert files.issuperset(NEEDED)
    assert not [file for file in files if file.startswith((".venv", "runs/", "tests/"))]
    assert capsys.readouterr().out.startswith("https://huggingface.co/spaces/ann/redream is being built")


def test_a_refusal_of_the_hub_ends_the_script_with_its_sentence(monkeypatch, capsys):
    def refuse(self, repo_id, **options):
        response = httpx.Response(403, request=httpx.Request("POST", "https://huggingface.co/api/repos/create"))
        raise HfHubHTTPError("403 Forbidden: ZeroGPU needs a verified account.", response=response)

    monkeypatch.setattr(deploy_space, "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "create_repo", refuse)
    assert deploy_space.main(["redream"]) == 2
    assert "ZeroGPU needs a verified account" in capsys.readouterr().err


def test_a_hub_that_does_not_answer_ends_the_script_with_a_sentence(hub_server, capsys):
    hub_server.stop()
    assert deploy_space.main(["ann/redream", "--token", "hf_x"]) == 2
    assert capsys.readouterr().err == (
        "The Space was not made. The Hub did not answer; check the network and try again.\n"
    )


def test_the_readme_names_the_files_that_a_space_can_fetch_for_sd21_with_the_commits_that_are_pinned():
    """A commit where there is none in stack.json would write no reference from main to it, and all would count as missing."""
    stack, lines = Stack.load("sd21", environ={}), []
    for name in ("prior", "clips.retrieval", "clips.a", "clips.b"):
        entry = stack.entry(name)
        files = ",".join(file.name for file in files_in(None, name, entry))
        commit = f" {entry.revision}" if re.fullmatch("[0-9a-f]{40}", entry.revision) else ""
        lines.append(f"  - {entry.source} {files}{commit}\n")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"```yaml\npreload_from_hub:\n{''.join(lines)}```" in readme


def test_the_hf_commands_of_the_readme_do_the_same(monkeypatch):
    """`hf auth login` asks questions: only its help is read."""
    hub = FakeHub()
    for module in (repos, upload):
        monkeypatch.setattr(module, "get_hf_api", lambda token=None: hub)
    monkeypatch.setattr(hf, "check_cli_update", lambda package: None)
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"^hf .*", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command)
        monkeypatch.setattr("sys.argv", [*words, "--help"] if words[1:] == ["auth", "login"] else words)
        try:
            hf.main()
        except SystemExit as ended:
            assert not ended.code, command
    created, again, uploading = hub.calls
    assert (
        created[1] == "redream" and created[2]["space_hardware"] == "zero-a10g" and created[2]["space_sdk"] == "gradio"
    )
    assert again[2]["exist_ok"] and uploading[1]["repo_id"] == "ann/redream" and uploading[1]["repo_type"] == "space"
    files = uploaded(uploading[1]["ignore_patterns"])
    assert files.issuperset(NEEDED) and not [file for file in files if file.startswith((".venv", "runs/"))]
