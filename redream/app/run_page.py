"""The state of a run as the page shows it: events become a status line, cards, a preview, curves and a score table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from redream.app.components import SHOWN_QUANTITIES, data_uri, duration, hint, queue_status, render
from redream.app.curves import curves_html
from redream.runs import events
from redream.runs.queue import MadeElsewhere, Queued, Worker, find_run
from redream.scoring.scores import QUANTITIES, keys_of
from redream.settings import DISTILLATION, WARM_UP

STAGES = {  # by the stage of a `Progress`
    "loading": "Loading the models",
    WARM_UP: "Warm-up",
    DISTILLATION: "Distillation",
    "filming": "Rendering the turntable",
    "meshing": "Extracting the mesh",
    "scoring": "Computing the scores",
    "sampling": "Sampling the 2D model",
    "learning the views": "Adapting the model to the views",
}
ITERATED = (WARM_UP, DISTILLATION)  # stages with a count of iterations
NO_ASSETS = hint("The three assets nearest to your prompt will turn here.")
NO_RUN = hint("Describe an object and press Create.")
NO_CURVES = hint("Curves appear during the optimisation.")
PAUSED = "The time of one GPU call is over. Continue goes on from here with the next one."
ELSEWHERE = "Another program on this computer makes this run. Its progress is shown here, and Stop reaches it."
QUEUED_ELSEWHERE = "Waiting in the queue of another program"
STARTING = "Starting"
INTERRUPTED = "This run was interrupted. Continue resumes it from its last checkpoint."


def stage_name(stage: str) -> str:
    """A `Progress` event's stage as the page names it."""
    return STAGES.get(stage, stage.capitalize())


