"""Where parts are made: in this process, in worker processes, or on a Ray cluster; the same bytes everywhere.

Tasks are (number of the part, records, image embeddings that there are), and are only taken as fast as they are worked on.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

import pyarrow as pa
import torch

from redream.errors import RedreamError
from redream.processes import worker_pool
from redream.retrieval.build import BuildError
from redream.retrieval.parts import Job, PartMaker

POLL_SECONDS = 0.5  # between two updates
PACKAGE = Path(__file__).parents[1]
ENDED_EARLY = "A worker process ended early, perhaps for lack of memory; the same command goes on from there."

Task = tuple[int, pa.Table, pa.Table | None]


@dataclass(frozen=True)
class PartUpdate:
    """How far a part is, and its file once it is made. Without a number: a sign of life."""

    number: int | None = None
    fraction: float = 0.0
    content: bytes | None = None


def make_here(job: Job, tasks: Iterable[Task]) -> Iterator[PartUpdate]:
    """Make parts in this process. Raises `BuildError`."""
    try:
        with closing(PartMaker(job)) as maker:
            for number, records, images in tasks:
                steps = maker.make(records, images)
                while True:
                    try:
                        fraction = next(steps)
                    except StopIteration as end:
                        yield PartUpdate(number, 1.0, end.value)
                        break
                    yield PartUpdate(number, fraction)
    except BrokenProcessPool as error:  # of processes that render
        raise BuildError(ENDED_EARLY) from error


def make_in_processes(job: Job, tasks: Iterable[Task], processes: int) -> Iterator[PartUpdate]:
    """Make parts in worker processes, which end at once if this generator does. Raises `BuildError`."""
    try:
        with worker_pool(processes, _start_worker, job) as pool:
            yield from _collected(tasks, lambda *task: pool.submit(_work, *task), processes)
    except BrokenProcessPool as error:
        raise BuildError(ENDED_EARLY) from error


def make_on_ray(job: Job, tasks: Iterable[Task], address: str) -> Iterator[PartUpdate]:
    """Make parts on a Ray cluster ("local": one that is started here), each worker with the CPUs that it renders with, and a
    GPU where the cluster has any. The workers get this package's code; the environment must be there.

    Raises `BuildError`.
    """
    try:
        import ray
    except ImportError as error:
        raise BuildError("Ray is not installed; install requirements-ray.txt, or build without an address.") from error
    try:
        ray.init(address, runtime_env={"py_modules": [str(PACKAGE)]}, log_to_driver=False, logging_level="warning")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BuildError(f"There is no Ray cluster at {address}; check the address.") from error
    try:
        there = ray.cluster_resources()
        gpus, cpus = int(there.get("GPU", 0)), max(1, int(there["CPU"]) // job.renders)
        makers = ray.remote(PartMaker).options(num_cpus=job.renders, num_gpus=min(gpus, 1))
        idle: SimpleQueue = SimpleQueue()
        for _ in range(count := min(gpus, cpus) or cpus):
            idle.put(makers.remote(job))

        def submit(records: pa.Table, images: pa.Table | None) -> Future:
            maker = idle.get()
            future = maker.made.remote(records, images).future()
            future.add_done_callback(lambda _: idle.put(maker))
            return future

        yield from _collected(tasks, submit, count)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, BrokenProcessPool):  # of processes that render
            raise BuildError(ENDED_EARLY) from error
        raise error.cause if isinstance(error.cause, RedreamError) else error
    except ray.exceptions.RayError as error:
        raise BuildError("A Ray worker ended early; the same command goes on from there.") from error
    finally:
        ray.shutdown()


def _collected(
    tasks: Iterable[Task], submit: Callable[[pa.Table, pa.Table | None], Future], workers: int
) -> Iterator[PartUpdate]:
    """Make parts by so many workers, each as soon as one is idle."""
    tasks, futures = iter(tasks), {}
    while True:
        futures |= {submit(*task): number for number, *task in islice(tasks, workers - len(futures))}
        if not futures:
            return
        ended, _ = wait(futures, POLL_SECONDS, FIRST_COMPLETED)
        for future in ended:
            yield PartUpdate(futures.pop(future), 1.0, future.result())
        yield PartUpdate()


# In a worker process

_maker: PartMaker


def _start_worker(job: Job) -> None:
    global _maker
    torch.set_num_threads(1)
    _maker = PartMaker(job)


def _work(records: pa.Table, images: pa.Table | None) -> bytes:
    return _maker.made(records, images)
