"""Many outcomes → tables: which method makes what better, by how much, and how sure that is.

    table.json       means with intervals, and every pair of methods compared
    table.md         the same to read, with what it cost
    results.parquet  a row per outcome: scores, seconds, memory

table.json says nothing of time and memory, so equal scores make the very same file. Intervals are bootstrapped over
prompts, the seeds of a prompt averaged first: prompts are what a claim generalises over, and two seeds of one prompt
are no two prompts. With few prompts such intervals are too narrow: below `FEWEST` of them there are none.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from redream.evaluation.scorer import EvaluationError, beside_the_truth, rounded
from redream.files import replacing, write_json, write_text
from redream.scoring.scores import SCORES

TRUTH = "truth"  # the row of the true objects
RESAMPLES = 10_000
FEWEST = 10  # prompts that an interval is made of
FORMAT = 3  # of table.json
PLANNED = (("redream", "vsd"), ("redream", "sds"))  # what the evaluation is there to compare


@dataclass(frozen=True)
class Outcome:
    """What a method made of a prompt; without scores if `failure` says why."""

    prompt: str
    method: str
    seed: int | None  # None: nothing in it is random
    folder: Path
    split: str | None = None  # of the prompts
    scorers: str | None = None  # the digest of the models that scored it
    kind: str | None = None  # of thing, where the stack's vocabulary tells
    scores: dict[str, float | None] = field(default_factory=dict)
    costs: dict = field(default_factory=dict)
    failure: str | None = None


class Interval(NamedTuple):
    """A mean and its interval."""

    mean: float
    low: float
    high: float


def save(out: Path, outcomes: Sequence[Outcome], order: Iterable[str], header: dict) -> None:
    """Write the three files; each is complete or absent. `header` is what table.json begins with."""
    table = {"format": FORMAT} | header | summarise(outcomes, order)
    write_json(out / "table.json", table)
    write_text(out / "table.md", markdown(table, outcomes))
    with replacing(out / "results.parquet") as file:
        pq.write_table(as_rows(outcomes), file)


def with_truth(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes with those scores that compare them with their prompt's true object."""
    truths = _truths(outcomes)
    return [
        o
        if o.failure or o.method == TRUTH
        else replace(o, scores=o.scores | rounded(beside_the_truth(o.scores, truths.get(o.prompt, {}))))
        for o in outcomes
    ]


def bootstrap(values: Float[np.ndarray, "n"], level: float = 0.95) -> Interval:
    """The mean and the quantiles of the means of 10,000 resamples that leave out as much on both sides, always the same
    resamples for n values.

    Raises `EvaluationError` for fewer than two values: one prompt says nothing about others.
    """
    if len(values) < 2:
        raise EvaluationError("An interval needs at least two values.")
    means = values[_resamples(len(values))].mean(axis=1)  # (10000,)
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(values.mean()), float(low), float(high))


@lru_cache(maxsize=4)
def _resamples(count: int) -> Int[np.ndarray, "r n"]:
    return np.random.default_rng(0).integers(0, count, (RESAMPLES, count))


def summarise(outcomes: Sequence[Outcome], order: Iterable[str]) -> dict:
    """What table.json says: each method's means over prompts, each pair's differences, and what is missing.

    Methods stand in the given order, the truth last. Equal outcomes give equal tables, whatever they cost. Where fewer
    than `FEWEST` prompts count, an interval is absent and `excludes_zero` is None.
    """
    there = {o.method for o in outcomes}
    methods = [method for method in (*order, TRUTH) if method in there]
    tables = {method: {key: by_prompt(outcomes, method, key) for key in SCORES} for method in methods}
    rows = {}
    for method in methods:
        own = [o for o in outcomes if o.method == method]
        scores = {key: _summary(np.array(list(values.values()))) for key, values in tables[method].items() if values}
        rows[method] = {"runs": len(own), "missing": sum(o.failure is not None for o in own), "scores": scores}
    pairs = []
    for a, b in itertools.combinations([method for method in methods if method != TRUTH], 2):
        for key in SCORES:
            both = [prompt for prompt in tables[a][key] if prompt in tables[b][key]]
            if both:
                found = _summary(np.array([tables[a][key][p] - tables[b][key][p] for p in both]))
                sure = found["low"] > 0 or found["high"] < 0 if "low" in found else None
                planned = (a, b) in PLANNED
                pairs.append({"a": a, "b": b, "planned": planned, "score": key, **found, "excludes_zero": sure})
    failures = [
        {"method": o.method, "prompt": o.prompt, "seed": o.seed, "reason": o.failure} for o in outcomes if o.failure
    ]
    better = {key: score.better for key, score in SCORES.items()}
    splits = {o.prompt: o.split for o in outcomes}
    prompts = [{"prompt": prompt, "split": split} for prompt, split in splits.items()]
    count = dict(sorted(Counter(filter(None, splits.values())).items()))
    return {
        "splits": count,
        "prompts": prompts,
        "better": better,
        "methods": rows,
        "differences": pairs,
        "failures": failures,
    }


