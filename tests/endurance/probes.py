"""Attack the running app as a stranger may: foreign paths, ids, addresses, sizes, connections and file names.

One line for each probe: "ok", or "FAULT" where a foreign file was read or written, an address was fetched, the app crashed
or did not answer in time, or where a client got anything but a sentence. The process exits with 1 if there was a fault.
"""

import argparse
import asyncio
import http.client
import http.server
import json
import os
import re
import socket
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from app_process import App, running

from redream.runs.run import ID

TOKEN = "token-of-a-foreign-file-4711"
MARKS = (TOKEN.encode(), b"root:x:0:0", b"[boot loader]")  # of files that no visitor may read
SECONDS = 10.0  # in which a page is to answer, whatever goes on
MEGABYTE = 1 << 20
JSON = {"Content-Type": "application/json"}


@dataclass
class Report:
    """The lines so far."""

    log: Path
    faults: int = 0
    count: int = 0

    def add(self, name: str, detail: str, ok: bool) -> None:
        self.count += 1
        self.faults += not ok
        line = f"{'ok   ' if ok else 'FAULT'} {name}: {detail}"
        print(line, flush=True)
        with self.log.open("a") as file:
            file.write(line + "\n")


@dataclass
class Probe:
    """The app under attack, and what must not be reached."""

    app: App
    report: Report
    secret: Path  # beside the app's folders
    run: str  # a finished run
    private: str  # another visitor's run, whose id is not known
    canary: "Canary"
    uploaded: str = ""  # path of a whole GLB that was uploaded
    known: set = field(default_factory=set)  # files before

    def request(
        self, target: bytes | str, method: str = "GET", body: bytes = b"", headers: dict | None = None, seconds=SECONDS
    ) -> tuple[int, bytes]:
        """Send a request whose target is not touched; status (0: no answer) and at most a megabyte of the answer."""
        target = target.encode() if isinstance(target, str) else target
        lines = {"Host": f"127.0.0.1:{self.app.port}", "Connection": "close"} | (headers or {})
        lines |= {"Content-Length": str(len(body))} if body else {}
        head = b"%s %s HTTP/1.1\r\n" % (method.encode(), target)
        head += b"".join(f"{key}: {value}\r\n".encode() for key, value in lines.items()) + b"\r\n"
        data, end = b"", time.monotonic() + seconds
        try:
            with socket.create_connection(("127.0.0.1", self.app.port), timeout=seconds) as link:
                link.sendall(head + body)
                while len(data) < MEGABYTE and time.monotonic() < end and (part := link.recv(65536)):
                    data += part
        except OSError:
            pass
        match = re.match(rb"HTTP/1\.\d (\d{3})", data)
        return int(match[1]) if match else 0, data.partition(b"\r\n\r\n")[2]

    def call(self, name: str, values: list, seconds: float = 90.0) -> tuple[str, str]:
        """Call an endpoint by REST: the last event ("complete", "error", or an HTTP status) and its data."""
        body = json.dumps({"data": values}).encode()
        status, answer = self.request(f"/gradio_api/call/{name}", "POST", body, JSON, seconds)
        if status != 200:
            return str(status), answer.decode(errors="replace")
        event = json.loads(re.search(rb"\{.*\}", answer, re.DOTALL)[0])["event_id"]
        end = time.monotonic() + seconds
        with urllib.request.urlopen(f"{self.app.address}/gradio_api/call/{name}/{event}", timeout=seconds) as stream:
            kind = ""
            for line in stream:
                if line.startswith(b"event:"):
                    kind = line[6:].strip().decode()
                elif line.startswith(b"data:") and kind in ("complete", "error"):
                    return kind, line[5:].strip().decode(errors="replace")
                if time.monotonic() > end:
                    break
        return "timeout", ""

    def answers(self) -> float | None:
        """Seconds in which the page answers; None if it does not."""
        start = time.monotonic()
        status, body = self.request("/", seconds=SECONDS)
        return time.monotonic() - start if status == 200 and b"<html" in body.lower() else None

    def new_files(self) -> set[Path]:
        """Files that came since `known` where no visitor's file belongs."""
        own = (self.app.uploads, self.app.temporary, self.app.log.parent / "home")
        files = set(all_files(self.app.log.parent)) - self.known
        return {
            path
            for path in files
            if not any(folder in path.parents for folder in own)
            and not (self.app.runs in path.parents and ID.fullmatch(path.relative_to(self.app.runs).parts[0]))
        }


