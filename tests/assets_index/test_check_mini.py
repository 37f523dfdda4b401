"""The checks of the miniature, each in small on the shipped models."""

import re

import pytest

from assets_index import check_mini
from redream.settings import PRESETS
from redream.stack.models import Models


@pytest.fixture(scope="module")
def models(mini):
    return Models.load(mini, "cpu")


SHORT = PRESETS["mini"]["redream"].with_(adaptation={"steps": 2, "views": 6, "batch": 2})


def test_retrieval_finds_the_right_kind_first(models, tmp_path, capsys):
    check_mini.retrieval(models, SHORT, tmp_path, limit=4)
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("prompts: 4") and len(rows) == 4
    assert all(int(re.search(r"right kind first (\d)", row)[1]) >= 3 for row in rows)


def test_orientation_finds_the_fronts_of_owls(models, tmp_path, capsys):
    """The table begins with owls."""
    check_mini.orientation(models, SHORT, tmp_path, limit=3)
    assert capsys.readouterr().out == "assets with a front: 3 {'right': 1.0}\n"


def test_samples_of_the_prior_show_the_kind_that_the_prompt_names(models, tmp_path, capsys):
    check_mini.prior(models, SHORT, tmp_path, limit=4)
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 and all(float(re.search(r", kind ([.0-9]+);", row)[1]) >= 0.5 for row in rows)
    assert (tmp_path / "prior-samples.png").is_file()


@pytest.mark.long
def test_views_before_and_after_adaptation_are_reported_for_both_clips(models, tmp_path, capsys):
    check_mini.adaptation(models, SHORT, tmp_path, limit=1)
    fractions = dict(row.split(": obeyed ") for row in capsys.readouterr().out.splitlines())
    assert len(fractions) == 3 * 2 * 2 and all(0 <= float(value) <= 1 for value in fractions.values())
    assert float(fractions["front view before, CLIP a"]) > 0.5
    assert {file.name for file in tmp_path.iterdir()} == {"adaptation-before.png", "adaptation-after.png"}


@pytest.mark.parametrize("check", check_mini.CHECKS)
def test_the_command_line_runs_every_check_with_the_settings_of_the_preset(check, tmp_path, monkeypatch):
    options = []
    monkeypatch.setitem(check_mini.CHECKS, check, lambda *arguments: options.append(arguments))
    check_mini.main([check, "--limit", "2", "--out", str(tmp_path / "new")])
    ((_, settings, out, limit),) = options
    assert settings == PRESETS["mini"]["redream"]
    assert out == tmp_path / "new" and out.is_dir() and limit == 2
