"""The same prompt and seed made by several methods: side by side in step, and two of them without their names."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from redream import gallery
from redream.evaluation import METHODS
from redream.events import Failed, Progress
from redream.files import read_json
from redream.jobs import Worker, find
from redream.runs import Run
from redream.screen.markup import data_uri, quiet, turning
from redream.settings import Settings

VARIANTS = {  # of `METHODS`: in words
    "redream": "ReDream",
    "redream-no-init": "without initialisation",
    "redream-no-adapt": "without adaptation",
    "vsd": "ProlificDreamer (VSD)",
    "sds": "DreamFusion (SDS)",
}
SHOWN = {  # score: in words, whether more is better, how it is written
    "clip_a": ("likeness a", True, "{:.3f}"),
    "clip_b": ("likeness b", True, "{:.3f}"),
    "view_agreement_a": ("sides right a", True, "{:.0%}"),
    "view_agreement_b": ("sides right b", True, "{:.0%}"),
    "front_behind_a": ("faces behind a", False, "{:.0%}"),
    "a_lpips_a": ("change a", None, "{:.4f}"),
}
QUESTIONS = {  # of the paper's user study
    "texture": "Which one has the better texture?",
    "shape": "Which one has the more plausible shape?",
    "geometry": "Which one fits together better from all sides?",
}
CLOCK = """let view = 0;  // turns all objects of a widget in step
const still = matchMedia('(prefers-reduced-motion: reduce)');
setInterval(() => {
  if (still.matches || document.hidden) return;
  view = (view + 1) % 36;
  element.style.setProperty('--x', view % 6);
  element.style.setProperty('--y', Math.floor(view / 6));
}, 110);"""
NOTHING = quiet("Choose a prompt and what to compare; what is missing will be made.")
NOTHING_BLIND = quiet("When two objects are there, they are shown without their names.")


def settings_for(name: str, settings: Settings) -> Settings:
    """The same settings by another variant."""
    return settings.with_(**({"method": "redream", "initialise": True, "adapt": True} | METHODS[name]))


@dataclass(frozen=True)
class Made:
    """A variant's run: finished, with an object to look at, or with a sentence that says how far it is."""

    variant: str
    run: Run
    sentence: str = ""

    @property
    def sprite(self) -> Path | None:
        """Views of the first object in one picture, made of its turntable when it is first asked for."""
        file = self.run.folder / "sprite.jpg"
        if self.sentence:
            return None
        if not file.is_file() and (pictures := gallery.frames(self.run.folder / "turntable-0.mp4")):
            gallery.save_sprites(pictures, file)
        return file if file.is_file() else None

    @property
    def scores(self) -> Mapping:
        found = read_json(self.run.folder / "scores.json") or {}
        return (found.get("objects") or [{}])[0]


def look(worker: Worker, runs: Mapping[str, str]) -> list[Made]:
    """Where some runs are: variant → id."""
    made = []
    for variant, name in runs.items():
        run, ahead = find(name), worker.ahead(name)
        if ahead:
            sentence = f"Waits for its turn: {ahead} before it."
        else:
            told = [event for event in run.events() if isinstance(event, (Progress, Failed))]
            sentence = _sentence(told[-1] if told else None, being_made=ahead == 0)
        made.append(Made(variant, run, sentence))
    return made


def _sentence(last: Progress | Failed | None, being_made: bool) -> str:
    if being_made:
        return (
            f"{last.stage.capitalize()}, {last.iteration / last.total:.0%}" if isinstance(last, Progress) else "Begins."
        )
    return last.sentence if isinstance(last, Failed) else "" if last else "It was stopped before it began."


def runs_for(
    worker: Worker, prompt: str, base: Settings, variants: Sequence[str], known: Sequence[Run]
) -> dict[str, str]:
    """A run for each variant of a prompt: one that is known already or, at its turn, a new one. Raises as
    `Worker.submit`; those that were taken on before stay."""
    found = {}
    for variant in variants:
        wanted = settings_for(variant, base)
        equal = next((run for run in known if _is_plain(run, prompt, wanted)), None)
        found[variant] = equal.folder.name if equal else worker.submit(prompt, wanted)
    return found


def missing(prompt: str, base: Settings, variants: Sequence[str], known: Sequence[Run]) -> list[Settings]:
    """The settings of the runs that would have to be made."""
    wanted = [settings_for(variant, base) for variant in variants]
    return [settings for settings in wanted if not any(_is_plain(run, prompt, settings) for run in known)]


