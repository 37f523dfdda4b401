"""Every command that README.md, CONTRIBUTING.md and docs/ name is run in small by a test, here or where `TESTED_BY` says.

Commands here are run as they are written, over the tiny stack and presets of few iterations; options that are appended
to them make them smaller still.
"""

import argparse
import ast
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from packaging.requirements import Requirement
from tiny_stack import TINY

from examples import differences
from examples.experiments import __main__ as experiments
from redream import cli
from redream.evaluation import sweep
from redream.runs.run import Run
from redream.settings import PRESETS, by_method
from redream.stack import benchmark
from redream.stack import stack as stacks

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = r"(?:\.venv/bin/)?(?:python3?|pip|curl|hf|ruff|lint-imports|pytest)"


def commands_of(text: str) -> list[str]:
    """Return the commands of a Markdown text: those of its code blocks, one by one, and those in its lines.

    Lines that go on with an indented one are joined; `a && b` are two commands; a Python block is one. Commands in the
    comments of a block count too.
    """
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    commands = [block.strip() for language, block in blocks if language == "python"]
    for _, block in (pair for pair in blocks if pair[0] in ("", "bash")):
        lines = re.sub(r"\n +", " ", block).splitlines()
        for part in (part for line in lines for part in line.split(" && ")):
            commands += re.findall(rf"(?:^|#.* )({PROGRAMS} .*)", part.strip())
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [*commands, *re.findall(rf"`({PROGRAMS} [^`]*)`", prose)]


DOCUMENTED = {file.name: list(dict.fromkeys(commands_of(file.read_text(encoding="utf-8")))) for file in DOCUMENTS}
COMMANDS = list(dict.fromkeys(command for commands in DOCUMENTED.values() for command in commands))
EVALUATIONS = [command for command in COMMANDS if command.startswith("python -m redream evaluate --")]
DIFFERENCES = [command for command in COMMANDS if command.startswith("python -m examples.differences ")]
USAGES = [command for command in COMMANDS if re.match(r"python -m redream \w+ .*[A-Z\[]", command) and "[" in command]

