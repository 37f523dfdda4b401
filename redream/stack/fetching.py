"""Bring an entry's files of the Hub, or torchvision's backbones for LPIPS, here; with progress, and a stop that is heard.

What is complete stays, and a file that was cut off is gone on with. The work is done in a thread, which after a stop is left
behind: it ends by itself at its next byte or timeout.
"""

import functools
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub.errors import HTTPError

from redream import hub
from redream.distillation import prior_files
from redream.errors import RedreamError
from redream.stack.inventory import MISSING, NeededFile, files_of, in_bytes
from redream.stack.stack import Stack

POLL_SECONDS = 0.1
UPDATE_SECONDS = 0.5  # between two updates of progress
SPEED_SECONDS = 1.0  # of a download before its speed is known

T = TypeVar("T")


class SetupError(RedreamError):
    """Something that setup cannot bring here; the message says what to do."""


class SetupStopped(RedreamError):
    """Setup was stopped."""


@dataclass(frozen=True)
class SetupProgress:
    """How far setup is."""

    stage: str  # what is done now: "fetching clips.a", "index: embedding"
    done: int  # of everything that was missing; while an index is built, of its stage
    total: int
    unit: str = "bytes"  # what they count
    seconds_left: float | None = None  # None: unknown
    bytes_per_second: float | None = None  # of the download so far

    @property
    def amount(self) -> str:
        """How much of all, in words: "1.2 GB of 8.7 GB", "3,000 of 90,000 assets"."""
        if self.unit == "bytes":
            return f"{in_bytes(self.done)} of {in_bytes(self.total)}"
        return f"{self.done:,} of {self.total:,} {self.unit}"


def fetching(
    stack: Stack, name: str, stop: Callable[[], bool] = lambda: False
) -> Generator[SetupProgress, None, hub.Resolved]:
    """Bring an entry's files here, those in the Hub's cache that are damaged once more; returns where they are.

    Whatever the network does, it ends with `SetupStopped` soon after `stop` is True, which is asked ten times a second. Raises
    `hub.HubError` and `prior_files.PriorError`.
    """
    if stack.local_folder(stack.entry(name)) is not None:
        return _fetch(stack, name, (), None)
    files = [file for file in files_of(stack, name) if file.fault]
    return (yield from fetched(stack, name, files, Counts(files), stop))


def fetched(
    stack: Stack, name: str, files: Sequence[NeededFile], counts: "Counts", stop: Callable[[], bool]
) -> Generator[SetupProgress, None, hub.Resolved | None]:
    """Fetch an entry's files in a thread; yields the progress of all, returns where they are. Raises as `_fetch`, and
    `SetupStopped`."""

    def fetch(check: Callable[[], None]) -> hub.Resolved | None:
        def watch(file: str, count: int, size: int | None) -> None:
            check()
            counts.add(name, file, count, size)

        return _fetch(stack, name, files, watch)

    try:
        resolved = yield from followed(fetch, name, functools.partial(counts.progress, name), stop)
    except RedreamError:
        counts.give_up(name)
        raise
    counts.finish(name)
    yield counts.progress(name)
    return resolved


def _fetch(stack: Stack, name: str, files: Sequence[NeededFile], watch: hub.Watch | None) -> hub.Resolved | None:
    """Fetch an entry's files; returns where they are. Raises `SetupError`, `hub.HubError`, `prior_files.PriorError`."""
    entry = stack.entry(name)
    if entry.lpips:
        return _fetch_backbone(entry.lpips, watch)
    for file in files:
        if file.fault != MISSING:
            hub.HubFile(entry.source, file.name, entry.revision).discard()
    return stack.resolve(entry, prior_files.check if name == "prior" else hub.no_check, watch)


def _fetch_backbone(network: str, watch: hub.Watch) -> None:
    """Fetch torchvision's weights for an LPIPS network to where torch hub has them. Raises `SetupError`, `hub.HubError`."""
    from redream.scoring.perceptual import BACKBONE_ADDRESS, backbone_file, is_backbone

    file = backbone_file(network)
    address, count = BACKBONE_ADDRESS + file.name, functools.partial(watch, file.name)
    try:
        hub.fetch_to(file, address, functools.partial(is_backbone, network), count)
    except (OSError, HTTPError) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        sentence = f"LPIPS's file {file.name} could not be fetched{reason}; try again, or put {address}"
        raise SetupError(f"{sentence} into torch hub's folder checkpoints.") from error


class _Cancelled(Exception):
    """Ends a download or a build from within."""


class Counts:
    """The bytes of all files, those that came and those that are expected."""

    def __init__(self, missing: Sequence[NeededFile]) -> None:
        self._sizes = {(file.entry, file.name): file.size or 0 for file in missing if file.on_hub}
        self._received: dict[tuple[str, str], int] = {}  # of those that have begun
        self._kept = 0  # bytes that came before this setup
        self._begun: float | None = None

    def add(self, entry: str, name: str, count: int, size: int | None) -> None:
        """Count bytes; with a size a file begins, of which so many bytes are here already."""
        self._begun = self._begun or time.monotonic()
        if size is not None:
            self._sizes[entry, name], self._received[entry, name] = size, count
            self._kept += count
        else:
            self._received[entry, name] = self._received.get((entry, name), 0) + count

    def finish(self, entry: str) -> None:
        """Count an entry's small files, which come without being counted, too."""
        self._received |= {key: size for key, size in self._sizes.items() if key[0] == entry}

    def give_up(self, entry: str) -> None:
        """Expect no more bytes of an entry."""
        self._sizes |= {key: self._received.get(key, 0) for key in self._sizes if key[0] == entry}

    def progress(self, entry: str) -> SetupProgress:
        done, total = sum(self._received.values()), sum(self._sizes.values())
        elapsed = time.monotonic() - self._begun if self._begun else 0.0
        speed = max(done - self._kept, 0) / elapsed if elapsed > SPEED_SECONDS else None
        left = max(total - done, 0) / speed if speed else None
        return SetupProgress(f"fetching {entry}", done, max(done, total), "bytes", left, speed)


class _Worker(threading.Thread):
    """Does work; `result` is what it returned, `error` what it raised."""

    def __init__(self, work: Callable[[Callable[[], None]], object], name: str) -> None:
        super().__init__(name=f"setup {name}", daemon=True)  # else Python would wait for it at its end
        self._work = work
        self.cancelled = False
        self.result: object = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.result = self._work(self._check)
        except _Cancelled:
            pass
        except Exception as error:  # noqa: BLE001 - raised again where the work was asked for
            self.error = error

    def _check(self) -> None:
        if self.cancelled:
            raise _Cancelled


def followed(
    work: Callable[[Callable[[], None]], T], name: str, progress: Callable[[], SetupProgress], stop: Callable[[], bool]
) -> Generator[SetupProgress, None, T]:
    """Do an entry's work in a thread; yields the progress, returns what it returned and raises what it raised, or
    `SetupStopped`. The work calls what it gets now and then, which ends it after a stop."""
    worker = _Worker(work, name)
    worker.start()
    updated = 0.0
    try:
        while worker.is_alive():
            if stop():
                raise SetupStopped("The download was stopped; it goes on from there when it is started again.")
            if (now := time.monotonic()) - updated >= UPDATE_SECONDS:
                updated = now
                yield progress()
            worker.join(POLL_SECONDS)
    finally:
        worker.cancelled = True
    if worker.error is not None:
        raise worker.error
    return worker.result