class Canary(http.server.ThreadingHTTPServer):
    """A local server that counts requests, whatever they ask for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Counting)
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return self.server_address[1]


class _Counting(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(TOKEN.encode())

    do_POST = do_HEAD = do_GET

    def log_message(self, *arguments) -> None:
        pass


def all_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and path.name not in ("app.log", "probes.log"):
            yield path


def leaks(body: bytes | str) -> bool:
    body = body.encode() if isinstance(body, str) else body
    return any(mark in body for mark in MARKS)


# ---------------------------------------------------------------- paths


def path_traversal(probe: Probe) -> None:
    """Files outside of the app's folders, by every spelling of a path."""
    app, secret = probe.app, probe.secret
    relative = f"../{secret.name}"
    (app.runs / "link.txt").symlink_to(secret)
    (app.runs / probe.run / "link.json").symlink_to(secret)
    (app.runs / "etc").symlink_to("/etc")
    (app.uploads / "link.txt").symlink_to(secret)
    (app.temporary / "link.txt").symlink_to(secret)
    (app.temporary / "plain.txt").write_text(TOKEN)
    quoted = urllib.parse.quote(str(secret), safe="")
    dots = {
        "absolute": str(secret),
        "absolute, percent": quoted,
        "absolute, percent twice": urllib.parse.quote(quoted, safe=""),
        "/etc/passwd": "/etc/passwd",
        "//etc/passwd": "//etc/passwd",
        "..": "../../../../../../../../etc/passwd",
        "%2e%2e": "%2e%2e/" * 8 + "etc/passwd",
        "%252e%252e": "%252e%252e%252f" * 8 + "etc/passwd",
        "backslash": "..\\..\\..\\..\\..\\etc\\passwd",
        "%5c": "..%5c" * 6 + "etc%5cpasswd",
        "overlong": "%c0%ae%c0%ae/" * 6 + "etc/passwd",
        "NUL": f"{app.runs}/x%00.png",
        "tilde": "~/../../etc/passwd",
        "out of the runs": f"{app.runs}/{relative}",
        "out of the runs, percent": f"{app.runs}/%2e%2e/{secret.name}",
        "out of a run": f"{app.runs}/{probe.run}/../../{secret.name}",
        "out of a file": f"{app.runs}/{probe.run}/settings.json/../../../{secret.name}",
        "out of the uploads": f"{app.uploads}/{relative}",
        "temporary folder": f"{app.temporary}/plain.txt",
        "the log": str(app.log),
        "the program": str(Path(__file__).parents[2] / "app.py"),
        "the working folder": "app.py",
        "/proc": "/proc/self/environ",
        "/proc/self/root": f"/proc/self/root{secret}",
        "/dev/zero": "/dev/zero",
        "a folder": str(app.runs),
        "file://": f"file://{secret}",
        "UNC": "\\\\127.0.0.1\\share",
    }
    own = b"demo.launch"
    for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/svelte/"):
        found = {name: probe.request(prefix + path, seconds=5) for name, path in dots.items()}
        bad = [
            f"{name} ({status})"
            for name, (status, body) in found.items()
            if leaks(body) or (status == 200 and (own in body or b"REDREAM_STACK=" in body or name == "/dev/zero"))
        ]
        hung = [name for name, (status, _) in found.items() if status == 0]
        statuses = sorted({status for status, _ in found.values()})
        detail = f"{len(dots)} paths, statuses {statuses}"
        detail += f"; read: {', '.join(bad)}" if bad else ""
        probe.report.add(prefix, detail + (f"; no answer: {', '.join(hung)}" if hung else ""), not bad and not hung)
    for name, link in {
        "a link in the runs": app.runs / "link.txt",
        "a link in a run": app.runs / probe.run / "link.json",
        "a linked folder in the runs": app.runs / "etc/passwd",
        "a link in the uploads": app.uploads / "link.txt",
        "a link in the temporary folder": app.temporary / "link.txt",
    }.items():
        status, body = probe.request(f"/gradio_api/file={link}")
        probe.report.add(name, f"{status}{', followed' if leaks(body) else ''}", not leaks(body))
    odd = (
        "/custom_component/../../x",
        "/gradio_api/custom_component/a/b/c/..%2f..%2fx",
        "/gradio_api/stream/../1/x.ts",
    )
    odd += (
        "/pwa_icon/99999999",
        "/gradio_api/stream/a/b/1/playlist.m3u8",
        "/?deep_link=../../../secret",
        "/gradio_api/%00",
    )
    statuses = {path: probe.request(path)[0] for path in odd}
    probe.report.add("odd routes", str(statuses), 0 not in statuses.values())
    for link in (app.runs / "link.txt", app.runs / "etc", app.uploads / "link.txt", app.runs / probe.run / "link.json"):
        link.unlink()