HERE = "tests/test_commands.py::"
RECIPE = "tests/assets_index/test_make_mini.py::"
SERVED = "tests/browser/test_readme.py::"
SPACE = "tests/examples/test_deploy_space.py::"
INDEX = "tests/cli/test_index_command.py::"
TESTED_BY = {  # a regular expression of whole commands → the test that runs them in small
    r"python3 -m venv \.venv": f"{HERE}test_the_second_set_up_of_the_readme_is_what_the_ci_runs",
    r"\.venv/bin/pip install -r requirements\.txt": f"{HERE}test_the_requirements_can_be_parsed",
    r"\.venv/bin/pip install .* -r requirements-dev\.txt": f"{HERE}test_the_requirements_can_be_parsed",
    r"\.venv/bin/python -m pytest": f"{HERE}test_the_second_set_up_of_the_readme_is_what_the_ci_runs",
    r"\.venv/bin/python -m pytest -m long": (
        f"{INDEX}test_two_thousand_records_of_objaverse_killed_at_random_and_ended_by_two_processes"
    ),
    r"\.venv/bin/python app\.py": f"{SERVED}test_the_curl_commands_of_the_readme_retrieve_assets",
    r"hf (auth login|repos create|upload)( .*)?": f"{SPACE}test_the_hf_commands_of_the_readme_do_the_same",
    r"curl .*": f"{SERVED}test_the_curl_commands_of_the_readme_retrieve_assets",
    r"from gradio_client import (.|\n)*": f"{SERVED}test_the_gradio_client_example_of_the_readme_makes_an_object",
    r"import redream\n(.|\n)*": f"{HERE}test_the_python_example_of_the_readme_runs",
    r"python -m redream \w+ .*\[.*": f"{HERE}test_the_usage_in_the_readme_names_all_options_of_the_command_line",
    r'python -m redream generate "a purple owl" --out my-owl': f"{HERE}test_an_object_is_made_resumed_and_looked_up",
    r"python -m redream benchmark": f"{HERE}test_the_benchmark_projects_the_presets_of_the_miniature",
    r"python -m redream benchmark --stack sd21 --flop": (
        "tests/cli/test_cli.py::test_benchmark_prints_a_table_or_one_json_object"
    ),
    r"python -m redream index build objaverse --min-score 1 .*": (
        f"{INDEX}test_two_thousand_records_of_objaverse_killed_at_random_and_ended_by_two_processes"
    ),
    r"python -m redream index (build|check \w+|push INDEX OWNER/NAME)": f"{INDEX}test_an_index_of_objaverse_is_built_checked_and_pushed",
    r"pip install -r requirements-ray\.txt": f"{HERE}test_the_requirements_can_be_parsed",
    r"python -m redream doctor": f"{HERE}test_doctor_names_a_stack",
    r"python -m redream doctor --run": f"{HERE}test_the_doctor_of_the_readme_makes_iterations",
    r"python -m redream doctor --online": (
        "tests/cli/test_cli.py::test_doctor_compares_a_stack_with_the_hub_a_line_for_each_fact"
    ),
    r"python -m redream setup sd21": (
        "tests/cli/test_cli.py::test_doctor_lists_the_files_that_a_stack_lacks_until_setup_has_fetched_them"
    ),
    r"python -m redream evaluate --(?!.*\[).*": f"{HERE}test_every_documented_evaluation_can_be_planned",
    r"python -m examples\.differences docs/results\.parquet .*": f"{HERE}test_every_documented_table_is_printed",
    r"python -m examples\.deploy_space redream": f"{SPACE}test_the_script_makes_a_zerogpu_space_and_uploads_what_the_app_needs",
    r"python -m examples\.experiments --help": f"{HERE}test_the_help_of_the_experiments_names_all_of_them",
    r"python -m assets_index\.make_mini all": f"{RECIPE}test_every_stage_goes_through_and_the_stack_it_makes_loads",
    r"python -m assets_index\.make_mini all --trial FOLDER": (
        f"{RECIPE}test_every_stage_goes_through_and_the_stack_it_makes_loads"
    ),
    r"python -m assets_index\.check_mini orientation": (
        "tests/assets_index/test_check_mini.py::test_orientation_finds_the_fronts_of_owls"
    ),
    r"ruff (check|format)": f"{HERE}test_ruff_is_a_tool_of_the_tests",
}
MODULES = {  # modules whose docstrings say how they are called → the test that runs them in small
    "redream": f"{HERE}test_an_object_is_made_resumed_and_looked_up",
    "assets_index.convert_objathor": (
        "tests/assets_index/test_convert_objathor.py::test_the_command_says_how_many_or_what_is_wrong"
    ),
    "assets_index.make_mini": f"{RECIPE}test_every_stage_goes_through_and_the_stack_it_makes_loads",
    "assets_index.check_mini": (
        "tests/assets_index/test_check_mini.py::test_the_command_line_runs_every_check_with_the_settings_of_the_preset"
    ),
    "examples.about": "tests/examples/test_about.py::test_the_about_pictures_are_made_of_a_finished_run",
    "examples.client_batch": "tests/examples/test_clients.py::test_the_batch_client_makes_continues_and_skips_objects",
    "examples.client_generate": "tests/examples/test_clients.py::test_the_client_prints_states_and_fetches_the_files",
    "examples.deploy_space": f"{SPACE}test_the_script_makes_a_zerogpu_space_and_uploads_what_the_app_needs",
    "examples.differences": f"{HERE}test_every_documented_table_is_printed",
    "examples.experiments": "tests/test_experiments.py::test_every_experiment_writes_a_picture_and_its_metrics",
}


# ---------------------------------------------------------------- every command has a test


def test_commands_are_found_in_blocks_usages_comments_and_lines():
    text = "Say `python -m a b`.\n```bash\n# note\npip install x && .venv/bin/python app.py\n# {}: curl -N http://a\n"
    text += "```\n```\npython -m c [-d]\n       [--e]\n```\n```python\nimport redream\n```\n```bibtex\npython\n```\n"
    expected = ["import redream", "pip install x", ".venv/bin/python app.py", "curl -N http://a"]
    assert commands_of(text) == [*expected, "python -m c [-d] [--e]", "python -m a b"]


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_every_documented_command_has_exactly_one_test_that_runs_it(command):
    tests = [test for pattern, test in TESTED_BY.items() if re.fullmatch(pattern, command)]
    assert len(tests) == 1, f"{command}: name the test that runs it in small in TESTED_BY"


