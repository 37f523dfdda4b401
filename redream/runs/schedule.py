"""A run that fits into a time: its iterations, adaptation steps and resolutions, from what a run takes on this device."""

from collections.abc import Callable

from redream.errors import RedreamError
from redream.settings import MAX_ITERATIONS, PRESETS, Settings, presets_like


class ScheduleError(RedreamError):
    """A time that no useful run fits into; the message says how much one needs."""


def schedule(
    settings: Settings,
    minutes: float,
    seconds: Callable[[Settings], float],
    least: int,
    most: int = MAX_ITERATIONS,
) -> Settings:
    """The settings in small or large: with the most iterations, adapted in proportion, that take no more than `minutes`.

    The last steps of the resolution are left out where fewer than `least` iterations would remain.

    seconds: what a run of given settings takes; it grows with iterations and with resolution
    least: the fewest iterations that make a useful run (`fewest_iterations`)
    most: iterations that are allowed

    Raises `ScheduleError`.
    """
    steps, limit = settings.rendering.resolutions, 60 * minutes + 1e-6  # seconds; a run's own time gives it back
    for last in range(len(steps), 0, -1):
        shape = settings.with_(rendering={"resolutions": steps[:last]})
        if seconds(in_proportion(shape, least)) <= limit:
            low, high = least, most + 1  # `low` iterations fit, `high` do not, or are not allowed
            while high - low > 1:
                middle = (low + high) // 2
                fits = seconds(in_proportion(shape, middle)) <= limit
                low, high = (middle, high) if fits else (low, middle)
            return in_proportion(shape, low)
    needed = seconds(in_proportion(settings.with_(rendering={"resolutions": steps[:1]}), least)) / 60
    raise ScheduleError(
        f"{minutes:g} minutes are too short for a useful run; here one takes at least {needed + 0.05:.1f} minutes."
    )


def in_proportion(settings: Settings, iterations: int) -> Settings:
    """The settings with so many iterations and as many adaptation steps for each; all else is in fractions of a run."""
    steps = max(round(settings.adaptation.steps * iterations / settings.iterations), 1)
    return settings.with_(iterations=iterations, adaptation={"steps": steps})


def fewest_iterations(preset: str) -> int:
    """The fewest iterations that make a useful run: half of those of the shortest preset for the same prior (ours)."""
    return min(PRESETS[name]["redream"].iterations for name in presets_like(preset)) // 2
