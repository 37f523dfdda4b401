"""Device, versions and memory of this computer, and the stack that it can run."""

import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass

from redream.processes import on_zerogpu
from redream.stack.inventory import NeededFile, in_bytes, missing_files, total_size
from redream.stack.stack import Stack, StackError

PACKAGES = ("torch", "diffusers", "transformers", "peft", "open_clip_torch", "faiss-cpu", "trimesh", "embreex")
PACKAGES += ("numpy", "scikit-image", "xatlas")
FOR_A_GPU = "sd21"  # the stack that is chosen where there is one
OPTIONAL = ("nerfacc", "gradio", "lpips", "spaces")


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found: the stack to use, why, and the facts behind it as (name, value)."""

    stack: str
    reason: str
    facts: tuple[tuple[str, str], ...]
    missing: tuple[NeededFile, ...] = ()  # of the stack for a GPU, if there is one here


def device() -> str:
    """The device that models run on: "cuda" if available, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def compiles(device: str) -> bool:
    """Whether `REDREAM_COMPILE=1` asks for a compiled U-Net, and this device repays it: not where each call is a new process,
    nor on a CPU."""
    return os.environ.get("REDREAM_COMPILE") == "1" and device.startswith("cuda") and not on_zerogpu()


def on_space() -> bool:
    """Whether this is a Hugging Face Space, which strangers visit."""
    return "SPACE_ID" in os.environ


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
    """Choose a stack for this computer and say why: sd21 where CUDA and all files that runs need are here, else mini."""
    from redream.scene import glb_reader  # imports torch

    here = device()
    facts = (("device", device_name(here)), ("GLBs of others", glb_reader.description()), *versions().items())
    if here != "cuda":
        return Diagnosis("mini", "There is no CUDA device, so the miniature runs on the CPU.", facts)
    try:
        missing = tuple(missing_files(Stack.load(FOR_A_GPU)))
    except StackError as error:
        return Diagnosis("mini", f"The stack {FOR_A_GPU} cannot be read: {error}", facts)
    if needed := [file for file in missing if not file.is_optional]:
        entries = ", ".join(dict.fromkeys(file.entry for file in needed))
        size = in_bytes(total_size(missing))
        sentence = f"There is CUDA, but of {FOR_A_GPU} about {size} are missing ({entries}). The miniature runs."
        return Diagnosis("mini", sentence, facts, missing)
    return Diagnosis(FOR_A_GPU, f"There is CUDA, and what {FOR_A_GPU} needs is here.", facts, missing)


def peak_memory_gb() -> float | None:
    """The most memory this process has held so far, in GB (10⁹ bytes), without what lies on a GPU; None where the
    system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most * (1 if sys.platform == "darwin" else 1024) / 1e9, 3)
