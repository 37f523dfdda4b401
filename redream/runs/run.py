"""A run's folder: the request, its events, checkpoints and results. Files are complete or absent.

settings.json    the `Request`, written first: with it a run can be resumed
retrieved.json   {prompt, assets: [{uid, caption, author, license, similarity, source, and of the library's: sha256}]}
orientation.json {assets: [{yaw_deg, margin, clear}], models}: how these were turned, and the models that said so
prior.json       {source, revision, files}: which prior it is optimised by
events.jsonl     one event per line
checkpoint/<iteration>/{state.safetensors, state.json}, the last two
turntable-0.mp4 … mesh-0.glb … scores.json, record.json, and pictures: asset-0.png …, preview/…
.lock …          who works on the run (`redream.runs.locks`)

Folders of format 1 are read as well (`redream.runs.upgrade`).
"""

import json
import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

from redream.errors import RedreamError
from redream.files import replacing, why_not_written
from redream.hub import is_inside
from redream.runs import events, locks
from redream.runs.logs import log_event
from redream.runs.upgrade import FORMAT, upgrade
from redream.settings import PRESETS, Settings

CHECKPOINTS_KEPT = 2
ID = re.compile(r"run-[A-Za-z0-9_-]{16}")  # as `new_id` makes them
TEMPORARY = re.compile(r"\..+-[0-9a-f]{8}(\.\w+)?")  # as `replacing` and `Run.checkpoint` name them


