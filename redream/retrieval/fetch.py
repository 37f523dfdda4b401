"""Assets of a library on the Hub: each is one GLB, fetched when it is needed and used once its SHA-256 is right.

Several are fetched side by side, each in a thread of its own. A thread that waits for the network cannot be ended: it is
left behind, and ends by itself at its next byte or timeout.
"""

import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from redream.errors import RedreamError
from redream.files import sha256
from redream.hub import HubError, HubFile, HubUnreachable
from redream.scene.glb_validation import LIMITS

SIZE_LIMIT = LIMITS.size  # bytes: a larger GLB would be refused anyway
SECONDS_LIMIT = 300.0  # for one asset
STALL_SECONDS = 20.0  # without a byte
POLL_SECONDS = 0.1
UPDATE_SECONDS = 0.5  # between two updates of progress

T = TypeVar("T")


class AssetUnavailable(RedreamError):
    """An asset whose file cannot be had; the message says what to do."""


class AssetUnreachable(AssetUnavailable):
    """The asset's file is not here, and the Hub does not answer; others may be in the cache."""


class FetchStopped(RedreamError):
    """The download was stopped."""


@dataclass(frozen=True)
class RemoteAsset:
    """An asset's GLB on the Hub."""

    uid: str
    file: HubFile
    sha256: str  # in hex; empty: unknown

    def cached(self) -> Path | None:
        """The GLB in the Hub's cache, None if it is not there; one with a wrong SHA-256 is removed."""
        path = self.file.cached()
        if path is not None and not self.is_right(path):
            self.file.discard()
            return None
        return path

    def is_right(self, path: Path) -> bool:
        """Whether a file has the asset's SHA-256."""
        return not self.sha256 or sha256(path) == self.sha256


@dataclass(frozen=True)
class FetchProgress:
    """How much of all files has arrived, in bytes; `size` counts those that have begun."""

    received: int
    size: int


def never() -> bool:
    """The default `stop`."""
    return False


def fetch(
    assets: Sequence[RemoteAsset], stop: Callable[[], bool] = never
) -> Generator[FetchProgress, None, dict[str, AssetUnavailable]]:
    """Bring assets into the Hub's cache, side by side; yields the progress, returns {uid: why it could not be had}.

    Once `stop` is True, which is asked ten times a second, `FetchStopped` is raised.
    """
    downloads = [_Download(asset) for asset in assets if asset.cached() is None]
    try:
        for download in downloads:
            download.start()
        updated = 0.0
        while any(download.is_running() for download in downloads):
            if stop():
                raise FetchStopped("The download of the assets was stopped; resume the run to fetch them.")
            if (now := time.monotonic()) - updated >= UPDATE_SECONDS:
                updated = now
                yield FetchProgress(sum(d.received for d in downloads), sum(d.size for d in downloads))
            time.sleep(POLL_SECONDS)
    finally:
        for download in downloads:
            download.cancelled = True
    for download in downloads:
        if download.fault is not None:
            raise download.fault
    return {download.asset.uid: download.error for download in downloads if download.error is not None}


def finished(steps: Generator[Any, None, T]) -> T:
    """What a generator returns once it is run to its end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


class _Cancelled(Exception):
    """Ends a download from within."""


class _Download(threading.Thread):
    """The download of one asset. `error` says why it failed; `fault` is anything else that was raised."""

    def __init__(self, asset: RemoteAsset) -> None:
        super().__init__(name=f"fetch {asset.uid}", daemon=True)  # else Python would wait for it at its end
        self.asset = asset
        self.received, self.size = 0, 0  # bytes
        self.cancelled = False
        self.error: AssetUnavailable | None = None
        self.fault: Exception | None = None
        self.begun = self.last_byte = time.monotonic()

    def run(self) -> None:
        try:
            path = self.asset.file.fetch(self.add)
            if not self.asset.is_right(path):
                self.asset.file.discard()
                self._fail("is not the one that was indexed; it was removed. Choose another asset.")
        except HubUnreachable as error:
            self.error = AssetUnreachable(str(error))
        except HubError as error:
            self.error = AssetUnavailable(str(error))
        except _Cancelled:
            pass
        except Exception as fault:  # noqa: BLE001 - raised again where the download was asked for
            self.fault = fault

    def is_running(self) -> bool:
        """Whether to wait for it any longer; one that takes too long is given up."""
        now = time.monotonic()
        if self.is_alive() and not self.cancelled:
            if now - self.last_byte > STALL_SECONDS:
                kind = AssetUnavailable if self.size else AssetUnreachable
                self._fail(f"sends nothing for {STALL_SECONDS:.0f} s; check the network and try again.", kind)
            elif now - self.begun > SECONDS_LIMIT:
                self._fail(f"takes longer than {SECONDS_LIMIT:.0f} s; check the network and try again.")
        return self.is_alive() and not self.cancelled

    def add(self, received: int, size: int | None = None) -> None:
        """Count bytes, and the size once it is known. Raises `_Cancelled` if the download is not to go on."""
        self.last_byte = time.monotonic()
        self.received += received
        self.size = size or self.size
        if max(self.received, self.size) > SIZE_LIMIT:
            self._fail(f"is larger than {SIZE_LIMIT / 1e6:,.0f} MB and was not fetched; choose another asset.")
        if self.cancelled:
            raise _Cancelled

    def _fail(self, why: str, kind: type[AssetUnavailable] = AssetUnavailable) -> None:
        self.error, self.cancelled = kind(f"The file of asset {self.asset.uid} {why}"), True
