"""The same prompt and seed made by several methods: side by side in step, and two of them without their names."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from redream.app.components import data_uri, quiet, turning, waiting
from redream.app.form import GenerationForm, still_here
from redream.errors import RedreamError
from redream.evaluation import gallery
from redream.files import read_json
from redream.runs.events import Failed, Finished, Progress
from redream.runs.queue import Worker, after
from redream.runs.run import Run
from redream.scoring.scores import SCORES
from redream.settings import VARIANTS, Preset, Settings

COMPARED = ("redream", "redream-no-init", "redream-no-adapt", "vsd", "sds")  # of `VARIANTS`
SHOWN = ("clip_a", "clip_b", "view_accuracy_a", "view_accuracy_b", "janus_rate_a", "a_lpips_a", "coverage")
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


class ComparisonError(RedreamError):
    """What cannot be compared; the message says why."""


def wanted(variants: Sequence[str], run: Run | None, preset: Preset, seed: int) -> dict[str, Settings]:
    """The settings of each variant of a run, or of the preset; what another method has of its own is the preset's.
    Raises `ComparisonError`."""
    if run is not None and (run.request.assets or run.request.uids):
        raise ComparisonError("This run started from an asset of one's own choice; compare one that did not.")
    base = (preset["redream"] if run is None else run.request.settings).with_(seed=seed)
    found = {}
    for variant in variants:
        method = VARIANTS[variant].method
        own = base
        if method != base.method:
            own = replace(GenerationForm.of(base, preset), method=method, guidance=None).settings(preset)
        found[variant] = own.with_(**({"initialise": True, "adapt": True} | VARIANTS[variant].changes))
    return found


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
        film = self.run.folder / "turntable-0.mp4"
        stale = file.is_file() and film.is_file() and film.stat().st_mtime > file.stat().st_mtime  # the run went on
        if (stale or not file.is_file()) and (pictures := gallery.frames(film)):
            gallery.save_sprites(pictures, file)
        return file if file.is_file() else None

    @property
    def scores(self) -> Mapping:
        found = read_json(self.run.folder / "scores.json") or {}
        return (found.get("objects") or [{}])[0]


TAIL = 16_384  # bytes of a history that tell where its run is


def look(worker: Worker, runs: Mapping[str, str]) -> list[Made]:
    """Where some runs are: variant → id. Those that were removed are left out."""
    made = []
    for run in still_here(list(runs.values())):
        variant = next(name for name, other in runs.items() if other == run.folder.name)
        made.append(Made(variant, run, _sentence(run, worker.ahead(run.folder.name))))
    return made


def _sentence(run: Run, ahead: int | None) -> str:
    """How far a run is; "" if it is finished."""
    if ahead:
        return waiting(ahead, None)
    history = run.folder / "events.jsonl"
    told = after(history, max(0, history.stat().st_size - TAIL))[0] if history.is_file() else []
    last = next((event for event in reversed(told) if isinstance(event, (Progress, Failed, Finished))), None)
    match last:
        case Progress(stage, done, total) if ahead == 0:
            return f"{stage.capitalize()}, {done / total:.0%}"
        case Finished(stopped=False):
            return ""
        case Failed(sentence):
            return sentence
    return "Begins." if ahead == 0 else "It was stopped before it was finished."


def runs_for(
    worker: Worker, prompt: str, wanted: Mapping[str, Settings], known: Sequence[Run]
) -> Iterator[dict[str, str]]:
    """A run for each variant of a prompt: one that is known already or, at its turn, a new one; told after each of them.
    Raises as `Worker.submit`."""
    found: dict[str, str] = {}
    for variant, settings in wanted.items():
        equal = next((run for run in known if _is_usable(worker, run, prompt, settings)), None)
        found = found | {variant: equal.folder.name if equal else worker.submit(prompt, settings)}
        yield found


def missing(worker: Worker, prompt: str, wanted: Mapping[str, Settings], known: Sequence[Run]) -> list[Settings]:
    """The settings of the runs that would have to be made."""
    return [s for s in wanted.values() if not any(_is_usable(worker, run, prompt, s) for run in known)]


def _is_usable(worker: Worker, run: Run, prompt: str, settings: Settings) -> bool:
    """Whether a run was asked for in the same way, and is finished or will be."""
    r = run.request
    equal = (r.prompt, r.settings) == (prompt, settings) and not (r.extra or r.assets or r.uids)
    return equal and (run.finished or worker.ahead(run.folder.name) is not None)


def grid_html(made: Sequence[Made]) -> str:
    """The objects in step, with the assets they started from above and their scores below, the best in bold."""
    if not made:
        return NOTHING
    heads = "".join(f"<th scope='col'>{escape(VARIANTS[one.variant].label)}</th>" for one in made)
    rows = [("Assets", [_assets(one.run) for one in made]), ("Object", [_object(one) for one in made])]
    rows += [(_named(key), _scores(made, key)) for key in SHOWN]
    body = "".join(
        f"<tr><th scope='row'>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, cells in rows
    )
    return f"<div class='wide' tabindex='0'><table class='grid'><thead><tr><td></td>{heads}</tr></thead>{body}</table></div>"


def _named(key: str) -> str:
    return f"{escape(SCORES[key].name)}<br><span class='small'>{escape(SCORES[key].label)}</span>"


def _object(one: Made) -> str:
    sprite = one.sprite
    if sprite is None:
        return quiet("Not there yet." if one.sentence else "There is nothing to see.")
    return sprite_html(sprite, f"{one.run.request.prompt}, {VARIANTS[one.variant].label}")


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
    values = [None if one.sentence else one.scores.get(key) for one in made]
    known = [value for value in values if value is not None]
    choose = {"higher": max, "lower": min}.get(SCORES[key].better)
    if key.startswith("a_lpips"):  # what is blank does best
        choose = None
    best = choose(known) if choose and len(known) > 1 else None
    said = ["" if value is None else SCORES[key].text(value) for value in values]
    return [f"<b>{text}</b>" if value is not None and value == best else text for value, text in zip(values, said)]


def progress_html(made: Sequence[Made]) -> str:
    """A line for each object that is not there yet."""
    lines = [f"{VARIANTS[one.variant].label}: {one.sentence}" for one in made if one.sentence]
    return "".join(f"<p class='small'>{escape(line)}</p>" for line in lines)


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
    first, second = (escape(VARIANTS[name].label) for name in pair)
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
        f"<tr><th scope='row'>{escape(VARIANTS[name].label)}</th><td>{liked} of {shown}</td></tr>"
        for name, (liked, shown) in sorted(tally.items(), key=lambda item: -item[1][0])
        if name in COMPARED
    )
    return f"<table class='scores'>{rows}</table>" if rows else quiet("Your choices are counted here.")
