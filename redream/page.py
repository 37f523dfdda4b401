"""What a screen shows of a run: its events become a line of state, cards, a preview and a table, as sentences and HTML.

Texts from outside (prompts, captions, authors) are escaped here. Pictures are part of the HTML: it names no files.
"""

import base64
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from redream import events as told
from redream.jobs import Waiting

STAGES = {"loading": "Loading the models", "filming": "Filming the turntable", "scoring": "Scoring"}
STAGES |= {"warm-up": "Warming up", "painting": "Painting"}
SCORES = {  # name in scores.json: in words, what the number says, how it is written
    "clip": ("Likeness to the prompt", "CLIP score, two models: higher is better.", "{:.3f}"),
    "a_lpips": ("Change from view to view", "A-LPIPS, two networks: lower is steadier (so is a plain ball).", "{:.3f}"),
    "view_agreement": (
        "Sides where they belong",
        "Share of views that CLIP calls front, side or back rightly.",
        "{:.0%}",
    ),
    "coverage": ("Share of the picture", "How much of it the object covers.", "{:.0%}"),
}
BAR = """<div class='bar' role='progressbar' aria-label='Done' aria-valuenow='{percent:.0f}'>
<div style='width: {percent:.1f}%'></div></div>"""
NO_ASSETS = "<p class='quiet'>The three assets closest to your words will turn here.</p>"
NO_STATE = "<p class='quiet'>Describe an object and press Create.</p>"
INTERRUPTED = "This run was interrupted. Press Create to start a new one."


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
    preview: told.Preview | None = None
    files: dict[str, str] = field(default_factory=dict)  # of the first object: "turntable" and "mesh"
    scores: dict | None = None  # of the first object
    ended: bool = False

    def tell(self, event: told.Event) -> None:
        """Take in an event."""
        self.ended = isinstance(event, (told.Finished, told.Failed))
        match event:
            case Waiting(ahead):
                self.state = f"Waiting for its turn: {ahead} {'run is' if ahead == 1 else 'runs are'} before it"
            case told.Started(settings=settings):
                self.uses_assets, self.warnings = settings.uses_assets, []
                self.state = "Looking through the library" if settings.uses_assets else "Starting without assets"
            case told.Retrieved(assets, strips):
                self.assets, self.strips, self.state = assets, list(strips), "Looking for the front of each asset"
            case told.Oriented(asset=number, clear=clear, strip=strip):
                self.strips[number], self.fronts[number] = strip, clear
            case told.Progress(stage, iteration, total, seconds):
                self.state, self.share = STAGES.get(stage, stage.capitalize()), iteration / total
                if seconds is not None:
                    self.state += f", iteration {iteration} of {total}, {in_words(seconds)} left"
            case told.Preview():
                self.preview = event
            case told.Artefact(kind, 0, file):
                self.files[kind] = str(self.folder / file)
            case told.Scored(scores):
                self.scores = scores["objects"][0]
            case told.Warned(sentence):
                self.warnings.append(sentence)
            case told.Failed(sentence):
                self.state = sentence
            case told.Finished(stopped):
                kept = "These are the results of what there was." if self.files else "Nothing had formed yet."
                self.state, self.share = (f"Stopped. {kept}", self.share) if stopped else ("Done.", 1.0)

    def assets_html(self) -> str:
        """A card per asset, with its views turning."""
        if not self.uses_assets:
            return "<p class='quiet'>This run uses no assets.</p>"
        if not self.assets:
            return NO_ASSETS
        return f"<div class='cards'>{''.join(map(self._card, range(len(self.assets))))}</div>"

    def state_html(self) -> str:
        """The line of state, a bar, and what a person should know."""
        bar = "" if self.share is None else BAR.format(percent=100 * self.share)
        warnings = "".join(f"<p class='small'>{as_html(sentence)}</p>" for sentence in self.warnings)
        return f"<div class='state'><p class='now'>{as_html(self.state)}</p>{bar}{warnings}</div>"

    def preview_html(self) -> str:
        """The latest preview."""
        if self.preview is None:
            return ""
        words = f"The object after {self.preview.iteration} iterations, seen from {self.preview.azimuth_deg:.0f}°"
        return f"<div class='preview'><img src='{self._picture(self.preview.file)}' alt='{words}'></div>"

    def scores_html(self) -> str:
        """A row per score: what it is called, what it says, and the numbers."""
        if self.scores is None:
            return ""
        rows = "".join(
            f"<tr><td><b>{name}</b><br><span class='small'>{meaning}</span></td><td>{self._numbers(key, form)}</td></tr>"
            for key, (name, meaning, form) in SCORES.items()
        )
        return f"<table class='scores'>{rows}</table>"

    def _card(self, number: int) -> str:
        asset = {key: escape(str(value)) for key, value in self.assets[number].items()}
        author = asset["author"] or "unknown"
        if asset["source"].startswith(("https://", "http://")):
            author = f"<a href='{asset['source']}' target='_blank' rel='noopener noreferrer'>{author}</a>"
        facts = [f"similarity {self.assets[number]['similarity']:.2f}"]
        if number in self.fronts:
            facts.append("front found" if self.fronts[number] else "no clear front")
        facts += [f"by {author}", asset["license"] or "no licence given"]
        caption, seen = asset["caption"], f"background-image: url({self._picture(self.strips[number])})"
        views = f"<div class='turning' role='img' aria-label='{caption}' style='{seen}'></div>"
        return f"<div class='card'>{views}<b>{caption}</b><div class='small'>{'<br>'.join(facts)}</div></div>"

    def _picture(self, file: str) -> str:
        return "data:image/png;base64," + base64.b64encode((self.folder / file).read_bytes()).decode()

    def _numbers(self, key: str, form: str) -> str:
        names = [name for name in (key, f"{key}_a", f"{key}_b") if name in self.scores]
        reasons = [self.scores["not_available"].get(name, "not available") for name in names]
        known = [form.format(self.scores[name]) for name in names if self.scores[name] is not None]
        return " · ".join(known) or f"<span class='small'>{escape(reasons[0] if reasons else 'not available')}</span>"


def in_words(seconds: float) -> str:
    """A duration: "38 s", "1 min 40 s"."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def problem_html(sentence: str) -> str:
    """What keeps a wish from being granted."""
    return f"<div class='problem' role='alert'>{as_html(sentence)}</div>"


def as_html(sentence: str) -> str:
    """A sentence as text, with what stands between asterisks in italics."""
    return re.sub(r"\*([^*<>]+)\*", r"<em>\1</em>", escape(sentence))
