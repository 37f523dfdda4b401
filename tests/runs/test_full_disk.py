"""A disk that is full at any write of a run: nothing half written is taken for whole, and the run goes on to the same end."""

import builtins
import errno
import io
import os
import re
import shutil
from pathlib import Path

import pytest
from tiny_stack import TINY

from redream import pipeline
from redream.runs import events
from redream.runs.faults import MachineError
from redream.runs.locks import LOCK
from redream.runs.run import Request, Run, RunError

PROMPT = "a purple owl"
SMALL = TINY.with_(iterations=2, output={"turntable_frames": 2, "preview_every": 2, "checkpoint_every": 1})
TIMED = ("events.jsonl", "record.json", LOCK)  # differ between equal runs


class FullDisk:
    """Counts what is written below a folder (files that are opened, renamed, folders that are made) and from one of these
    on, until it is mended, refuses all of it, files after half of what is to be written to them."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, refused_from: float = float("inf")) -> None:
        self.folder, self.refused_from = str(folder), refused_from
        self.writes: list[str] = []  # what was written
        opened = io.open
        for module in (builtins, io):
            patch.setattr(module, "open", lambda file, mode="r", *a, **k: self.open(opened, file, mode, *a, **k))
        for name in ("replace", "rename", "mkdir"):
            real = getattr(os, name)
            patch.setattr(os, name, lambda path, *a, real=real, **k: self.change(real, path, *a, **k))

    def is_refused(self, how: str, path) -> bool:
        if not isinstance(path, (str, os.PathLike)) or not str(path).startswith(self.folder):
            return False
        place = str(path).removeprefix(self.folder)
        self.writes.append(f"{how} {re.sub(r'-[0-9a-f]{8}|[0-9]+', '', place)}")
        return len(self.writes) > self.refused_from

    def open(self, opened, path, mode, *arguments, **options):
        refused = set(mode) & set("wax+") and self.is_refused("open", path)
        file = opened(path, mode, *arguments, **options)
        return HalfWritten(file) if refused else file

    def change(self, real, path, *arguments, **options):
        if self.is_refused(real.__name__, path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, *arguments, **options)


class HalfWritten:
    """A file on a full disk."""

    def __init__(self, file) -> None:
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self._file.close()

    def fileno(self):
        raise io.UnsupportedOperation("fileno")  # else pictures are written past `write`

    def write(self, data):
        self._file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def content(folder: Path) -> dict[str, bytes]:
    """All files that a run offers, but those that hold times."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in files if path.name not in TIMED}
    return {name: path.read_bytes() for name, path in names.items() if not any(p[0] == "." for p in name.split("/"))}


def refuse_writes(models, tmp_path, settings, one_of_each_kind: bool) -> None:
    whole = tmp_path / "whole"
    with pytest.MonkeyPatch.context() as patch:
        disk = FullDisk(whole, patch)
        list(pipeline.generate(PROMPT, settings=settings, out=whole, models=models))
    expected = content(whole)
    kinds = [disk.writes.index(name) for name in dict.fromkeys(disk.writes)]
    assert len(kinds) > 15 and {"settings.json", "scores.json", "mesh-0.glb", "turntable-0.mp4"} <= set(expected)
    for refused_from in kinds if one_of_each_kind else range(len(disk.writes)):
        folder = tmp_path / "broken"
        with pytest.MonkeyPatch.context() as patch, pytest.raises((MachineError, RunError)) as error:
            FullDisk(folder, patch, refused_from)
            list(pipeline.generate(PROMPT, settings=settings, out=folder, models=models))
        said = str(error.value)
        assert f"The disk with the folder {folder} is full" in said, refused_from
        assert content(folder).items() <= expected.items(), refused_from  # whole or absent
        if (folder / "settings.json").is_file():
            last = Run.open(folder).checkpoints()[-1:]
            begin = f"iteration {int(last[0].name)}" if last else "its beginning"
            assert said.endswith(f"Free some space and resume the run, which goes on from {begin}.")
            was_finished = Run.open(folder).finished  # where only the last event is not written
            run_events = list(pipeline.resume(folder, models=models))
            assert was_finished or run_events[-1] == events.Finished(stopped=False)
        else:
            list(pipeline.generate(PROMPT, settings=settings, out=folder, models=models))
        assert content(folder) == expected, refused_from
        assert not [path for path in folder.rglob(".*") if path.name != LOCK], refused_from
        shutil.rmtree(folder)


def test_a_disk_that_is_full_at_the_first_write_of_each_kind_costs_nothing_that_was_saved(models, tmp_path):
    refuse_writes(models, tmp_path, SMALL.with_(method="sds"), one_of_each_kind=True)


def test_a_run_that_the_disk_has_no_room_for_is_not_extended(models, tmp_path):
    run = Run.create(Request(PROMPT, SMALL, models.stack.address, {}), tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError, match="is full; mend that and resume"):
        FullDisk(run.folder, patch, refused_from=0)
        pipeline.resume(run.folder, 3, models=models)
    assert Run.open(run.folder).request == run.request


@pytest.mark.long
@pytest.mark.parametrize("method, one_of_each_kind", [("sds", False), ("redream", True)])
def test_a_disk_that_is_full_at_any_write_costs_nothing_that_was_saved(models, tmp_path, method, one_of_each_kind):
    refuse_writes(models, tmp_path, SMALL.with_(method=method), one_of_each_kind)
