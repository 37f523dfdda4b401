"""Faults of the machine that end a run, as sentences: the disk, a folder that is gone, the memory.

What the run has written stays, and it goes on from its last checkpoint once there is room again.
"""

import errno
from pathlib import Path

from redream.errors import RedreamError
from redream.files import DISK_FULL, NOT_WRITABLE, why_not_written
from redream.runs.run import Run
from redream.settings import Settings

DISK = (*DISK_FULL, *NOT_WRITABLE, errno.EIO, errno.ENOTDIR, errno.EMFILE)  # numbers of errors that the disk may have
# How errors begin or go on that are raised as a plain RuntimeError where memory runs out.
MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


class MachineError(RedreamError):
    """The disk or the memory did not suffice; the message says what to do before the run is resumed."""


def explained(error: Exception, run: Run) -> MachineError | None:
    """What to tell of an error that ended a run; None if the machine is not to blame."""
    checkpoints = run.checkpoints()
    begin = f"iteration {int(checkpoints[-1].name)}" if checkpoints else "its beginning"
    if _is_memory(error):
        return MachineError(
            f"The memory of the {_device(error)} ran out. Close other programs that use it and resume the run, which goes on "
            f"from {begin}; or start a new one with {smaller(run.request.settings)}."
        )
    if isinstance(error, OSError) and not run.folder.is_dir():
        return MachineError(f"The run's folder {run.folder} was removed while the run was being made; start a new run.")
    if not isinstance(error, OSError) or error.errno not in DISK:
        return None
    elsewhere = error.filename and run.folder not in Path(error.filename).parents
    folder = Path(error.filename).parent if elsewhere else run.folder
    do = "Free some space" if error.errno in DISK_FULL else "Mend that"
    return MachineError(f"{why_not_written(folder, error)}. {do} and resume the run, which goes on from {begin}.")


def smaller(settings: Settings) -> str:
    """The settings that lower the memory that a run takes, with what they are."""
    pixels = max(pixels for _, pixels in settings.rendering.resolutions)
    names = [f"fewer objects at once (particles, now {settings.particles})"] * (settings.particles > 1)
    names += [f"a lower render resolution (rendering.resolutions, now up to {pixels} pixels)"]
    names += [f"fewer samples of a ray (rendering.samples_per_ray, now {settings.rendering.samples_per_ray})"]
    if settings.uses_assets and settings.adapt:
        names += [f"a smaller batch of the adaptation (adaptation.batch, now {settings.adaptation.batch})"]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _is_memory(error: Exception) -> bool:
    """Whether memory ran out: torch has an exception of its own only for what its CUDA allocator refuses."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in MEMORY)


def _device(error: Exception) -> str:
    return "GPU" if "CU" in str(error) or type(error).__name__ == "OutOfMemoryError" else "computer"
