"""What an experiment is given, what it returns, and the labels of its metrics."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from redream.distillation.prior import Prior
from redream.errors import RedreamError
from redream.evaluation.trials import ModelDigests
from redream.retrieval.clip import Clip
from redream.scoring.metrics import clip_score
from redream.settings import Preset, Settings
from redream.stack.models import Models
from redream.stack.vocabulary import parse_prompt

PICTURE_SIZE = 96  # pixels along a side

Metrics = dict[str, float]


class ExperimentError(RedreamError):
    """Options that make no experiment; the message says why."""


@dataclass(frozen=True)
class Context:
    """Models, settings and options of an experiment."""

    models: Models
    preset: Preset
    out: Path
    prompts: tuple[str, ...]
    assets: tuple[str, ...] = ()  # queries: the library's best asset for each of them
    samples: int = 64  # of the prior per prompt, for feature distances
    sweep: Path | None = None  # the folder of an evaluation

    @cached_property
    def digests(self) -> ModelDigests:
        """The digests of the stack's models."""
        return ModelDigests.of(self.models.stack)

    @property
    def settings(self) -> Settings:
        """The preset's settings for ReDream."""
        return self.preset["redream"]

    @property
    def prior(self) -> Prior:
        """The 2D prior."""
        return self.models.prior

    @property
    def clip(self) -> Clip:
        """The first scoring CLIP, whose image embeddings are the features of all distances."""
        return self.models.clip("a")

    def parsed(self, prompt: str) -> str:
        """Return the prompt as the models get it."""
        return parse_prompt(prompt, self.models.stack.vocabulary).prompt

    def clip_scores(self, images: Float[Tensor, "b 3 h w"], prompt: str) -> Metrics:
        """Return the CLIP scores of images by both scoring CLIPs."""
        text = self.parsed(prompt)
        return {f"CLIP {name}": clip_score(self.models.clip(name), images, text) for name in ("a", "b")}


@dataclass(frozen=True)
class Row:
    """A row of the picture; without images it is a heading for the rows below it."""

    label: str
    images: Float[Tensor, "n 3 h w"] | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of an experiment. Each of the `heads` stands over an equal number of columns."""

    rows: list[Row]
    metrics: Metrics
    heads: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()  # where they are not the context's
    folders: tuple[str, ...] = ()  # of the compared runs


def mean(values: Iterable[float]) -> float:
    """Return the mean of one or more values."""
    values = list(values)
    return sum(values) / len(values)


def label_of(title: str, metrics: Metrics) -> str:
    """Return a row's label: the title, then a line for each metric."""
    return "\n".join([title, *(f"{key} {value:.3f}" for key, value in metrics.items())])


def prefixed(name: str, metrics: Metrics) -> Metrics:
    """Return metrics with the name of their object before each key."""
    return {f"{name}: {key}": value for key, value in metrics.items()}


def log(sentence: str) -> None:
    """Print a line of progress to stderr."""
    print(f"  {sentence}", file=sys.stderr, flush=True)
