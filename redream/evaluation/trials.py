"""Prompts, methods and seeds → trials: what an evaluation makes, with which settings, and in which folder.

The folder is OUT/runs/METHOD/PROMPT-SEED-DIGEST. The digest is that of the prompt, the settings, the files of the models
that make a run and `METHODS_VERSION`: equal trials share a folder, and any other one has its own. Models that only score
are not in it: other scoring models score the same runs again.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from redream.evaluation.scorer import EvaluationError
from redream.evaluation.tables import Outcome
from redream.files import digest, read_json, sha256_of_files
from redream.scoring.metrics import SCORES_VERSION
from redream.settings import VARIANTS, Preset, Settings, setting_names
from redream.stack.stack import SCORING_ENTRIES, Stack

METHODS_VERSION = 5  # raised when the code of a method changes its results: its runs are then made anew

RETRIEVAL = "retrieval"  # a row without runs: the best retrieved asset as it is
METHODS = (*VARIANTS, RETRIEVAL)  # that can be evaluated


# The settings that methods and seeds differ by; guidance may be set for all of them: only sds-100 is defined by it.
VARIED = set().union(*(setting_names(variant.changes) for variant in VARIANTS.values())) - {"distillation.guidance"} | {
    "seed"
}
SPLITS = ("validation", "test")  # to choose settings with, and to report on

# The output settings that the scores of an asset depend on.
ASSET_OUTPUT = ("score_elevation_deg", "score_fovy_deg", "score_distance", "turntable_rays", "turntable_size")


@dataclass(frozen=True)
class Prompt:
    """A line of a list of prompts."""

    text: str
    split: str | None = None  # one of `SPLITS`


@dataclass(frozen=True)
class ModelDigests:
    """Digests of a stack's models. A download counts by its commit, anything else by all of its files."""

    generation: str  # of what makes runs, with the library and the vocabulary: another one makes other runs
    scorers: str  # of what only scores them: another one scores the same runs again

    @staticmethod
    def of(stack: Stack) -> "ModelDigests":
        """The digests of a stack. Raises `hub.HubError`."""
        resolved = {name: stack.resolve(entry) for name, entry in stack.entries.items()}
        versions = {name: model.revision or sha256_of_files(model.folder) for name, model in resolved.items()}
        versions |= {f"perceptual.{name}": entry.lpips for name, entry in stack.perceptual.items() if entry.lpips}
        scorers = {name: versions.pop(name) for name in SCORING_ENTRIES}
        generation = versions | {"vocabulary": stack.vocabulary and asdict(stack.vocabulary)}
        return ModelDigests(digest(generation), digest(scorers))


@dataclass(frozen=True)
class Trial:
    """One row of the results: a prompt made by a method, with a seed."""

    prompt: Prompt
    method: str
    seed: int | None  # None: nothing in it is random
    settings: Settings
    folder: Path
    scorers: str  # the digest of the scoring models

    @property
    def is_scored(self) -> bool:
        """Whether the present scoring models have scored it."""
        stored = read_json(self.folder / "evaluation.json") or {}
        return (stored.get("version"), stored.get("scorers")) == (SCORES_VERSION, self.scorers)

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the trial among programs and processes; yields whether it was free. It ends with its process, however that
        ends.

        On a file system without locks every trial is free.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        file = self.folder.with_name(f".{self.folder.name}.lock")
        lock, is_free = FileLock(file, timeout=0, thread_local=False, fallback_to_soft=False), True
        try:
            lock.acquire()
        except Timeout:
            is_free = False
        except (OSError, NotImplementedError):
            pass
        try:
            yield is_free
        finally:
            if is_free:
                with suppress(OSError):
                    file.unlink()  # while it is held; who waited for this file then makes a new one (filelock)
                lock.release()

    def outcome(self, **values) -> Outcome:
        """Its `Outcome`; `values`: kind, scores, costs, failure."""
        return Outcome(self.prompt.text, self.method, self.seed, self.folder, self.prompt.split, self.scorers, **values)


def read_prompts(path: Path, split: str | None = None, limit: int | None = None) -> list[Prompt]:
    """Read a list of prompts, one per line: PROMPT, or SPLIT<TAB>PROMPT; lines that begin with # are comments.

    `split`: only the prompts of one of `SPLITS`; `limit`: only so many, the first ones. Raises `EvaluationError`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"The prompts {path.name} cannot be read; give a text file, a prompt per line."
        ) from error
    prompts: list[Prompt] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        mark, tab, text = line.partition("\t")
        if tab and mark not in SPLITS:
            raise EvaluationError(f"Line {number} of {path.name} must begin with {' or '.join(SPLITS)} before its tab.")
        prompts.append(Prompt(text.strip(), mark) if tab else Prompt(line.strip()))
    if len({p.text for p in prompts}) < len(prompts):
        raise EvaluationError(f"A prompt stands twice in {path.name}; leave each of them once.")
    prompts = [p for p in prompts if split in (None, p.split)]
    if not prompts:
        raise EvaluationError(f"There are no {split + ' ' if split else ''}prompts in {path.name}.")
    if limit is not None and limit < 1:
        raise EvaluationError(f"A limit of {limit} leaves no prompt; give 1 or more.")
    return prompts[:limit]


def plan(out: Path, prompt: Prompt, method: str, seed: int | None, settings: Settings, digests: ModelDigests) -> Trial:
    """The trial of a prompt by a method with these settings and models, in its folder under `out`.

    Without a seed it is an asset that is shown as it is, and only the settings that its scores depend on count.
    """
    if seed is None:
        output = {name: getattr(settings.output, name) for name in ASSET_OUTPUT}
        settings = Settings(retrieval={"assets": 1, "candidates": settings.retrieval.candidates}, output=output)
    else:
        settings = settings.with_(seed=seed)
    identity = {"prompt": prompt.text, "settings": asdict(settings), "models": digests.generation}
    identity |= {"methods": METHODS_VERSION}
    name = "-".join(filter(None, (slug(prompt.text), None if seed is None else f"seed-{seed}", digest(identity))))
    return Trial(prompt, method, seed, settings, out / "runs" / method / name, digests.scorers)


def method_settings(name: str, preset: Preset) -> Settings:
    """A preset's settings for a name of `METHODS`; ReDream's for a row without runs."""
    variant = VARIANTS.get(name, VARIANTS["redream"])
    return preset[variant.method].with_(**variant.changes)


def slug(prompt: str) -> str:
    """A prompt as the beginning of a file name."""
    return re.sub("[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40]
