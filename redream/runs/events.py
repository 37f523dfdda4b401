"""The events of a run, each of them one line of the run's events.jsonl.

Files are named relative to the run's folder.
"""

import dataclasses
import json
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from redream.runs.upgrade import upgrade
from redream.settings import Settings


@dataclass(frozen=True)
class Event:
    """Something that happened in a run."""


@dataclass(frozen=True)
class Started(Event):
    """The first event of a session: of a new run, and again when it is resumed."""

    run: str  # the run's folder
    prompt: str  # as the models get it (`ParsedPrompt.prompt`)
    settings: Settings
    iteration: int  # iterations done before, over all particles
    total: int  # iterations planned, over all particles


@dataclass(frozen=True)
class Fetching(Event):
    """Files of assets, or of a model, are being downloaded."""

    received: int  # bytes
    size: int  # bytes, of those that have begun
    what: str = "the assets"  # or an entry of stack.json


@dataclass(frozen=True)
class Retrieved(Event):
    """The assets that the run starts from, best first."""

    assets: tuple[dict, ...]  # as in retrieved.json: uid, caption, author, license, similarity, source, perhaps sha256
    strips: tuple[str, ...]  # of each asset a PNG of its views once around it, in one row


@dataclass(frozen=True)
class Oriented(Event):
    """An asset was oriented: its front faces +x from now on."""

    asset: int  # its place in `Retrieved.assets`
    yaw_deg: float
    margin: float
    clear: bool  # False: it has no clear front and was not rotated
    strip: str  # a PNG of views in a row, the front first


@dataclass(frozen=True)
class Progress(Event):
    """An iteration of "warm-up" or "distillation" is done, or another stage begins or goes on: "loading", "filming",
    "meshing", "scoring"."""

    stage: str
    iteration: int  # done, over all particles
    total: int
    seconds_left: float | None = None  # estimated, until all results are made; None: unknown
    losses: dict[str, float | None] = dataclasses.field(default_factory=dict)  # None: not a number


@dataclass(frozen=True)
class Preview(Event):
    """A small rendering of one particle."""

    file: str
    iteration: int
    particle: int
    azimuth_deg: float  # the camera's
    clip_score: float | None  # cosine with the prompt, by the stack's first scoring CLIP; None: not a number


@dataclass(frozen=True)
class Artefact(Event):
    """A result is written: kind "turntable" (MP4) or "mesh" (GLB)."""

    kind: str
    particle: int
    file: str


@dataclass(frozen=True)
class Scored(Event):
    """The content of scores.json."""

    scores: dict


@dataclass(frozen=True)
class Warned(Event):
    """A warning to show; the run goes on."""

    sentence: str


@dataclass(frozen=True)
class Failed(Event):
    """The last event of a run that could not go on; it can be resumed."""

    sentence: str


@dataclass(frozen=True)
class Finished(Event):
    """The last event of a session: all results are made."""

    stopped: bool  # before all planned iterations were done


@dataclass(frozen=True)
class Paused(Event):
    """The last event of a session whose time was over first: the next one goes on from its last checkpoint."""


KINDS = {kind.__name__.lower(): kind for kind in Event.__subclasses__()}


def to_line(event: Event, time: float) -> str:
    """One line of JSON with the event's name, the time (seconds since 1970) and its fields."""
    named = {"event": type(event).__name__.lower(), "time": round(time, 3)}
    return json.dumps(named | finite(dataclasses.asdict(event)), ensure_ascii=False, allow_nan=False)


def from_line(line: str) -> Event:
    """Read what `to_line` wrote, also in format 1. Raises `ValueError`, `KeyError` or `TypeError` for anything else."""
    values = upgrade(json.loads(line))
    if not isinstance(values, dict):
        raise TypeError("an event is an object")
    kind = KINDS[values.pop("event")]
    del values["time"]
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    if kind is Started:
        values["settings"] = Settings.from_json(json.dumps(values["settings"]))
    return kind(**values)


def events_after(history: Path, offset: int) -> tuple[list[Event], int]:
    """Return the events after a byte offset of an events.jsonl, and the offset after them.

    A line that is still being written is left for the next call; a malformed one is skipped.
    """
    if not history.is_file():
        return [], offset
    with history.open("rb") as file:
        file.seek(offset)
        complete, end, _ = file.read().rpartition(b"\n")
    parsed = []
    for line in complete.splitlines():
        with suppress(ValueError, KeyError, TypeError):  # one that was cut off when a run was killed
            parsed.append(from_line(line.decode()))
    return parsed, offset + len(complete) + len(end)


def finite(value):
    """The same JSON value with None in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
