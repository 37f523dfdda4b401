"""Outcomes → tables: each method's mean scores, the paired differences between methods, and their intervals.

    table.json       means with intervals, and every pair of methods compared
    table.md         the same for reading, with costs
    results.parquet  a row per outcome: scores, seconds, memory

table.json has no time and no memory in it, so equal scores make the very same file. The seeds of a prompt are averaged
first: a claim generalises over prompts, and two seeds of one prompt are not two prompts. Intervals are Student's t over
prompts; below `FEWEST` prompts there are none.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from scipy import stats

from redream.evaluation.scorer import rounded, truth_differences
from redream.files import replacing, write_json, write_text
from redream.scoring.scores import SCORES

TRUTH = "truth"  # the row of the true objects
FEWEST = 10  # prompts that an interval needs
ROUNDING = 1e-9  # scores are kept with six decimals: what differs by less is equal
FORMAT = 4  # of table.json
PLANNED = (("redream", "vsd"), ("redream", "sds"))  # the comparisons that the evaluation is made for


@dataclass(frozen=True)
class Outcome:
    """The result of a method on a prompt; without scores if `failure` says why."""

    prompt: str
    method: str
    seed: int | None  # None: nothing in it is random
    folder: Path
    split: str | None = None  # of the prompts
    scorers: str | None = None  # the digest of the models that scored it
    kind: str | None = None  # of object, where the stack's vocabulary knows it
    scores: dict[str, float | None] = field(default_factory=dict)
    costs: dict = field(default_factory=dict)
    failure: str | None = None


class Estimate(NamedTuple):
    """A mean over prompts and its interval, which is None below `FEWEST` prompts."""

    prompts: int
    mean: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool | None:
        return None if self.low is None else self.low > 0 or self.high < 0


def estimate(values: pd.Series, level: float = 0.95) -> Estimate:
    """The mean of one value per prompt and Student's t interval of it: m ± t_{n−1} s/√n."""
    if len(values) < FEWEST:
        return Estimate(len(values), float(values.mean()), None, None)
    if values.max() - values.min() < ROUNDING:  # scipy would divide by s = 0
        return Estimate(len(values), *[float(values.mean())] * 3)
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(level)
    return Estimate(len(values), float(values.mean()), float(interval.low), float(interval.high))


def prompt_means(rows: pd.DataFrame, score: str) -> pd.DataFrame:
    """A score as a table of prompts × methods, the mean over seeds; NaN where a method lacks it."""
    means = rows.groupby(["prompt", "method"], sort=False)[score].mean()
    return means.unstack("method").reindex(rows["prompt"].unique())


def paired(means: pd.DataFrame, first: str, second: str) -> pd.Series:
    """The first method minus the second, for each prompt that both have."""
    return (means[first] - means[second]).dropna()


def save(out: Path, outcomes: Sequence[Outcome], order: Iterable[str], header: dict) -> None:
    """Write the three files; each is complete or absent. `header` is what table.json begins with."""
    table = {"format": FORMAT} | header | summarise(outcomes, order)
    write_json(out / "table.json", table)
    write_text(out / "table.md", markdown(table, outcomes))
    with replacing(out / "results.parquet") as file:
        as_rows(outcomes).to_parquet(file, index=False)


