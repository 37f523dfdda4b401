"""How long runs are kept, and the removal of old ones."""

import math
import os
import shutil
import time
from contextlib import suppress

from redream.runs import events, locks
from redream.runs.run import ID, Run, RunError, runs_folder
from redream.stack import environment

BROKEN_OFF_FACTOR = 4  # runs that broke off are kept so many times as long as those that ended


def days_kept() -> float | None:
    """Days that runs are kept after they ended: `REDREAM_KEEP_DAYS`, else 2 on a Space and for ever (None) elsewhere.

    0 and an empty value mean for ever. Raises `RunError`.
    """
    value = os.environ.get("REDREAM_KEEP_DAYS") or ("2" if environment.on_space() else "0")
    try:
        days = float(value)
    except ValueError:
        days = math.nan
    if not 0 <= days < math.inf:
        raise RunError(f"REDREAM_KEEP_DAYS is {value}; give a number of days, or 0 to keep runs for ever.")
    return days or None


def prune(days: float) -> None:
    """Remove the runs under `runs_folder()` that ended more than `days` days ago.

    Runs that broke off can be resumed, so they are kept longer (`BROKEN_OFF_FACTOR`). Folders whose name is no run's id are
    left alone.
    """
    for folder in runs_folder().glob("run-*"):
        if not ID.fullmatch(folder.name) or folder.is_symlink():
            continue
        with suppress(RunError, OSError):  # no run, one that is worked on, or one that is removed meanwhile
            run = Run.open(folder)
            if not _is_old(run, days):
                continue
            with run.working():
                if _is_old(run, days):  # still: it may have been resumed meanwhile
                    shutil.rmtree(run.folder)


def _is_old(run: Run, days: float) -> bool:
    """Whether its time is over since a file of it was last written."""
    ended = isinstance((list(run.events()) or [None])[-1], events.Finished)
    written = max(path.stat().st_mtime for path in run.folder.iterdir() if path.name not in locks.CONTROL_FILES)
    return time.time() - written > days * (1 if ended else BROKEN_OFF_FACTOR) * 86_400
