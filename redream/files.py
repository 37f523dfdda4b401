"""Files that are complete or absent; hashes; folders that can be written to; the folder of a user's data."""

import errno
import glob
import hashlib
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from redream.errors import RedreamError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
NOT_WRITTEN = (*DISK_FULL, *NOT_WRITABLE, errno.EIO, errno.EEXIST, errno.ENOTDIR)


class FolderError(RedreamError):
    """A folder that cannot be written to; the message says why and how another one is named."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new path beside `path` to write to: it takes that place if the block ends well, and is removed if it does not."""
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what `replacing` of this path left behind when its process was killed."""
    for temporary in path.parent.glob(f".{glob.escape(path.stem)}-????????{glob.escape(path.suffix)}"):
        temporary.unlink(missing_ok=True)


def require_writable(folder: Path, advice: str) -> None:
    """Make a folder if necessary, and raise `FolderError` if it takes no file; its message ends with the advice."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FolderError(f"{why_not_written(folder, error)}; {advice}.") from error


@contextmanager
def writing_to(folder: Path, advice: str) -> Iterator[None]:
    """For a block that writes to a folder: raises `FolderError`, whose message ends with the advice, for errors by which
    the folder takes no file."""
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_WRITTEN:
            raise
        raise FolderError(f"{why_not_written(folder, error)}; {advice}.") from error


def require_space(path: Path) -> None:
    """Give a file all the bytes on the disk that it has by its size. A store into a mapped file that lacks some of them ends
    the process where the disk is full. Raises `OSError` for a full disk; file systems that cannot do it are left as they are.
    """
    if not hasattr(os, "posix_fallocate"):  # macOS, Windows
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise


def why_not_written(folder: Path, error: OSError) -> str:
    """Why a folder takes no file, as the beginning of a sentence."""
    if error.errno in DISK_FULL:
        return f"The disk with the folder {folder} is full"
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        is_one = folder.exists() and not folder.is_dir()
        return f"{folder} is a file, not a folder" if is_one else f"The folder {folder} would lie below a file"
    if error.errno in NOT_WRITABLE:
        return f"You may not write to the folder {folder}"
    return f"The folder {folder} cannot be written to ({error.strerror or error})"


def data_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where what was made here is kept, other than runs: `REDREAM_DATA`, else in the platform's folder for a user's data."""
    if folder := environ.get("REDREAM_DATA"):
        return Path(folder).expanduser()
    if sys.platform == "win32":
        base = environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library/Application Support"
    else:
        base = environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return Path(base) / "redream"


def read_json(path: Path) -> dict | None:
    """None if it is not there or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: Path, values: dict) -> None:
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write_text(text, encoding="utf-8")


def encodable(text: str) -> str:
    """A text from outside with "?" for what UTF-8 has no bytes for: lone surrogates, as in names of files in other encodings."""
    return text.encode(errors="replace").decode()


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(folder: Path, suffixes: tuple[str, ...] = ("",), max_bytes: int = 2**63) -> dict[str, str]:
    """SHA-256 of a folder's files by relative name: those that end so (by default all) and are not larger."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name.endswith(suffixes))
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files if path.stat().st_size <= max_bytes}


def digest(values: object) -> str:
    """Twelve hexadecimal digits of the SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
