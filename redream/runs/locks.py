"""Which program works on a run's folder or has it in its queue, and how another one asks it to end the run.

.lock     held by the program that works on the run
.queued   held by the program in whose queue the run waits or is made
.stop     asks them to end it; it is of no account once they have ended
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK, QUEUED, STOP = ".lock", ".queued", ".stop"
CONTROL_FILES = (LOCK, QUEUED, STOP)  # no part of what a folder holds
LOCK_SECONDS = 0.5  # to wait for a lock: `is_busy` holds it for a moment


@contextmanager
def lock(folder: Path, name: str = LOCK) -> Iterator[bool]:
    """Hold a lock of a run; yields whether it was free. It ends with its program, however that ends.

    A lock belongs to its block, not to its thread: a generator of events may be closed by another thread. On a file system
    without locks no program has locked anything. Raises `OSError` if the folder cannot be written to.
    """
    file_lock = _file_lock(folder / name, LOCK_SECONDS)
    (folder / name).touch()  # raises where filelock would make the folder anew
    try:
        file_lock.acquire()
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError):
        pass
    try:
        yield True
    finally:
        file_lock.release()


@contextmanager
def queued(folder: Path) -> Iterator[None]:
    """Within it a run is in this program's queue. Raises `OSError` as `lock`."""
    with lock(folder, QUEUED) as acquired:
        yield
    if acquired:
        (folder / QUEUED).unlink(missing_ok=True)
        withdraw_stop(folder)


def is_busy(folder: Path) -> bool:
    """Whether a program works on a run or has it in its queue."""
    return any((folder / name).is_file() and _is_held(folder / name) for name in (LOCK, QUEUED))


def request_stop(folder: Path) -> None:
    """Ask the program that works on a run, or has it in its queue, to end it; nothing is left if none does."""
    (folder / STOP).touch()
    if not is_busy(folder):
        withdraw_stop(folder)


def stop_requested(folder: Path) -> bool:
    """Whether another program asks for the end of a run."""
    return (folder / STOP).exists()


def withdraw_stop(folder: Path) -> None:
    """Forget a request to stop."""
    (folder / STOP).unlink(missing_ok=True)


def _is_held(path: Path) -> bool:
    try:
        with _file_lock(path, 0.0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False


def _file_lock(path: Path, seconds: float) -> FileLock:
    return FileLock(path, timeout=seconds, poll_interval=0.01, thread_local=False, fallback_to_soft=False)
