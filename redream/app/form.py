"""What people ask for on a screen, as settings and back; how long it will take, in words; their runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from redream.app import run_page
from redream.app.components import in_words
from redream.app.run_page import Page
from redream.errors import RedreamError
from redream.runs.queue import Worker, find
from redream.runs.run import Run
from redream.settings import MAX_ITERATIONS, PRESETS, VARIANTS, Preset, Settings
from redream.stack.stack import Stack

METHODS = {name: VARIANTS[name].label for name in ("redream", "vsd", "sds")}
HELP = {  # what a widget asks for
    "initialise": "Gives the shape its geometry (initialisation).",
    "adapt": "Front, side and back stay different (adaptation).",
    "method": "ReDream starts from assets. The other two start from nothing: earlier methods, to compare with.",
    "iterations": "More take longer, and details become finer.",
    "guidance": "How closely to follow the words; 0: the usual ({usual}).",
    "delta": "Leaves out what the 2D model would do to any object, whatever the words.",
}
MAX_OBJECTS = 4  # at once, for one visitor of a device that all share


class FormError(RedreamError):
    """More than one visitor gets; the message says how much that is."""


def max_iterations(preset: Preset) -> int:
    """For each object of a visitor."""
    return min(MAX_ITERATIONS, 5 * preset["redream"].iterations)


@dataclass(frozen=True)
class GenerationForm:
    """How an object shall be made, as plain answers; None, for guidance and resolution also 0: as the preset has it."""

    method: str = "redream"
    initialise: bool = True
    adapt: bool = True
    iterations: int | None = None
    particles: int = 1
    seed: int | None = None
    guidance: float | None = None  # scale of classifier-free guidance
    delta: bool = True
    resolution: int | None = None  # pixels of the renders while it forms

    def settings(self, preset: Preset) -> Settings:
        """A preset with what was asked for. Raises `FormError`, `SettingsError`."""
        if self.particles > MAX_OBJECTS:
            raise FormError(f"These are {self.particles} objects at once; the limit here is {MAX_OBJECTS} (particles).")
        if (self.iterations or 0) > max_iterations(preset):
            raise FormError(
                f"{self.iterations:,} iterations are too many; the limit here is {max_iterations(preset):,}."
            )
        asked, distillation = {}, {}
        if self.method == "redream":  # for the others it means nothing, so that equal runs have equal settings
            asked = {"initialise": self.initialise, "adapt": self.adapt}
            distillation = {} if self.delta else {"delta_every": 0}
        asked |= {"particles": int(self.particles), "seed": int(self.seed or 0)}
        if self.iterations is not None:
            asked["iterations"] = int(self.iterations)
        if self.guidance:
            distillation["guidance"] = float(self.guidance)
        if self.resolution:
            asked["rendering"] = {"resolutions": ((0.0, int(self.resolution)),)}
        return preset[self.method].with_(**asked, distillation=distillation)

    @staticmethod
    def of(settings: Settings, preset: Preset) -> "GenerationForm":
        """The wish that gives such settings, or within the limits the nearest one."""
        s = settings
        own = preset[s.method]
        resolution = 0 if s.rendering.resolutions == own.rendering.resolutions else s.rendering.resolutions[-1][1]
        guidance = 0.0 if s.distillation.guidance == own.distillation.guidance else s.distillation.guidance
        iterations, particles = min(s.iterations, max_iterations(preset)), min(s.particles, MAX_OBJECTS)
        more = (iterations, particles, s.seed, guidance, s.distillation.delta_every > 0, resolution)
        return GenerationForm(s.method, s.initialise, s.adapt, *more)


def forming(worker: Worker, runs: Sequence[str], prompt: str, settings: Settings, given: Mapping) -> bool:
    """Whether one of some runs was asked for in the same way and is not over; `given`: its assets or uids."""
    wanted = (prompt, settings, tuple(given.get("uids", ())), "assets" in given)
    for run in still_here(list(dict.fromkeys(runs))):
        asked = run.request
        same = (asked.prompt, asked.settings, tuple(asked.uids), bool(asked.assets)) == wanted and not asked.extra
        if same and worker.ahead(run.folder.name) is not None:
            return True
    return False


def duration(worker: Worker, several: Sequence[Settings]) -> str:
    """— about 1 min 40 s on this CPU: how long runs of such settings take one after the other; "" if nobody knows."""
    known = [worker.pace.seconds(settings) for settings in several]
    if not known or None in known:
        return ""
    seconds = sum(known) if sum(known) < 20 else 5 * round(sum(known) / 5)
    device = "this GPU" if worker.models.device.startswith("cuda") else "this CPU"
    return f" — about {in_words(seconds)} on {device}"


def known_words(stack: Stack) -> str | None:
    """What a stack with a vocabulary can be asked for; None where anything goes."""
    if stack.vocabulary is None:
        return None
    kinds, colours = (sorted(table) for table in (stack.vocabulary.kinds, stack.vocabulary.colours))
    name = stack.vocabulary.name[:1].upper() + stack.vocabulary.name[1:]
    return f"{name} knows {', '.join(kinds)}; in {', '.join(colours)}."


def resolutions(preset: Preset) -> list[tuple[str, int]]:
    """What `GenerationForm.resolution` can be: words and pixels."""
    usual = preset["redream"].rendering.resolutions[-1][1]
    return [("the usual", 0), *((f"{size} px", size) for size in (usual, usual * 3 // 2, usual * 2))]


def preset_of(worker: Worker) -> Preset:
    """The preset of its stack."""
    return PRESETS[worker.models.stack.preset]


def pages(worker: Worker, run: str) -> Iterator[Page]:
    """The page of a run again and again, as it goes on."""
    shown = Page(find(run).folder)
    for news in worker.follow(run):
        for event in news:
            shown.tell(event)
        yield shown
    if not shown.ended:
        shown.state = run_page.INTERRUPTED
        yield shown


def page_of(run: str) -> Page:
    """The page of a run that nobody works on."""
    shown = Page(find(run).folder)
    for event in find(run).events():
        shown.tell(event)
    if not shown.ended:
        shown.state = run_page.INTERRUPTED
    return shown


def still_here(ids: Sequence[str]) -> list[Run]:
    """Those of some runs that were not removed; what is no id of a run is left out."""
    found = []
    for run in ids:
        try:
            found.append(find(run))
        except RedreamError:
            continue
    return found


def choices_of(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Runs to choose from: each in a few words, and its id."""
    found = []
    for run in runs:
        settings = run.request.settings
        found.append((f"{run.request.prompt} · {METHODS[settings.method]} · seed {settings.seed}", run.folder.name))
    return found
