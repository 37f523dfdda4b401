"""Outcomes become means, paired differences and intervals that cover the mean as often as they claim."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from redream.evaluation import tables
from redream.evaluation.tables import Outcome, estimate
from redream.evaluation.trials import METHODS


@pytest.mark.parametrize(("count", "level"), [(10, 0.95), (25, 0.95), (10, 0.8)])
def test_the_interval_covers_the_true_mean_as_often_as_its_level_says(count, level):
    """Of normal values the t interval's coverage is exact; 1,500 draws separate .95 from the .91 to .93 of a percentile
    bootstrap (three standard errors are .017)."""
    samples = np.random.default_rng(5).normal(3.0, 2.0, (1500, count))
    summary = [estimate(pd.Series(sample), level) for sample in samples]
    covered = np.mean([one.low <= 3.0 <= one.high for one in summary])
    assert covered == pytest.approx(level, abs=3 * (level * (1 - level) / 1500) ** 0.5)


def test_the_interval_is_the_closed_form():
    """1 … 10: m = 5.5, s² = 110/12, and t(.975; 9) = 2.262157 from the table: 5.5 ± 2.262157 √(110/12/10)."""
    summary = estimate(pd.Series(np.arange(1.0, 11.0)))
    half = 2.262157 * (110 / 12 / 10) ** 0.5
    assert summary == pytest.approx((10, 5.5, 5.5 - half, 5.5 + half), rel=1e-6)
    assert summary.excludes_zero


def test_a_higher_level_has_a_wider_interval_by_the_quantiles_of_t():
    """t(.975; 24) = 2.063899 and t(.995; 24) = 2.796940."""
    values = pd.Series(np.random.default_rng(0).normal(0.0, 1.0, 25))
    narrow, wide = (estimate(values, level) for level in (0.95, 0.99))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2.796940 / 2.063899, rel=1e-6)


def test_below_ten_prompts_there_is_a_mean_and_no_interval():
    assert estimate(pd.Series([0.5] * 4 + [1.0] * 5)) == (9, pytest.approx(7 / 9), None, None)
    assert estimate(pd.Series([1.0])).excludes_zero is None


def test_equal_values_have_an_interval_without_width():
    assert estimate(pd.Series([0.25] * 10)) == (10, 0.25, 0.25, 0.25)
    assert estimate(pd.Series([0.0] * 10)).excludes_zero is False


def outcome(method: str, prompt: str, value: float | None, seed: int = 0) -> Outcome:
    scores, failure = ({}, "It broke.") if value is None else ({"clip_a": value}, None)
    return Outcome(prompt, method, seed, Path(f"{prompt}-{seed}"), scores=scores, failure=failure)


def test_pairs_are_compared_over_the_prompts_both_have_with_seeds_averaged_first():
    """vsd is redream + 0.1 on every prompt, however different prompts are: pairs differ surely, the means do not."""
    base = np.linspace(0.1, 0.9, 12)
    outcomes = [
        outcome("redream", f"p{i}", float(v) + d, seed)
        for i, v in enumerate(base)
        for seed, d in ((0, -0.05), (1, 0.05))
    ]
    outcomes += [outcome("vsd", f"p{i}", float(v) + 0.1) for i, v in enumerate(base[:10])]
    outcomes += [outcome("vsd", "p10", None), outcome("vsd", "p11", None)]
    table = tables.summarise(outcomes, METHODS)
    (pair,) = table["differences"]
    assert (pair["prompts"], pair["mean"], pair["low"], pair["high"]) == (10, -0.1, -0.1, -0.1)
    assert pair["excludes_zero"]
    a, b = table["methods"]["redream"]["scores"]["clip_a"], table["methods"]["vsd"]["scores"]["clip_a"]
    assert a["prompts"] == 12 and a["mean"] == pytest.approx(0.5) and b["low"] < a["mean"] < b["high"]
    assert table["methods"]["vsd"]["missing"] == 2 and len(table["failures"]) == 2


def test_pairing_narrows_the_interval_by_what_prompts_share():
    """Prompts vary by 1, a method's own part by .01: the paired interval is the one of N(.02, 2 · .01²), unpaired means
    could not separate the methods."""
    rng = np.random.default_rng(3)
    common, selected = rng.normal(0.0, 1.0, 40), rng.normal(0.0, 0.01, (2, 40))
    outcomes = [outcome("redream", f"p{i}", float(common[i] + selected[0, i] + 0.02)) for i in range(40)]
    outcomes += [outcome("vsd", f"p{i}", float(common[i] + selected[1, i])) for i in range(40)]
    table = tables.summarise(outcomes, METHODS)
    (pair,) = table["differences"]
    expected = 2 * 2.022691 * (selected[0] - selected[1]).std(ddof=1) / 40**0.5  # t(.975; 39)
    assert pair["high"] - pair["low"] == pytest.approx(expected, abs=2e-6) and pair["excludes_zero"]
    a, b = (table["methods"][m]["scores"]["clip_a"] for m in ("redream", "vsd"))
    assert a["low"] < b["mean"] < a["high"]


@pytest.mark.parametrize(("count", "sure"), [(9, None), (10, True)])
def test_few_prompts_have_a_mean_and_their_number_but_no_interval(count, sure):
    outcomes = [
        outcome(m, f"p{i}", v) for i in range(count) for m, v in (("redream", 0.5), ("vsd", 0.25), ("sds", 0.5))
    ]
    outcomes = outcomes[:-1]  # sds has a prompt fewer
    table = {"stack": "tiny", "seeds": [0]} | tables.summarise(outcomes, METHODS)
    pair = table["differences"][0]
    assert (pair["prompts"], pair["mean"], pair["excludes_zero"]) == (count, 0.25, sure) and pair["planned"]
    assert ("low" in pair) == ("low" in table["methods"]["vsd"]["scores"]["clip_a"]) == bool(sure)
    text = tables.markdown(table, outcomes)
    assert ("**+0.250 [+0.250, +0.250]** |" in text) == bool(sure) and ("+0.250 n = 9 |" in text) == (not sure)
    assert f"| 0.500 n = {count - 1} |" in text and "fewer\nthan 10 prompts" in text


@pytest.mark.parametrize("splits", [["validation"], ["validation", "test"], [None]])
def test_a_table_names_its_prompts_and_warns_of_both_splits(splits):
    outcomes = [dataclasses.replace(outcome("sds", f"an owl {s}", 0.5), split=s) for s in splits]
    table = {"stack": "tiny", "seeds": [0]} | tables.summarise(outcomes, METHODS)
    assert table["prompts"] == [{"prompt": f"an owl {s}", "split": s} for s in splits]
    assert table["splits"] == {s: 1 for s in splits if s}
    text = tables.markdown(table, outcomes)
    assert text.startswith("> **Warning:**") == (len(splits) == 2)
    assert all(f"\n- {f'{s}: ' if s else ''}an owl {s}\n" in text for s in splits)


def test_costs_change_no_table():
    cheap = [outcome("sds", f"p{i}", 0.1 * i) for i in range(3)]
    dear = [dataclasses.replace(o, costs={"seconds": {"distillation": 9.0}, "sessions": 1}) for o in cheap]
    assert tables.summarise(cheap, METHODS) == tables.summarise(dear, METHODS)


def test_rows_keep_their_types_where_a_column_is_empty(tmp_path):
    """Rows of two evaluations can be put together: a seed is a whole number and a missing text is no number."""
    rows = tables.as_rows(
        [outcome("sds", "a red owl", None), dataclasses.replace(outcome("truth", "a red owl", 0.5), seed=None)]
    )
    rows.to_parquet(tmp_path / "rows.parquet", index=False)
    summary = pd.read_parquet(tmp_path / "rows.parquet")
    assert summary["seed"].dtype == "Int64" and summary["seed"].tolist() == [0, pd.NA]
    assert summary["clip_a"].dtype == summary["seconds"].dtype == "float64"
    assert summary["failure"].tolist()[0] == "It broke." and summary["kind"].isna().all()
