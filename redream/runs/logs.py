"""A program's log: one line for each event of a run, with the run's id and without what people wrote, unless asked for."""

import dataclasses
import json
import logging

from redream.runs.events import Event, Fetching, Preview, Progress, Started, Warned

LEVELS = ("debug", "info", "warning", "error")
FREQUENT = (Progress, Preview, Fetching)  # logged at "debug"
WRITTEN = {Started: "prompt", Warned: "sentence"}  # fields that quote a prompt, and are logged with `prompts` alone

_log = logging.getLogger(__name__)


class _Formatter(logging.Formatter):
    """One line: time, level, message and, with `prompts`, what people wrote."""

    def __init__(self, prompts: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self.prompts = prompts

    def format(self, record: logging.LogRecord) -> str:
        written = getattr(record, "written", None) if self.prompts else None
        return super().format(record) + (f" {json.dumps(written, ensure_ascii=False)}" if written else "")


def configure(level: str, prompts: bool = False) -> None:
    """Write this package's log from a level of `LEVELS` on to stderr; with `prompts`, also the texts of prompts."""
    package, handler = logging.getLogger("redream"), logging.StreamHandler()
    handler.setFormatter(_Formatter(prompts))
    package.handlers, package.propagate = [handler], False  # a library may give the root logger a handler too
    package.setLevel(level.upper())


def log_event(run: str, event: Event) -> None:
    """Write an event of the run with this id to the log."""
    level = logging.DEBUG if isinstance(event, FREQUENT) else logging.INFO
    if not _log.isEnabledFor(level):
        return
    hidden = WRITTEN.get(type(event))
    values = {f.name: getattr(event, f.name) for f in dataclasses.fields(event) if f.name not in ("run", hidden)}
    fields = [f"{name}={json.dumps(value)}" for name, value in values.items() if isinstance(value, (str, int, float))]
    line = " ".join([run, type(event).__name__.lower(), *fields])
    _log.log(level, "%s", line, extra={"written": getattr(event, hidden) if hidden else None})
