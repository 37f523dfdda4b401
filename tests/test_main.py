"""`python -m redream` and `python app.py` from their first line on."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hub_server import Fault
from hub_stack import publish

ROOT = Path(__file__).parent.parent
# Presses Ctrl-C when a module is imported for the first time, as if it were pressed in the middle of the imports.
PRESS = """
import runpy, signal, sys
_, module, what, *_ = sys.argv
class Presser:
    def find_spec(self, name, path=None, target=None):
        if name == module and self in sys.meta_path:
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Presser())
sys.argv = sys.argv[2:]
runpy.run_path(what, run_name="__main__") if what.endswith(".py") else runpy.run_module(what, run_name="__main__")
"""


@pytest.mark.parametrize("module, what", [("numpy", "redream"), ("gradio", "app.py")])
def test_ctrl_c_in_the_middle_of_imports_ends_at_once_without_a_traceback(module, what):
    command = ["env", "--default-signal=INT", sys.executable, "-c", PRESS, module, what, "doctor"]
    process = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=120)
    said = "Stopped at once; nothing was done.\n" if what == "redream" else ""
    assert (process.returncode, process.stdout, process.stderr) == (130, "", said)


@pytest.mark.parametrize(
    "command, said",
    [("retrieve", "Stopped at once; nothing was changed.\n"), pytest.param("generate", None, marks=pytest.mark.slow)],
)
def test_ctrl_c_once_ends_a_command_whose_download_stalls(command, said, hub_server, tiny_stack, tmp_path, monkeypatch):
    released = threading.Event()
    publish(hub_server, tiny_stack, tmp_path, monkeypatch)
    hub_server.faults["texts.npy"] = Fault(cut=100, pause=lambda: released.wait(30), times=99)
    environ = {"HF_ENDPOINT": hub_server.address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    environ |= {"REDREAM_RUNS": str(tmp_path / "runs")}
    words = [
        "env",
        "--default-signal=INT",
        sys.executable,
        "-m",
        "redream",
        command,
        "a red owl",
        "--stack",
        str(tmp_path),
    ]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | environ) as process:
        while hub_server.faults["texts.npy"].times == 99 and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.3)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=30)[1]
        assert time.monotonic() - begun < 2
    released.set()
    assert process.returncode == (130 if said else 0) and "Traceback" not in err and err.endswith(said or err)
