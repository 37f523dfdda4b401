"""What the entries of a stack need on this computer, file by file: what is here and whole, and what is not, with its size.

The network is not used. A file that was cut off is found by its size, which a listing of the Hub or its own header says,
and a git-lfs pointer by how it begins; only LPIPS's backbones are read, since nothing but their names' hashes is known.
"""

import fnmatch
import importlib.util
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from redream import hub
from redream.stack.stack import PRIOR_WEIGHTS, Entry, Stack

POINTER = "a git-lfs pointer, not the file itself"
LFS_POINTER = b"version https://git-lfs.github.com"
HEADER_LIMIT = 100_000_000  # bytes of a safetensors header, as that library has it
JSON_LIMIT = 50_000_000  # bytes
PRIOR = ("model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json | tokenizer/tokenizer.json")
PRIOR += ("text_encoder/config.json", "unet/config.json", "vae/config.json")
CLIP_CONFIG, TOKENIZER = "open_clip_config.json", "tokenizer.json | vocab.json | vocab.txt"
PERCEPTUAL = ("config.json", "model.safetensors")
MISSING = "missing"


@dataclass(frozen=True)
class NeededFile:
    """A file that loading an entry reads."""

    entry: str  # its name in stack.json: "prior", "clips.b"
    name: str  # its path in the entry's folder or repository
    fault: str | None  # why it cannot be used; None: it is here and whole
    size: int | None  # bytes; None: unknown
    on_hub: bool = False  # or at torchvision: `redream.stack.setup` fetches it

    @property
    def is_optional(self) -> bool:
        """Whether runs work without it: A-LPIPS is left out then."""
        return self.entry.startswith("perceptual.")

    def __str__(self) -> str:
        size = "" if self.size is None else f", {in_bytes(self.size)}"
        return f"{self.entry}: {self.name}{size}: {self.fault or 'here'}"


def missing_files(stack: Stack) -> list[NeededFile]:
    """The files of all entries that are not here, or not whole."""
    return [file for file in needed_files(stack) if file.fault]


def needed_files(stack: Stack) -> list[NeededFile]:
    """All files that loading the stack's models and its index reads."""
    files = [file for name in stack.entries for file in files_of(stack, name)]
    networks = [(f"perceptual.{name}", entry.lpips) for name, entry in stack.perceptual.items() if entry.lpips]
    return files + [file for name, network in networks for file in _of_lpips(name, network)]


def total_size(files: Iterable[NeededFile]) -> int:
    """Bytes of all files whose sizes are known."""
    return sum(file.size or 0 for file in files)


def in_bytes(size: int) -> str:
    """A number of bytes in words: "681 MB", "1.7 GB"."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB" if size >= 1e3 else f"{size:.0f} bytes"


def files_of(stack: Stack, name: str) -> list[NeededFile]:
    """The files of an entry with a source: in its folder, or in the Hub's cache, of its source or of its fallback if that is whole."""
    entry = stack.entry(name)
    if (folder := stack.local_folder(entry)) is not None:
        return [replace(file, on_hub=False) for file in files_in(folder, name, entry)]
    fallback, _, revision = (entry.fallback or "").partition("@")
    sources = [(entry.source, entry.revision), *([(fallback, revision or None)] if fallback else [])]
    found = [
        files_in(cached.folder, name, entry, cached.sizes) for cached in (hub.cached(*source) for source in sources)
    ]
    return next((files for files in found if not any(file.fault for file in files)), found[0])


def files_in(folder: Path | None, name: str, entry: Entry, sizes: Mapping[str, int] = {}) -> list[NeededFile]:
    """An entry's files in a folder (None: there is nothing yet); `sizes` are those of a listing, {} if there is none."""
    here = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()] if folder else []
    stated = [alternative for names in entry.megabytes for alternative in names.split(hub.OR)]
    needed = [file for pattern in patterns(name, folder) for file in names_of(pattern, sizes or here, stated)]
    return [
        NeededFile(name, file, _fault(folder, file, sizes.get(file)), sizes.get(file, entry.size_of(file)), True)
        for file in dict.fromkeys(needed)
    ]


