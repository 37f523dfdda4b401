"""Outcomes become means, intervals and differences that mean what they say."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from redream.evaluation import tables
from redream.evaluation.scorer import EvaluationError
from redream.evaluation.tables import Outcome
from redream.evaluation.trials import METHODS


def test_the_interval_of_coin_flips_is_the_binomials():
    """The mean of 100 resampled flips is Binomial(100, ½)/100, whose 2.5 and 97.5 % quantiles are 0.40 and 0.60."""
    found = tables.bootstrap(np.array([0.0, 1.0] * 50))
    assert (
        found.mean == 0.5
        and found.low == pytest.approx(0.40, abs=0.011)
        and found.high == pytest.approx(0.60, abs=0.011)
    )


def test_an_interval_is_as_wide_as_theory_says_and_covers_the_mean_nineteen_times_in_twenty():
    rng = np.random.default_rng(5)
    samples = rng.normal(3.0, 2.0, (200, 50))
    found = [tables.bootstrap(sample) for sample in samples]
    width = np.mean([f.high - f.low for f in found])
    assert width == pytest.approx(2 * 1.96 * 2.0 / np.sqrt(50), rel=0.05)
    assert 0.88 <= np.mean([f.low <= 3.0 <= f.high for f in found]) <= 0.99


def test_one_value_has_no_interval_and_equal_ones_have_no_width():
    assert tables.bootstrap(np.full(7, 0.25)) == (0.25, 0.25, 0.25)
    with pytest.raises(EvaluationError, match="two values"):
        tables.bootstrap(np.array([1.0]))


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
    assert f"| 0.500 n = {count - 1} |" in text and "fewer than 10 prompts" in text


@pytest.mark.parametrize("splits", [["validation"], ["validation", "test"], [None]])
def test_a_table_names_its_prompts_and_warns_of_both_parts(splits):
    outcomes = [dataclasses.replace(outcome("sds", f"an owl {p}", 0.5), split=p) for p in splits]
    table = {"stack": "tiny", "seeds": [0]} | tables.summarise(outcomes, METHODS)
    assert table["prompts"] == [{"prompt": f"an owl {p}", "split": p} for p in splits]
    assert table["splits"] == {p: 1 for p in splits if p}
    text = tables.markdown(table, outcomes)
    assert text.startswith("> **Warning:**") == (len(splits) == 2)
    assert all(f"\n- {f'{p}: ' if p else ''}an owl {p}\n" in text for p in splits)


def test_what_it_cost_changes_no_table():
    cheap = [outcome("sds", f"p{i}", 0.1 * i) for i in range(3)]
    dear = [dataclasses.replace(o, costs={"seconds": {"distillation": 9.0}, "sessions": 1}) for o in cheap]
    assert tables.summarise(cheap, METHODS) == tables.summarise(dear, METHODS)
