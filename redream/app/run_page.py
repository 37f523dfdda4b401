"""What a screen shows of a run: its events become a line of state, cards, a preview, curves and tables, as HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from redream.app.components import as_html, asset_facts, bar, data_uri, in_words, quiet, turning, waiting
from redream.app.curves import curves_html
from redream.runs import events
from redream.runs.queue import Waiting
from redream.scoring.scores import SCORES

STAGES = {"loading": "Loading the models", "warm-up": "Warming up", "distillation": "Distillation"}
STAGES |= {"filming": "Filming the turntable", "meshing": "Making the 3D model", "scoring": "Scoring"}
ITERATES = ("warm-up", "distillation")
SHOWN = {  # name in scores.json, for one model or for two: what the number says, how it is written
    "clip": ("CLIP score, two models: higher is better.", "{:.3f}"),
    "a_lpips": ("A-LPIPS, two networks: lower is steadier (so is a plain ball).", "{:.3f}"),
    "view_accuracy": ("Share of views that CLIP calls front, side or back rightly.", "{:.0%}"),
    "janus_rate": ("Share of views from behind that CLIP calls a front: lower is better.", "{:.0%}"),
    "coverage": ("How much of it the object covers.", "{:.0%}"),
}
NO_ASSETS = quiet("The three assets closest to your words will turn here.")
NO_STATE = quiet("Describe an object and press Create.")
NO_CURVES = quiet("Curves appear while the object forms.")
INTERRUPTED = "This run was interrupted. Continue takes it up from its last checkpoint."


@dataclass
class Page:
    """What is known of one run, as its events are told."""

    folder: Path
    state: str = "Starting"  # one line
    share: float | None = None  # of the run that is done
    uses_assets: bool = True
    assets: tuple[dict, ...] = ()
    strips: list[str] = field(default_factory=list)  # files of the assets' views
    fronts: dict[int, bool] = field(default_factory=dict)  # whether an asset's front is clear
    warnings: list[str] = field(default_factory=list)
    preview: events.Preview | None = None
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # for the curves
    files: dict[tuple[str, int], str] = field(default_factory=dict)  # ("turntable" or "mesh", object): path
    scores: list[dict] = field(default_factory=list)  # by object
    ended: bool = False
    complete: bool = False  # all that was planned is done

    @property
    def objects(self) -> int:
        """How many there are to look at."""
        return 1 + max((number for _, number in self.files), default=-1)

    def tell(self, event: events.Event) -> None:
        """Take in an event."""
        self.ended = isinstance(event, (events.Finished, events.Failed))
        match event:
            case Waiting(ahead, seconds):
                self.state = waiting(ahead, seconds)
            case events.Started(settings=settings, iteration=begin):
                self.uses_assets, self.warnings, self.complete = settings.uses_assets, [], False
                self.files, self.scores = {}, []  # what an earlier session made is made anew, and what it lost is gone
                self.series = {name: [p for p in points if p[0] <= begin] for name, points in self.series.items()}
                self.state = "Looking through the library" if settings.uses_assets else "Starting without assets"
            case events.Retrieved(assets, strips):
                self.assets, self.strips, self.state = assets, list(strips), "Looking for the front of each asset"
            case events.Oriented(asset=number, clear=clear, strip=strip):
                self.strips[number], self.fronts[number] = strip, clear
            case events.Progress(stage, iteration, total, seconds, losses):
                self.state, self.share = STAGES.get(stage, stage.capitalize()), iteration / total
                if stage in ITERATES:
                    self.state += f", iteration {iteration} of {total}"
                if seconds is not None:
                    self.state += f", {in_words(seconds)} left"
                for name, value in losses.items():
                    if value is not None:
                        self.series.setdefault(name, []).append((iteration, value))
            case events.Preview(iteration=iteration, clip_score=likeness):
                self.preview = event
                if likeness is not None:
                    self.series.setdefault("likeness", []).append((iteration, likeness))
            case events.Artefact(kind, number, file):
                self.files[kind, number] = str(self.folder / file)
            case events.Scored(scores):
                self.scores = list(scores["objects"])
            case events.Warned(sentence):
                self.warnings.append(sentence)
            case events.Failed(sentence):
                self.state = sentence
            case events.Finished(stopped):
                kept = "These are the results of what there was." if self.files else "Nothing had formed yet."
                self.state, self.share = (f"Stopped. {kept}", self.share) if stopped else ("Done.", 1.0)
                self.complete = not stopped

    def assets_html(self) -> str:
        """A card per asset, with its views turning."""
        if not self.uses_assets:
            return quiet("This run uses no assets.")
        if not self.assets:
            return NO_ASSETS
        return f"<div class='cards'>{''.join(map(self._card, range(len(self.assets))))}</div>"

    def state_html(self) -> str:
        """The line of state, a bar, and what a person should know."""
        done = "" if self.share is None else bar(self.share)
        warnings = "".join(f"<p class='small'>{as_html(sentence)}</p>" for sentence in self.warnings)
        return f"<div class='state' role='status'><p class='now'>{as_html(self.state)}</p>{done}{warnings}</div>"

    def preview_html(self) -> str:
        """The latest preview."""
        if self.preview is None or not (self.folder / self.preview.file).is_file():
            return ""
        words = f"The object after {self.preview.iteration} iterations, seen from {self.preview.azimuth_deg:.0f}°"
        return f"<div class='preview'><img src='{data_uri(self.folder / self.preview.file)}' alt='{words}'></div>"

    def curves_html(self) -> str:
        """The losses and the previews' likeness."""
        return curves_html(self.series) or NO_CURVES

    def scores_html(self, number: int = 0, true: Mapping[str, float] | None = None) -> str:
        """A row per score of an object: what it is called, what it says, and the numbers, with those of `true` objects
        to compare them with; "" if there are none."""
        return _scores_html(self.scores[number], true or {}) if number < len(self.scores) else ""

    def _card(self, number: int) -> str:
        asset = self.assets[number]
        front = [("front found" if self.fronts[number] else "no clear front")] if number in self.fronts else []
        views = turning(data_uri(self.folder / self.strips[number]), f"{asset['caption']}, turning")
        return f"<div class='card'>{views}<b>{escape(asset['caption'])}</b>{asset_facts(asset, front)}</div>"


def words_of(key: str) -> str:
    """What a score is called on every page, as HTML; `key` may leave open by which of two models it is."""
    return escape((SCORES.get(key) or SCORES[f"{key}_a"]).name)


def _scores_html(scores: Mapping, true: Mapping[str, float]) -> str:
    rows = []
    for key, (meaning, form) in SHOWN.items():
        names = [name for name in (key, f"{key}_a", f"{key}_b") if name in scores]
        reasons = [scores["not_available"].get(name, "not available") for name in names]
        numbers = (
            _numbers(scores, names, form) or f"<span class='small'>{escape((reasons or ['not available'])[0])}</span>"
        )
        compared = _numbers(true, names, form)
        about = f"<br><span class='small'>True objects: {compared}</span>" if compared else ""
        name = f"{words_of(key)}<br><span class='small'>{meaning}</span>"
        rows.append(f"<tr><th scope='row'>{name}</th><td>{numbers}{about}</td></tr>")
    return f"<table class='scores'>{''.join(rows)}</table>"


def _numbers(scores: Mapping, names: Sequence[str], form: str) -> str:
    return " · ".join(form.format(scores[name]) for name in names if scores.get(name) is not None)
