"""Tables of the report: means of methods, and the differences of one method from others with their intervals.

    python -m examples.differences docs/results.parquet [--experiment test,test-second] [--first redream]
        [--against vsd,sds,truth] [--seeds 0,1] [--level 0.95]

Files are the results.parquet of `python -m redream evaluate`, or docs/results.parquet, whose experiments are taken in
the named order. Prompts of several files or experiments count together; where a method has a prompt in several of them,
the last one counts. Seeds of a prompt are averaged first; intervals are Student's t over paired prompts, and bold ones
exclude 0. "Held out" are prompts whose pair of kind and colour no asset of the miniature's library has.
"""

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from redream.evaluation.tables import Estimate, estimate, grid, paired, prompt_means
from redream.scoring.scores import SCORES
from redream.stack.stack import STACKS
from redream.stack.vocabulary import Vocabulary, parse_prompt

CLIP_MEAN = "clip_mean"  # of both scoring CLIPs
MEANS = ("clip_a", "clip_b", "view_accuracy_a", "view_accuracy_b", "janus_rate_a", "janus_rate_b")
MEANS += ("a_lpips_a", "a_lpips_error_a", "silhouette_iou", "coverage")
DIFFERENCES = ("clip_a", "clip_b", CLIP_MEAN, "view_accuracy_a", "silhouette_iou", "a_lpips_error_a")
COLUMNS = SCORES | {CLIP_MEAN: replace(SCORES["clip_a"], label="CLIP mean")}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--experiment", type=_names, default=[], help="names of the column `experiment`; else all rows")
    parser.add_argument("--first", default="redream")
    parser.add_argument("--against", type=_names, default=["vsd", "sds", "truth"])
    parser.add_argument("--seeds", type=_names, default=[], help="of the runs; else all of them")
    parser.add_argument("--level", type=float, default=0.95, help="of the intervals")
    options = parser.parse_args(arguments)
    parts = [pd.read_parquet(file) for file in options.results]
    if options.experiment:
        known = {name for part in parts for name in part.get("experiment", ())}
        if unknown := [name for name in options.experiment if name not in known]:
            parser.error(f"There is no experiment {unknown[0]}; there are: {', '.join(sorted(known)) or 'none'}.")
        parts = [part[part["experiment"] == name] for name in options.experiment for part in parts]
    rows = combine(parts)
    if options.seeds:
        rows = rows[rows["seed"].isna() | rows["seed"].isin(map(int, options.seeds))]
    if rows["scorers"].nunique(dropna=False) > 1:
        parser.error("These results were scored by different models; give those that the same ones scored.")
    if missing := [name for name in (options.first, *options.against) if name not in set(rows["method"])]:
        parser.error(f"There are no results of {missing[0]}; there are: {', '.join(sorted(set(rows['method'])))}.")
    rows = rows.assign(**{CLIP_MEAN: (rows["clip_a"] + rows["clip_b"]) / 2})
    print(means_table(rows), differences_table(rows, options.first, options.against, options.level), sep="\n\n")
    return 0


def combine(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of several tables; of a method and a prompt only those of the last table that has them."""
    rows = pd.concat([part.assign(part=number) for number, part in enumerate(parts)], ignore_index=True)
    last = rows.groupby(["method", "prompt"])["part"].transform("max")
    return rows[rows["part"] == last].drop(columns="part").reset_index(drop=True)


def is_held_out(prompt: str) -> bool:
    """Whether no asset of the miniature's library has the kind and colour that a prompt names."""
    parsed = parse_prompt(prompt, Vocabulary.load(STACKS / "mini/vocabulary.json"))
    with (STACKS / "mini/heldout.csv").open(newline="", encoding="utf-8") as file:
        return {"kind": parsed.kind, "colour": parsed.colour} in list(csv.DictReader(file))


def means_table(rows: pd.DataFrame) -> str:
    """Each method's mean scores over prompts."""
    means = {score: prompt_means(rows, score).mean() for score in MEANS}
    lines = [
        [method, *(number(means[score][method], COLUMNS[score].decimals) for score in MEANS)]
        for method in rows["method"].unique()
    ]
    return grid(["mean", *(COLUMNS[score].label for score in MEANS)], lines)


def differences_table(rows: pd.DataFrame, first: str, against: Sequence[str], level: float = 0.95) -> str:
    """A method minus others: over all prompts, the held-out ones, and those whose colour the library has."""
    held_out = rows["prompt"].map({prompt: is_held_out(prompt) for prompt in rows["prompt"].unique()}).astype(bool)
    groups = {"all": rows}
    if held_out.any() and not held_out.all():
        groups |= {"held out": rows[held_out], "in the library": rows[~held_out]}
    means = {(g, score): prompt_means(scores, score) for g, scores in groups.items() for score in DIFFERENCES}
    lines = []
    for other in against:
        for group in groups:
            scores = [means[group, score] for score in DIFFERENCES]
            if not all({first, other} <= set(one) for one in scores):
                continue
            estimated = [estimate(paired(one, first, other), level) for one in scores]
            cells = [cell(one, COLUMNS[score].decimals) for score, one in zip(DIFFERENCES, estimated, strict=True)]
            lines.append([other, f"{group}, {estimated[0].prompts}", *cells])
    return grid([f"{first} minus", "prompts", *(COLUMNS[score].label for score in DIFFERENCES)], lines)


def cell(estimated: Estimate, decimals: int = 3) -> str:
    """A difference and its interval; bold if it excludes 0. Where prompts are too few, their number n instead."""
    if not estimated.prompts:
        return "–"
    mean = number(estimated.mean, decimals, "+")
    if estimated.low is None:
        return f"{mean} n = {estimated.prompts}"
    text = f"{mean} [{number(estimated.low, decimals)}, {number(estimated.high, decimals)}]"
    return f"**{text}**" if estimated.excludes_zero else text


def number(value: float, decimals: int, sign: str = "-") -> str:
    """A score as the report has it: no zero before the point, a true minus."""
    if math.isnan(value):
        return "–"
    text = f"{value:{sign}.{decimals}f}"
    return text.replace("0.", ".", 1).replace("-", "−") if abs(value) < 1 else text.replace("-", "−")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


if __name__ == "__main__":
    sys.exit(main())
