"""A folder or a Hub id becomes a checked local folder.

Only files that cannot run code are ever downloaded; what a branch or tag resolved to is returned for the record.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

from redream.errors import RedreamError
from redream.files import sha256

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # owner/name
SAFE = ("*.json", "*.safetensors", "*.txt", "*.csv", "*.parquet", "*.faiss", "*.glb")  # no pickle in any of them


class HubError(RedreamError):
    """A folder or a Hub repository that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Resolved:
    """A local folder, and the commit it was downloaded at (None for a folder that was there already)."""

    folder: Path
    revision: str | None


def resolve(
    source: str, *, base: Path, revision: str | None = None, allow_patterns: Sequence[str] | None = None
) -> Resolved:
    """The local folder behind `source`: an absolute folder, a folder below `base`, or a Hub id `owner/name`.

    An existing folder wins over a Hub id. `revision` is a branch, tag or commit of the Hub, `allow_patterns` narrows
    the files fetched from there; each pattern ends like one of `SAFE`. The cache and the address are huggingface_hub's
    (`HF_HOME`, `HF_ENDPOINT`). Raises `HubError`.
    """
    if Path(source).is_absolute():
        if not Path(source).is_dir():
            raise HubError(f"The folder {Path(source).name} does not exist; check the path.")
        return Resolved(Path(source), None)
    if is_inside(source) and (base / source).is_dir():
        return Resolved(base / source, None)
    if HUB_ID.fullmatch(source):
        return _download(source, revision, list(allow_patterns or SAFE))
    if not is_inside(source):
        raise HubError(f"The folder {source} is outside the stack; give it as an absolute path or move it inside.")
    raise HubError(f"There is no folder {source} here, and it is not a Hub id of the form owner/name.")


def verify(folder: Path, manifest: Mapping[str, str]) -> None:
    """Check every file of a manifest {name relative to `folder`: SHA-256 in hex}; raises `HubError` at the first fault."""
    for name, expected in manifest.items():
        if not is_inside(name):
            raise HubError(f"The manifest names {name}, which is outside its folder; this folder cannot be trusted.")
        if not (folder / name).is_file():
            raise HubError(f"The file {name} is missing; download or build {folder.name} again.")
        if sha256(folder / name) != expected:
            raise HubError(f"The file {name} is not the one its manifest describes; download {folder.name} again.")


def is_inside(name: str) -> bool:
    """Whether a relative name stays below its folder (decided by its parts: the Hub's cache itself is made of links)."""
    path = PurePosixPath(name.replace("\\", "/"))
    return bool(name) and not path.is_absolute() and ".." not in path.parts and ":" not in name


def _download(name: str, revision: str | None, patterns: list[str]) -> Resolved:
    for pattern in patterns:
        if not pattern.endswith(tuple(safe[1:] for safe in SAFE)):
            raise HubError(f"Files like {pattern} are not fetched from the Hub; these are: {', '.join(SAFE)}.")
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except RevisionNotFoundError as error:
        raise HubError(
            f"The Hub's {name} has no revision {revision}; name an existing branch, tag or commit."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise HubError(
            f"The Hub has no public repository {name}; check its name, or log in if it is private."
        ) from error
    except (OSError, HTTPError) as error:  # OSError: also what huggingface_hub makes of most of what goes wrong
        raise HubError(
            f"The Hub did not answer; {name} could not be fetched. Check the network and try again."
        ) from error
    if not any(path.is_file() for path in folder.rglob("*")):
        raise HubError(f"The Hub's {name} holds no file that can be used here ({', '.join(patterns)}).")
    return Resolved(folder, folder.name)
