"""Prompts, methods and seeds → trials: what an evaluation makes, with which settings, and in which folder.

The folder is OUT/runs/METHOD/PROMPT-SEED-DIGEST. The digest is that of the prompt, the settings, the files of the models
that make a run and `METHODS_VERSION`, so that equal trials share a folder, and anything else gets one of its own. Models
that only judge are not in it: other judges score the same runs again.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from redream import hub
from redream.evaluation.scorer import EvaluationError
from redream.evaluation.tables import Outcome
from redream.files import read_json
from redream.scoring.metrics import SCORES_VERSION
from redream.settings import VARIANTS, Preset, Settings
from redream.stack.stack import SCORING_ENTRIES, Stack

METHODS_VERSION = 3  # raised when a method becomes another one by its code: its runs are then made anew

RETRIEVAL = "retrieval"  # a row without runs: the library's best asset as it is
METHODS = (*VARIANTS, RETRIEVAL)  # what can be asked for


def _names(changes: Mapping, group: str = "") -> set[str]:
    return {n for k, v in changes.items() for n in (_names(v, f"{k}.") if isinstance(v, Mapping) else {group + k})}


# The settings that methods and seeds differ by; SDS's guidance may be set for all: only sds-100 has its own.
VARIED = set().union(*(_names(v.changes) for v in VARIANTS.values())) - {"distillation.guidance"} | {"seed"}
SPLITS = ("validation", "test")  # to choose settings with, and to report on

# The settings that matter to an object that is shown as it is.
SHOWN_BY = ("score_elevation_deg", "score_fovy_deg", "score_distance", "turntable_rays", "turntable_size")


@dataclass(frozen=True)
class Prompt:
    """A line of a list of prompts."""

    text: str
    split: str | None = None  # one of `SPLITS`


@dataclass(frozen=True)
class ModelDigests:
    """Digests of a stack's models. A download counts by its commit, anything else by all of its files."""

    generation: str  # of what makes runs, the library and the vocabulary among it: runs of other ones are other runs
    scorers: str  # of what only scores them: other ones score the same runs again

    @staticmethod
    def of(stack: Stack) -> "ModelDigests":
        """Raises `hub.HubError`."""
        resolved = {name: stack.resolve(entry) for name, entry in stack.entries.items()}
        found = {name: one.revision or _hashes(one.folder) for name, one in resolved.items()}
        found |= {f"perceptual.{name}": entry.lpips for name, entry in stack.perceptual.items() if entry.lpips}
        scorers = {name: found.pop(name) for name in SCORING_ENTRIES}
        return ModelDigests(
            digest(found | {"vocabulary": stack.vocabulary and asdict(stack.vocabulary)}), digest(scorers)
        )


@dataclass(frozen=True)
class Trial:
    """One row to be: a prompt made by a method, with a seed."""

    prompt: Prompt
    method: str
    seed: int | None  # None: nothing in it is random
    settings: Settings
    folder: Path
    scorers: str  # their digest

    @property
    def number(self) -> int:
        """Its digest, as the number that programs claim it by."""
        return int(self.folder.name.rpartition("-")[2], 16)

    @property
    def is_scored(self) -> bool:
        """Whether these judges have scored it."""
        kept = read_json(self.folder / "evaluation.json") or {}
        return (kept.get("version"), kept.get("scorers")) == (SCORES_VERSION, self.scorers)

    def outcome(self, **found) -> Outcome:
        """What came of it: kind, scores, costs, failure."""
        return Outcome(self.prompt.text, self.method, self.seed, self.folder, self.prompt.split, self.scorers, **found)


def read_prompts(path: Path, split: str | None = None, limit: int | None = None) -> list[Prompt]:
    """The prompts of a list, one per line: PROMPT, or PART<TAB>PROMPT; lines that begin with # are comments.

    With `split` only those of that part, with `limit` the first so many of them. Raises `EvaluationError`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"The prompts {path.name} cannot be read; give a text file, a prompt per line."
        ) from error
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        mark, tab, text = line.partition("\t")
        if tab and mark not in SPLITS:
            raise EvaluationError(f"Line {number} of {path.name} must begin with validation or test before its tab.")
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
    """What a method makes of a prompt with its own settings and models, and where.

    Without a seed it is an object shown as it is.
    """
    if seed is None:
        output = {name: getattr(settings.output, name) for name in SHOWN_BY}
        own = Settings(retrieval={"assets": 1, "candidates": settings.retrieval.candidates}, output=output)
    else:
        own = settings.with_(seed=seed)
    asked = {"prompt": prompt.text, "settings": asdict(own), "models": digests.generation, "methods": METHODS_VERSION}
    name = "-".join(filter(None, (slug(prompt.text), None if seed is None else f"seed-{seed}", digest(asked))))
    return Trial(prompt, method, seed, own, out / "runs" / method / name, digests.scorers)


def own_settings(name: str, preset: Preset) -> Settings:
    """A preset's settings for a name of `METHODS`; ReDream's for a row without runs."""
    variant = VARIANTS.get(name, VARIANTS["redream"])
    return preset[variant.method].with_(**variant.changes)


def slug(prompt: str) -> str:
    """A prompt as the beginning of a file's name."""
    return re.sub("[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40]


def digest(values: object) -> str:
    """Twelve hexadecimal digits that stand for JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of all files of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hub.sha256(path) for path in files}
