"""A stack: the prior, the index, the CLIPs and the perceptual nets that a run works with, named by a `stack.json`.

Every entry is a folder beside `stack.json` or a Hub id, and is fetched when it is first asked for. A stack may have a
vocabulary, for models that know only so many words; `check_prompt` is the one door through which prompts come in.
"""

import json
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from redream import hub
from redream.settings import PRESETS, PROMPT_LIMIT

STACKS = Path(__file__).parent.parent / "assets_index"  # NAME → STACKS/NAME/stack.json
CLIPS = ("retrieval", "a", "b")
PERCEPTUALS = ("a", "b")
JUDGES = ("clips.a", "clips.b", "perceptual.a", "perceptual.b")  # entries that only score what the others make
LPIPS_NETWORKS = ("vgg", "alex")


class StackError(ValueError):
    """A stack that cannot be read; the message says what is wrong with it."""


class PromptError(ValueError):
    """A prompt that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Entry:
    """One model or index of a stack: a `source` (folder or Hub id), or the name of an LPIPS network."""

    source: str | None = None
    revision: str | None = None  # branch, tag or commit on the Hub
    files: tuple[str, ...] | None = None  # which files of the Hub's repository are needed
    lpips: str | None = None  # "vgg" or "alex", perceptual entries only
    note: str | None = None  # a sentence added to the error when the source cannot be had


@dataclass(frozen=True)
class Stack:
    """What `stack.json` says; `folder(entry)` turns one of its entries into a local folder."""

    name: str
    preset: str
    base: Path  # the folder of stack.json
    prior: Entry
    index: Entry
    clips: dict[str, Entry]  # "retrieval", and "a" and "b" for scores
    perceptual: dict[str, Entry]  # "a" and "b"
    vocabulary_file: str | None = None
    note: str | None = None
    truth: Entry | None = None  # a folder with truth.csv: what things really look like, for `redream.judging`
    true_scores: Mapping[str, float] = field(default_factory=dict)  # theirs in the mean, by name in scores.json

    @staticmethod
    def load(name_or_folder: str | Path, environ: Mapping[str, str] = os.environ) -> "Stack":
        """Read a stack by name (`mini`) or by its folder.

        `REDREAM_PRIOR` and `REDREAM_INDEX` in `environ` replace one entry: a folder, a Hub id, or `owner/name@revision`.
        Raises `StackError`.
        """
        base = next((b for b in (STACKS / name_or_folder, Path(name_or_folder)) if (b / "stack.json").is_file()), None)
        if base is None:
            known = ", ".join(sorted(path.parent.name for path in STACKS.glob("*/stack.json")))
            raise StackError(
                f"There is no stack {Path(name_or_folder).name}; give a folder with a stack.json or: {known}."
            )
        try:
            stack = _read(json.loads((base / "stack.json").read_text(encoding="utf-8")), base.resolve())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise StackError(f"The stack.json of {base.name} is not JSON; mend it or restore it.") from error
        overrides = {"prior": environ.get("REDREAM_PRIOR"), "index": environ.get("REDREAM_INDEX")}
        return replace(stack, **{entry: _override(value) for entry, value in overrides.items() if value})

    @property
    def entries(self) -> dict[str, Entry]:
        """Prior, index, CLIPs and perceptual nets by name, those that have a source."""
        named = {"prior": self.prior, "index": self.index}
        named |= {f"clips.{name}": entry for name, entry in self.clips.items()}
        return named | {f"perceptual.{name}": entry for name, entry in self.perceptual.items() if entry.source}

    def resolve(self, entry: Entry) -> hub.Resolved:
        """The entry's local folder and its commit, fetched from the Hub if need be. Raises `hub.HubError`."""
        if entry.source is None:
            raise StackError("This entry has no folder: it names an LPIPS network.")
        try:
            return hub.resolve(entry.source, base=self.base, revision=entry.revision, allow_patterns=entry.files)
        except hub.HubError as error:
            raise hub.HubError(f"{error} {entry.note}" if entry.note else str(error)) from error

    def folder(self, entry: Entry) -> Path:
        """The entry's local folder. Raises `hub.HubError`."""
        return self.resolve(entry).folder

    @cached_property
    def vocabulary(self) -> "Vocabulary | None":
        """The words this stack's models know; None where any prompt goes."""
        return Vocabulary.load(self.base / self.vocabulary_file) if self.vocabulary_file else None


