"""What a request may send: Gradio limits the size of uploaded files alone, and keeps what broke off or was refused."""

import math
from collections.abc import Iterable
from pathlib import Path

from gradio.utils import get_upload_folder
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UPLOAD = "/gradio_api/upload"
MAX_BODY = 2_000_000  # bytes of any other request: they become several times as many in memory
TOO_LARGE = f"This request is too large; the maximum allowed size is {MAX_BODY // 1_000_000} MB."


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
