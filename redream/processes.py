"""Pools of worker processes that end with their parent; the memory of this one; whether ZeroGPU forks it."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext

CONTEXT: SpawnContext = multiprocessing.get_context("spawn")
M_ARENA_MAX, ARENAS = -8, 2  # a parameter of glibc's mallopt (malloc.h), and its value here


@contextmanager
def worker_pool(processes: int, start: Callable[..., None], *arguments: object) -> Iterator[Executor]:
    """A pool of processes, each of which begins with `start(*arguments)`.

    The workers leave Ctrl-C to their parent. If it ends, or the block raises or is left by a generator's end, they end at once.
    """
    parent_end, our_end = CONTEXT.Pipe(duplex=False)  # nothing is sent: the workers end when it is closed
    pool = ProcessPoolExecutor(processes, CONTEXT, _begin, (parent_end, start, *arguments))
    try:
        yield pool
    except BaseException:
        our_end.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        our_end.close()
        parent_end.close()


def _begin(parent_end: Connection, start: Callable[..., None], *arguments: object) -> None:
    """In a worker process: before its first task."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, and that its workers
    threading.Thread(target=_end_with_parent, args=(parent_end,), daemon=True).start()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries
    start(*arguments)


def _end_with_parent(parent_end: Connection) -> None:
    """End this process as soon as its parent closes the pipe or ends."""
    with suppress(EOFError, OSError):
        parent_end.recv()
    os._exit(1)


def on_zerogpu() -> bool:
    """Whether this is a Space on ZeroGPU, whose calls are forked processes; the variable is read as `spaces` itself does."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def limit_arenas() -> None:
    """Let all threads of this process share two of glibc's arenas, from which memory comes, where each thread has one of its
    own otherwise: the remains of what threads freed there grow from run to run. Called before there are other threads.
    Elsewhere nothing happens."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)


def release_memory() -> None:
    """Give freed memory back to the system. glibc keeps it for the threads that had it: of a run some 300 MB, and more with
    every further thread. Elsewhere nothing happens."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
