"""The table of all scores: name, direction, number of decimals and meaning, read by page, tables, gallery and command line.

A score of scores.json is named by its quantity and, where two models measure it, by "_a" or "_b": `clip_a`.
"""

from dataclasses import dataclass, replace
from typing import Literal

MODELS = ("a", "b")  # of scoring CLIPs, and of perceptual networks


@dataclass(frozen=True)
class Score:
    """How a score is named, written and read."""

    name: str  # for a person
    label: str  # in tables
    better: Literal["higher", "lower", "neither"]
    meaning: str
    decimals: int = 3
    by_two_models: bool = True
    shown_on: tuple[str, ...] = ()  # of "page", "command line", "gallery"; tables and the tab About show all
    has_best: bool = True  # False: a blank picture would be the best of a comparison

    def text(self, value: float, signed: bool = False) -> str:
        """A value as it is shown, with its sign if `signed`."""
        return f"{value:{'+' if signed else ''}.{self.decimals}f}"

    @property
    def direction(self) -> str:
        """ "higher is better" and so on; "" for a score to be read beside others."""
        return "" if self.better == "neither" else f"{self.better} is better"

    @property
    def explanation(self) -> str:
        """What it means and which direction is better."""
        return "; ".join(filter(None, (self.meaning, self.direction)))


QUANTITIES = {  # in the order in which they are shown
    "clip": Score(
        "CLIP score",
        "CLIP",
        "higher",
        "mean cosine of 120 views with the prompt",
        shown_on=("page", "command line", "gallery"),
    ),
    "view_accuracy": Score(
        "View accuracy",
        "view accuracy",
        "higher",
        "share of views that CLIP gives their right name: front, side or back",
        shown_on=("page", "command line", "gallery"),
    ),
    "janus_rate": Score(
        "Janus rate",
        "Janus rate",
        "lower",
        "share of views from behind (105° on) that CLIP calls front: the Janus problem",
        shown_on=("page", "gallery"),
    ),
    "janus_count": Score(
        "Janus count", "Janus count", "lower", "faces behind: separate arcs of at least 9° among them; 2 if all are", 2
    ),
    "a_lpips": Score(
        "A-LPIPS",
        "A-LPIPS",
        "lower",
        "LPIPS of neighbouring views; what is blank, blurred or round does well",
        4,
        shown_on=("page", "command line", "gallery"),
        has_best=False,
    ),
    "a_lpips_difference": Score(
        "A-LPIPS minus the true object's",
        "A-LPIPS difference",
        "neither",
        "below 0 it changes less than the truth does",
        4,
    ),
    "a_lpips_error": Score("A-LPIPS error", "A-LPIPS error", "lower", "that difference without its sign", 4),
    "silhouette_iou": Score(
        "Silhouette IoU",
        "IoU",
        "higher",
        "overlap of silhouettes with the true object, best over its variants",
        by_two_models=False,
        shown_on=("gallery",),
    ),
    "coverage": Score(
        "Coverage",
        "coverage",
        "neither",
        "share of the picture that is opaque; to be read beside the truth's",
        by_two_models=False,
        shown_on=("page",),
    ),
}


def keys_of(quantity: str) -> tuple[str, ...]:
    """The names in scores.json of a quantity of `QUANTITIES`: one, or one for each model."""
    return tuple(f"{quantity}_{model}" for model in MODELS) if QUANTITIES[quantity].by_two_models else (quantity,)


def quantities_on(place: str) -> tuple[str, ...]:
    """The quantities of `QUANTITIES` that are shown on the "page", "command line" or "gallery"."""
    return tuple(quantity for quantity, score in QUANTITIES.items() if place in score.shown_on)


SCORES: dict[str, Score] = {  # by name in scores.json
    key: replace(score, label=score.label + key.removeprefix(quantity).replace("_", " "))
    for quantity, score in QUANTITIES.items()
    for key in keys_of(quantity)
}
