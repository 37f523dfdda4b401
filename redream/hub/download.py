"""Downloads that report the bytes that came, may be stopped by that, and go on where they were cut off."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from httpx2 import Client, Request  # huggingface_hub's client
from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import get_session
from tqdm import tqdm

from redream.hub.faults import HubError

# To wait for another program that fetches the same file, or for a stalled download that a stop has left behind: it ends
# within a minute.
LOCK_SECONDS = 90.0
POLL_SECONDS = 0.2  # between two signs of life, of which each may end the wait

# Bytes between two updates of progress, and at most lost by a cut: 1 MiB in place of 10. huggingface_hub's functions take no
# such argument and read the constant at each download, so it holds for the whole process; nothing but the grain changes.
constants.DOWNLOAD_CHUNK_SIZE = 2**20

SILENCE_SECONDS = 30.0  # of the Hub until a request fails for which huggingface_hub has no limit


HOOKS = get_session().event_hooks["request"]  # huggingface_hub's own: it keeps offline mode, and names its requests


def _client() -> Client:
    """huggingface_hub's client, but no request waits for ever for an answer."""

    def limit(request: Request) -> None:
        if request.method in ("GET", "HEAD"):  # the Hub may take its time for a commit
            limits = request.extensions["timeout"].items()
            request.extensions["timeout"] = {kind: SILENCE_SECONDS if s is None else s for kind, s in limits}

    return Client(event_hooks={"request": [*HOOKS, limit]}, follow_redirects=True, timeout=None)


# What a branch stands for, and which files there are, huggingface_hub asks without a time limit: a Hub that stalls would hold
# a run's worker for ever. Its functions take no other one, but they all use one client, so this holds for the whole process.
set_client_factory(_client)

Count = Callable[[int, int | None], None]  # gets the bytes that came, and the file's size in bytes once it is known
Watch = Callable[[str, int, int | None], None]  # the same, with the file's name before


def fetch_to(
    path: Path, address: str, is_right: Callable[[Path], bool], count: Count, headers: Mapping | None = None
) -> None:
    """Bring what is at an address to `path`, complete or not at all; an attempt that was cut off or killed is gone on with.

    Raises `HubError` if it is not `is_right`, or another program fetches it, and what huggingface_hub's client raises.
    """
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _acquired(FileLock(f"{part}.lock"), count):
            if path.is_file() and is_right(path):  # the other program has fetched it
                return
            if not (part.is_file() and is_right(part)):  # else it was killed just before its end
                _append(address, part, headers, count)
            if not is_right(part):
                part.unlink()
                raise HubError(f"The file {path.name} came with wrong bytes and was removed; try again.")
            os.replace(part, path)
    except Timeout as error:
        raise HubError("Another program fetches this file already; wait for it, and try again.") from error


def _acquired(lock: FileLock, count: Count) -> AbstractContextManager:
    """Acquire a lock for a `with` block. Raises `Timeout`, and what `count` raises, which is called while it waits."""
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return lock.acquire(timeout=min(POLL_SECONDS, LOCK_SECONDS))
        except Timeout:
            if time.monotonic() >= end:
                raise
            count(0, None)


def _append(address: str, part: Path, headers: Mapping | None, count: Count) -> None:
    """Add the bytes that a part lacks; none if it has as many as there are."""
    with part.open("ab") as file:
        try:
            http_get(address, file, resume_size=file.tell(), headers=headers, tqdm_class=meter(count))
        except HfHubHTTPError as error:
            if error.response.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise


def meter(count: Count) -> type:
    """A class that huggingface_hub takes for tqdm's: it makes one for each file, and tells it the bytes that came."""

    class Meter(AbstractContextManager):
        def __init__(self, *_: Any, total: int | None = None, initial: int = 0, **__: Any) -> None:
            count(initial, total)

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, bytes_more: int = 1) -> None:
            count(bytes_more, None)

        def update_transfer(self, bytes_more: int = 1) -> None:
            """Bytes on the wire, where they are not those of the file (Xet): a sign of life."""
            count(0, None)

        def close(self) -> None:
            pass

        def set_postfix_str(self, *_: Any, **__: Any) -> None:
            pass

        set_transfer_postfix_str = set_postfix_str

    return Meter


class NoBar(tqdm):
    """For small files beside those that are watched."""

    def __init__(self, *values: Any, **options: Any) -> None:
        super().__init__(*values, **options | {"disable": True})
