"""examples.differences: paired differences, apart for held-out prompts and for those whose colour the library has, and
the tables of docs/report.md, which are what its commands print."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from examples import differences
from redream.scoring.scores import SCORES

ROOT = Path(__file__).parent.parent
SHARED = dict.fromkeys(SCORES, 0.5)


def table(values, **more):
    """Rows of an evaluation: (method, prompt, seed) → CLIP a; the other scores are all alike."""
    rows = [
        {"prompt": prompt, "method": method, "seed": seed, "scorers": "present"} | SHARED | {"clip_a": value} | more
        for (method, prompt, seed), value in values.items()
    ]
    return pd.DataFrame(rows)


def save(path, rows):
    rows.to_parquet(path)
    return str(path)


def lines_of(text):
    return [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_held_out_prompts_stand_apart_and_files_count_together(tmp_path, capsys):
    """ReDream is .1 ahead with held-out prompts, .3 with others; seeds are averaged first; CLIP b is equal."""
    first = {("redream", "a purple owl", 0): 0.5, ("redream", "a purple owl", 1): 0.7, ("vsd", "a purple owl", 0): 0.5}
    first |= {("redream", "a blue cat", 0): 0.6, ("vsd", "a blue cat", 0): 0.5, ("vsd", "a red car", 0): 0.1}
    more = {(m, p, 0): 0.9 if m == "redream" else 0.6 for m in ("redream", "vsd") for p in ("a red owl", "a red cat")}
    files = [
        save(tmp_path / f"{name}.parquet", table(outcomes)) for name, outcomes in (("first", first), ("more", more))
    ]
    assert differences.main([*files, "--against", "vsd"]) == 0
    printed = {line[1]: line[2:5] for line in lines_of(capsys.readouterr().out) if line[0] == "vsd" and "," in line[1]}
    assert printed == {
        "all, 4": ["+.200 n = 4", "+.000 n = 4", "+.100 n = 4"],
        "held out, 2": ["+.100 n = 2", "+.000 n = 2", "+.050 n = 2"],
        "in the library, 2": ["+.300 n = 2", "+.000 n = 2", "+.150 n = 2"],
    }


def test_of_a_method_and_a_prompt_in_several_tables_the_last_one_counts_with_all_its_seeds():
    def rows(number, *printed):
        return pd.DataFrame([{"method": method, "prompt": prompt, "file": number} for method, prompt in printed])

    first, second = rows(1, ("a", "x"), ("a", "x"), ("b", "x"), ("a", "y")), rows(2, ("a", "x"), ("b", "y"), ("b", "y"))
    kept = differences.combine([first, second])
    assert kept.values.tolist() == [["b", "x", 1], ["a", "y", 1], ["a", "x", 2], ["b", "y", 2], ["b", "y", 2]]


def test_experiments_of_a_file_are_taken_in_the_named_order_and_seeds_are_chosen(tmp_path, capsys):
    values = {("redream", "a red owl", 0): 0.6, ("sds", "a red owl", 0): 0.5, ("sds", "a red owl", 1): 0.1}
    rows = [table(values, experiment="test"), table({("sds", "a red owl", 0): 0.3}, experiment="other")]
    file = save(tmp_path / "rows.parquet", pd.concat(rows, ignore_index=True))

    def difference(*options):
        assert differences.main([file, "--against", "sds", *options]) == 0
        return lines_of(capsys.readouterr().out)[-1][2]

    assert difference("--experiment", "test") == "+.300 n = 1"
    assert difference("--experiment", "test", "--seeds", "0") == "+.100 n = 1"
    assert difference("--experiment", "test,other") == "+.300 n = 1"
    assert difference("--experiment", "other,test", "--seeds", "0") == "+.100 n = 1"
    for options, sentence in (
        (["--experiment", "no"], "There is no experiment no; there are: other, test."),
        (["--against", "vsd"], "There are no results of vsd; there are: redream, sds."),
    ):
        with pytest.raises(SystemExit):
            differences.main([file, *options])
        assert sentence in capsys.readouterr().err


def test_scores_by_different_models_are_not_mixed(tmp_path, capsys):
    files = []
    for method, scorers in (("redream", "present"), ("vsd", "former"), ("vsd", "present")):
        rows = table({(method, "a red owl", 0): 0.5}).assign(scorers=scorers)
        files.append(save(tmp_path / f"{len(files)}.parquet", rows))
    with pytest.raises(SystemExit):
        differences.main([*files[:2], "--against", "vsd"])
    assert "different models" in capsys.readouterr().err
    assert differences.main([*files, "--against", "vsd"]) == 0  # the last file of a method and prompt counts


def test_a_prompt_counts_only_where_both_have_the_score():
    rows = [{"method": m, "prompt": p, "clip_a": v} for m, p, v in (("a", "x", 1.0), ("b", "x", 0.5), ("a", "y", 1.0))]
    rows = pd.DataFrame([*rows, {"method": "b", "prompt": "y", "clip_a": None}])
    means = differences.prompt_means(rows, "clip_a")
    assert differences.paired(means, "a", "b").to_dict() == {"x": 0.5}


REPORT = (ROOT / "docs/report.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python -m examples\.differences (.*)$", REPORT, flags=re.MULTILINE)


def test_every_row_of_the_reports_tables_is_what_its_commands_print(monkeypatch, capsys):
    """A row with scores, also one of the README, has its cells, in any order, from one printed line."""
    monkeypatch.chdir(ROOT)
    printed = []
    for command in COMMANDS:
        assert differences.main(shlex.split(command)) == 0
        printed += [{cell.strip("*") for cell in line} for line in lines_of(capsys.readouterr().out)]
    rows = [
        [cell.strip("*") for cell in line if re.match(r"\**[+−]?(\.|1\.0)\d", cell)]
        for line in lines_of(REPORT + README)
    ]
    rows = [row for row in rows if row]
    assert len(rows) > 20
    for row in rows:
        assert any(set(row) <= line for line in printed), row
