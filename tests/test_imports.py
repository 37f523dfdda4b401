"""The package's layers (pyproject.toml, [tool.importlinter]): imports run one way."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    return subprocess.run([*command, "--no-cache"], check=False, cwd=folder, capture_output=True, text=True)


def test_imports_run_one_way_and_without_circles():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_import_from_a_layer_above_breaks_the_contract(tmp_path):
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    for file in (ROOT / "redream").rglob("*.py"):
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    cameras = tmp_path / "redream/scene/cameras.py"
    cameras.write_text(cameras.read_text() + "\nfrom redream.runs import run  # noqa\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1 and "redream.scene is not allowed to import redream.runs" in result.stdout
