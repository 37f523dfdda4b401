"""The endurance scripts, which are run by hand, fit the package as it is."""

import runpy
from pathlib import Path

import pytest

SCRIPTS = sorted(path.name for path in Path(__file__).parent.glob("*.py") if path.name != Path(__file__).name)


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_a_script_imports_first_is_there(script, monkeypatch):
    folder = Path(__file__).parent
    for path in (folder.parent / "browser", folder.parent, folder):
        monkeypatch.syspath_prepend(str(path))
    runpy.run_path(str(folder / script), run_name="imported")
