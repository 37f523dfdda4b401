"""Loads strangers' GLBs in a process of their own, `redream.scene.glb_worker`, with limits of memory and time."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from redream.errors import RedreamError
from redream.processes import on_zerogpu
from redream.scene import assets, glb_validation
from redream.scene.assets import Asset
from redream.scene.glb import AssetError, GlbError
from redream.scene.glb_validation import LIMITS, Limits
from redream.scene.glb_worker import READY, TOO_LARGE, UNREADABLE, decode

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "assets_index"  # files of the project itself
POLL_SECONDS = 0.1  # between two looks at `stop`
ERRORS = {"GlbError": GlbError, "AssetError": AssetError}


@dataclass(frozen=True)
class ProcessLimits:
    """What the reading of one file may take."""

    memory: int = 3 * 2**29  # bytes of address space; the largest files that validation lets through take 0.9 GB
    cpu_seconds: int = 20
    seconds: float = 60.0


class ReadingStopped(RedreamError):
    """The caller's `stop` was true while a file was read."""


class ReaderUnavailable(RedreamError):
    """No process can be started that reads a file."""


def can_start() -> bool:
    """Whether files are read in a process of their own here: on POSIX, but not in the processes that ZeroGPU forks."""
    return os.name == "posix" and not on_zerogpu()


def description(limits: ProcessLimits = ProcessLimits()) -> str:
    """How strangers' files are read here, in a line."""
    if not can_start():
        return "read in this program, their size and structure checked first; a process of their own cannot start here"
    return f"each read in a process with {limits.memory / 1e9:.1f} GB and {limits.cpu_seconds} s"


class GlbReader:
    """Validates and loads GLBs in one child process, which starts with the first file and ends with the `with` block.

    A file that ends the child, or overruns, is an `AssetError`; the next file gets a new child. The project's own files
    are loaded in this process, and so is everything where `can_start` is False: validation then is the only limit.
    """

    def __init__(self, limits: ProcessLimits = ProcessLimits()) -> None:
        self.limits = limits
        self._child: subprocess.Popen | None = None
        self._connection: Connection | None = None
        self._lock = threading.Lock()  # a child reads one file at a time

    def __enter__(self) -> "GlbReader":  # noqa: PYI034
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def validate(
        self, source: Path | bytes, limits: Limits = LIMITS, *, stop: Callable[[], bool] | None = None
    ) -> bytes:
        """As `glb_validation.validate`. Raises `AssetError` and `ReaderUnavailable` too, and `ReadingStopped` once `stop` is
        True."""
        if not can_start():
            return glb_validation.validate(source, limits)
        return self._asked("validate", glb_validation.read(source, limits), limits, stop)

    def load(
        self,
        source: Path | bytes,
        *,
        normalise: bool = True,
        limits: Limits = LIMITS,
        validated: bool = False,
        stop: Callable[[], bool] | None = None,
    ) -> Asset:
        """As `assets.load`, or `assets.load_validated`. Raises `ReaderUnavailable` too, and `ReadingStopped` once `stop` is
        True."""
        is_ours = isinstance(source, Path) and source.resolve().is_relative_to(SHIPPED)
        if is_ours or not can_start():
            if validated:
                return assets.load_validated(glb_validation.read(source, limits), normalise=normalise)
            return assets.load(source, normalise=normalise, limits=limits)
        task = "read validated" if validated else "read"
        content = self._asked(task, glb_validation.read(source, limits), limits, stop)
        try:
            model = decode(content)
        except Exception as error:  # what a child answers that a file has overwritten
            raise AssetError(UNREADABLE) from error
        return assets.from_model(model, normalise=normalise)

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._connection.close()
            self._child.kill()
            self._child.wait()
            self._child = None

    def _asked(self, task: str, data: bytes, limits: Limits, stop: Callable[[], bool] | None) -> bytes:
        with self._lock:
            return self._answer(task, data, limits, stop)

    def _answer(self, task: str, data: bytes, limits: Limits, stop: Callable[[], bool] | None) -> bytes:
        if is_new := self._child is None:
            self._start()
        request = json.dumps({"task": task, "limits": asdict(limits)}).encode()
        overrun = threading.Timer(self.limits.seconds, self._child.kill)  # ends what waits for it, too
        overrun.start()
        try:
            if is_new:  # it says so once it takes what is sent
                self._wait(stop)
                self._connection.recv_bytes(len(READY))
            self._connection.send_bytes(request)
            self._connection.send_bytes(data)
            self._wait(stop)
            answer, content = json.loads(self._connection.recv_bytes(10_000)), self._connection.recv_bytes()
        except (EOFError, OSError, json.JSONDecodeError):  # it has ended, by its limits or by ours
            self.close()
            raise AssetError(TOO_LARGE) from None
        except BaseException:
            self.close()
            raise
        finally:
            overrun.cancel()
        if "error" in answer:
            raise ERRORS.get(answer["error"], AssetError)(str(answer["sentence"]))
        return content

    def _wait(self, stop: Callable[[], bool] | None) -> None:
        """Wait until the child has sent something, or has ended. Raises `ReadingStopped`."""
        while not self._connection.poll(POLL_SECONDS):
            if stop is not None and stop():
                raise ReadingStopped("The reading of a GLB was stopped.")

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        numbers = (theirs.fileno(), self.limits.memory, self.limits.cpu_seconds)
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "redream.scene.glb_worker", *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        except OSError as error:
            self._connection.close()
            raise ReaderUnavailable("No file can be read now: the computer starts no more processes.") from error
        finally:
            theirs.close()