@dataclass(frozen=True)
class Checked:
    """A prompt as the models get it, and what to tell its author."""

    prompt: str
    warnings: tuple[str, ...] = ()
    kind: str | None = None  # the kind of thing it names, and
    colour: str | None = None  # its colour, where a vocabulary tells
    has_front: bool | None = None  # whether things of that kind look different from the front


@dataclass(frozen=True)
class Vocabulary:
    """The words that small models know: phrases for kinds and colours, and other words."""

    name: str  # as it stands in a sentence: "the miniature model"
    kinds: dict[str, list[str]]  # "owl": ["owl", "owls", "owlet"]
    symmetric: list[str]  # the kinds without a front
    colours: dict[str, list[str]]
    words: list[str]

    @staticmethod
    def load(path: Path) -> "Vocabulary":
        """Read a vocabulary file. Raises `StackError`."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            fields = {key: values[key] for key in ("kinds", "symmetric", "colours", "words")}
            return Vocabulary(name=values.get("name", "this model"), **fields)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StackError(f"The vocabulary {path.name} cannot be read; restore the stack's files.") from error

    def check(self, prompt: str) -> Checked:
        """Drop the words that the models do not know, with a warning. Raises `PromptError` if no known kind is named."""
        tokens = re.findall(r"[^\W_]+(?:'[^\W_]+)?", prompt.lower().replace("’", "'"))
        kinds, colours = _phrases(tokens, self.kinds), _phrases(tokens, self.colours)
        phrases = [phrase for table in (self.kinds, self.colours) for group in table.values() for phrase in group]
        known = {word.lower() for phrase in [*phrases, *self.words] for word in phrase.split()}
        unknown = list(dict.fromkeys(token for token in tokens if token not in known))
        name = self.name[:1].upper() + self.name[1:]
        if not kinds:
            reason = f"does not know the {_words(unknown)}" if unknown else "finds no thing it knows in this prompt"
            listed = ", ".join(sorted(self.kinds))
            raise PromptError(f"{name} {reason}. It knows {len(self.kinds)} kinds of things: {listed}.")
        them = "it" if len(unknown) == 1 else "them"
        warnings = (f"{name} does not know the {_words(unknown)} and ignores {them}.",) if unknown else ()
        kept = " ".join(token for token in tokens if token in known)
        return Checked(kept, warnings, kinds[0], colours[0] if colours else None, kinds[0] not in self.symmetric)


def check_prompt(prompt: str, vocabulary: Vocabulary | None = None) -> Checked:
    """Any prompt from outside comes through here: one line of 1 to `PROMPT_LIMIT` characters. Raises `PromptError`."""
    if len(prompt) > PROMPT_LIMIT:
        raise PromptError(f"This prompt has {len(prompt):,} characters; the limit is {PROMPT_LIMIT}. Shorten it.")
    prompt = " ".join(unicodedata.normalize("NFC", prompt).split())
    prompt = "".join(character for character in prompt if unicodedata.category(character) != "Cf")  # invisible marks
    if any(unicodedata.category(character) in ("Cc", "Cs", "Cn") for character in prompt):
        raise PromptError("This prompt has control characters in it; type it as plain text.")
    if not prompt.strip():
        raise PromptError("The prompt is empty; describe an object in a few words.")
    return vocabulary.check(prompt) if vocabulary else Checked(prompt)


def _read(values: object, base: Path) -> Stack:
    """Check the schema of a stack.json (format 1), key by key."""
    required = {"format", "name", "preset", "prior", "index", "clips", "perceptual"}
    values = _mapping(values, "stack.json", required, {"vocabulary", "note", "truth", "true_scores"})
    if values["format"] != 1:
        raise StackError(f"This stack has format {values['format']!r}; this version of Redream reads format 1.")
    for key in ("name", "preset", "vocabulary", "note"):
        if not isinstance(values.get(key, ""), str):
            raise StackError(f"In stack.json, {key} must be text.")
    true_scores = values.get("true_scores", {})
    if not isinstance(true_scores, dict) or not all(type(score) in (int, float) for score in true_scores.values()):
        raise StackError("In stack.json, true_scores must be an object of numbers.")
    if values["preset"] not in PRESETS:
        raise StackError(f"This stack's preset {values['preset']} does not exist; there are: {', '.join(PRESETS)}.")
    vocabulary = values.get("vocabulary")
    if vocabulary is not None and not hub.is_inside(vocabulary):
        raise StackError("This stack's vocabulary is outside its folder; move the file inside.")
    return Stack(
        name=values["name"],
        preset=values["preset"],
        base=base,
        prior=_entry(values["prior"], "prior"),
        index=_entry(values["index"], "index"),
        clips={k: _entry(v, f"clips.{k}") for k, v in _mapping(values["clips"], "clips", set(CLIPS)).items()},
        perceptual={
            k: _entry(v, f"perceptual.{k}", lpips=True)
            for k, v in _mapping(values["perceptual"], "perceptual", set(PERCEPTUALS)).items()
        },
        vocabulary_file=vocabulary,
        note=values.get("note"),
        truth=_entry(values["truth"], "truth") if "truth" in values else None,
        true_scores={name: float(score) for name, score in true_scores.items()},
    )


def _entry(value: object, where: str, lpips: bool = False) -> Entry:
    if lpips and isinstance(value, dict) and "lpips" in value:
        if _mapping(value, where, {"lpips"})["lpips"] not in LPIPS_NETWORKS:
            raise StackError(f"In stack.json, {where} names an unknown LPIPS network; there are: vgg, alex.")
        return Entry(lpips=value["lpips"])
    value = dict(_mapping(value, where, {"source"}, {"revision", "files", "note"}))
    files = value.pop("files", None)
    if not (files is None or isinstance(files, list)) or not all(
        isinstance(text, str) and text for text in [*value.values(), *(files or [])]
    ):
        raise StackError(f"In stack.json, the fields of {where} must be text, and its files a list of texts.")
    return Entry(files=tuple(files) if files else None, **value)


def _mapping(value: object, where: str, required: set[str], optional: frozenset[str] | set[str] = frozenset()) -> dict:
    if not isinstance(value, dict):
        raise StackError(f"In stack.json, {where} must be an object with: {', '.join(sorted(required))}.")
    if missing := required - set(value):
        raise StackError(f"In stack.json, {where} lacks: {', '.join(sorted(missing))}.")
    if extra := set(value) - required - optional:
        raise StackError(f"In stack.json, {where} has keys that mean nothing here: {', '.join(sorted(extra))}.")
    return value


def _override(value: str) -> Entry:
    """An environment variable's folder, Hub id, or Hub id with @revision."""
    if Path(value).is_dir():
        return Entry(source=str(Path(value).resolve()))
    source, _, revision = value.partition("@")
    return Entry(source=source, revision=revision or None)


def _phrases(tokens: list[str], table: dict[str, list[str]]) -> list[str]:
    """The entries of a table {entry: phrases} that the tokens name, in order; at one place the longest phrase wins."""
    spelled = {tuple(phrase.lower().split()): entry for entry, phrases in table.items() for phrase in phrases}
    longest = max((len(phrase) for phrase in spelled), default=0)
    found, place = [], 0
    while place < len(tokens):
        lengths = range(min(longest, len(tokens) - place), 0, -1)
        length = next((n for n in lengths if tuple(tokens[place : place + n]) in spelled), 0)
        if length:
            found.append(spelled[tuple(tokens[place : place + length])])
        place += max(length, 1)
    return found


def _words(words: list[str]) -> str:
    starred = [f"*{word}*" for word in words]
    return f"word {starred[0]}" if len(words) == 1 else f"words {', '.join(starred[:-1])} and {starred[-1]}"
