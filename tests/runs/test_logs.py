"""The log: a line for each event with the run's id; what people wrote stands in it only if that is asked for."""

import argparse
import logging
import sys

import pytest
from tiny_stack import TINY

from redream.cli.common import add_log_options, configure_log
from redream.runs.events import Artefact, Failed, Finished, Preview, Progress, Started, Warned
from redream.runs.run import Request, Run

EVENTS = [
    Started("/runs/run-x", "a secret owl", TINY, 0, 4),
    Warned("It does not know the word *secret*."),
    Progress("distillation", 1, 4, 2.5, {"score": 1.0}),
    Preview("preview/1.png", 1, 0, 30.0, 0.2),
    Artefact("mesh", 0, "mesh-0.glb"),
    Failed("The disk is full."),
    Finished(stopped=False),
]


@pytest.fixture(autouse=True)
def package_logger():
    package = logging.getLogger("redream")
    before = package.level
    yield
    package.handlers, package.propagate = [], True
    package.setLevel(before)


def logged(tmp_path, capsys, *words: str) -> list[str]:
    parser = argparse.ArgumentParser()
    add_log_options(parser)
    configure_log(parser.parse_args(words))
    run = Run.create(Request("a secret owl", TINY, "tiny", {}), tmp_path / "run-x")
    for event in EVENTS:
        run.log(event)
    return capsys.readouterr().err.splitlines()


def test_each_event_is_one_line_with_the_runs_id_and_without_the_prompt(tmp_path, capsys):
    lines = logged(tmp_path, capsys, "--log-level", "info")
    assert [line.split()[2:5] for line in lines] == [
        ["INFO", "run-x", name] for name in ("started", "warned", "artefact", "failed", "finished")
    ]
    assert "secret" not in str(lines)
    assert lines[0].endswith("started iteration=0 total=4") and lines[3].endswith('sentence="The disk is full."')


def test_a_line_is_written_once_whatever_a_library_does_with_the_root_logger(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(sys.stderr)])
    assert len(logged(tmp_path, capsys, "--log-level", "info")) == 5


def test_frequent_events_are_logged_at_the_level_debug(tmp_path, capsys):
    lines = logged(tmp_path, capsys, "--log-level", "debug")
    assert len(lines) == len(EVENTS)
    assert lines[2].endswith('progress stage="distillation" iteration=1 total=4 seconds_left=2.5')


def test_prompts_are_logged_if_that_is_asked_for(tmp_path, capsys):
    lines = logged(tmp_path, capsys, "--log-level", "info", "--log-prompts")
    assert lines[0].endswith('"a secret owl"') and "*secret*" in lines[1]


def test_without_the_option_there_is_no_log(tmp_path, capsys):
    assert logged(tmp_path, capsys) == []