def _is_plain(run: Run, prompt: str, settings: Settings) -> bool:
    r = run.request
    return (r.prompt, r.settings) == (prompt, settings) and not (r.extra or r.assets or r.uids)


def grid_html(made: Sequence[Made]) -> str:
    """The objects in step, with the assets they started from above and their scores below, the best in bold."""
    if not made:
        return NOTHING
    heads = "".join(f"<th scope='col'>{escape(VARIANTS[one.variant])}</th>" for one in made)
    rows = [("Assets", [_assets(one.run) for one in made]), ("Object", [_object(one) for one in made])]
    rows += [(words, _scores(made, key)) for key, (words, _, _) in SHOWN.items()]
    body = "".join(
        f"<tr><th scope='row'>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, cells in rows
    )
    return f"<div class='wide' tabindex='0'><table class='grid'><thead><tr><td></td>{heads}</tr></thead>{body}</table></div>"


def _object(one: Made) -> str:
    sprite = one.sprite
    if sprite is None:
        return quiet(one.sentence or "There is nothing to see.")
    return sprite_html(sprite, f"{one.run.request.prompt}, {VARIANTS[one.variant]}")


def sprite_html(sprite: Path, label: str) -> str:
    """A sheet of views that is turned by the page's one clock (`--x` and `--y`)."""
    return f"<div class='sprite' role='img' aria-label='{escape(label)}' style='background-image: url({data_uri(sprite)})'></div>"


def _assets(run: Run) -> str:
    found = read_json(run.folder / "retrieved.json")
    if not (run.request.settings.uses_assets and found):
        return "<span class='small'>none</span>"
    strips = []
    for number, asset in enumerate(found["assets"]):
        if (file := run.folder / f"asset-{number}-turned.png").is_file():
            strips.append(turning(data_uri(file), asset["caption"]))
    return f"<div class='strips'>{''.join(strips)}</div>"


def _scores(made: Sequence[Made], key: str) -> list[str]:
    """A score of each object as it is shown, the best in bold."""
    _, more, form = SHOWN[key]
    values = [None if one.sentence else one.scores.get(key) for one in made]
    known = [value for value in values if value is not None]
    best = None if more is None or len(known) < 2 else (max if more else min)(known)
    said = ["" if value is None else form.format(value) for value in values]
    return [f"<b>{text}</b>" if value is not None and value == best else text for value, text in zip(values, said)]


# ---------------------------------------------------------------- the blind test


def next_pair(made: Sequence[Made], random_: random.Random) -> tuple[Made, Made, str] | None:
    """Two different objects in a random order and one of the `QUESTIONS`; None if there are not two."""
    ready = [one for one in made if one.sprite is not None]
    if len(ready) < 2:
        return None
    first, second = random_.sample(ready, 2)
    return first, second, random_.choice(list(QUESTIONS))


def pair_html(first: Made, second: Made, question: str) -> str:
    """Both objects in step, without their names, and what to look for."""
    shown = "".join(
        f"<figure>{sprite_html(one.sprite, f'object {name}')}<figcaption>{name}</figcaption></figure>"
        for one, name in ((first, "A"), (second, "B"))
    )
    return f"<p class='now'>{QUESTIONS[question]}</p><div class='pair'>{shown}</div>"


def answer_html(pair: Sequence[str], choice: str) -> str:
    """Which was which."""
    first, second = (escape(VARIANTS[name]) for name in pair)
    liked = {"A": f" You liked {first} better.", "B": f" You liked {second} better."}.get(choice, "")
    return f"<p class='now'>A was {first}, B was {second}.{liked}</p>"


def counted(tally: Mapping, pair: Sequence[str], choice: str) -> dict[str, list[int]]:
    """The tally {variant: [liked better, shown]} after a choice of "A", "B" or "same" between two variants."""
    counts = {name: list(counts) for name, counts in tally.items()}
    for letter, name in zip("AB", pair, strict=True):
        liked, shown = counts.get(name, [0, 0])
        counts[name] = [liked + (choice == letter), shown + 1]
    return counts


def tally_html(tally: Mapping) -> str:
    """How often each variant was liked better, of how often it was shown."""
    rows = "".join(
        f"<tr><th scope='row'>{escape(VARIANTS[name])}</th><td>{liked} of {shown}</td></tr>"
        for name, (liked, shown) in sorted(tally.items(), key=lambda item: -item[1][0])
        if name in VARIANTS
    )
    return f"<table class='scores'>{rows}</table>" if rows else quiet("Your choices are counted here.")
