"""A run's folder: what was asked, its history, checkpoints and results. Files are complete or absent.

settings.json    what was asked (`Request`), written first: with it a run can be resumed
retrieved.json   {prompt, assets: [{uid, caption, author, license, similarity, source}]}
events.jsonl     one event per line
checkpoint/<iteration>/{state.safetensors, state.json}, the last two
turntable-0.mp4 … mesh-0.glb … scores.json, record.json, and pictures: asset-0.png …, preview/…
"""

import json
import math
import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from redream.errors import RedreamError
from redream.files import replacing
from redream.hub import is_inside
from redream.runs import events
from redream.runs.locks import lock
from redream.runs.upgrade import FORMAT, upgrade
from redream.settings import PRESETS, Settings

CHECKPOINTS_KEPT = 2
LONGER = 4  # times as long as others, runs that broke off are kept
ID = re.compile(r"run-[A-Za-z0-9_-]{16}")  # as `new_id` makes them
TEMPORARY = re.compile(r"\..+-[0-9a-f]{8}(\.\w+)?")  # as `replacing` and `Run.checkpoint` name them


class RunError(RedreamError):
    """A run's folder that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class UploadedAsset:
    """An asset somebody brought along instead of retrieved ones; its file lies in the run's folder."""

    file: str
    name: str  # of the file that was given
    caption: str


@dataclass(frozen=True)
class Request:
    """What was asked for: enough to begin a run, and to resume it."""

    prompt: str
    settings: Settings
    stack: str  # a name, or a folder
    overrides: dict[str, str]  # REDREAM_PRIOR and REDREAM_INDEX, as `Stack.load` reads them
    assets: tuple[UploadedAsset, ...] = ()
    extra: int = 0  # iterations per particle beyond the settings'
    uids: tuple[str, ...] = ()  # of assets that somebody chose from the library

    @property
    def total(self) -> int:
        """Iterations planned, over all particles."""
        return (self.settings.iterations + self.extra) * self.settings.particles

    def is_same(self, prompt: str, settings: Settings, uids: Sequence[str] = (), assets: bool = False) -> bool:
        """Whether a new run of this prompt, these settings and assets would be the same run, without further iterations.

        `assets`: whether assets are uploaded for it; which ones is not compared.
        """
        asked = (self.prompt, self.settings, self.uids, bool(self.assets), self.extra)
        return asked == (prompt, settings, tuple(uids), assets, 0)

    @property
    def command(self) -> str:
        """The command line that asks for the same, if it can: settings that are no preset's need settings.json."""
        own = self.settings
        said = {key: getattr(own, key) for key in ("method", "initialise", "adapt", "particles", "iterations", "seed")}
        preset = next((name for name, p in PRESETS.items() if p[own.method].with_(**said) == own), None)
        if preset is None:
            files = " and ".join(["settings.json", *(asset.file for asset in self.assets)])
            return f"python -m redream resume FOLDER  # a folder with nothing but this run's {files}"
        # Texts may begin with a dash: they follow an equals sign, and the prompt comes after "--".
        words = ["python", "-m", "redream", "generate", f"--stack={self.stack}", "--preset", preset]
        words += ["--method", own.method, *(["--no-init"] * (not own.initialise)), *(["--no-adapt"] * (not own.adapt))]
        words += ["--particles", str(own.particles), "--iterations", str(own.iterations), "--seed", str(own.seed)]
        for asset in self.assets:
            words += [f"--asset={asset.name}", f"--asset-caption={asset.caption}"]
        words += [f"--uid={uid}" for uid in self.uids]
        further = f" && python -m redream resume FOLDER --iterations {self.extra}" if self.extra else ""
        words += [*(["--out", "FOLDER"] if further else []), "--", self.prompt]
        variables = [f"{key}={shlex.quote(value)}" for key, value in self.overrides.items()]
        return " ".join([*variables, shlex.join(words)]) + further

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT} | asdict(self), indent=2, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> "Request":
        """Read what `to_json` wrote; `ValueError`, `KeyError` or `TypeError` for anything else."""
        values = upgrade(json.loads(text))
        settings = Settings.from_json(json.dumps(values.pop("settings")))
        assets = tuple(UploadedAsset(**asset) for asset in values.pop("assets"))
        uids = tuple(str(uid) for uid in values.pop("uids", ()))
        del values["format"]
        if not all(is_inside(asset.file) for asset in assets):
            raise ValueError("A run's assets lie in its own folder.")
        return Request(settings=settings, assets=assets, uids=uids, **values)