class RunError(RedreamError):
    """A run's folder that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class UploadedAsset:
    """An asset that was uploaded to be used instead of retrieved ones."""

    file: str  # in the run's folder
    name: str  # of the file that was uploaded
    caption: str


@dataclass(frozen=True)
class Request:
    """What a run is asked to do: enough to begin it, and to resume it."""

    prompt: str
    settings: Settings
    stack: str  # a name, or a folder
    overrides: dict[str, str]  # REDREAM_PRIOR and REDREAM_INDEX, as `Stack.load` reads them
    assets: tuple[UploadedAsset, ...] = ()
    extra: int = 0  # iterations per particle beyond the settings'
    uids: tuple[str, ...] = ()  # of the library's assets that are used instead of the best ones
    commercial_use: bool = False  # only assets of the library whose licence allows it

    @property
    def total(self) -> int:
        """Iterations planned, over all particles."""
        return (self.settings.iterations + self.extra) * self.settings.particles

    def is_same(
        self,
        prompt: str,
        settings: Settings,
        uids: Sequence[str] = (),
        assets: bool = False,
        commercial_use: bool = False,
    ) -> bool:
        """Whether a new run of this prompt, these settings and assets would be the same run, without further iterations.

        `assets`: whether assets are uploaded for it; which ones is not compared.
        """
        request = (self.prompt, self.settings, self.uids, bool(self.assets), self.commercial_use, self.extra)
        return request == (prompt, settings, tuple(uids), assets, commercial_use, 0)

    @property
    def command(self) -> str:
        """The command line that makes the same request: the preset nearest to its settings, and what differs from that."""
        s = self.settings
        options = {key: getattr(s, key) for key in ("method", "initialise", "adapt", "particles", "iterations", "seed")}
        bases = {name: by_method[s.method].with_(**options) for name, by_method in PRESETS.items()}
        preset, changes = min(((n, s.changes_from(base)) for n, base in bases.items()), key=lambda pair: len(pair[1]))
        # Texts may begin with a dash: they follow an equals sign, and the prompt comes after "--".
        arguments = ["python", "-m", "redream", "generate", f"--stack={self.stack}", "--preset", preset]
        arguments += ["--method", s.method, *(["--no-init"] * (not s.initialise)), *(["--no-adapt"] * (not s.adapt))]
        arguments += ["--particles", str(s.particles), "--iterations", str(s.iterations), "--seed", str(s.seed)]
        arguments += [f"--set={path}={json.dumps(value)}" for path, value in changes.items()]
        for asset in self.assets:
            arguments += [f"--asset={asset.name}", f"--asset-caption={asset.caption}"]
        arguments += [*(f"--uid={uid}" for uid in self.uids), *(["--commercial-use"] * self.commercial_use)]
        further = f" && python -m redream resume FOLDER --iterations {self.extra}" if self.extra else ""
        arguments += [*(["--out", "FOLDER"] if further else []), "--", self.prompt]
        variables = [f"{key}={shlex.quote(value)}" for key, value in self.overrides.items()]
        return " ".join([*variables, shlex.join(arguments)]) + further

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT} | asdict(self), indent=2, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> "Request":
        """Read what `to_json` wrote; `ValueError`, `KeyError` or `TypeError` for anything else."""
        values = upgrade(json.loads(text))
        settings = Settings.from_json(json.dumps(values.pop("settings")))
        assets = tuple(UploadedAsset(**asset) for asset in values.pop("assets"))
        uids = tuple(str(uid) for uid in values.pop("uids", ()))
        if values.pop("format") != FORMAT:
            raise ValueError("a later version of Redream wrote this file")
        if not all(is_inside(asset.file) for asset in assets):
            raise ValueError("a file of an uploaded asset is outside the run's folder")
        return Request(settings=settings, assets=assets, uids=uids, **values)


class Run:
    """One run's folder, made by `create` or opened by `open`."""

    def __init__(self, folder: Path, request: Request) -> None:
        self.folder, self.request = folder, request
        self._working = False

    @staticmethod
    def create(request: Request, out: str | Path | None = None, files: Mapping[str, bytes] = {}) -> "Run":
        """Make a run with its settings.json and `files` {name: bytes} in `out` (new or empty), or in a fresh folder whose
        name is hard to guess. Raises `RunError`."""
        folder = runs_folder() / new_id() if out is None else Path(out).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(path.name not in locks.CONTROL_FILES for path in folder.iterdir()):
                raise RunError(f"The folder {folder.name} is not empty; name a new one.")
            run = Run(folder.resolve(), request)
            for name, data in files.items():
                with replacing(run.folder / name) as file:
                    file.write_bytes(data)
            run._write("settings.json", request.to_json())
        except OSError as error:
            do = "name another one" if out is not None else "set REDREAM_RUNS to a folder of yours"
            raise RunError(f"{why_not_written(folder, error)}; {do}.") from error
        return run

    @staticmethod
    def open(folder_or_id: str | Path) -> "Run":
        """Open a run by its folder or by its id. Raises `RunError`."""
        name = Path(folder_or_id).name
        folder = next((f for f in (Path(folder_or_id), runs_folder() / name) if (f / "settings.json").is_file()), None)
        if folder is None:
            raise RunError(f"There is no run {name} here; check its folder or id. Old ones may have been removed.")
        try:
            return Run(folder.resolve(), Request.from_json((folder / "settings.json").read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"The settings.json of {name} is of another version or damaged; start a new run.") from error

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work on the run: within it no other program does, and files that killed programs left incomplete are removed.

        Raises `RunError` if another program, or another `Run` of this one, works on it.
        """
        with locks.lock(self.folder) as acquired:
            if not acquired:
                raise RunError("This run is being worked on by another program; wait for it or stop it.")
            for path in (*self.folder.glob(".*"), *self.folder.glob("checkpoint/.*"), *self.folder.glob("preview/.*")):
                if TEMPORARY.fullmatch(path.name):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            self._working = True
            try:
                yield
            finally:
                self._working = False
        locks.withdraw_stop(self.folder)

    def extend(self, iterations: int) -> None:
        """Add `iterations` per particle to those planned, at the end values of the schedules, and drop an earlier request
        to stop. Raises as `working`, and `RunError` if the folder cannot be written to."""
        try:
            with self.working():
                if iterations:
                    self.request = replace(self.request, extra=self.request.extra + iterations)
                    self._write("settings.json", self.request.to_json())
        except OSError as error:
            raise RunError(f"{why_not_written(self.folder, error)}; mend that and resume the run.") from error

    @property
    def finished(self) -> bool:
        """Whether all planned iterations are done and the results are made. Raises `RunError`, `KeyError` or `TypeError`
        for a malformed record.json."""
        return (self.folder / "record.json").is_file() and self.read_json("record.json")["done"] >= self.request.total

    @property
    def lacks_results(self) -> bool:
        """Whether it has no scores or not all turntables: what they are made with was missing, and may be here by now."""
        turntables = (self.folder / f"turntable-{number}.mp4" for number in range(self.request.settings.particles))
        return not all(file.is_file() for file in (self.folder / "scores.json", *turntables))

    # Files

    def scores(self) -> dict:
        """The scores of its objects. Raises `RunError` if there are none."""
        if not (self.folder / "scores.json").is_file():
            raise RunError(
                "This run has no scores yet. They are made when it ends; if it has ended, its warnings say why there are none."
            )
        return self.read_json("scores.json")

    def mesh(self, number: int = 0) -> Path:
        """The GLB of an object, counted from 0. Raises `RunError` if there is none."""
        path = self.folder / f"mesh-{number}.glb"
        if not path.is_file():
            raise RunError(
                "This run has no such model. Its models are made when it ends; continue it if it was stopped."
            )
        return path

    def write_json(self, name: str, values: dict) -> None:
        """Write a JSON file into the folder; numbers that are not finite become null."""
        self._write(name, json.dumps(events.finite(values), indent=2, ensure_ascii=False, allow_nan=False))

    def read_json(self, name: str) -> dict:
        """Read a JSON file of the folder in the present format. Raises `RunError` if it is missing or malformed."""
        try:
            return upgrade(json.loads((self.folder / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"The {name} of this run is missing or damaged; start a new run.") from error

    def _write(self, name: str, text: str) -> None:
        with replacing(self.folder / name) as file:
            file.write_text(text + "\n", encoding="utf-8")

    # Events

    def log(self, event: events.Event) -> events.Event:
        """Append an event to events.jsonl and return it. While another program works on the run, nothing is appended."""
        with nullcontext(True) if self._working else locks.lock(self.folder) as allowed:
            if allowed:
                with (self.folder / "events.jsonl").open("a+b") as file:
                    line = events.to_line(event, time.time()).encode() + b"\n"
                    file.write(line if self._ends_complete(file) else b"\n" + line)
                log_event(self.folder.name, event)
        return event

    @staticmethod
    def _ends_complete(file: BinaryIO) -> bool:
        """Whether the last line is complete; one that was cut off when a run was killed must not be continued."""
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"

    def events(self) -> Iterator[events.Event]:
        """The events so far; malformed lines are left out."""
        path = self.folder / "events.jsonl"
        for line in path.read_bytes().split(b"\n") if path.is_file() else ():
            try:
                yield events.from_line(line.decode())
            except (ValueError, KeyError, TypeError):
                continue

    # Checkpoints

    @contextmanager
    def checkpoint(self, iteration: int) -> Iterator[Path]:
        """A folder to save the state after `iteration` iterations in; it becomes a checkpoint if the block raises nothing."""
        parent = self.folder / "checkpoint"
        temporary, final = parent / f".{iteration}-{secrets.token_hex(4)}", parent / f"{iteration:06d}"
        temporary.mkdir(parents=True)
        try:
            yield temporary
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in self.checkpoints()[
            :-CHECKPOINTS_KEPT
        ]:  # hidden first: killed on the way, half of it is no checkpoint
            shutil.rmtree(old.rename(parent / f".{old.name}-{secrets.token_hex(4)}"))

    def checkpoints(self) -> list[Path]:
        """The folders of complete checkpoints, the latest last."""
        folders = (self.folder / "checkpoint").glob("[0-9]*")
        return sorted((path for path in folders if path.name.isdigit()), key=lambda path: int(path.name))


def find_run(run: str) -> Run:
    """Open a run by its id alone, never by a path: ids come from untrusted clients. Raises `RunError`."""
    if not ID.fullmatch(run):
        raise RunError("There is no such run; check its id.")
    return Run.open(runs_folder() / run)


def new_id() -> str:
    """A fresh run's id, which is hard to guess."""
    return f"run-{secrets.token_urlsafe(12)}"


def runs_folder() -> Path:
    """The folder of all runs: `$REDREAM_RUNS`, or `runs` in the working folder."""
    return Path(os.environ.get("REDREAM_RUNS") or "runs").expanduser()