def names_of(pattern: str, *groups: Iterable[str]) -> list[str]:
    """The names that a pattern's first fitting alternative fits, of the first group with any; else that alternative."""
    alternatives = pattern.split(hub.OR)
    fitting = (fnmatch.filter(names, alternative) for names in groups for alternative in alternatives)
    return next(filter(None, fitting), alternatives[:1])


def patterns(name: str, folder: Path | None = None) -> list[str]:
    """What an entry needs, as file names and patterns with alternatives; its own files in `folder` may say more."""
    match name.partition(".")[0]:
        case "prior":
            return [
                *PRIOR,
                *(f"{weights}{hub.OR}{weights.partition('/')[0]}/*.safetensors" for weights in PRIOR_WEIGHTS),
            ]
        case "clips":
            from redream.retrieval.clip import CLIP_VOCABULARY, WEIGHTS

            text = _object(folder, CLIP_CONFIG, "model_cfg", "text_cfg")
            own = text.get("vocab_size", CLIP_VOCABULARY) != CLIP_VOCABULARY or text.get("hf_tokenizer_name")
            return [CLIP_CONFIG, hub.OR.join(WEIGHTS), *([TOKENIZER] if own else [])]
        case "index":
            return ["index.json", *filter(hub.is_inside, _object(folder, "index.json", "files"))]
        case _:
            return [*PERCEPTUAL]


def _of_lpips(name: str, network: str) -> list[NeededFile]:
    """The backbone's weights, which torchvision publishes, and the linear ones, which come with the package lpips."""
    from redream.scoring.perceptual import BACKBONE_MEGABYTES, backbone_file, cached_backbone

    backbone = backbone_file(network)
    fault = None if cached_backbone(network) else "damaged" if backbone.is_file() else MISSING
    files = [NeededFile(name, backbone.name, fault, round(BACKBONE_MEGABYTES[network] * 1e6), True)]
    package = importlib.util.find_spec("lpips")
    linear = Path("weights", "v0.1", f"{network}.pth")
    if package is None or not (Path(package.origin).parent / linear).is_file():
        files.append(NeededFile(name, f"lpips/{linear.as_posix()}", f"{MISSING}; install the package lpips", None))
    return files


def _object(folder: Path | None, name: str, *path: str) -> dict:
    """An object within a JSON file; {} if it cannot be read."""
    try:
        values = json.loads((folder / name).read_text(encoding="utf-8")) if folder else {}
        for key in path:
            values = values[key]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return values if isinstance(values, dict) else {}


# Faults of a file


def _fault(folder: Path | None, name: str, expected: int | None) -> str | None:
    """Why a file cannot be used, None if it can, as far as its size, beginning and header say; `expected`: its bytes."""
    path = (folder or Path()) / name
    if folder is None or not path.is_file():
        return MISSING
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        return POINTER
    if not start:
        return "empty"
    if expected is not None and size != expected:
        return _cut(size, expected)
    if path.suffix == ".safetensors":
        return _safetensors_fault(path, size)
    return "not JSON" if path.suffix == ".json" and not _is_json(path, size) else None


def _cut(size: int, expected: int) -> str:
    return f"cut off, {size:,} of {expected:,} bytes" if size < expected else f"{size:,} bytes, not {expected:,}"


def _safetensors_fault(path: Path, size: int) -> str | None:
    """Compare a safetensors file's size with what its header says: 8 bytes with the header's length, the header (JSON),
    and the tensors up to the largest of its offsets."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER_LIMIT:
            return "damaged"
        header = file.read(length)
    if len(header) < length:
        return _cut(size, 8 + length)
    try:
        ends = [value["data_offsets"][1] for name, value in json.loads(header).items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return "damaged"
    return None if size == expected else _cut(size, expected)


def _is_json(path: Path, size: int) -> bool:
    try:
        return size <= JSON_LIMIT and json.loads(path.read_text(encoding="utf-8")) is not None
    except ValueError:
        return False
