"""What an experiment works with, what it finds, and the words for it."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from redream.distillation.prior import Prior
from redream.errors import RedreamError
from redream.evaluation import trials
from redream.retrieval.clip import Clip
from redream.scoring.metrics import clip_score
from redream.settings import Preset, Settings
from redream.stack.models import Models
from redream.stack.vocabulary import parse_prompt

SIDE = 96  # pixels of a picture

Figures = dict[str, float]


class ExperimentError(RedreamError):
    """What was asked for makes no experiment; the message says why."""


@dataclass(frozen=True)
class Lab:
    """What an experiment works with."""

    models: Models
    preset: Preset
    out: Path
    prompts: tuple[str, ...]
    assets: tuple[str, ...] = ()  # in words: the library's best asset for each of them
    samples: int = 64  # of the prior per prompt, for feature distances
    runs: Path | None = None  # an evaluation's folder

    @cached_property
    def weights(self) -> trials.ModelDigests:
        """The digests of all models."""
        return trials.ModelDigests.of(self.models.stack)

    @property
    def settings(self) -> Settings:
        """ReDream's."""
        return self.preset["redream"]

    @property
    def prior(self) -> Prior:
        return self.models.prior

    @property
    def clip(self) -> Clip:
        """The one that features are taken from."""
        return self.models.clip("a")

    def understood(self, prompt: str) -> str:
        """The prompt as the models get it."""
        return parse_prompt(prompt, self.models.stack.vocabulary).prompt

    def clips(self, images: Float[Tensor, "b 3 h w"], prompt: str) -> Figures:
        """CLIP scores by both scoring models."""
        text = self.understood(prompt)
        return {f"CLIP {name}": clip_score(self.models.clip(name), images, text) for name in ("a", "b")}


@dataclass(frozen=True)
class Row:
    """A line of the picture; without pictures it is a heading for those that follow."""

    label: str
    images: Float[Tensor, "n 3 h w"] | None = None


@dataclass(frozen=True)
class Outcome:
    """What an experiment found; `heads` stand over equal shares of the columns."""

    rows: list[Row]
    figures: Figures
    heads: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()  # where they are not those that were asked for
    folders: tuple[str, ...] = ()  # of the runs that were compared


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def labelled(title: str, figures: Figures) -> str:
    """A row's label: the title, then its figures, one a line."""
    return "\n".join([title, *(f"{key} {value:.3f}" for key, value in figures.items())])


def under(name: str, figures: Figures) -> Figures:
    """The figures of one thing among those of all."""
    return {f"{name}: {key}": value for key, value in figures.items()}


def say(sentence: str) -> None:
    """Tell who waits what is being made."""
    print(f"  {sentence}", file=sys.stderr, flush=True)
