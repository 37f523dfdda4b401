"""A stack: the prior, the index, the CLIPs and the perceptual nets that a run works with, named by a `stack.json`.

Every entry is a folder beside `stack.json` or a Hub id, and is fetched when it is first used. A stack may have a
vocabulary (`redream.stack.vocabulary`), for models that know only so many words.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from redream import hub
from redream.errors import RedreamError
from redream.files import data_folder, sha256
from redream.scoring.scores import MODELS
from redream.settings import PRESETS
from redream.stack.vocabulary import Vocabulary

STACKS = Path(__file__).parents[2] / "assets_index"  # NAME → STACKS/NAME/stack.json
CLIPS = ("retrieval", *MODELS)
PERCEPTUALS = MODELS
# Entries that only score results.
SCORING_ENTRIES = tuple(f"{group}.{name}" for group in ("clips", "perceptual") for name in MODELS)
LPIPS_NETWORKS = ("vgg", "alex")
FORMAT = 1  # of stack.json
# Of a prior: half precision first, in full the autoencoder, which overflows.
PRIOR_WEIGHTS = (
    "text_encoder/model.fp16.safetensors | text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors | unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors | vae/diffusion_pytorch_model.fp16.safetensors",
)
PRIOR_FILES = ("*.json", "*.txt", *PRIOR_WEIGHTS)  # on the Hub, where its entry names none


class StackError(RedreamError):
    """A stack that cannot be read; the message says what is wrong with it."""


@dataclass(frozen=True)
class Entry:
    """One model or index of a stack: a `source` (folder or Hub id), or the name of an LPIPS network."""

    source: str | None = None
    revision: str | None = None  # branch, tag or commit on the Hub
    files: tuple[str, ...] | None = None  # which files of the Hub's repository are needed (`hub.resolve`)
    fallback: str | None = None  # owner/name@revision with the same files, used where the Hub does not give the source
    sha256: Mapping[str, str] = field(default_factory=dict)  # by file, in hex: what the fallback's must be
    megabytes: Mapping[str, float | int] = field(default_factory=dict)  # by file, or alternatives; rounded
    lpips: str | None = None  # "vgg" or "alex", perceptual entries only
    note: str | None = None  # a sentence added to the error if the source is unavailable

    def size_of(self, name: str) -> int | None:
        """About how many bytes a file has by stack.json; None if that does not say so."""
        sizes = {name: size for names, size in self.megabytes.items() for name in names.split(hub.OR)}
        return round(sizes[name] * 1e6) if name in sizes else None


@dataclass(frozen=True)
class Stack:
    """The entries of a `stack.json`; `folder(entry)` is the local folder of one of them."""

    name: str
    preset: str
    base: Path  # the folder of stack.json
    prior: Entry
    index: Entry
    clips: dict[str, Entry]  # "retrieval", and "a" and "b" for scores
    perceptual: dict[str, Entry]  # "a" and "b"
    vocabulary_file: str | None = None
    note: str | None = None
    truth: Entry | None = None  # a folder with truth.csv: true objects of the prompts, for `redream.evaluation.scorer`
    true_scores: Mapping[str, float] = field(default_factory=dict)  # their mean scores, by name in scores.json

    @staticmethod
    def load(name_or_folder: str | Path, environ: Mapping[str, str] = os.environ) -> "Stack":
        """Read a stack by name (`mini`) or by its folder: a text with a separator, or that begins with "." or "~", is a path.

        `REDREAM_PRIOR` and `REDREAM_INDEX` in `environ` replace one entry, but for its `files`: a folder, a Hub id, or
        `owner/name@revision`. An index that was built here (`built_index`) replaces one of the Hub. Raises `StackError`.
        """
        places = [Path(name_or_folder).expanduser()]
        if not (is_path := _is_path(name_or_folder)):
            places = [STACKS / name_or_folder, *places]
        base = next((place for place in places if (place / "stack.json").is_file()), None)
        if base is None:
            known = ", ".join(sorted(path.parent.name for path in STACKS.glob("*/stack.json")))
            lacking = f"The folder {name_or_folder} has no" if is_path else f"There is no stack {name_or_folder} with a"
            raise StackError(f"{lacking} stack.json; give the folder of a stack, or a name: {known}.")
        try:
            stack = _read(json.loads((base / "stack.json").read_text(encoding="utf-8")), base.resolve())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise StackError(f"The stack.json of {base.name} is not JSON; mend it or restore it.") from error
        overrides = {"prior": environ.get("REDREAM_PRIOR"), "index": environ.get("REDREAM_INDEX")}
        built = built_index(stack.name, environ)
        if not overrides["index"] and not stack.local_folder(stack.index) and (built / "index.json").is_file():
            overrides["index"] = str(built)
        return replace(stack, **{k: _override(value, getattr(stack, k)) for k, value in overrides.items() if value})

    @property
    def entries(self) -> dict[str, Entry]:
        """Prior, index, CLIPs and perceptual nets by name, those that have a source."""
        named = {"prior": self.prior, "index": self.index}
        named |= {f"clips.{name}": entry for name, entry in self.clips.items()}
        return named | {f"perceptual.{name}": entry for name, entry in self.perceptual.items() if entry.source}

    @property
    def address(self) -> str:
        """What `load` gets this stack by again: its name, or its folder."""
        return self.base.name if self.base.parent == STACKS.resolve() else str(self.base)

    def entry(self, name: str) -> Entry:
        """An entry by its name in stack.json: "prior", "clips.a"."""
        group, _, member = name.partition(".")
        return getattr(self, group)[member] if member else getattr(self, group)

    def local_folder(self, entry: Entry) -> Path | None:
        """The folder that an entry names; None if it names none that exists, or a Hub id."""
        folder = self.base / entry.source  # an absolute source stays what it is
        return folder if folder.is_dir() and (hub.is_inside(entry.source) or Path(entry.source).is_absolute()) else None

    def resolve(
        self,
        entry: Entry,
        check: Callable[[Path, Sequence[str]], None] = hub.no_check,
        watch: hub.Watch | None = None,
    ) -> hub.Resolved:
        """The entry's local folder and its commit, fetched from the Hub if necessary; `check` and `watch` as in
        `hub.resolve`.

        Raises `hub.HubError`, and what `check` and `watch` raise.
        """
        if entry.source is None:
            raise StackError("This entry has no folder: it names an LPIPS network.")
        options = {"base": self.base, "allow_patterns": entry.files, "check": check, "watch": watch}
        try:
            return hub.resolve(entry.source, revision=entry.revision, **options)
        except hub.HubError as error:
            if entry.fallback is None or not isinstance(error, hub.HubUnavailable):
                raise type(error)(f"{error} {entry.note}" if entry.note else str(error)) from error
        source, _, revision = entry.fallback.partition("@")
        resolved = hub.resolve(source, revision=revision or None, **options)
        try:
            hub.verify(resolved.folder, entry.sha256)
        except hub.HubError:
            _discard_wrong(resolved, entry.sha256)
            raise
        return resolved

    def folder(self, entry: Entry) -> Path:
        """The entry's local folder. Raises `hub.HubError`."""
        return self.resolve(entry).folder

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The words that this stack's models know; None if they take any prompt."""
        return Vocabulary.load(self.base / self.vocabulary_file) if self.vocabulary_file else None


