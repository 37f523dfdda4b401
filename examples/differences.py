"""By how much ReDream differs from other methods, where the library holds what is asked for and where it does not.

    python -m examples.differences RESULTS.parquet ... [--first redream] [--against vsd,sds,truth] [--level 0.95]

The files are those of `python -m redream evaluate`; prompts of several files count together, and where a method made a
prompt in several of them the last file counts. The seeds of a prompt are averaged first. A line has the mean of the
differences over prompts and its interval; bold: the interval excludes 0. "held out" are prompts whose pair of kind and
colour no asset of the miniature's library has.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float

from redream.evaluation.tables import bootstrap
from redream.stack.stack import STACKS
from redream.stack.vocabulary import Vocabulary, parse_prompt

SCORES = {
    "CLIP a": ["clip_a"],
    "CLIP b": ["clip_b"],
    "mean of both": ["clip_a", "clip_b"],
    "views a": ["view_accuracy_a"],
    "IoU": ["silhouette_iou"],
    "A-LPIPS a, off": ["a_lpips_error_a"],
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--first", default="redream")
    parser.add_argument("--against", default="vsd,sds,truth")
    parser.add_argument("--level", type=float, default=0.95, help="of the intervals")
    asked = parser.parse_args(arguments)
    rows = together([pq.read_table(file).to_pylist() for file in asked.results])
    if len({row.get("judges") for row in rows}) > 1:  # files of before 27 November 2026 do not name them
        parser.error("These files were scored by different models; give files that the same ones scored.")
    held_out = {prompt for prompt in {row["prompt"] for row in rows} if is_held_out(prompt)}
    groups = {
        "all": rows,
        "held out": [row for row in rows if row["prompt"] in held_out],
        "in the library": [row for row in rows if row["prompt"] not in held_out],
    }
    print(f"| {asked.first} minus | prompts | {' | '.join(SCORES)} |", "|---" * (len(SCORES) + 2) + "|", sep="\n")
    for other in asked.against.split(","):
        for name, group in groups.items():
            found = [differences(group, asked.first, other, columns) for columns in SCORES.values()]
            cells = [cell(values, asked.level) for values in found]
            print(f"| {other} | {name}, {len(found[0])} | {' | '.join(cells)} |")
    return 0


def together(files: Sequence[Sequence[dict]]) -> list[dict]:
    """The rows of several files; of a method and a prompt only those of the last file that has them."""
    last = {(row["method"], row["prompt"]): number for number, rows in enumerate(files) for row in rows}
    return [r for number, rows in enumerate(files) for r in rows if last[r["method"], r["prompt"]] == number]


def is_held_out(prompt: str) -> bool:
    """Whether no asset of the miniature's library has the kind and colour that a prompt names."""
    asked = parse_prompt(prompt, Vocabulary.load(STACKS / "mini/vocabulary.json"))
    with (STACKS / "mini/heldout.csv").open(newline="", encoding="utf-8") as file:
        return {"kind": asked.kind, "colour": asked.colour} in list(csv.DictReader(file))


def differences(rows: Sequence[dict], first: str, other: str, columns: Sequence[str]) -> Float[np.ndarray, "n"]:
    """One method's score minus another's, the mean of these columns, for each prompt that both have."""
    values: dict[tuple[str, str], list[float]] = {}  # method and prompt → a score for each seed
    for row in rows:
        if all(row[column] is not None for column in columns):
            own = sum(row[column] for column in columns) / len(columns)
            values.setdefault((row["method"], row["prompt"]), []).append(own)
    means = {key: sum(scores) / len(scores) for key, scores in values.items()}
    both = [prompt for method, prompt in means if method == first and (other, prompt) in means]
    return np.array([means[first, prompt] - means[other, prompt] for prompt in both])


def cell(values: Float[np.ndarray, "n"], level: float) -> str:
    """Mean and interval; bold if it excludes 0. A dash for fewer than two values."""
    if len(values) < 2:
        return "–"
    mean, low, high = bootstrap(values, level)
    text = f"{mean:+.3f} [{low:.3f}, {high:.3f}]" if abs(mean) >= 0.02 else f"{mean:+.4f} [{low:.4f}, {high:.4f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


if __name__ == "__main__":
    sys.exit(main())
