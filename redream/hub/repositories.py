"""A folder or a Hub id becomes a checked local folder, and a file of a Hub repository a local file.

Only files that cannot run code are ever downloaded; what a branch or tag resolved to is returned for the record.
"""

import fnmatch
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from huggingface_hub import (
    HfApi,
    constants,
    get_cached_repo_tree,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import CachedRepoTreeNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers

from redream.files import read_json, sha256, write_json
from redream.hub.download import Count, NoBar, Watch, fetch_to, meter
from redream.hub.faults import HubError, HubFileMissing, retried

SHA256 = re.compile(r"[0-9a-f]{64}")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # owner/name
WHERE = "stack.json, or REDREAM_PRIOR or REDREAM_INDEX where that is set"
# No pickle in any of them.
SAFE = ("*.json", "*.json.gz", "*.safetensors", "*.txt", "*.csv", "*.parquet", "*.faiss", "*.npy", "*.glb")
VERIFIED, REMEMBERED = ".verified.json", 2**26  # a file of hashes that were right, of files of so many bytes
SMALL = (".json", ".txt")  # fetched first: they say whether the rest is worth it
NO_FILE = "-"  # a pattern that fits none
OR = " | "  # between alternatives of a pattern, the best first


@dataclass(frozen=True)
class Resolved:
    """A local folder, and the Hub id and commit it was downloaded at (None for a folder that was there already)."""

    folder: Path
    source: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class HubFile:
    """One file of a Hub repository."""

    repository: str  # owner/name
    name: str  # its path in there
    revision: str | None = None  # branch, tag or commit
    kind: str = "model"  # or "dataset"

    def cached(self) -> Path | None:
        """The file in huggingface_hub's cache, None if it is not there; the network is not used."""
        if not is_inside(self.name):
            return None
        path = try_to_load_from_cache(self.repository, self.name, revision=self.revision, repo_type=self.kind)
        return Path(path) if isinstance(path, str) else None

    def fetch(self, count: Count | None = None, folder: Path | None = None) -> Path:
        """Return the file in the cache, downloaded if necessary; with a `folder` it is downloaded there in place of the
        cache. `count` gets the progress, and may end the download by raising. Raises `HubError`."""
        if not is_inside(self.name) or not self.name.endswith(_suffixes()):
            raise HubError(f"The file {self.name} is not fetched from the Hub; these are: {', '.join(SAFE)}.")

        def download() -> Path:
            options = {"repo_type": self.kind, "revision": self.revision, "tqdm_class": count and meter(count)}
            return Path(hf_hub_download(self.repository, self.name, local_dir=folder, **options))

        return retried(download, self.repository, self.revision)

    def at_commit(self) -> "HubFile":
        """The same file at the commit that its revision names now, fetched if necessary. Raises `HubError`."""
        path = self.fetch()
        return replace(self, revision=path.parents[len(PurePosixPath(self.name).parts) - 1].name)

    def listed(self) -> "ListedFile":
        """Size and SHA-256 of the file as the Hub has it; it is not fetched. Raises `HubError`."""
        address = hf_hub_url(self.repository, self.name, repo_type=self.kind, revision=self.revision)

        def ask() -> ListedFile:
            known = get_hf_file_metadata(address, headers=build_hf_headers())
            return ListedFile(known.size or 0, known.etag if SHA256.fullmatch(known.etag or "") else None)

        return retried(ask, self.repository, self.revision)

    def discard(self) -> None:
        """Remove the file from the cache: it is not what it should be."""
        path = self.cached()
        if path is not None:
            path.resolve().unlink(missing_ok=True)  # the cache's folder of a commit is made of links
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Cached:
    """What huggingface_hub's cache has of a commit of a repository."""

    folder: Path | None = None  # of its files, of which some may be missing; None: nothing is there
    sizes: Mapping[str, int] = field(default_factory=dict)  # bytes of all files of the commit; {}: unknown


@dataclass(frozen=True)
class ListedFile:
    """A file of a repository as the Hub lists it."""

    size: int  # bytes
    sha256: str | None  # None: it is not a large file


@dataclass(frozen=True)
class Listing:
    """All files of a commit, by their path."""

    commit: str
    files: Mapping[str, ListedFile]


def no_check(folder: Path, names: Sequence[str]) -> None:
    """The default `check` of `resolve`: all is well."""


def resolve(
    source: str,
    *,
    base: Path,
    revision: str | None = None,
    allow_patterns: Sequence[str] | None = None,
    check: Callable[[Path, Sequence[str]], None] = no_check,
    watch: Watch | None = None,
) -> Resolved:
    """The local folder behind `source`: an absolute folder, a folder below `base`, or a Hub id `owner/name`.

    An existing folder wins over a Hub id. `revision` is a branch, tag or commit of the Hub, `allow_patterns` narrows
    the files fetched from there; each ends like one of `SAFE`, or is several such ones with `OR` between them, of which
    the first that fits a file counts. `check(folder, names)` is called before large files are fetched, with a folder
    that has at least the JSON and text files, and the names of all files; what it raises is raised here. With `watch`,
    which may end it by raising, large files come one after the other, and one that was cut off is gone on with. The cache
    and the address are huggingface_hub's (`HF_HOME`, `HF_ENDPOINT`). Raises `HubError`.
    """
    folder = None
    if Path(source).is_absolute():
        if not Path(source).is_dir():
            raise HubError(f"The folder {source} does not exist; check {WHERE}.")
        folder = Path(source)
    elif is_inside(source) and (base / source).is_dir():
        folder = base / source
    if folder is not None:
        check(folder, _names(folder))
        return Resolved(folder)
    if HUB_ID.fullmatch(source):
        return _download(source, revision, list(allow_patterns or SAFE), check, watch)
    if not is_inside(source):
        raise HubError(f"The folder {source} is outside the stack; give its absolute path in {WHERE}.")
    raise HubError(f"There is no folder {source} here, and it is no Hub id of the form owner/name; check {WHERE}.")


def cached(name: str, revision: str | None = None) -> Cached:
    """What the cache has of a Hub repository at a revision; the network is not used."""
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[NO_FILE], local_files_only=True))
    except (OSError, ValueError):  # not in the cache, or no Hub id
        return Cached()
    try:
        return Cached(folder, {file.path: file.size for file in get_cached_repo_tree(name, revision=folder.name)})
    except CachedRepoTreeNotFoundError:  # fetched by an older huggingface_hub
        return Cached(folder)


