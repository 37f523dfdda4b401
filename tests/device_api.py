"""A stand-in for ZeroGPU's device API and for its GPUs, so that a Space can be tried out with the real package `spaces`.

The server grants and refuses GPUs, and kills processes that overrun their time. Only `zero.torch.init` and `zero.torch.move` of
`spaces`, which need a GPU, are left out.
"""

import json
import os
import signal
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

WAIT_SECONDS = 5 * 3600  # until a spent quota is full again


# A visitor's quota, and the time of a process, in seconds (None: enough); whether a request's token is good for one call only.
rules = SimpleNamespace(left=None, limit=None, once=False)
asked: list[tuple[str, dict]] = []  # paths and parameters
timers: dict[str, threading.Timer] = {}  # by token


class DeviceApi(BaseHTTPRequestHandler):
    """The device API's answers."""

    def do_POST(self):
        url = urlsplit(self.path)
        values = {key: value[0] for key, value in parse_qs(url.query).items()}
        asked.append((url.path, values))
        getattr(self, url.path.strip("/").replace("-", "_"))(values)

    def startup_report(self, values):
        self.answer(200)

    def rules(self, values):
        """Not ZeroGPU's: another process changes the rules."""
        rules.left = int(values["left"]) if "left" in values else None
        rules.once = "once" in values
        self.answer(200)

    def schedule(self, values):
        tokens = [other["token"] for path, other in asked if path == "/schedule" and "token" in other]
        if rules.once and tokens.count(values.get("token")) > 1:
            return self.answer(401)
        if rules.left is not None and int(values["durationSeconds"]) > rules.left:
            headers = {"X-Approve-Result": "quota-exceeded", "X-Authenticated": "regular"}
            return self.answer(429, {"left": rules.left, "wait": WAIT_SECONDS}, headers)
        token = f"token-{len(asked)}"
        return self.answer(200, {"idle": False, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": token})

    def allow(self, values):
        if rules.limit is not None:
            kill = threading.Timer(rules.limit, os.kill, (int(values["pid"]), signal.SIGKILL))
            timers[values["allowToken"]] = kill
            kill.start()
        self.answer(200)

    def release(self, values):
        if timer := timers.pop(values["allowToken"], None):
            timer.cancel()
        self.answer(200)

    def answer(self, status: int, values: dict | None = None, headers: dict | None = None):
        body = json.dumps(values or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def serve(port: int = 0) -> None:
    """Start the server and let this process be a ZeroGPU Space; before `spaces` is imported."""
    server = ThreadingHTTPServer(("127.0.0.1", port), DeviceApi)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    os.environ |= {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": address}


def leave_out_the_gpu() -> None:
    """The forked processes compute on the CPU."""
    import spaces.zero

    spaces.zero.torch.init = lambda uuid: None
    spaces.zero.torch.move = lambda callback=None: None


def over_after(iterations: int) -> Callable:
    """In place of `Session._time_is_over`: a call has time for so many iterations, and for the results of the last ones."""

    def is_over(session, seconds: float = 0.0) -> bool:
        done = sum(session.clock._count.values()) if hasattr(session, "clock") else 0
        complete = any(int(path.name) == session.run.request.total for path in session.run.checkpoints())
        return session.deadline == 0.0 or (done >= iterations and not complete)

    return is_over
