"""Requests of any size and uploads that break off leave nothing in memory or on the disk."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gradio as gr
import pytest
import safehttpx
from gradio.routes import App
from starlette.middleware import Middleware

from redream.app import limits
from redream.app.limits import MAX_BODY, RequestLimits, accepting_addresses, remove_uploads
from redream.scene.glb_validation import Limits

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


class Elsewhere(BaseHTTPRequestHandler):
    """Another server's files."""

    wait = threading.Event()

    def do_GET(self):
        if self.path in ("/round", "/inside"):
            self.send_response(302)
            self.send_header("Location", "/round" if self.path == "/round" else "http://inside.test/secret")
            self.end_headers()
        elif self.path == "/none.glb":
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"a GLB")
            if self.path == "/slow.glb":
                self.wait.wait(10)
            self.wfile.write(b"." * (5000 if self.path == "/large.glb" else 0))

    def log_message(self, *_):
        pass


@pytest.fixture
def elsewhere(monkeypatch, uploads):
    """The address of a server that counts as public, and any other name as private."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Elsewhere.wait.clear()

    async def validate(host: str) -> str:
        if host != "public.test":
            raise ValueError(f"Hostname {host} failed validation")
        return "127.0.0.1"

    monkeypatch.setattr(safehttpx, "async_validate_url", validate)
    yield f"http://public.test:{server.server_port}"
    Elsewhere.wait.set()
    server.shutdown()
    server.server_close()


def moved(address: str) -> str:
    with gr.Blocks():
        file = accepting_addresses(gr.File())
    return asyncio.run(file.async_move_resource_to_block_cache(address))


def test_what_is_at_a_public_address_arrives_under_its_name(elsewhere, uploads):
    assert moved(f"{elsewhere}/a/owl.glb?x=1").endswith("/owl.glb") and files(uploads) == ["owl.glb"]


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("/large.glb", limits.TOO_LONG),
        ("/round", limits.TOO_LONG),
        ("/slow.glb", limits.TOO_SLOW),
        ("/none.glb", limits.NOT_THERE),
        ("/inside", limits.NOT_THERE),
    ],
)
def test_an_address_is_refused_in_a_sentence_and_nothing_of_it_stays(
    elsewhere, uploads, monkeypatch, address, sentence
):
    monkeypatch.setattr(limits, "LIMITS", Limits(size=1000))
    monkeypatch.setattr(limits, "FETCH_SECONDS", 0.5 if sentence == limits.TOO_SLOW else 60.0)
    with pytest.raises(gr.Error) as error:
        moved(elsewhere + address)
    assert error.value.message == sentence and not error.value.print_exception and files(uploads) == []


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1/a.glb", "http://localhost:1/a.glb", "http://[::1]/a.glb", "http://"]
)
def test_private_addresses_are_not_asked(uploads, address):
    with pytest.raises(gr.Error, match="There is no file at this address"):
        moved(address)


def test_an_uploaded_file_is_taken_as_gradio_does(uploads):
    upload = uploads / "a" / "owl.glb"
    upload.parent.mkdir()
    upload.write_bytes(b"a GLB")
    assert moved(str(upload)) == str(upload)
