"""The app as it is operated: behind a proxy with a path prefix, with its log and its health; files of MCP clients."""

import asyncio
import base64
import http.client
import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from gradio_client import Client
from served import START, WAIT, button, finished, serving, status_line, sync_api, until, visitor, wait_until_done

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PREFIX = "/redream"
LATE_SECONDS = 0.5  # between the end of a page's stream of updates and the page's knowing of it: answers overtake it
HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@contextmanager
def proxy(address: str) -> Iterator[str]:
    """A reverse proxy on an own port: what comes below `PREFIX` goes to the app without it, as most are set up."""
    target = urlsplit(address)

    class Handler(BaseHTTPRequestHandler):
        def forward(self) -> None:
            if not self.path.startswith(f"{PREFIX}/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            upstream = http.client.HTTPConnection(target.hostname, target.port, timeout=120)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            headers |= {"X-Forwarded-Proto": "http", "X-Forwarded-Host": self.headers["Host"]}
            upstream.request(self.command, self.path.removeprefix(PREFIX), body, headers)
            answer = upstream.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            while part := answer.read1(65536):  # events come as they are sent
                if b"close_stream" in part:
                    time.sleep(LATE_SECONDS)
                self.wfile.write(part)
                self.wfile.flush()
            upstream.close()

        do_GET = do_POST = do_DELETE = do_HEAD = forward

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.handle_error = True, lambda *_: None  # pages leave while they are answered
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{PREFIX}"
    finally:
        server.shutdown()


@pytest.fixture(scope="module")
def app(tiny_stack, tmp_path_factory):
    """The address behind the proxy, and the folder of runs; the log is log.txt beside it."""
    folder = tmp_path_factory.mktemp("operated") / "runs"
    folder.mkdir()
    log = folder.parent / "log.txt"
    start = f"import sys\nsys.stderr = open({str(log)!r}, 'w', buffering=1)\n" + START
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ROOT_PATH", PREFIX)
        with serving(tiny_stack, folder, folder.parent / "uploads", start) as address, proxy(address) as behind:
            yield behind, folder


def test_the_page_and_its_video_work_behind_a_proxy_with_a_path_prefix(browser, app):
    with visitor(browser, app[0] + "/") as page:
        failed, streams = [], set()
        page.on("response", lambda r: failed.append(r.url) if r.status >= 400 else None)
        page.on("request", lambda request: streams.add(request) if "/queue/data" in request.url else None)
        for over in ("requestfinished", "requestfailed"):
            page.on(over, lambda request: streams.discard(request))
        page.wait_for_timeout(1000 * LATE_SECONDS + 500)  # what the page asks for at its start is answered
        finished(page, "a blue mug", "DreamFusion (SDS)")
        page.wait_for_function("document.querySelector('video')?.readyState >= 2", timeout=WAIT)
        assert page.locator("video").first.get_attribute("src").startswith(f"{app[0]}/gradio_api/file=")
        sync_api.expect(page.locator("canvas").first).to_be_visible(timeout=WAIT)  # of the 3D viewer
        # Gradio shows what is asked for between the end of a stream and the page's knowing of it only at the next click.
        until(page, lambda: not streams)
        button(page, "Continue for 200 more").click()
        sync_api.expect(status_line(page)).to_contain_text("iteration", timeout=WAIT)
        button(page, "Stop and keep").click()
        wait_until_done(page, "Stopped. These are the results so far.")
        assert not [url for url in failed if "/gradio_api/" in url or "/assets/" in url]


def test_a_script_gets_files_behind_the_proxy_and_the_log_names_the_run_but_not_the_prompt(app):
    client = Client(app[0] + "/", verbose=False, analytics_enabled=False)
    state, turntables, models = client.predict("a green car", "sds", iterations=4, api_name="/generate")
    assert state["state"] == "Done." and turntables[0].endswith(".mp4") and models[0].endswith(".glb")
    log = (app[1].parent / "log.txt").read_text()
    lines = re.findall(rf"^[\d-]+ [\d:,]+ INFO {state['run']} (\w+)", log, re.MULTILINE)
    assert lines[0] == "started" and lines[-1] == "finished" and "progress" not in lines
    assert "green car" not in log and "Traceback" not in log


def test_the_health_endpoint_names_stack_queue_and_disk(app):
    with urllib.request.urlopen(f"{app[0]}/health") as answer:
        values = json.loads(answer.read())
        assert answer.headers["Content-Type"] == "application/json"
    disk_left = values.pop("disk_left")
    assert values == {"ready": True, "stack": "tiny", "queue": 0} and disk_left > 10**6


def test_mcp_takes_an_asset_as_data_but_never_a_path_or_a_private_address_of_the_server(app, tiny_stack):
    """Neither as a text nor as Gradio's own object for a file, which its client would upload from the server's disk."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    glb = tiny_stack / "assets/owl.glb"
    request = {"prompt": "a purple owl", "iterations": 2, "adapt": False}
    as_object = {"path": str(glb), "meta": {"_type": "gradio.FileData"}}
    assets = [str(glb), f"file://{glb}", as_object, f"{app[0]}/gradio_api/file={glb}", as_data(b"glTF" + bytes(99))]

    async def talk() -> list:
        async with (
            streamablehttp_client(f"{app[0]}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            made = await session.call_tool("generate", request | {"asset": as_data(glb.read_bytes())})
            return [made, *[await session.call_tool("generate", request | {"asset": asset}) for asset in assets]]

    with ThreadPoolExecutor() as thread:  # playwright has a loop in this one
        made, *refused = thread.submit(asyncio.run, talk()).result()
    assert not made.isError and "mesh-0.glb" in str(made.content)
    assert all(answer.isError and "mesh-0.glb" not in str(answer.content) for answer in refused)
    assert "only version 2 is read" in str(refused[-1].content)
    uploads = [json.loads(file.read_text())["assets"] for file in app[1].glob("run-*/settings.json")]
    assert len(list(filter(None, uploads))) == 1


def as_data(glb: bytes) -> str:
    """A file as a data URL."""
    return f"data:model/gltf-binary;base64,{base64.b64encode(glb).decode()}"
