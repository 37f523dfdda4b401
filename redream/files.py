"""Files that are complete or absent, and work that programs share by them."""

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: there nobody else has claimed anything
    fcntl = None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new path beside `path` to write to: it takes that place if the block ends well, and is removed if it does not."""
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


class Claims:
    """Who does what, among programs that share work: a claim is a lock on a byte of its own in one file.

    It ends with its program, however that ends. It belongs to the program as a whole: within one, claims exclude nobody, and
    closing one object ends those of others of the same file. Where there are no locks, nobody else has claimed anything.
    """

    possible = fcntl is not None

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")

    def take(self, number: int) -> bool:
        """Claim `number`, in [0, 2^62); whether no other program has."""
        try:
            if fcntl:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError as error:
            return error.errno not in (errno.EACCES, errno.EAGAIN)  # any other one: a file system without locks
        return True

    def leave(self, number: int) -> None:
        """End a claim of this program."""
        if fcntl:
            with suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)

    def close(self) -> None:
        """End all claims of this program."""
        self._file.close()
