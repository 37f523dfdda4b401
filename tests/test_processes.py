"""Pools of worker processes: they begin with what is asked, and end when they are left."""

import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from redream.processes import release_memory, worker_pool


def test_workers_begin_as_told_and_end_with_the_block(monkeypatch):
    monkeypatch.delenv("STARTED", raising=False)
    with worker_pool(1, os.putenv, "STARTED", "yes") as pool:
        assert pool.submit(os.getpid).result() != os.getpid()
        assert pool.submit(os.system, 'test "$STARTED" = yes').result() == 0
    assert multiprocessing.active_children() == []


def test_a_generator_that_is_given_up_ends_its_workers_at_once():
    def waiting():
        with worker_pool(1, time.sleep, 0) as pool:
            yield pool.submit(os.getpid).result()
            yield pool.submit(time.sleep, 60).result()

    steps = waiting()
    worker, start = next(steps), time.monotonic()
    steps.close()
    assert time.monotonic() - start < 10 and multiprocessing.active_children() == []
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others give it back by themselves")
def test_freed_memory_goes_back_to_the_system():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    held = [bytes(100_000) for _ in range(2000)]
    last = bytes(100_000)  # keeps what lies before it from being given back at once
    del held
    before = resident()
    release_memory()
    assert before - resident() > 100_000_000, last[0]


THREADS = """
import ctypes, sys, threading
from redream.processes import limit_arenas
if sys.argv[1] == "limited":
    limit_arenas()
together = threading.Barrier(6)
def allocate():
    together.wait()
    held = bytes(100_000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have no arenas")
def test_threads_share_two_arenas():
    def arenas(how: str) -> int:
        command = [sys.executable, "-c", THREADS, how]
        report = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
        return report.stdout.count("<heap nr=")

    assert arenas("limited") == 2 < arenas("as it is")
