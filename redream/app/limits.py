"""What a request may send: Gradio limits the size of uploaded files alone, and keeps what broke off or was refused."""

import asyncio
import math
import secrets
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import urljoin, urlsplit

import gradio as gr
import httpx
import safehttpx
from gradio.utils import get_upload_folder
from gradio_client.utils import strip_invalid_filename_characters
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from redream.scene.glb_validation import LIMITS

UPLOAD = "/gradio_api/upload"
MAX_BODY = 2_000_000  # bytes of any other request: they become several times as many in memory
TOO_LARGE = f"This request is too large; the maximum allowed size is {MAX_BODY // 1_000_000} MB."
REDIRECTS = 5  # that are followed from an address
FETCH_SECONDS = 60.0
TOO_SLOW = "What is at this address did not come within a minute; send the file itself."
TOO_LONG = (
    f"What is at this address is larger than {LIMITS.size // 1_000_000} MB, or leads on and on; send a smaller file."
)
NOT_THERE = "There is no file at this address that can be read from here; send the file itself."


def accepting_addresses(file: gr.File) -> gr.File:
    """The same widget, for which a program may send a file's address in place of the file: Gradio would read all of what is
    there into memory, however long that takes."""
    move = file.async_move_resource_to_block_cache

    async def move_or_fetch(source: str | Path | None) -> str | None:
        if not str(source).startswith(("http://", "https://")):
            return await move(source)
        name = strip_invalid_filename_characters(PurePosixPath(urlsplit(str(source)).path).name)
        path = Path(get_upload_folder()) / secrets.token_hex(16) / (name or "file")
        path.parent.mkdir(parents=True)
        file.temp_files.add(str(path))
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                await _fetch(str(source), path)
        except _TooLongError as error:
            raise _refused(path, TOO_LONG) from error
        except TimeoutError as error:
            raise _refused(path, TOO_SLOW) from error
        except (ValueError, httpx.HTTPError, httpx.InvalidURL) as error:  # ValueError: of `safehttpx`
            raise _refused(path, NOT_THERE) from error
        return str(path)

    file.async_move_resource_to_block_cache = move_or_fetch
    return file


class _TooLongError(Exception):
    """More bytes, or more redirections, than are taken."""


async def _fetch(address: str, path: Path) -> None:
    """Write what is at a public address to `path`. Raises `_TooLongError`, and as `httpx` and `safehttpx`."""
    for _ in range(REDIRECTS + 1):
        host = httpx.URL(address).host
        transport = safehttpx.AsyncSecureTransport(await safehttpx.async_validate_url(host))  # to no private address
        headers = {"Accept-Encoding": "identity"}
        async with (
            httpx.AsyncClient(transport=transport) as client,
            client.stream("GET", address, headers=headers) as answer,
        ):
            if answer.has_redirect_location:
                address = urljoin(address, answer.headers["Location"])
                continue
            answer.raise_for_status()
            with path.open("wb") as file:
                async for chunk in answer.aiter_raw():
                    if file.tell() + len(chunk) > LIMITS.size:
                        raise _TooLongError
                    file.write(chunk)
            return
    raise _TooLongError


def _refused(path: Path, sentence: str) -> gr.Error:
    path.unlink(missing_ok=True)
    return gr.Error(sentence, print_exception=False)


def remove_uploads(files: Iterable[str | Path]) -> None:
    """Remove what was uploaded and is of no use; Gradio keeps uploads for a day. Other files are left alone."""
    uploads = Path(get_upload_folder()).resolve()
    for file in map(Path, files):
        if file.resolve().is_relative_to(uploads):
            file.unlink(missing_ok=True)


class RequestLimits:
    """ASGI middleware: a body over `MAX_BODY` is refused unless it is an upload, before it is held in memory; of an upload
    that breaks off nothing stays on the disk."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, _limited(scope, receive) if scope["type"] == "http" else receive, send)


def _limited(scope: Scope, receive: Receive) -> Receive:
    """The same messages, until their bodies are too large or files in them break off.

    A `MultiPartException` is what Gradio and Starlette remove a request's files at; at others they leave them.
    """
    has_files = Headers(scope=scope).get("content-type", "").startswith("multipart/")
    most, size = math.inf if scope["path"].rstrip("/").endswith(UPLOAD) else MAX_BODY, 0

    async def message() -> Message:
        nonlocal size
        received = await receive()
        size += len(received.get("body", b""))
        if size > most:
            raise MultiPartException(TOO_LARGE) if has_files else HTTPException(413, TOO_LARGE)
        if has_files and received["type"] == "http.disconnect":
            raise MultiPartException("The files broke off.")
        return received

    return message