# ---------------------------------------------------------------- ids


def run_ids(probe: Probe) -> None:
    """Runs of others: only an id leads to a run, and no page or answer names one."""
    listed = []
    pages = ["/", "/config", "/gradio_api/info", "/gradio_api/openapi.json", "/gradio_api/queue/status", "/monitoring"]
    pages += [
        "/monitoring/summary",
        "/gradio_api/runs",
        "/gradio_api/run-history/buckets",
        "/gradio_api/startup-events",
    ]
    pages += ["/?run=../", "/?run=*", "/?run=" + probe.private[:-1]]
    statuses = {}
    for page in pages:
        statuses[page], body = probe.request(page)
        listed += [page] * (probe.private.encode() in body or probe.run.encode() in body)
        if b"/site-packages/" in body or str(probe.app.runs).encode() in body:
            probe.report.add(f"{page} names a path of this machine", str(statuses[page]), False)
    probe.report.add("ids in pages", f"{statuses}; named in {listed or 'none'}", not listed)
    probe.report.add(
        "figures of the events of all visitors (/monitoring/summary)",
        str(statuses["/monitoring/summary"]),
        statuses["/monitoring/summary"] != 200,
    )
    folder = probe.app.runs
    wrong = ["", "..", ".", "../", f"../runs/{probe.run}", f"./{probe.run}", f"{probe.run}/", f"{probe.run}/.", "run-*"]
    wrong += [str(folder / probe.run), f"{probe.run}\n", f"{probe.run}\0", "run-" + "?" * 16, "run-" + "A" * 16]
    wrong += ["run-" + "." * 16, "run-../../../../etc", "..／etc", "é" * 20, "x" * 100_000]
    sentences, accepted = set(), []
    for call, more in {"scores": [], "stop": [], "continue": [0], "export": ["stl", 100, 0]}.items():
        for run in wrong:
            kind, data = probe.call(call, [run, *more])
            if leaks(data) or (kind == "complete" and call != "stop") or kind == "timeout":
                accepted.append(f"{call}({run[:30]!r}): {kind} {data[:80]}")
            sentences.add(data[:80] if kind == "error" else kind)
    probe.report.add(
        f"{len(wrong)} wrong ids in 4 calls", f"{sorted(sentences)}; accepted: {accepted or 'none'}", not accepted
    )
    odd = [["../../x", 100, 0], ["stl", -1, 0], ["stl", 1e300, 0], ["stl", 100, -1], ["stl", 100, 10**18], ["", 0, 0]]
    odd += [["stl", "NaN", 0], [None, None, None], [{"a": 1}, [], {}]]
    kinds = [probe.call("export", [probe.run, *values])[0] for values in odd]
    probe.report.add("odd values of export", str(kinds), all(kind not in ("complete", "timeout") for kind in kinds))
    status, _ = probe.request(f"/gradio_api/file={folder / probe.private / 'settings.json'}")
    guess = probe.request(f"/gradio_api/file={folder / ('run-' + 'B' * 16) / 'settings.json'}")[0]
    probe.report.add("a run's file, by its id and by a wrong one", f"{status}, {guess}", (status, guess) == (200, 403))