def test_the_table_of_commands_names_no_command_that_is_gone():
    for pattern in TESTED_BY:
        assert any(re.fullmatch(pattern, command) for command in COMMANDS), pattern


@pytest.mark.parametrize("test", sorted({*TESTED_BY.values(), *MODULES.values()}))
def test_every_test_that_the_tables_name_exists(test):
    file, _, name = test.partition("::")
    functions = [node for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)]
    assert name in {function.name for function in functions}


def test_every_module_whose_docstring_names_its_command_exists_and_has_a_test():
    named = set()
    for file in (path for folder in ("redream", "assets_index", "examples") for path in (ROOT / folder).rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        named |= set(re.findall(r"python -m ([\w.]+)", docstring))
    assert named == set(MODULES)
    assert all(importlib.util.find_spec(name) for name in named)


# ---------------------------------------------------------------- set up


def test_the_second_set_up_of_the_readme_is_what_the_ci_runs():
    """.ci/run makes the environment, installs both lists of requirements and runs the tests, this one among them."""
    script = (ROOT / ".ci/run").read_text()
    assert re.search(r"^python3 -m venv .*\.venv$", script, flags=re.MULTILINE)
    assert re.search(r"^\.venv/bin/pip install .*-r requirements\.txt -r requirements-dev\.txt", script, re.MULTILINE)
    assert re.search(r"^\.venv/bin/python -m pytest", script, flags=re.MULTILINE)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "requirements-ray.txt"])
def test_the_requirements_can_be_parsed(name):
    lines = [line.partition(" #")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    requirements = [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]
    assert len({requirement.name for requirement in requirements}) == len(requirements) > 0


def test_ruff_is_a_tool_of_the_tests():
    assert re.search(r"^ruff\b", (ROOT / "requirements-dev.txt").read_text(), flags=re.MULTILINE)


# ---------------------------------------------------------------- python -m redream


@pytest.fixture
def tiny_world(tiny_stack, tmp_path, monkeypatch):
    """Make the tiny stack the one named "mini", with presets of two iterations, and an empty folder the working folder."""
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks/mini").symlink_to(tiny_stack)
    monkeypatch.setattr(stacks, "STACKS", tmp_path / "stacks")
    for name in ("mini", "mini-fast"):
        monkeypatch.setitem(PRESETS, name, by_method(TINY.with_(iterations=2)))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path / "runs"))
    return tmp_path / "work"


def run(command: str, *smaller: str) -> None:
    """Run a documented `python -m redream` command in this process, with options that make it smaller."""
    assert command in COMMANDS
    assert cli.main([*shlex.split(command)[3:], *smaller]) == 0