def by_prompt(outcomes: Iterable[Outcome], method: str, key: str) -> dict[str, float]:
    """A score of a method for each prompt that has it, the mean over seeds."""
    values: dict[str, list[float]] = {}
    for o in outcomes:
        if o.method == method and o.scores.get(key) is not None:
            values.setdefault(o.prompt, []).append(o.scores[key])
    return {prompt: sum(v) / len(v) for prompt, v in values.items()}


def markdown(table: dict, outcomes: Sequence[Outcome]) -> str:
    """table.md: what table.json says, and what it cost."""
    rows, pairs = table["methods"], {}
    keys = [key for key in SCORES if any(key in row["scores"] for row in rows.values())]
    for one in table["differences"]:
        pairs.setdefault((one["a"], one["b"]), {})[one["score"]] = one
    most = {k: max(row["scores"][k]["prompts"] for row in rows.values() if k in row["scores"]) for k in keys}
    heads = [f"{SCORES[k].label} ({SCORES[k].better} is better)" for k in keys]
    means = [
        [method, f"{row['runs'] - row['missing']} of {row['runs']}", *(_cell(k, row["scores"], most[k]) for k in keys)]
        for method, row in rows.items()
    ]
    differences = [[*pair, *(_cell(k, own, most[k], signed=True) for k in keys)] for pair, own in pairs.items()]
    same = [
        f"With these settings {name} is {other}; it is not made twice." for name, other in table.get("same", {}).items()
    ]
    missing = ["- {method}, “{prompt}”, seed {seed}: {reason}".format(**failure) for failure in table["failures"]]
    splits = ", ".join(f"{count} {split}" for split, count in table["splits"].items())
    return (MIXED if len(table["splits"]) > 1 else "") + REPORT.format(
        stack=table["stack"],
        prompts=f"{len(table['prompts'])} ({splits})" if splits else len(table["prompts"]),
        listed="\n".join(f"- {': '.join(filter(None, (p['split'], p['prompt'])))}" for p in table["prompts"]),
        fewest=FEWEST,
        seeds=", ".join(map(str, table["seeds"])),
        means="\n\n".join([_grid(["method", "runs", *heads], means), *same]),
        meanings="\n".join(f"- {SCORES[key].label}: {SCORES[key].meaning}." for key in keys),
        differences=_grid(["first", "second", *heads], differences),
        costs=_grid(
            ["method", "seconds", "threads", "peak memory, GB"], [[m, *_cost(outcomes, m)] for m in rows if m != TRUTH]
        ),
        missing="\n".join(missing) or "Nothing.",
    )