# ---------------------------------------------------------------- addresses


def addresses(probe: Probe) -> None:
    """Files by address: none of this machine or of its network may be fetched, no local path read."""
    port, secret = probe.canary.port, probe.secret
    local = [f"http://127.0.0.1:{port}/a.glb", f"http://localhost:{port}/b.glb", f"http://0.0.0.0:{port}/c.glb"]
    local += [f"http://[::1]:{port}/d.glb", f"http://2130706433:{port}/e.glb", f"http://0x7f.1:{port}/f.glb"]
    local += [f"http://127.1:{port}/g.glb", f"http://[::ffff:127.0.0.1]:{port}/h.glb", f"HTTP://127.0.0.1:{port}/i.glb"]
    local += [
        f"http://user@127.0.0.1:{port}/j.glb",
        f"http://localtest.me:{port}/k.glb",
        "http://169.254.169.254/latest/",
    ]
    local += [f"{probe.app.address}/config", f"file://{secret}", "file:///etc/passwd", f"ftp://127.0.0.1:{port}/l.glb"]
    local += [f"gopher://127.0.0.1:{port}/m", "data:text/plain,abc", f"//127.0.0.1:{port}/n.glb"]
    meta = {"_type": "gradio.FileData"}
    uploads = probe.app.uploads
    files = [{"path": url, "meta": meta} for url in local] + [
        {"path": "x.glb", "url": url, "meta": meta} for url in local
    ]
    files += [{"path": str(path), "meta": meta} for path in (secret, "/etc/passwd", "/dev/zero", "/dev/stdin", uploads)]
    files += [{"path": str(probe.app.runs / probe.private / "settings.json"), "meta": meta}]
    files += [{"path": f"{uploads}/../{secret.name}", "meta": meta}, {"path": "~/../../etc/passwd", "meta": meta}]
    files += [{"path": 7, "meta": meta}, {"path": None, "meta": meta}, "/etc/passwd", [], {"meta": meta}, 7]
    outcomes, wrong = [], []
    for file in files:
        kind, data = probe.call("generate", ["a red car", "redream", True, True, 1, 2, 0, file, None, "", False])
        outcomes.append(kind)
        if kind not in ("error", "422", "400", "500") or leaks(data):
            wrong.append(f"{str(file)[:90]}: {kind} {data[:60]}")
    detail = f"{len(files)} addresses and paths: { ({kind: outcomes.count(kind) for kind in sorted(set(outcomes))}) }"
    probe.report.add("generate's asset", f"{detail}; accepted: {wrong or 'none'}", not wrong)
    read = []
    for url in local:
        for prefix in ("/gradio_api/file=", "/gradio_api/proxy=", "/file="):
            for spelled in (url, urllib.parse.quote(url, safe="")):
                status, body = probe.request(prefix + spelled, seconds=15)
                read += [f"{prefix}{spelled} ({status})"] * (leaks(body) or status == 0)
    probe.report.add("file= and proxy= of an address", f"{6 * len(local)} requests; read: {read or 'none'}", not read)
    state = asyncio.run(_mcp(probe, [local[0], local[3], local[-6], "/etc/passwd", str(secret), "data:;base64,AAAA"]))
    probe.report.add("MCP's asset", state, not leaks(state) and "Done" not in state)
    probe.report.add("requests that the canary got", str(probe.canary.requests or "none"), not probe.canary.requests)


