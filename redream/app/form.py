"""The form ↔ the settings of a run: `GenerationForm`, its limits, its choices, and how long such a run takes."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from redream.app import zerogpu
from redream.app.components import duration
from redream.errors import RedreamError
from redream.runs.queue import Worker
from redream.runs.schedule import ScheduleError, fewest_iterations, in_proportion, schedule
from redream.settings import MAX_ITERATIONS, METHODS, PRESETS, VARIANTS, Preset, Settings
from redream.stack.stack import Stack

METHOD_LABELS = {method: VARIANTS[method].label for method in METHODS}
TIMES = {"Quick": 0.5, "Normal": 1.0, "Long": 2.0}  # of the time that a run of the preset takes
MAX_OBJECTS = 4  # particles for one visitor of a device that all share


class FormError(RedreamError):
    """More than one visitor may use; the message names the limit."""


def max_iterations(preset: Preset) -> int:
    """The limit of iterations for each object of a visitor."""
    return min(MAX_ITERATIONS, 5 * preset["redream"].iterations)


@dataclass(frozen=True)
class GenerationForm:
    """The form's values. None stands for the preset's value, for guidance and resolution 0 does as well.

    The adaptation's steps follow the iterations; a resolution among the preset's steps is the last one that is reached.
    """

    method: str = "redream"
    initialise: bool = True
    adapt: bool = True
    iterations: int | None = None
    particles: int = 1
    seed: int | None = None
    guidance: float | None = None  # scale of classifier-free guidance
    delta: bool = True  # delta denoising
    resolution: int | None = None  # of the training renders, in pixels

    def settings(self, preset: Preset) -> Settings:
        """The preset's settings with the form's values. Raises `FormError`, `SettingsError`."""
        if self.particles > MAX_OBJECTS:
            raise FormError(f"These are {self.particles} objects at once; the limit here is {MAX_OBJECTS} (particles).")
        limit = max_iterations(preset)
        if (self.iterations or 0) > limit:
            raise FormError(f"{self.iterations:,} iterations are too many; the limit here is {limit:,}.")
        changes, distillation = {"particles": int(self.particles), "seed": int(self.seed or 0)}, {}
        if self.method == "redream":  # without effect on the others: equal runs have equal settings
            changes |= {"initialise": self.initialise, "adapt": self.adapt}
            distillation = {} if self.delta else {"delta_every": 0}
        if self.guidance:
            distillation["guidance"] = float(self.guidance)
        base = preset[self.method]
        if self.resolution:
            lower = [step for step in base.rendering.resolutions if step[1] <= self.resolution]
            reached = bool(lower) and lower[-1][1] == self.resolution != base.rendering.resolutions[-1][1]
            changes["rendering"] = {"resolutions": tuple(lower) if reached else ((0.0, int(self.resolution)),)}
        base = base if self.iterations is None else in_proportion(base, int(self.iterations))
        return base.with_(**changes, distillation=distillation)

    @staticmethod
    def of(settings: Settings, preset: Preset) -> "GenerationForm":
        """The form that gives these settings, or the nearest one within the limits."""
        s, default = settings, preset[settings.method]
        same_resolution = s.rendering.resolutions == default.rendering.resolutions
        same_guidance = s.distillation.guidance == default.distillation.guidance
        return GenerationForm(
            method=s.method,
            initialise=s.initialise,
            adapt=s.adapt,
            iterations=min(s.iterations, max_iterations(preset)),
            particles=min(s.particles, MAX_OBJECTS),
            seed=s.seed,
            guidance=0.0 if same_guidance else s.distillation.guidance,
            delta=s.distillation.delta_every > 0,
            resolution=0 if same_resolution else s.rendering.resolutions[-1][1],
        )


def preset_of(worker: Worker) -> Preset:
    """The preset of a worker's runs."""
    return PRESETS[worker.preset]


def estimate(worker: Worker, runs: Sequence[Settings]) -> str:
    """The time that runs with these settings take one after the other, as "about 1 min 40 s on this CPU"; "" if unknown. On
    ZeroGPU also what they cost."""
    times = [worker.eta.seconds(settings) for settings in runs]
    if not times or None in times:
        return ""
    seconds = sum(times) if sum(times) < 20 else 5 * round(sum(times) / 5)
    device = "this GPU" if worker.models.device.startswith("cuda") else "this CPU"
    cost = f", {zerogpu.quota_seconds(seconds):.0f} s of your quota" if zerogpu.ENABLED else ""
    return f"about {duration(seconds)} on {device}{cost}"


def with_estimate(label: str, time: str) -> str:
    """A button's label with an `estimate`."""
    return f"{label} — {time}" if time else label


def fitting(settings: Settings, minutes: float, worker: Worker) -> Settings:
    """The settings as large as fits into a time on the worker's device, within a visitor's limits; while nothing is known
    of the device, as they are. Raises `ScheduleError`."""
    if worker.eta.seconds(settings) is None:
        return settings
    most = max_iterations(preset_of(worker))
    least = min(fewest_iterations(worker.preset), most)
    return schedule(settings, minutes, worker.eta.seconds, least, most)


def timed_forms(form: GenerationForm, worker: Worker) -> dict[str, GenerationForm]:
    """The form with the iterations and the resolution of each of `TIMES`, by what runs take on the worker's device.

    Where what does not become shorter takes too much of the time, and while nothing is known of the device, iterations are
    in proportion to it. Raises as `GenerationForm.settings`.
    """
    preset, forms = preset_of(worker), {}
    normal = replace(form, iterations=preset[form.method].iterations, resolution=0)
    settings, seconds = normal.settings(preset), worker.eta.seconds(normal.settings(preset))
    for name, share in TIMES.items():
        timed = in_proportion(settings, round(share * settings.iterations))
        if seconds is not None and share != 1:
            with suppress(ScheduleError):
                timed = fitting(settings, share * seconds / 60, worker)
        last = 0 if timed.rendering == settings.rendering else timed.rendering.resolutions[-1][1]
        forms[name] = replace(form, iterations=timed.iterations, resolution=last)
    return forms


def vocabulary_help(stack: Stack) -> str | None:
    """The kinds and colours that a stack with a vocabulary knows, as a sentence; None where any prompt is allowed."""
    if stack.vocabulary is None:
        return None
    kinds, colours = sorted(stack.vocabulary.kinds), sorted(stack.vocabulary.colours)
    name = stack.vocabulary.name[:1].upper() + stack.vocabulary.name[1:]
    return f"{name} knows {', '.join(kinds)}; in {', '.join(colours)}."


def resolution_choices(preset: Preset) -> list[tuple[str, int]]:
    """The choices of `GenerationForm.resolution`: labels and pixels."""
    *lower, default = [pixels for _, pixels in preset["redream"].rendering.resolutions]
    reached = [(f"up to {size} px", size) for size in lower]
    return [("default", 0), *reached, *((f"{size} px", size) for size in (default, default * 3 // 2, default * 2))]
