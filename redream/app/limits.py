"""What a request may send: Gradio limits the size of uploaded files alone, and keeps what broke off."""

from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UPLOAD = "/gradio_api/upload"
MAX_BODY = 2_000_000  # bytes of any other request: they become several times as many in memory


class RequestLimits:
    """ASGI middleware: a body over `MAX_BODY` is refused unless it is an upload, before it is held in memory; of an upload
    that breaks off nothing stays on the disk."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["path"].rstrip("/").endswith(UPLOAD):
            await self.app(scope, _upload(receive), send)
        else:
            await self.app(scope, _limited(receive), send)


def _upload(receive: Receive) -> Receive:
    """The same messages; at a disconnect the error at which Gradio removes the files of an upload."""

    async def message() -> Message:
        received = await receive()
        if received["type"] == "http.disconnect":
            raise MultiPartException("The upload broke off.")
        return received

    return message


def _limited(receive: Receive) -> Receive:
    """The same messages, as long as their bodies are within `MAX_BODY`."""
    size = 0

    async def message() -> Message:
        nonlocal size
        received = await receive()
        size += len(received.get("body", b""))
        if size > MAX_BODY:
            raise HTTPException(413, f"This request is too large; the limit is {MAX_BODY // 1_000_000} MB.")
        return received

    return message