async def _mcp(probe: Probe, assets: list[str]) -> str:
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    answers = []
    async with (
        streamablehttp_client(f"{probe.app.address}/gradio_api/mcp/") as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        for asset in assets:
            result = await session.call_tool("generate", {"prompt": "a red car", "iterations": 2, "asset": asset})
            text = " ".join(getattr(part, "text", "") for part in result.content)
            answers.append(f"{'refused' if result.isError else 'TAKEN'}: {text[:90]}")
    return "; ".join(sorted(set(answers)))


# ---------------------------------------------------------------- sizes


def sizes(probe: Probe) -> None:
    """Bodies that are too large or too deep: refused, without memory or files that stay."""
    memory = lambda: sum(p.memory_info().rss for p in probe.app.processes()) / MEGABYTE
    disk = lambda: sum(f.stat().st_size for d in (probe.app.uploads, probe.app.temporary) for f in all_files(d))

    def measured(name: str, send: Callable[[], str], most: float = 400.0) -> None:
        before, used = memory(), disk()
        highest, over = [before], threading.Event()

        def watch() -> None:
            while not over.wait(0.1):
                highest.append(memory())

        watching = threading.Thread(target=watch)
        watching.start()
        start = time.monotonic()
        outcome = send()
        seconds = time.monotonic() - start
        over.set()
        watching.join()
        time.sleep(1)
        page, left = probe.answers(), (disk() - used) / MEGABYTE
        detail = f"{outcome[:110]} after {seconds:.1f} s; memory +{max(highest) - before:.0f} MB at most, files +{left:.0f} MB, "
        detail += f"page in {page:.1f} s" if page else "page does not answer"
        ok = page is not None and max(highest) - before < most and left < 1 and "timeout" not in outcome
        probe.report.add(name, detail, ok)

    measured("an upload of 300 MB", lambda: _upload_large(probe, 300))
    measured("an upload of 300 MB that breaks off at 90 MB", lambda: _upload_large(probe, 300, breaks_at=90))
    measured("a recording of 300 MB", lambda: _upload_large(probe, 300, "/gradio_api/process_recording", "video"))
    large = "owl " * (50 * MEGABYTE // 4)
    measured(
        "a prompt of 50 MB for generate",
        lambda: " ".join(probe.call("generate", [large, "sds", True, True, 1, 4, 0, None, None, "", False], 60)),
    )
    measured("a prompt of 50 MB for retrieve", lambda: " ".join(probe.call("retrieve", [large, 3, False], 60)))
    measured("an id of 50 MB for scores", lambda: " ".join(probe.call("scores", [large], 60)))
    deep = b"[" * 200_000 + b"]" * 200_000
    body = b'{"data": ' + deep + b"}"
    measured("200,000 brackets", lambda: str(probe.request("/gradio_api/call/retrieve", "POST", body, JSON)[0]))
    wide = json.dumps({"data": ["a red car", "sds"] + [0] * 2_000_000}).encode()
    measured("2,000,000 values", lambda: str(probe.request("/gradio_api/call/generate", "POST", wide, JSON, 60)[0]))
    header = {"X-Long": "a" * 5_000_000}
    measured("a header of 5 MB", lambda: str(probe.request("/", headers=header)[0]))
    measured("an address of 5 MB", lambda: str(probe.request("/" + "a" * 5_000_000)[0]))
    parts = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="%d.glb"\r\n\r\n0\r\n' % n for n in range(5000)
    )
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    measured(
        "5,000 files in one upload",
        lambda: str(probe.request("/gradio_api/upload", "POST", parts + b"--x--\r\n", form, 60)[0]),
    )
    measured(
        "not what its length says",
        lambda: str(probe.request("/gradio_api/upload", "POST", b"--x", form | {"Content-Length": "9" * 12}, 3)[0]),
    )


def _upload_large(
    probe: Probe, megabytes: int, path: str = "/gradio_api/upload", name: str = "files", breaks_at: int | None = None
) -> str:
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="large.glb"\r\n\r\n'.encode()
    connection = http.client.HTTPConnection("127.0.0.1", probe.app.port, timeout=60)
    block = bytes(MEGABYTE)
    try:
        connection.putrequest("POST", path)
        connection.putheader("Content-Type", "multipart/form-data; boundary=x")
        connection.putheader("Content-Length", str(len(head) + megabytes * MEGABYTE + len(b"\r\n--x--\r\n")))
        connection.endheaders()
        connection.send(head)
        for _ in range(breaks_at or megabytes):
            connection.send(block)
        if breaks_at:
            return "broken off by the client"
        connection.send(b"\r\n--x--\r\n")
        answer = connection.getresponse()
        return f"{answer.status} {answer.read(200).decode(errors='replace')}"
    except OSError as error:
        return f"{type(error).__name__}: the connection was closed"
    finally:
        connection.close()


# ---------------------------------------------------------------- connections


def connections(probe: Probe, count: int = 1000) -> None:
    """Connections that are opened and not used: the app still answers, and lets go of them."""
    descriptors = lambda: probe.app.processes()[0].num_fds()
    before = descriptors()
    loris = b"GET / HTTP/1.1\r\nHost: x\r\nX-A: "
    stream = b"GET /gradio_api/heartbeat/%d HTTP/1.1\r\nHost: x\r\n\r\n"
    upload = b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    upload += b"Content-Length: 90000000\r\n\r\n--x\r\n"
    kinds: dict[str, Callable[[int], bytes]] = {
        "idle": lambda number: b"",
        "slow headers": lambda number: loris,
        "slow uploads": lambda number: upload,
        "open pages (heartbeats)": lambda number: stream % number,
    }
    for name, first in kinds.items():
        with _many(probe.app.port, count, first) as (links, refused):
            pages, calls, open_then = [], [], 0
            for _ in range(4):
                for link in links if name.startswith("slow") else ():
                    try:
                        link.send(b"a")
                    except OSError:
                        continue
                pages.append(probe.answers())
                start = time.monotonic()
                kind, _ = probe.call("retrieve", ["a red car", 3, False], 30)
                calls.append(time.monotonic() - start if kind == "complete" else None)
                open_then = max(open_then, descriptors())
                time.sleep(2)
        end = time.monotonic() + 30
        while descriptors() > before + 50 and time.monotonic() < end:
            time.sleep(0.5)
        slowest = [f"{max(times):.2f} s" if None not in times else "NO ANSWER" for times in (pages, calls)]
        detail = f"{len(links)} opened, {refused} refused, {open_then} files open; page {slowest[0]}, retrieve {slowest[1]} at most; "
        detail += f"afterwards {descriptors()} files open (before: {before})"
        ok = None not in pages + calls and refused == 0 and descriptors() <= before + 50
        probe.report.add(f"{count} connections, {name}", detail, ok)


@contextmanager
def _many(port: int, count: int, first: Callable[[int], bytes]) -> Iterator[tuple[list[socket.socket], int]]:
    links, refused = [], 0
    try:
        for number in range(count):
            try:
                link = socket.create_connection(("127.0.0.1", port), timeout=5)
                link.sendall(first(number))
                links.append(link)
            except OSError:
                refused += 1
        yield links, refused
    finally:
        for link in links:
            link.close()


# ---------------------------------------------------------------- names


def names(probe: Probe) -> None:
    """Uploads with foreign names: they stay in the uploads folder, and a run keeps them under names of its own."""
    from tiny_stack import tiny_glb

    glb = tiny_glb((90, 20, 160))
    odd = [
        "../../x.glb",
        "..\\..\\x.glb",
        "/etc/cron.d/x.glb",
        "C:\\x.glb",
        "x\0.glb",
        "a" * 300 + ".glb",
        "CON.glb",
        "NUL",
    ]
    odd += [
        "🦉.glb",
        "é\u0301\u202e.glb",
        ".glb",
        "..",
        ".",
        "",
        " ",
        "-rf.glb",
        "a;rm -rf x.glb",
        "$(touch x).glb",
        "%2e%2e%2fx.glb",
    ]
    odd += [
        "x.glb\r\nX-Injected: 1",
        '"x.glb',
        "x.glb ",
        "x.php",
        "x.svg",
        "x.html",
        "a/" * 200 + "x.glb",
        "🦉" * 100 + ".glb",
    ]
    lines, stored, wrong = [], [], []
    for name in odd:
        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="' + name.encode() + b'"\r\n\r\n'
        body += glb + b"\r\n--x--\r\n"
        status, answer = probe.request(
            "/gradio_api/upload", "POST", body, {"Content-Type": "multipart/form-data; boundary=x"}, 20
        )
        lines.append(f"{name[:24]!r} {status}")
        if status not in (200, 400, 413, 422):
            wrong.append(f"{name[:40]!r}: {status}")
        if status == 200:
            paths = json.loads(re.search(rb"\[.*\]", answer, re.DOTALL)[0])
            stored += [(name, path) for path in paths]
            wrong += [f"{name[:40]!r}: {p}" for p in paths if probe.app.uploads not in Path(p).resolve().parents]
    probe.report.add(f"{len(odd)} names of uploads", f"{', '.join(lines)}; wrong: {wrong or 'none'}", not wrong)
    outcomes, runs = [], set(probe.app.runs.glob("run-*"))
    for name, path in stored:
        file = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
        kind, data = probe.call("generate", ["a red car", "redream", True, False, 1, 1, 0, file, None, "", False])
        outcomes.append((kind, name, data))
    counts = {kind: sum(k == kind for k, *_ in outcomes) for kind in sorted({k for k, *_ in outcomes})}
    bad = [f"{name[:30]!r} {kind} {data[:90]}" for kind, name, data in outcomes if kind not in ("complete", "error")]
    speechless = [f"{name[:30]!r}" for kind, name, data in outcomes if kind == "error" and data in ("null", "")]
    contents = {
        path.name for run in set(probe.app.runs.glob("run-*")) - runs for path in run.iterdir() if path.suffix == ".glb"
    }
    detail = f"{counts}; GLBs in the runs: {sorted(contents)}; without a sentence: {speechless or 'none'}"
    probe.report.add(
        "runs from these uploads",
        f"{detail}; wrong: {bad or 'none'}",
        not bad and contents <= {"upload-0.glb", "mesh-0.glb"},
    )


# ---------------------------------------------------------------- all of it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the app's files and the log")
    parser.add_argument("--stack", choices=("tiny", "mini"), default="tiny")
    groups = [path_traversal, run_ids, addresses, sizes, connections, names]
    parser.add_argument("--only", choices=[group.__name__ for group in groups], help="one group of probes")
    options = parser.parse_args()
    out = options.out.resolve()
    with running(options.stack, out) as app:
        secret = out / "secret.txt"
        secret.write_text(TOKEN)
        report = Report(out / "probes.log")
        probe = Probe(app, report, secret, "", "", Canary())
        for _ in range(2):
            kind, data = probe.call("generate", ["a red car", "sds", True, True, 1, 4, 0, None, None, "", False], 300)
            if kind != "complete":
                raise RuntimeError(f"no run could be made: {kind} {data[:200]}")
            probe.run, probe.private = json.loads(data)[0]["run"], probe.run
        probe.known = set(all_files(out))
        for group in groups:
            if options.only in (None, group.__name__):
                group(probe)
                page = probe.answers()
                report.add(
                    f"after {group.__name__}",
                    f"page in {page:.2f} s" if page else "NO ANSWER",
                    bool(page) and app.alive,
                )
        strangers = sorted(str(path.relative_to(out)) for path in probe.new_files() - {secret})
        report.add("files where none belong", str(strangers or "none"), not strangers)
        log = app.log.read_text(errors="replace")
        report.add("tracebacks in the app's log", str(log.count("Traceback (most recent call last)")), True)
        report.add("foreign content in the app's log", str(TOKEN in log), TOKEN not in log)
    load = " ".join(f"{busy:.1f}" for busy in os.getloadavg())
    print(f"{report.count} probes, {report.faults} faults (load of this machine: {load}). The app's log: {app.log}")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
