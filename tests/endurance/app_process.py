"""The app in a process of its own, over the tiny stack or the miniature, with its folders and its log in one place."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/browser")]

START_SECONDS = 600
# `app.main()` as it is, over presets of few iterations; {changes} is code.
START = """
from redream import settings
{changes}
import app
app.main()
"""
TINY = """
from redream.app import form
from tiny_stack import TINY, make_outputs_small
settings.PRESETS["mini"] = settings.by_method(TINY.with_(iterations=24))
form.max_iterations = lambda preset: 5000
make_outputs_small()
"""
MINI = """
from redream.scoring import metrics
metrics.AZIMUTHS = 24  # views that scores are of: most of a short run's time
output = {"turntable_frames": 24, "turntable_rays": 64, "mesh_resolution": 64, "checkpoint_every": 10}
settings.PRESETS["mini"] = settings.by_method(
    settings.Settings(iterations=20, adaptation={"steps": 8, "views": 16}, output=output)
)
"""


@dataclass(frozen=True)
class App:
    """A running app: where it is, and where it writes."""

    address: str
    port: int
    process: subprocess.Popen
    runs: Path
    uploads: Path  # Gradio's
    temporary: Path  # the system's, for this process alone
    log: Path

    def processes(self) -> list[psutil.Process]:
        """Its own one and all below that."""
        try:
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


@contextmanager
def running(stack: str, out: Path, environ: dict[str, str] | None = None, before: str = "") -> Iterator[App]:
    """The app over "tiny" or "mini", with its folders under `out`; it ends with the block. `before`: code that the process
    runs first."""
    folders = {name: out / name for name in ("runs", "uploads", "temporary", "home", "cwd")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    if stack == "tiny":
        from tiny_stack import make_tiny_stack

        stack, changes = str(make_tiny_stack(out / "stack")), TINY
    else:
        changes = MINI
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    variables = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "REDREAM_STACK": stack,
        "REDREAM_RUNS": str(folders["runs"]),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folders["uploads"]),
        "TMPDIR": str(folders["temporary"]),
        "HOME": str(folders["home"]),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    log, address = out / "app.log", f"http://127.0.0.1:{port}"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", before + START.format(changes=changes)],
            env=variables | (environ or {}),
            cwd=folders["cwd"],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # else the app outlives this process
    app = App(address, port, process, folders["runs"], folders["uploads"], folders["temporary"], log)
    try:
        _wait(app)
        yield app
    finally:
        if app.alive:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _wait(app: App) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if not app.alive:
            raise RuntimeError(f"the app ended at once; see {app.log}")
        try:
            urllib.request.urlopen(app.address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"the app did not start; see {app.log}")