def with_truth(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes with those scores that compare them with their prompt's true object."""
    truths = _truths(outcomes)
    return [
        o
        if o.failure or o.method == TRUTH
        else replace(o, scores=o.scores | rounded(truth_differences(o.scores, truths.get(o.prompt, {}))))
        for o in outcomes
    ]


def as_rows(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """results.parquet: a row per outcome, with a column for each score and each stage's seconds."""
    stages = sorted({stage for o in outcomes for stage in o.costs.get("seconds", {})})
    truths = _truths(outcomes)
    rows = []
    for o in outcomes:
        seconds = o.costs.get("seconds", {})
        row = {"prompt": o.prompt, "split": o.split, "kind": o.kind, "method": o.method, "seed": o.seed}
        row |= {"folder": o.folder.name, "scorers": o.scorers} | {key: o.scores.get(key) for key in SCORES}
        row |= {"coverage_true": truths.get(o.prompt, {}).get("coverage")}
        row |= {f"seconds_{stage}": seconds.get(stage) for stage in stages}
        row |= {"seconds": sum(seconds.values()) if seconds else None}
        row |= {name: o.costs.get(name) for name in ("sessions", "threads", "peak_memory_gb")}
        rows.append(row | {"failure": o.failure})
    texts, whole = (
        ("prompt", "split", "kind", "method", "folder", "scorers", "failure"),
        ("seed", "sessions", "threads"),
    )
    types = dict.fromkeys(texts, "string") | dict.fromkeys(whole, "Int64")
    return pd.DataFrame(rows).astype({name: types.get(name, "float64") for name in rows[0]})


def summarise(outcomes: Sequence[Outcome], order: Iterable[str]) -> dict:
    """The content of table.json: each method's means over prompts, each pair's differences, and what is missing.

    Methods stand in the given order, the truth last. Equal outcomes give equal tables, whatever they cost. Where fewer
    than `FEWEST` prompts count, an interval is absent and `excludes_zero` is None.
    """
    rows = as_rows(outcomes)
    methods = [method for method in (*order, TRUTH) if (rows["method"] == method).any()]
    means = {score: prompt_means(rows, score) for score in SCORES}
    by_method = {}
    for method in methods:
        selected = rows[rows["method"] == method]
        values = {score: means[score][method].dropna() for score in SCORES}
        scores = {score: _summary(estimate(value)) for score, value in values.items() if len(value)}
        missing = int(selected["failure"].notna().sum())
        by_method[method] = {"runs": len(selected), "missing": missing, "scores": scores}
    differences = []
    for a, b in itertools.combinations([method for method in methods if method != TRUTH], 2):
        for score in SCORES:
            if len(values := paired(means[score], a, b)):
                summary = _summary(estimate(values))
                sure = summary["low"] > 0 or summary["high"] < 0 if "low" in summary else None
                planned = (a, b) in PLANNED
                differences.append(
                    {"a": a, "b": b, "planned": planned, "score": score, **summary, "excludes_zero": sure}
                )
    splits = {o.prompt: o.split for o in outcomes}
    return {
        "splits": dict(sorted(Counter(filter(None, splits.values())).items())),
        "prompts": [{"prompt": prompt, "split": split} for prompt, split in splits.items()],
        "better": {key: score.better for key, score in SCORES.items()},
        "methods": by_method,
        "differences": differences,
        "failures": [
            {"method": o.method, "prompt": o.prompt, "seed": o.seed, "reason": o.failure} for o in outcomes if o.failure
        ],
    }


def markdown(table: dict, outcomes: Sequence[Outcome]) -> str:
    """table.md: the content of table.json, and the costs."""
    rows, pairs = table["methods"], {}
    keys = [key for key in SCORES if any(key in row["scores"] for row in rows.values())]
    for one in table["differences"]:
        pairs.setdefault((one["a"], one["b"]), {})[one["score"]] = one
    most = {k: max(row["scores"][k]["prompts"] for row in rows.values() if k in row["scores"]) for k in keys}
    heads = [
        " ".join(filter(None, (SCORES[k].label, SCORES[k].direction and f"({SCORES[k].direction})"))) for k in keys
    ]
    means = [
        [method, f"{row['runs'] - row['missing']} of {row['runs']}", *(_cell(k, row["scores"], most[k]) for k in keys)]
        for method, row in rows.items()
    ]
    differences = [
        [*pair, *(_cell(k, selected, most[k], signed=True) for k in keys)] for pair, selected in pairs.items()
    ]
    same = [
        f"With these settings {name} is {other}; it is not made twice." for name, other in table.get("same", {}).items()
    ]
    missing = ["- {method}, “{prompt}”, seed {seed}: {reason}".format(**failure) for failure in table["failures"]]
    splits = ", ".join(f"{count} {split}" for split, count in table["splits"].items())
    costs = [[method, *_cost(outcomes, method)] for method in rows if method != TRUTH]
    return (MIXED if len(table["splits"]) > 1 else "") + REPORT.format(
        stack=table["stack"],
        prompts=f"{len(table['prompts'])} ({splits})" if splits else len(table["prompts"]),
        listed="\n".join(f"- {': '.join(filter(None, (p['split'], p['prompt'])))}" for p in table["prompts"]),
        fewest=FEWEST,
        seeds=", ".join(map(str, table["seeds"])),
        means="\n\n".join([grid(["method", "runs", *heads], means), *same]),
        meanings="\n".join(f"- {SCORES[key].label}: {SCORES[key].meaning}." for key in keys),
        differences=grid(["first", "second", *heads], differences),
        costs=grid(["method", "seconds", "threads", "peak memory, GB"], costs),
        missing="\n".join(missing) or "Nothing.",
    )


MIXED = """> **Warning:** these prompts are of both splits. Settings were chosen with the validation prompts, so nothing below is a
> result to report; for one, evaluate with --split test.

"""
REPORT = """# Evaluation on {stack}

Prompts: {prompts}. Seeds: {seeds}.

Means over prompts, the seeds of a prompt averaged first, with 95 % intervals (Student's t over prompts). With fewer
than {fewest} prompts there is no interval. n is the number of prompts where there is no interval, or where others have
more.

{means}

{meanings}

The row “retrieval” is the library's best asset as it is; “truth” is the true object that the prompt names, its variants
compared with each other. A method's IoU is the best over all variants, a variant's own the best over the others, which
are one fewer: the truth's IoU is a lower bound of what could be reached. A-LPIPS is compared with the mean of the
variants, a variant's own with the mean of the others.

## Differences

The first method minus the second, paired over the prompts that both have, with Student's t intervals. Bold: the
interval excludes 0; never with fewer than {fewest} prompts. Where nothing differs, chance alone makes about one
comparison in twenty bold. Planned are the comparisons of redream with vsd and with sds; the others are exploratory.

{differences}

## Costs

Mean seconds of the runs that were made in one go, with turntable, mesh and scores; of "retrieval" those of finding and
orienting the asset. Memory is the process's peak up to the end of a run of the method, the runs before it included and
GPU memory left out. Threads are those that a run had.

{costs}

## Missing

{missing}

## Prompts

{listed}
"""


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _truths(outcomes: Iterable[Outcome]) -> dict[str, dict[str, float | None]]:
    return {o.prompt: o.scores for o in outcomes if o.method == TRUTH}


def _summary(estimated: Estimate) -> dict:
    """An estimate as table.json has it: rounded, an absent interval left out."""
    ends = {"mean": estimated.mean, "low": estimated.low, "high": estimated.high}
    return {"prompts": estimated.prompts} | rounded({name: value for name, value in ends.items() if value is not None})


def _cell(key: str, summaries: Mapping[str, dict], most: int, signed: bool = False) -> str:
    if key not in summaries:
        return "–"
    summary = summaries[key]
    mean, *ends = (SCORES[key].text(summary[name], signed) for name in ("mean", "low", "high") if name in summary)
    text = f"{mean} [{', '.join(ends)}]" if ends else mean
    text += f" n = {summary['prompts']}" if not ends or summary["prompts"] < most else ""
    return f"**{text}**" if summary.get("excludes_zero") else text


def _cost(outcomes: Iterable[Outcome], method: str) -> list[str]:
    """Mean seconds of the runs made in one session, the threads they had, and the peak memory."""
    selected = [o.costs for o in outcomes if o.method == method and o.costs]
    seconds = [sum(costs["seconds"].values()) for costs in selected if costs["sessions"] == 1]
    memory = [costs["peak_memory_gb"] for costs in selected if costs["peak_memory_gb"] is not None]
    threads = sorted({costs["threads"] for costs in selected if costs.get("threads")})
    mean = f"{sum(seconds) / len(seconds):.1f}" if seconds else "–"
    return [mean, ", ".join(map(str, threads)) or "–", f"{max(memory):.2f}" if memory else "–"]
