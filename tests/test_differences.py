"""examples.differences: differences are paired over prompts, apart for what the library holds and what it does not."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from examples import differences
from redream.evaluation import tables
from redream.evaluation.tables import Outcome
from redream.scoring.scores import SCORES

SHARED = dict.fromkeys(SCORES, 0.5)


def results(path, values):
    """A file of an evaluation: (method, prompt, seed) → CLIP a."""
    outcomes = [
        Outcome(prompt, method, seed, path, scores=SHARED | {"clip_a": value})
        for (method, prompt, seed), value in values.items()
    ]
    pq.write_table(tables.as_rows(outcomes), path)
    return path


def test_what_the_library_holds_stands_apart_and_files_count_together(tmp_path, capsys):
    """ReDream is .1 ahead with held-out prompts, .3 with others; seeds are averaged first; CLIP b is equal."""
    first = {("redream", "a purple owl", 0): 0.5, ("redream", "a purple owl", 1): 0.7, ("vsd", "a purple owl", 0): 0.5}
    first |= {("redream", "a blue cat", 0): 0.6, ("vsd", "a blue cat", 0): 0.5, ("vsd", "a red car", 0): 0.1}
    more = {(m, p, 0): 0.9 if m == "redream" else 0.6 for m in ("redream", "vsd") for p in ("a red owl", "a red cat")}
    files = [str(results(tmp_path / f"{name}.parquet", own)) for name, own in (("first", first), ("more", more))]
    assert differences.main([*files, "--against", "vsd"]) == 0
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    found = {line[1]: line[2:5] for line in lines[2:]}
    assert found == {
        "all, 4": ["**+0.200 [0.100, 0.300]**", "+0.0000 [0.0000, 0.0000]", "**+0.100 [0.050, 0.150]**"],
        "held out, 2": ["**+0.100 [0.100, 0.100]**", "+0.0000 [0.0000, 0.0000]", "**+0.050 [0.050, 0.050]**"],
        "in the library, 2": ["**+0.300 [0.300, 0.300]**", "+0.0000 [0.0000, 0.0000]", "**+0.150 [0.150, 0.150]**"],
    }


def test_of_a_method_and_a_prompt_in_several_files_the_last_one_counts_with_all_its_seeds():
    def rows(number, *found):
        return [{"method": method, "prompt": prompt, "file": number} for method, prompt in found]

    first, second = rows(1, ("a", "x"), ("a", "x"), ("b", "x"), ("a", "y")), rows(2, ("a", "x"), ("b", "y"), ("b", "y"))
    kept = differences.together([first, second])
    assert kept == rows(1, ("b", "x"), ("a", "y")) + second


def test_scores_by_different_models_are_not_mixed(tmp_path, capsys):
    files = []
    for method, judges in (("redream", "present"), ("vsd", "former"), ("vsd", "present")):
        files.append(str(tmp_path / f"{len(files)}.parquet"))
        pq.write_table(
            tables.as_rows([Outcome("a red owl", method, 0, tmp_path, judges=judges, scores=SHARED)]), files[-1]
        )
    with pytest.raises(SystemExit):
        differences.main([*files[:2], "--against", "vsd"])
    assert "different models" in capsys.readouterr().err
    assert differences.main([*files, "--against", "vsd"]) == 0  # the last file of a method and prompt counts


def test_a_prompt_counts_only_where_both_have_the_score():
    rows = [{"method": m, "prompt": p, "clip_a": v} for m, p, v in (("a", "x", 1.0), ("b", "x", 0.5), ("a", "y", 1.0))]
    rows += [{"method": "b", "prompt": "y", "clip_a": None}]
    assert differences.differences(rows, "a", "b", ["clip_a"]).tolist() == [0.5]
    assert differences.cell(np.array([0.5]), 0.95) == "–"


def test_a_higher_level_has_a_wider_interval():
    values = np.random.default_rng(0).normal(0.0, 1.0, 40)
    widths = [found.high - found.low for found in (tables.bootstrap(values, level) for level in (0.5, 0.95, 0.971))]
    assert widths[1] == pytest.approx(widths[0] * 1.960 / 0.674, rel=0.05)
    assert widths[2] == pytest.approx(widths[1] * 2.183 / 1.960, rel=0.05)
