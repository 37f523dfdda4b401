"""The app in a process of its own, over the tests' tiny stack."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The app over a stack whose preset is the tests' tiny one.
START = "import redream.settings as s; from tiny_stack import TINY; s.PRESETS['mini'] = TINY.with_(iterations={}); " + (
    "import app; app.main()"
)
ITERATIONS = 30


@contextmanager
def serving(stack: Path, runs: Path, uploads: Path) -> Iterator[str]:
    """The app's address; it ends with the block."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environ = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "REDREAM_STACK": str(stack),
        "REDREAM_RUNS": str(runs),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(uploads),
        "OMP_NUM_THREADS": "1",
    }
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-c", START.format(ITERATIONS)], env=environ, cwd=runs)
    try:
        _wait_for(address, process)
        yield address
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(address: str, process: subprocess.Popen) -> None:
    for _ in range(300):
        assert process.poll() is None, "the app ended"
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError("the app did not start")