def listing(name: str, revision: str | None = None) -> Listing:
    """What the Hub has of a repository at a branch, tag or commit. Raises `HubError`."""

    def ask() -> Listing:
        commit = HfApi().model_info(name, revision=revision).sha
        tree = HfApi().list_repo_tree(name, recursive=True, revision=commit)
        files = [file for file in tree if isinstance(file, RepoFile)]
        return Listing(commit, {f.path: ListedFile(f.size, f.lfs.sha256 if f.lfs else None) for f in files})

    return retried(ask, name, revision)


def verify(folder: Path, manifest: Mapping[str, str], *, anew: bool = False) -> None:
    """Check every file of a manifest {name relative to `folder`: SHA-256 in hex}; raises `HubError` at the first fault.

    A large file's hash is remembered beside it, and holds while size and time of the file are the same; `anew`: all
    files are hashed.
    """
    known = {} if anew else read_json(folder / VERIFIED) or {}
    verified = {}
    for name, expected in manifest.items():
        if not is_inside(name):
            raise HubError(f"The manifest names {name}, which is outside its folder; this folder cannot be trusted.")
        if not (folder / name).is_file():
            raise HubError(f"The file {name} is missing; download or build {folder.name} again.")
        status = (folder / name).stat()
        stamp = [expected, status.st_size, status.st_mtime_ns]
        if known.get(name) != stamp and sha256(folder / name) != expected:
            raise HubError(f"The file {name} is not the one its manifest describes; download {folder.name} again.")
        if status.st_size >= REMEMBERED:
            verified[name] = stamp
    if verified and verified != known:
        with suppress(OSError):  # a folder that cannot be written is hashed every time
            write_json(folder / VERIFIED, verified)


def is_inside(name: str) -> bool:
    """Whether a relative name stays below its folder (decided by its parts: the Hub's cache itself is made of links)."""
    path = PurePosixPath(name.replace("\\", "/"))
    return bool(name) and not path.is_absolute() and ".." not in path.parts and ":" not in name


def _download(
    name: str,
    revision: str | None,
    patterns: list[str],
    check: Callable[[Path, Sequence[str]], None],
    watch: Watch | None,
) -> Resolved:
    for pattern in _alternatives(patterns):
        if not pattern.endswith(_suffixes()):
            raise HubError(f"Files like {pattern} are not fetched from the Hub; these are: {', '.join(SAFE)}.")

    def fetch(chosen: list[str], at: str | None) -> Path:
        options = {"allow_patterns": chosen, "tqdm_class": watch and NoBar}
        return Path(retried(lambda: snapshot_download(name, revision=at, **options), name, revision))

    small = [pattern for pattern in _alternatives(patterns) if pattern.endswith(SMALL)]
    folder = fetch(small, revision)
    try:
        names = [file.path for file in get_cached_repo_tree(name, revision=folder.name)]
    except CachedRepoTreeNotFoundError:  # a cache made by an older huggingface_hub, and no network
        names = _names(folder)
    check(folder, names)
    chosen = _chosen(patterns, names)
    if watch is not None:
        large = [file for file in names if not file.endswith(SMALL)]
        _fetch_large(name, folder, [file for pattern in chosen for file in fnmatch.filter(large, pattern)], watch)
    folder = fetch(chosen, folder.name)
    if not any(path.is_file() for path in folder.rglob("*")):
        raise HubFileMissing(f"The Hub's {name} holds no file that can be used here ({', '.join(patterns)}).")
    return Resolved(folder, name, folder.name)


def _fetch_large(name: str, folder: Path, names: Sequence[str], watch: Watch) -> None:
    """Bring large files of a commit into the cache's blobs, where huggingface_hub looks for them by their SHA-256.

    Its own downloads begin anew after a kill.
    """
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "blobs"

    def fetch(file: str) -> None:
        address, headers = hf_hub_url(name, file, revision=folder.name), build_hf_headers()
        known = get_hf_file_metadata(address, headers=headers)
        if SHA256.fullmatch(known.etag or "") and not (blob := blobs / known.etag).is_file():
            is_right = functools.partial(_is, known.etag, known.size)
            fetch_to(blob, address, is_right, functools.partial(watch, file), headers)

    for file in names:
        if not (folder / file).is_file():
            retried(functools.partial(fetch, file), name, folder.name)


def _is(digest: str, size: int | None, path: Path) -> bool:
    """Whether a file has a SHA-256; one of another size is not read."""
    return path.stat().st_size == size and sha256(path) == digest


def _chosen(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Of each pattern's alternatives the first that fits a file; the last one if none does."""
    return [
        next(
            (alternative for alternative in pattern.split(OR) if fnmatch.filter(names, alternative)),
            pattern.split(OR)[-1],
        )
        for pattern in patterns
    ]


def _alternatives(patterns: Sequence[str]) -> list[str]:
    return [alternative for pattern in patterns for alternative in pattern.split(OR)]


def _suffixes() -> tuple[str, ...]:
    return tuple(safe[1:] for safe in SAFE)


def _names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
