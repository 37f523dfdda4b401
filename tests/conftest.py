"""Fixtures for all tests: tiny stacks with random weights, the miniature, sample GLBs, a generator."""

import shutil
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
# Files that take long come first, the longest before all, so that the processes which share the tests end together.
LONGEST = (
    "app sweep loop hub_run workers miniature mesh session space cli experiments clients pipeline zerogpu accessibility "
    "benchmark kernels prior make_mini operation full_disk commands planted_faults assemble main variational"
)
LONGEST = [f"test_{name}.py" for name in LONGEST.split()]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

torch.set_num_threads(1)  # in each of the processes that share the tests (pyproject.toml)


def pytest_collection_modifyitems(items):
    """Put the longest files first; skip what this computer cannot run, and say why."""
    items.sort(key=lambda item: (*LONGEST, item.path.name).index(item.path.name))
    lacking = {
        "gpu": not torch.cuda.is_available() and "needs CUDA",
        "browser": not any(map(shutil.which, BROWSERS)) and "needs Chromium",
    }
    for item in items:
        for marker, reason in lacking.items():
            if reason and marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def own_data(tmp_path_factory):
    """A folder of one's own data that is empty, whatever the user of this computer has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDREAM_DATA", str(tmp_path_factory.mktemp("data")))
        patch.delenv("REDREAM_LIBRARY", raising=False)
        yield


@pytest.fixture(autouse=True, scope="session")
def small_outputs():
    """Outputs of a size that tests of what a run does can wait for."""
    from tiny_stack import make_outputs_small

    with pytest.MonkeyPatch.context() as patch:
        make_outputs_small(patch.setattr)
        yield patch


@pytest.fixture(scope="module")
def full_outputs(small_outputs):
    """Outputs as users have them."""
    from tiny_stack import make_outputs_small

    small_outputs.undo()
    yield
    make_outputs_small(small_outputs.setattr)


@pytest.fixture
def hub_server(tmp_path, monkeypatch):
    """A local Hub with an empty cache: a `hub_server.HubServer`."""
    from hub_server import serving

    with serving(monkeypatch, tmp_path / "hub-cache") as server:
        yield server


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def tiny_stack(tmp_path_factory) -> Path:
    """A stack's folder: random weights, a U-Net of two levels, six assets, a vocabulary. Read only."""
    from tiny_stack import make_tiny_stack

    return make_tiny_stack(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def models(tiny_stack):
    """The models of the tiny stack. A run leaves its adapters on the prior until the next one begins."""
    from redream.stack.models import Models
    from redream.stack.stack import Stack

    return Models.load(Stack.load(tiny_stack, environ={}), "cpu")


@pytest.fixture(scope="session")
def models_with_truth(tiny_stack, tmp_path_factory):
    """The models of the tiny stack, and two variants of purple owls as its truth. Read only."""
    from tiny_stack import add_truth

    from redream.stack.models import Models
    from redream.stack.stack import Stack

    return Models.load(Stack.load(add_truth(tiny_stack, tmp_path_factory.mktemp("true")), environ={}), "cpu")


@pytest.fixture(scope="session")
def tiny_stack_v(tmp_path_factory) -> Path:
    """In the structure of Stable Diffusion 2.1: v prediction, four levels; with no vocabulary: any prompt. Read only."""
    from tiny_stack import make_tiny_stack

    return make_tiny_stack(tmp_path_factory.mktemp("tiny-v"), "v_prediction", vocabulary=False, levels=4)


@pytest.fixture(scope="session")
def mini():
    """The miniature stack with trained weights."""
    from redream.stack.stack import STACKS, Stack

    if not (STACKS / "mini" / "stack.json").is_file():
        pytest.skip("assets_index/mini is not built")
    stack = Stack.load("mini", environ={})
    entries = [stack.prior, stack.index, *stack.clips.values(), *stack.perceptual.values()]
    if missing := [entry.source for entry in entries if not any((stack.base / entry.source).glob("*"))]:
        pytest.skip(f"assets_index/mini lacks {', '.join(missing)}")
    return stack


@pytest.fixture(scope="session")
def gltf() -> Path:
    """A folder of sample GLBs beside the checkout: BoxTextured, CesiumMilkTruck, Duck, monkey."""
    folder = ROOT.parent / "shared" / "gltf"
    if not folder.is_dir():
        pytest.skip("there are no sample GLBs beside the checkout")
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's executable, for playwright's `executable_path`."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    return browser or pytest.skip("needs Chromium")