MIXED = """> **Warning:** these prompts are of both splits. Settings were chosen with those marked validation, so nothing below is a
> result to report; for one, evaluate with --split test.

"""
REPORT = """# Evaluation on {stack}

Prompts: {prompts}. Seeds: {seeds}.

Means over prompts, the seeds of a prompt averaged first, with 95 % intervals (bootstrap over prompts, 10,000
resamples). With fewer than {fewest} prompts such an interval is much too narrow (with 5 it misses 0 in one of six
comparisons of equal methods), so there is none. n is the number of prompts where there is no interval, or where others
have more.

{means}

{meanings}

The row “retrieval” is the library's best asset as it is; “truth” is the object that was asked for, its variants
compared with each other. A method's IoU is the best over all variants, a variant's own the best over the others, which
are one fewer: the truth's IoU is a lower bound of what could be reached. A-LPIPS is compared with the mean of the
variants, a variant's own with the mean of the others.

## Differences

The first method minus the second, over the prompts that both have. Bold: the interval excludes 0; never with
fewer than {fewest} prompts. Where nothing differs, chance alone makes about one comparison in ten bold with 10 prompts and
one in fifteen with 25 or 50. Planned are the comparisons of redream with vsd and with sds; the others suggest what to
look at and prove nothing.

{differences}

## Costs

Mean seconds of the runs that were made in one go, with turntable, mesh and scores; of "retrieval" those of finding and
turning the asset. Memory is the most that the process had held so far when a run of the method ended, the runs before
it included and a GPU's memory left out. Threads are those that a run had.

{costs}

## Missing

{missing}

## Prompts

{listed}
"""


def as_rows(outcomes: Sequence[Outcome]) -> pa.Table:
    """results.parquet: a row per trial, with a column for each score and each stage's seconds."""
    stages = sorted({stage for o in outcomes for stage in o.costs.get("seconds", {})})
    truths = _truths(outcomes)
    rows = []
    for o in outcomes:
        seconds = o.costs.get("seconds", {})
        row = {"prompt": o.prompt, "split": o.split, "kind": o.kind, "method": o.method}
        row |= {"seed": o.seed, "folder": o.folder.name, "scorers": o.scorers} | {
            key: o.scores.get(key) for key in SCORES
        }
        row |= {"coverage_true": truths.get(o.prompt, {}).get("coverage")}
        row |= {f"seconds_{stage}": seconds.get(stage) for stage in stages}
        row |= {"seconds": sum(seconds.values()) if seconds else None}
        row |= {
            "sessions": o.costs.get("sessions"),
            "threads": o.costs.get("threads"),
            "peak_memory_gb": o.costs.get("peak_memory_gb"),
        }
        rows.append(row | {"failure": o.failure})
    texts, whole = (
        ("prompt", "split", "kind", "method", "folder", "scorers", "failure"),
        ("seed", "sessions", "threads"),
    )
    kinds = {name: pa.string() for name in texts} | {name: pa.int64() for name in whole}
    return pa.Table.from_pylist(rows, pa.schema([(name, kinds.get(name, pa.float64())) for name in rows[0]]))


def _truths(outcomes: Iterable[Outcome]) -> dict[str, dict[str, float | None]]:
    return {o.prompt: o.scores for o in outcomes if o.method == TRUTH}


def _summary(values: Float[np.ndarray, "n"]) -> dict:
    if len(values) < FEWEST:
        return {"prompts": len(values), "mean": round(float(values.mean()), 6)}
    return {"prompts": len(values)} | rounded(bootstrap(values)._asdict())


def _cell(key: str, summaries: Mapping[str, dict], most: int, signed: bool = False) -> str:
    if key not in summaries:
        return "–"
    found = summaries[key]
    mean, *ends = (SCORES[key].text(found[name], signed) for name in ("mean", "low", "high") if name in found)
    text = f"{mean} [{', '.join(ends)}]" if ends else mean
    text += f" n = {found['prompts']}" if not ends or found["prompts"] < most else ""
    return f"**{text}**" if found.get("excludes_zero") else text


def _cost(outcomes: Iterable[Outcome], method: str) -> list[str]:
    own = [o.costs for o in outcomes if o.method == method and o.costs]
    seconds = [sum(costs["seconds"].values()) for costs in own if costs["sessions"] == 1]
    memory = [costs["peak_memory_gb"] for costs in own if costs["peak_memory_gb"] is not None]
    threads = sorted({costs["threads"] for costs in own if costs.get("threads")})
    mean = f"{sum(seconds) / len(seconds):.1f}" if seconds else "–"
    return [mean, ", ".join(map(str, threads)) or "–", f"{max(memory):.2f}" if memory else "–"]


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
