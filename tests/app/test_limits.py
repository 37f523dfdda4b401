"""Requests of any size and uploads that break off leave nothing in memory or on the disk."""

import asyncio
import json

import gradio as gr
import pytest
from gradio.routes import App
from starlette.middleware import Middleware

from redream.app.limits import MAX_BODY, RequestLimits, remove_uploads

JSON = (b"content-type", b"application/json")
FORM = (b"content-type", b"multipart/form-data; boundary=x")
PART = b'--x\r\nContent-Disposition: form-data; name="files"; filename="owl.glb"\r\n\r\n'


@pytest.fixture
def uploads(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return tmp_path


def length(text: str) -> int:
    return len(text)


@pytest.fixture
def app(uploads):
    with gr.Blocks() as demo:
        gr.api(length, api_name="length", queue=False)
    demo.max_file_size = None  # as `launch` sets it
    return App.create_app(demo, app_kwargs={"middleware": [Middleware(RequestLimits)]})


def post(app, path: str, header: tuple[bytes, bytes], chunks: list[bytes], breaks_off: bool = False) -> tuple[int, str]:
    """Status and text of the answer to a body in chunks, whose length is not said before."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.disconnect"} if breaks_off else {"type": "http.request", "body": b""})
    answer = []

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        answer.append(message)

    headers = [header, (b"host", b"test")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    scope |= {"server": ("test", 80), "client": ("test", 1), "root_path": "", "scheme": "http", "http_version": "1.1"}
    asyncio.run(app(scope, receive, send))
    return answer[0]["status"], b"".join(message.get("body", b"") for message in answer).decode()


def files(folder):
    return [path.name for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("characters", "status"), [(MAX_BODY - 100, 200), (MAX_BODY, 413)])
def test_a_body_that_is_no_upload_is_refused_beyond_the_limit(app, characters, status):
    body = json.dumps({"data": ["a" * characters]}).encode()
    chunks = [body[at : at + 65536] for at in range(0, len(body), 65536)]
    answered, text = post(app, "/gradio_api/run/length", JSON, chunks)
    assert answered == status and ("too large" if status == 413 else str(characters)) in text


def test_an_upload_may_be_larger_and_arrives_whole(app, uploads):
    data = b"owl " * MAX_BODY
    status, text = post(app, "/gradio_api/upload", FORM, [PART, data, b"\r\n--x--\r\n"])
    assert status == 200 and files(uploads) == ["owl.glb"]
    assert (uploads / json.loads(text)[0]).read_bytes() == data


def test_nothing_stays_of_an_upload_that_breaks_off(app, uploads):
    post(app, "/gradio_api/upload", FORM, [PART, b"owl " * MAX_BODY], breaks_off=True)
    assert files(uploads) == []


def test_nothing_stays_of_a_recording_that_is_too_large(app, tmp_path, monkeypatch):
    """Gradio takes recordings of the screen from everyone, into the system's temporary folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status, text = post(app, "/gradio_api/process_recording", FORM, [PART, b"owl ", b"owl " * MAX_BODY])
    assert status == 413 and "too large" in text and files(tmp_path) == []


def test_uploads_are_removed_but_no_other_file(uploads, tmp_path_factory):
    upload, own = uploads / "a" / "owl.glb", tmp_path_factory.mktemp("home") / "owl.glb"
    upload.parent.mkdir()
    for file in (upload, own):
        file.write_bytes(b"a GLB")
    remove_uploads([upload, str(own), upload.with_name("gone.glb")])
    assert not upload.exists() and own.exists()