def _discard_wrong(resolved: hub.Resolved, digests: Mapping[str, str]) -> None:
    """Remove files of the Hub with other bytes than those of a SHA-256 from its cache, where they would count as whole."""
    for name, digest in digests.items():
        if resolved.source and (file := resolved.folder / name).is_file() and sha256(file) != digest:
            hub.HubFile(resolved.source, name, resolved.revision).discard()


def _is_path(name_or_folder: str | Path) -> bool:
    text = str(name_or_folder)
    return isinstance(name_or_folder, Path) or text.startswith((".", "~")) or any(c in text for c in ("/", os.sep))


def built_index(stack: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the index of a stack is that was built here because the Hub has none (`redream.stack.setup`)."""
    return data_folder(environ) / "indexes" / stack


def library_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where one's own library is (`redream.retrieval.own`): `REDREAM_LIBRARY`, else in the folder of a user's data."""
    folder = environ.get("REDREAM_LIBRARY")
    return Path(folder).expanduser() if folder else data_folder(environ) / "library"


def picture_memory(environ: Mapping[str, str] = os.environ) -> Path:
    """Where image embeddings are kept that an index lacks (`redream.retrieval.pictures`)."""
    return data_folder(environ) / "pictures"


def _read(values: object, base: Path) -> Stack:
    """Check the schema of a stack.json, key by key."""
    required = {"format", "name", "preset", "prior", "index", "clips", "perceptual"}
    values = _mapping(values, "stack.json", required, {"vocabulary", "note", "truth", "true_scores"})
    if values["format"] != FORMAT:
        raise StackError(f"This stack has format {values['format']!r}; this version of Redream reads format {FORMAT}.")
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
        prior=_with_files(_entry(values["prior"], "prior"), PRIOR_FILES),
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
            raise StackError(
                f"In stack.json, {where} names an unknown LPIPS network; there are: {', '.join(LPIPS_NETWORKS)}."
            )
        return Entry(lpips=value["lpips"])
    value = dict(_mapping(value, where, {"source"}, {"revision", "files", "fallback", "sha256", "megabytes", "note"}))
    files, hashes, sizes = value.pop("files", None), value.pop("sha256", {}), value.pop("megabytes", {})
    if not isinstance(hashes, dict) or not all(isinstance(text, str) for text in hashes.values()):
        raise StackError(f"In stack.json, the sha256 of {where} must be an object of texts.")
    if not isinstance(sizes, dict) or not all(type(size) in (int, float) for size in sizes.values()):
        raise StackError(f"In stack.json, the megabytes of {where} must be an object of numbers.")
    if not (files is None or isinstance(files, list)) or not all(
        isinstance(text, str) and text for text in [*value.values(), *(files or [])]
    ):
        raise StackError(f"In stack.json, the fields of {where} must be text, and its files a list of texts.")
    return Entry(files=tuple(files) if files else None, sha256=hashes, megabytes=sizes, **value)


def _mapping(value: object, where: str, required: set[str], optional: frozenset[str] | set[str] = frozenset()) -> dict:
    if not isinstance(value, dict):
        raise StackError(f"In stack.json, {where} must be an object with: {', '.join(sorted(required))}.")
    if missing := required - set(value):
        raise StackError(f"In stack.json, {where} lacks: {', '.join(sorted(missing))}.")
    if extra := set(value) - required - optional:
        raise StackError(f"In stack.json, {where} has keys that mean nothing here: {', '.join(sorted(extra))}.")
    return value


def _with_files(entry: Entry, files: tuple[str, ...]) -> Entry:
    return entry if entry.files else replace(entry, files=files)


def _override(value: str, entry: Entry) -> Entry:
    """An environment variable's folder, Hub id, or Hub id with @revision, with the files of the entry that it replaces."""
    if (folder := Path(value).expanduser()).is_dir():
        return Entry(source=str(folder.resolve()), files=entry.files)
    source, _, revision = value.partition("@")
    return Entry(source=source, revision=revision or None, files=entry.files)
