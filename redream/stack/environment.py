"""Device, versions and memory of this computer, and the stack that it can run."""

import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass

from redream import hub
from redream.stack.stack import Entry, Stack, StackError

PACKAGES = ("torch", "diffusers", "transformers", "peft", "open_clip_torch", "faiss-cpu", "trimesh", "embreex")
PACKAGES += ("numpy", "scikit-image", "xatlas")
OPTIONAL = ("nerfacc", "tinycudann", "gradio", "lpips", "spaces")


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found: the stack to use, why, and the facts behind it as (name, value)."""

    stack: str
    reason: str
    facts: tuple[tuple[str, str], ...]


def device() -> str:
    """The device that models run on: "cuda" if available, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on; packages that are not installed are left out."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES + OPTIONAL:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def device_name(name: str) -> str:
    """Describe a device: the GPU and CUDA's version, or the processor and its cores."""
    import torch

    if name.startswith("cuda"):
        return f"{torch.cuda.get_device_name(name)}, CUDA {torch.version.cuda}"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def doctor() -> Diagnosis:
    """Choose a stack for this computer and say why: sd21 where CUDA and all of its files are here, else mini."""
    here = device()
    facts = [("device", device_name(here)), *versions().items()]
    if here != "cuda":
        return Diagnosis("mini", "There is no CUDA device, so the miniature runs on the CPU.", tuple(facts))
    try:
        missing = missing_entries(Stack.load("sd21"))
    except StackError as error:
        return Diagnosis("mini", f"The stack sd21 cannot be read: {error}", tuple(facts))
    if missing:
        sentence = f"There is CUDA, but these parts of sd21 are not here yet: {', '.join(missing)}. The miniature runs."
        return Diagnosis("mini", sentence, tuple(facts))
    return Diagnosis("sd21", "There is CUDA, and every part of sd21 is here.", tuple(facts))


def missing_entries(stack: Stack) -> list[str]:
    """The names of a stack's parts that would have to be downloaded first."""
    return [name for name, entry in stack.entries.items() if not is_here(stack, entry)]


def is_here(stack: Stack, entry: Entry) -> bool:
    """Whether an entry is a folder that exists, or in the Hub's cache; the network is not used."""
    if (stack.base / entry.source).is_dir():  # an absolute source stays what it is
        return True
    fallback, _, revision = (entry.fallback or "").partition("@")
    return hub.is_cached(entry.source, entry.revision, entry.files) or (
        bool(fallback) and hub.is_cached(fallback, revision or None, entry.files)
    )


def peak_memory_gb() -> float | None:
    """The most memory this process has held so far, in GB (10⁹ bytes), without what lies on a GPU; None where the
    system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most * (1 if sys.platform == "darwin" else 1024) / 1e9, 3)