class Run:
    """One run's folder; `create` and `open` are the ways in."""

    def __init__(self, folder: Path, request: Request) -> None:
        self.folder, self.request = folder, request
        self._working = False

    @staticmethod
    def create(request: Request, out: str | Path | None = None, files: Mapping[str, bytes] = {}) -> "Run":
        """A new run with its settings.json and `files`, in `out` (new or empty) or in a fresh folder that nobody can
        guess. Raises `RunError`."""
        folder = runs_folder() / new_id() if out is None else Path(out)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise RunError(f"The folder {folder.name} is not empty; name a new one.")
            run = Run(folder.resolve(), request)
            for name, data in files.items():
                with replacing(run.folder / name) as file:
                    file.write_bytes(data)
            run._write("settings.json", request.to_json())
        except FileExistsError as error:
            raise RunError(f"{folder.name} is a file; name a new folder.") from error
        except OSError as error:
            raise RunError(f"The folder {folder.name} cannot be written to; name another one.") from error
        return run

    @staticmethod
    def open(folder_or_id: str | Path) -> "Run":
        """An existing run, by its folder or by its id. Raises `RunError`."""
        name = Path(folder_or_id).name
        folder = next((f for f in (Path(folder_or_id), runs_folder() / name) if (f / "settings.json").is_file()), None)
        if folder is None:
            raise RunError(f"There is no run {name}: a run's folder has a settings.json.")
        try:
            return Run(folder.resolve(), Request.from_json((folder / "settings.json").read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"The settings.json of {name} is of another version or damaged; start a new run.") from error

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within it nobody else works on this run, and what killed programs left half written is gone.

        Raises `RunError` if somebody does. The lock is on the history: it leaves no file and ends with its program.
        """
        with (self.folder / "events.jsonl").open("ab") as file:
            if not lock(file):
                raise RunError("This run is being worked on by another program; wait for it or stop it.")
            for path in (*self.folder.glob(".*"), *self.folder.glob("checkpoint/.*"), *self.folder.glob("preview/.*")):
                if TEMPORARY.fullmatch(path.name):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            self._working = True
            try:
                yield
            finally:
                self._working = False

    def extend(self, iterations: int) -> None:
        """Plan `iterations` more per particle, at the end values of the schedules. Raises as `working`."""
        with self.working():
            self.request = replace(self.request, extra=self.request.extra + iterations)
            self._write("settings.json", self.request.to_json())

    @property
    def finished(self) -> bool:
        """Whether all that is planned is done and everything is made of it."""
        return (self.folder / "record.json").is_file() and self.read_json("record.json")["done"] >= self.request.total

    # Files

    def write_json(self, name: str, values: dict) -> None:
        self._write(name, json.dumps(events.finite(values), indent=2, ensure_ascii=False, allow_nan=False))

    def read_json(self, name: str) -> dict:
        """Raises `RunError` if it is not there or damaged."""
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"The {name} of this run is missing or damaged; start a new run.") from error

    def _write(self, name: str, text: str) -> None:
        with replacing(self.folder / name) as file:
            file.write_text(text + "\n", encoding="utf-8")

    # History

    def log(self, event: events.Event) -> events.Event:
        """Append an event to the history; the same event. While another program works on the run, nothing is added."""
        with (self.folder / "events.jsonl").open("a+b") as file:
            if self._working or lock(file):
                line = events.to_line(event, time.time()).encode() + b"\n"
                file.write(line if self._ends_well(file) else b"\n" + line)
        return event

    @staticmethod
    def _ends_well(file) -> bool:
        """Whether the last line is whole: one that was cut off when a run was killed is not continued."""
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"

    def events(self) -> Iterator[events.Event]:
        """The history so far; lines that were cut off are left out."""
        path = self.folder / "events.jsonl"
        for line in path.read_bytes().split(b"\n") if path.is_file() else ():
            try:
                yield events.from_line(line.decode())
            except (ValueError, KeyError, TypeError):
                continue

    # Checkpoints

    @contextmanager
    def checkpoint(self, iteration: int) -> Iterator[Path]:
        """A folder to save the state after `iteration` iterations in; it counts once the block ends well."""
        parent = self.folder / "checkpoint"
        temporary, final = parent / f".{iteration}-{secrets.token_hex(4)}", parent / f"{iteration:06d}"
        temporary.mkdir(parents=True)
        try:
            yield temporary
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in self.checkpoints()[:-CHECKPOINTS_KEPT]:
            shutil.rmtree(old)

    def checkpoints(self) -> list[Path]:
        """Folders of complete checkpoints, the latest last."""
        found = (self.folder / "checkpoint").glob("[0-9]*")
        return sorted((path for path in found if path.name.isdigit()), key=lambda path: int(path.name))


def days_kept() -> float | None:
    """How long runs are kept after they ended: `REDREAM_KEEP_DAYS`, else 2 days on a Space and for ever (None) elsewhere.

    0 and nothing mean for ever. Raises `RunError`.
    """
    said = os.environ.get("REDREAM_KEEP_DAYS") or ("2" if "SPACE_ID" in os.environ else "0")
    try:
        days = float(said)
    except ValueError:
        days = math.nan
    if not 0 <= days < math.inf:
        raise RunError(f"REDREAM_KEEP_DAYS is {said}; give a number of days, or 0 to keep runs for ever.")
    return days or None


def prune(days: float) -> None:
    """Remove the runs under the root that are finished or were stopped, more than `days` days ago.

    Runs that broke off can be resumed, so they are kept longer (`LONGER`). What has no run's id for a name is left alone.
    """
    for folder in runs_folder().glob("run-*"):
        if not ID.fullmatch(folder.name) or folder.is_symlink():
            continue
        with suppress(RunError, OSError):  # no run, one that is worked on, or one that somebody else removes
            run = Run.open(folder)
            if not _is_old(run, days):
                continue
            with run.working():
                if _is_old(run, days):  # still: somebody may have come back to it meanwhile
                    shutil.rmtree(run.folder)


def _is_old(run: Run, days: float) -> bool:
    """Whether the limit is over since anything of it was written."""
    over = isinstance((list(run.events()) or [None])[-1], events.Finished)
    written = max(path.stat().st_mtime for path in run.folder.iterdir())
    return time.time() - written > days * (1 if over else LONGER) * 86_400


def new_id() -> str:
    """A fresh run's id, which nobody can guess."""
    return f"run-{secrets.token_urlsafe(12)}"


def runs_folder() -> Path:
    """Where runs are kept: `$REDREAM_RUNS`, or `runs` in the working folder."""
    return Path(os.environ.get("REDREAM_RUNS") or "runs")