@dataclass
class RunPage:
    """What the page knows of one run after the events so far."""

    folder: Path
    status: str = STARTING  # one line
    progress: float | None = None  # 0..1 of the planned iterations
    uses_assets: bool = True
    assets: tuple[dict, ...] = ()  # as in retrieved.json
    strips: list[str] = field(default_factory=list)  # files of the assets' views
    clear_fronts: dict[int, bool] = field(default_factory=dict)  # by asset, once it is oriented
    warnings: list[str] = field(default_factory=list)
    preview: events.Preview | None = None
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # of the loss curves, by name
    files: dict[tuple[str, int], str] = field(default_factory=dict)  # path by ("turntable" or "mesh", object)
    scores: list[dict] = field(default_factory=list)  # by object
    ended: bool = False
    elsewhere: bool = False  # another program makes it
    paused: bool = False  # ended by the end of a GPU call, to be continued by the next one
    complete: bool = False  # all planned iterations are done

    @staticmethod
    def of(run: str) -> "RunPage":
        """The page of a run that is neither made nor queued. Raises `RunError` for an unknown id."""
        page = RunPage(find_run(run).folder)
        for event in find_run(run).events():
            page.update(event)
        return page._interrupted_unless_ended()

    @staticmethod
    def follow(worker: Worker, run: str) -> Iterator["RunPage"]:
        """The page of a run, again after every change, until the run ends. Raises `RunError` for an unknown id."""
        page = RunPage(find_run(run).folder)
        for new_events in worker.follow(run):
            for event in new_events:
                page.update(event)
            yield page
        if not page.ended:
            yield page._interrupted_unless_ended()

    @property
    def object_count(self) -> int:
        """How many objects have files."""
        return 1 + max((number for _, number in self.files), default=-1)

    def update(self, event: events.Event) -> None:
        """Apply one event."""
        if isinstance(event, MadeElsewhere):
            waits = self.ended or self.status == STARTING  # it has not begun, or not again
            self.elsewhere, self.ended = True, False
            self.status = QUEUED_ELSEWHERE if waits else self.status
            return
        self.paused = isinstance(event, events.Paused)
        self.ended = self.paused or isinstance(event, (events.Finished, events.Failed))
        match event:
            case Queued(position, seconds):
                self.status = queue_status(position, seconds)
            case events.Started():
                self._start(event)
            case events.Fetching(received, size, what):
                self.status = f"Fetching {what}, {received / 1e6:.1f} of {size / 1e6:.1f} MB"
            case events.Retrieved(assets, strips):
                self.assets, self.strips, self.status = assets, list(strips), "Finding the front of each asset"
            case events.Oriented(asset=number, clear=clear, strip=strip):
                self.strips[number], self.clear_fronts[number] = strip, clear
            case events.Progress():
                self._advance(event)
            case events.Preview(iteration=iteration, clip_score=clip_score):
                self.preview = event
                self._add_point("clip_score", iteration, clip_score)
            case events.Artefact(kind, number, file):
                self.files[kind, number] = str(self.folder / file)
            case events.Scored(scores):
                self.scores = list(scores["objects"])
            case events.Warned(sentence):
                self.warnings.append(sentence)
            case events.Failed(sentence):
                self.status = sentence
            case events.Paused():
                self.status = PAUSED
            case events.Finished(stopped):
                results = "These are the results so far." if self.files else "There are no results yet."
                self.status, self.progress = (f"Stopped. {results}", self.progress) if stopped else ("Done.", 1.0)
                self.complete = not stopped

    def _start(self, event: events.Started) -> None:
        """A session begins: an earlier session's results are made again, and what it did after its checkpoint is lost."""
        self.uses_assets, self.warnings, self.complete = event.settings.uses_assets, [], False
        self.files, self.scores = {}, []
        self.series = {name: [p for p in points if p[0] <= event.iteration] for name, points in self.series.items()}
        self.status = "Searching the library" if event.settings.uses_assets else "Starting without assets"

    def _advance(self, event: events.Progress) -> None:
        self.status, self.progress = stage_name(event.stage), event.iteration / event.total
        if event.stage in ITERATED:
            self.status += f", iteration {event.iteration} of {event.total}"
        if event.seconds_left is not None:
            self.status += f", {duration(event.seconds_left)} left"
        for name, value in event.losses.items():
            self._add_point(name, event.iteration, value)

    def _add_point(self, name: str, iteration: int, value: float | None) -> None:
        if value is not None:  # None: not a number
            self.series.setdefault(name, []).append((iteration, value))

    def _interrupted_unless_ended(self) -> "RunPage":
        if not self.ended:
            self.status = INTERRUPTED
        return self

    # HTML

    def assets_html(self) -> str:
        """A card for each asset, with its views turning."""
        if not self.uses_assets:
            return hint("This run uses no assets.")
        if not self.assets:
            return NO_ASSETS
        cards = []
        for number, asset in enumerate(self.assets):
            front = {True: ["front found"], False: ["no clear front"]}.get(self.clear_fronts.get(number), [])
            cards.append({"asset": asset, "image": data_uri(self.folder / self.strips[number]), "details": front})
        return render("run_assets.html", cards=cards)

    def state_html(self) -> str:
        """The status line, a progress bar and the warnings."""
        notes = [*self.warnings, *([ELSEWHERE] if self.elsewhere and not self.ended else [])]
        return render("run_state.html", status=self.status, progress=self.progress, warnings=notes)

    def preview_html(self) -> str:
        """The latest preview; "" if there is none."""
        if self.preview is None or not (self.folder / self.preview.file).is_file():
            return ""
        image = data_uri(self.folder / self.preview.file)
        iteration, azimuth_deg = self.preview.iteration, self.preview.azimuth_deg
        return render("preview.html", image=image, iteration=iteration, azimuth_deg=azimuth_deg)

    def curves_html(self) -> str:
        """The loss curves and the previews' CLIP score."""
        return curves_html(self.series) or NO_CURVES

    def scores_html(self, number: int = 0, true_scores: Mapping[str, float] | None = None) -> str:
        """The score table of an object, beside the mean scores of true objects where these are known; "" without scores."""
        if number >= len(self.scores):
            return ""
        rows = [_score_row(quantity, self.scores[number], true_scores or {}) for quantity in SHOWN_QUANTITIES]
        return render("scores.html", rows=rows)


def _score_row(quantity: str, scores: Mapping, true_scores: Mapping[str, float]) -> dict[str, str | bool]:
    score, keys = QUANTITIES[quantity], keys_of(quantity)
    reasons = [scores["not_available"][key] for key in keys if key in scores["not_available"]]
    return {
        "name": score.name,
        "explanation": score.explanation,
        "two_models": score.by_two_models,
        "numbers": _numbers(quantity, scores, keys),
        "true_numbers": _numbers(quantity, true_scores, keys),
        "reason": (reasons or ["not available"])[0],
    }


def _numbers(quantity: str, scores: Mapping, keys: Sequence[str]) -> str:
    return " · ".join(QUANTITIES[quantity].text(scores[key]) for key in keys if scores.get(key) is not None)