def test_an_object_is_made_resumed_and_looked_up(tiny_world, capsys):
    """README's first command, and the usages of `export`, `resume`, `retrieve` and `sample`."""
    run('python -m redream generate "a purple owl" --out my-owl')
    assert {"turntable-0.mp4", "mesh-0.glb", "scores.json"} <= {path.name for path in (tiny_world / "my-owl").iterdir()}
    capsys.readouterr()
    assert cli.main(["export", "my-owl", "--format", "stl", "--height-mm", "80"]) == 0
    assert "my-owl/mesh-0.stl: The STL is watertight" in capsys.readouterr().out
    assert cli.main(["export", "my-owl/mesh-0.glb", "--format", "usdz", "--out", "owl.usdz"]) == 0
    assert (tiny_world / "owl.usdz").is_file()
    assert cli.main(["resume", "my-owl", "--iterations", "1"]) == 0
    assert not (tiny_world / "my-owl/mesh-0.stl").exists()  # it was of another model
    assert Run.open("my-owl").read_json("record.json")["done"] == 3
    capsys.readouterr()
    assert cli.main(["retrieve", "a purple owl", "-k", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["assets"]) == 2
    assert cli.main(["sample", "a purple owl", "--view", "back", "-n", "1", "--out", "owl.png"]) == 0
    assert (tiny_world / "owl.png").is_file()


def test_doctor_names_a_stack(capsys):
    run("python -m redream doctor")
    assert capsys.readouterr().out.startswith("Stack: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="makes iterations of sd21 where there is CUDA")
def test_the_doctor_of_the_readme_makes_iterations(tiny_world, capsys):
    run("python -m redream doctor --run", "--iterations", "2")
    assert capsys.readouterr().out.splitlines()[-1].startswith("Pass")


def test_the_benchmark_projects_the_presets_of_the_miniature(tiny_world, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "FIT_STEPS", 2)
    run("python -m redream benchmark", "--iterations", "2")
    assert "mini-fast: 2 iterations" in capsys.readouterr().out


def test_the_evaluation_of_the_readme_makes_its_tables(tiny_world, capsys):
    (command,) = [command for command in EVALUATIONS if command in DOCUMENTED["README.md"]]
    (tiny_world / "prompts.txt").write_text("validation\ta red vase\ntest\ta purple owl\n")
    run(command, "--limit", "1", "--processes", "1", "--prompts", "prompts.txt")
    table = json.loads((tiny_world / "quick/table.json").read_text())
    assert [row["prompt"] for row in table["prompts"]] == ["a purple owl"]
    assert {name: row["missing"] for name, row in table["methods"].items()} == {"redream": 0, "vsd": 0, "sds": 0}


RESULTS = pd.read_parquet(ROOT / "docs/results.parquet")


@pytest.mark.parametrize("command", EVALUATIONS, ids=range(len(EVALUATIONS)))
def test_every_documented_evaluation_can_be_planned(command, tiny_stack, monkeypatch, capsys):
    """All of its options are understood, and where docs/results.parquet has the experiment, the prompts, methods and seeds
    are those of its rows."""
    planned = {}

    def evaluate(out, prompts, methods, seeds, *, settings, tuned, **more):
        planned.update(out=out, prompts=prompts, methods=methods, seeds=seeds, settings=settings, tuned=tuned)
        return iter(())

    monkeypatch.setattr(sweep, "evaluate", evaluate)
    monkeypatch.chdir(ROOT)
    run(command, "--processes", "1", "--stack", str(tiny_stack))
    assert planned["settings"] == PRESETS["mini-fast"]
    assert all(method in planned["methods"] for method in planned["tuned"])
    rows = RESULTS[RESULTS["experiment"] == planned["out"].name]
    if len(rows):
        assert set(rows["prompt"]) == {prompt.text for prompt in planned["prompts"]}
        assert set(rows["method"]) - {"truth"} == set(planned["methods"])
        assert set(rows["seed"].dropna()) == set(planned["seeds"])


def test_every_experiment_of_the_stored_results_has_its_command():
    folders = {shlex.split(command)[-1] for command in EVALUATIONS}
    assert set(RESULTS["experiment"]) <= folders


def test_the_usage_in_the_readme_names_all_options_of_the_command_line():
    """Both ways, for each command that has options, and for each part of one that has several."""
    documented = {usage: set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", usage)) for usage in USAGES}
    for name, parser in commands_with_parsers("", cli._parser()):
        shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
        options = {option for action in shown for option in action.option_strings} - {"-h", "--help"}
        usages = [found for usage, found in documented.items() if f"{usage} ".startswith(f"python -m redream{name} ")]
        assert set().union(*usages) - {"-m"} == options, name


def commands_with_parsers(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each command, as " index check", with its parser."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        yield name, parser
    for word, below in ((word, below) for action in nested for word, below in action.choices.items()):
        yield from commands_with_parsers(f"{name} {word}", below)


def test_the_python_example_of_the_readme_runs(tiny_world, capsys):
    (example,) = [command for command in COMMANDS if command.startswith("import redream\n")]
    exec(example, {})  # noqa: S102
    assert capsys.readouterr().out.splitlines()[-1].startswith("Finished(")
    assert (tiny_world / "my-owl/mesh-0.glb").is_file()


# ---------------------------------------------------------------- python -m examples


@pytest.mark.parametrize("command", DIFFERENCES, ids=range(len(DIFFERENCES)))
def test_every_documented_table_is_printed(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert differences.main(shlex.split(command)[3:]) == 0
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == 2 and all(len(table.splitlines()) > 2 for table in tables)


def test_the_help_of_the_experiments_names_all_of_them(capsys):
    with pytest.raises(SystemExit) as ended:
        experiments.main(["--help"])
    assert ended.value.code == 0
    described = re.findall(r"^([\w-]+) +(?:ReDream|PD|an |twenty|particles)", capsys.readouterr().out, re.MULTILINE)
    assert described == list(dict.fromkeys(described)) and set(described) == set(experiments.EXPERIMENTS)
