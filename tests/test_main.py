"""`python -m redream` and `python app.py` from their first line on."""

import subprocess
import sys
from pathlib import Path

import pytest

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
