"""What a run tells while it forms: small events, each of them also one line of the run's events.jsonl.

Files are named relative to the run's folder.
"""

import dataclasses
import json
import math
from dataclasses import dataclass

from redream.runs.upgrade import upgrade
from redream.settings import Settings


@dataclass(frozen=True)
class Event:
    """Something that happened in a run."""


@dataclass(frozen=True)
class Started(Event):
    """The first event, again when a run is resumed."""

    run: str  # the run's folder
    prompt: str  # as the models get it
    settings: Settings
    iteration: int  # done before, over all particles
    total: int  # planned, over all particles


@dataclass(frozen=True)
class Retrieved(Event):
    """What the library has for the prompt, best first."""

    assets: tuple[dict, ...]  # as in retrieved.json: uid, caption, author, license, similarity, source
    strips: tuple[str, ...]  # a PNG of views in a row per asset, once around it


@dataclass(frozen=True)
class Oriented(Event):
    """Where an asset's front was found; it faces +x from now on."""

    asset: int  # its place in `Retrieved.assets`
    yaw_deg: float
    margin: float
    clear: bool  # False: no clear front, left as it is
    strip: str  # a PNG of views in a row, the front first


@dataclass(frozen=True)
class Progress(Event):
    """An iteration is done, or a stage without iterations begins or goes on ("loading", "filming", "meshing", "scoring")."""

    stage: str
    iteration: int  # done, over all particles
    total: int
    seconds_left: float | None = None  # until everything is made
    losses: dict[str, float | None] = dataclasses.field(default_factory=dict)  # None: not a number


@dataclass(frozen=True)
class Preview(Event):
    """A small picture of what there is."""

    file: str
    iteration: int
    particle: int
    azimuth_deg: float  # the camera's
    clip_score: float | None  # cosine with the prompt, by the stack's first scoring CLIP; None: not a number


@dataclass(frozen=True)
class Artefact(Event):
    """A result's file: kind "turntable" (MP4) or "mesh" (GLB)."""

    kind: str
    particle: int
    file: str


@dataclass(frozen=True)
class Scored(Event):
    """What scores.json says."""

    scores: dict


@dataclass(frozen=True)
class Warned(Event):
    """Something a person should know; the run goes on."""

    sentence: str


@dataclass(frozen=True)
class Failed(Event):
    """The last event of a run that could not go on; it can be resumed."""

    sentence: str


@dataclass(frozen=True)
class Finished(Event):
    """The last event of a run; everything is made."""

    stopped: bool  # before its planned iterations were done


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


def finite(value):
    """The same JSON value with None in place of numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
