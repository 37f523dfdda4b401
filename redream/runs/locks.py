"""Work that several programs share: who does what, and who helps whom.

A lock ends with its program, however that ends. Where there are no locks, nobody else has locked anything.
"""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

HELD = (errno.EACCES, errno.EAGAIN)  # what a lock says that another program has


def possible(path: Path) -> bool:
    """Whether programs can share work by locks on this file, which is made if it is not there. To be asked before
    this program claims anything: it would end its claims."""
    if not fcntl:
        return False
    with path.open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except OSError as error:
            return error.errno in HELD
    return True


def lock(file: BinaryIO) -> bool:
    """Lock an open file until it is closed; whether nobody else has locked it: another program, or another opening."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # any other one: a file system without locks
        return not isinstance(error, BlockingIOError)
    return True


class TrialLocks:
    """Who does what, among programs that share work: a claim is a lock on a byte of its own in one file.

    It belongs to the program as a whole: within one, claims exclude nobody, and closing one object ends those of others of
    the same file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")

    def acquire(self, number: int) -> bool:
        """Claim `number`, in [0, 2^62); whether no other program has."""
        try:
            if fcntl:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError as error:
            return error.errno not in HELD  # any other one: a file system without locks
        return True

    def release(self, number: int) -> None:
        """End a claim of this program."""
        if fcntl:
            with suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)

    def close(self) -> None:
        """End all claims of this program."""
        self._file.close()


@contextmanager
def worker_processes(words: Sequence[str], processes: int) -> Iterator[list[subprocess.Popen]]:
    """Within it `processes - 1` programs `python -m redream` do what `words` say, beside this one; each has its share of the
    cores. They should call `end_with_input`.

    At the end of the block they are waited for; if it or this program ends otherwise, so do they.
    """
    import torch

    before = torch.get_num_threads()
    threads = max(1, before // processes)
    start = {"env": os.environ | {"OMP_NUM_THREADS": str(threads)}, "stdin": subprocess.PIPE}
    start |= {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    helpers = []
    torch.set_num_threads(threads)
    try:
        for _ in range(processes - 1):
            helpers.append(subprocess.Popen([sys.executable, "-m", "redream", *words], **start))
        yield helpers
        for helper in helpers:
            helper.wait()
    finally:
        for helper in helpers:
            helper.stdin.close()
            helper.wait()
        torch.set_num_threads(before)


def end_with_input() -> None:
    """Wait until nothing can be said to this program any more, that is, whoever started it has ended; then end it."""
    while os.read(0, 1):  # not sys.stdin, which could not be closed at the end while somebody reads it
        pass
    os._exit(130)
