"""Keep the app busy for an hour with mixed clients, and watch its memory, threads, files and folders.

Programs call generate, continue, stop, retrieve, scores and export, leave in the middle, and upload what is no GLB;
a browser opens pages, one at a time, and closes them. OUT gets samples.csv, samples.png and soak.log with the verdict:
slopes over the last two thirds, what is left after a minute of rest, and unhandled errors in the app's log.
"""

import argparse
import collections
import csv
import json
import logging
import random
import re
import shutil
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from pathlib import Path

import psutil
from app_process import App, running
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from served import QUIET, SLOW_FRAMES, open_tab, sync_api
from tiny_stack import tiny_glb

from redream.runs import locks
from redream.runs.run import ID

MEGABYTE = 1 << 20
UNCHANGED = 180  # seconds in which a run's state does not change: its place in the queue, or how far it is
WAIT = 600  # seconds for what is left at the end
REST = 60  # seconds without clients at the end
COLUMNS = {  # of samples.csv: (what it is, the most that is allowed an hour; None: only shown)
    "memory_mb": ("memory of the app and its children, MB", 60.0),
    "threads": ("threads", 6.0),
    "files": ("open files and sockets", 12.0),
    "children": ("processes below it", 1.0),
    "temporary_mb": ("temporary folder, MB", 2.0),
    "stray_mb": ("runs folder, what no run should hold, MB", 0.1),
    "mb_per_run": ("runs folder, MB for each run", None),
    "uploads_mb": ("Gradio's cache, MB", None),
    "page_seconds": ("seconds in which the page answers", None),
    "runs": ("runs", None),
}
SHORT = 1200  # seconds: a slope of less says nothing of a leak
OWN = re.compile(  # what a run's folder holds
    r"(settings|retrieved|orientation|prior|scores|record)\.json|events\.jsonl|\.(lock|queued|stop)|sprite\.jpg|asset-\d(-turned)?\.png"
    r"|(turntable-\d\.mp4|mesh-\d\.(glb|stl|usdz|zip)|upload-\d\.glb)|mesh-\d-\d+mm\.stl|preview/\d{6}\.png"
    r"|checkpoint/\d{6}/state\.(json|safetensors)"
)
REFUSALS = ("gradio.exceptions.", "redream.")  # Gradio prints these with a traceback, and tells the client
FAULTS = ("Traceback (most recent call last)", "Exception in ASGI", "was never retrieved", "Fatal Python error")
PROMPTS = ("a purple owl", "a red car", "a blue mug", "a green dog", "a pink cat")
EXPECTED = re.compile("runs are waiting already|is being made, or waits|Stopped. There are no results")
BAD_PROMPTS = ("", "ironman", "owl " * 3000, "\0", "a 🦉", "<script>alert(1)</script>")
TABS = ("Create", "Compare", "Library", "Prior", "About")
# What Gradio keeps of visitors who left is no leak, as it is bounded: here by so few that it is reached at once.
FEW_SESSIONS = """
import gradio as gr
launch = gr.Blocks.launch
gr.Blocks.launch = lambda self, **options: launch(self, **options | {"state_session_capacity": 20})
"""
TRACE = """
import gc, signal, tracemalloc, collections, pathlib
first = []
def dump(*_):
    if not tracemalloc.is_tracing():
        tracemalloc.start(8)  # imports are over: they would take minutes
    gc.collect()
    now = tracemalloc.take_snapshot()
    counts = collections.Counter(type(o).__name__ for o in gc.get_objects())
    if not first:
        first.extend((now, counts))
    lines = [str(s) for s in now.compare_to(first[0], "traceback")[:40]]
    lines += ["   " + "\\n   ".join(s.traceback.format()) for s in now.compare_to(first[0], "traceback")[:12]]
    lines += [f"{name}: {n - first[1][name]:+}" for name, n in counts.most_common(400) if abs(n - first[1][name]) > 50]
    pathlib.Path("{out}").write_text("\\n".join(lines))
signal.signal(signal.SIGUSR1, dump)
"""


class Soak:
    """The clients, and what became of their calls."""

    def __init__(self, app: App, options: argparse.Namespace) -> None:
        self.app, self.options = app, options
        self.end = time.monotonic() + 60 * options.minutes
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.strange: list[str] = []  # what a client got that is no answer
        self.runs: list[str] = []  # finished ones
        self.folder = options.out / "uploaded"
        self.folder.mkdir()

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.end or not self.app.alive

    def start(self) -> list[threading.Thread]:
        makers = {self.generate: 5, self.leave: 2, self.continue_: 2}  # they wait for runs most of the time
        others = {self.retrieve: 8, self.look: 4, self.upload_malformed: 6, self.ask_nonsense: 4}
        works = [(self.program, makers), (self.program, makers), (self.program, others), (self.browser,)]
        threads = [
            threading.Thread(target=work, args=(random.Random(seed), *more), daemon=True)
            for seed, (work, *more) in enumerate(works)
        ]
        for thread in threads:
            thread.start()
        return threads

    # Programs

    def program(self, chance: random.Random, actions: dict[Callable, int]) -> None:
        """Call after call, each as often as its weight says, with a new client every now and then."""
        client = None
        while not self.over:
            if client is None or chance.random() < 0.05:
                options = {"verbose": False, "analytics_enabled": False, "httpx_kwargs": {"timeout": 120}}
                client = Client(self.app.address, **options)
            action = chance.choices(list(actions), list(actions.values()))[0]
            name = action.__name__.strip("_")
            try:
                self.count(f"{name}: {action(client, chance)}")
            except AppError as error:
                self.count(f"{name}: refused")
                if action != self.ask_nonsense and not EXPECTED.search(str(error)):
                    self.strange.append(f"{name}: {error}")
            except FutureTimeoutError:
                self.strange.append(f"{name}: the same state for {UNCHANGED} s")
            except Exception as error:  # noqa: BLE001 - whatever a client got is counted
                self.count(f"{name}: {type(error).__name__}")
                if not self.over:
                    self.strange.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            time.sleep(chance.uniform(0, 3))

    def count(self, outcome: str) -> None:
        self.outcomes[outcome] += 1

    def request(self, chance: random.Random) -> dict:
        method = chance.choice(("redream", "redream", "vsd", "sds"))
        return {
            "prompt": chance.choice(PROMPTS),
            "method": method,
            "particles": chance.choice((1, 1, 1, 2)),
            "iterations": chance.randint(2, self.options.iterations),
            "seed": chance.randrange(1000),
        }

    def generate(self, client, chance: random.Random) -> str:
        """A run to its end; sometimes from an asset of one's own."""
        request = self.request(chance)
        if request["method"] == "redream" and chance.random() < 0.3:
            file = self.folder / f"own-{chance.randrange(10)}.glb"
            if not file.is_file():
                file.write_bytes(tiny_glb((chance.randrange(255), 20, 160)))
            request["asset"] = handle_file(str(file))
        state = self.result(client.submit(**request, api_name="/generate"))
        self.runs = [*self.runs[-20:], state["run"]]
        return state["state"].split(".")[0]

    def result(self, job) -> dict:
        """The last state of a run, however many are before it; raises `FutureTimeoutError` once that changes no more."""
        state, since = None, time.monotonic()
        while not job.done():
            outputs = job.outputs()  # one each second, changed or not
            if outputs and outputs[-1][0] != state:
                state, since = outputs[-1][0], time.monotonic()
            if time.monotonic() - since > UNCHANGED:
                raise FutureTimeoutError
            if self.over:
                raise RuntimeError("the soak is over")
            time.sleep(0.5)
        return job.result()[0]

    def leave(self, client, chance: random.Random) -> str:
        """A run that is left before its end, and stopped by half of those who leave."""
        job = client.submit(**self.request(chance) | {"iterations": 10 * self.options.iterations}, api_name="/generate")
        end = time.monotonic() + chance.uniform(1, 20)
        while time.monotonic() < end and not job.done():
            time.sleep(0.1)
        outputs = job.outputs()
        job.cancel()
        if not outputs:
            return "nothing yet"
        client.predict(outputs[0][0]["run"], api_name="/stop")
        return "stopped"

    def continue_(self, client, chance: random.Random) -> str:
        if not self.runs:
            return "no run yet"
        state = self.result(client.submit(chance.choice(self.runs), chance.randint(1, 3), api_name="/continue"))
        return state["state"].split(".")[0]

    def retrieve(self, client, chance: random.Random) -> str:
        found = client.predict(
            chance.choice(PROMPTS), chance.randint(1, 20), chance.random() < 0.5, api_name="/retrieve"
        )
        return "assets" if found else "none"

    def look(self, client, chance: random.Random) -> str:
        """The scores of a finished run, or its object in another format."""
        if not self.runs:
            return "no run yet"
        run = chance.choice(self.runs)
        if chance.random() < 0.5:
            return f"{len(client.predict(run, api_name='/scores'))} keys"
        kind = chance.choice(("obj", "usdz", "stl"))
        client.predict(run, kind, chance.choice((50, 100)), 0, api_name="/export")
        return kind

    def upload_malformed(self, client, chance: random.Random) -> str:
        """What is no GLB: random bytes, half a GLB, one that is too large, another type."""
        kinds = {
            "random.glb": lambda: chance.randbytes(50_000),
            "half.glb": lambda: tiny_glb((90, 20, 160))[:2000],
            "empty.glb": lambda: b"",
            "large.glb": lambda: b"glTF" + chance.randbytes(1 << 20) * 20,
            "too-large.glb": lambda: bytes(101 * MEGABYTE),
            "picture.png": lambda: b"\x89PNG\r\n\x1a\n" + chance.randbytes(5000),
        }
        name = chance.choices(list(kinds), (6, 6, 3, 2, 1, 4))[0]
        file = self.folder / f"{threading.get_ident()}-{name}"
        file.write_bytes(kinds[name]())
        try:
            client.predict("a red car", asset=handle_file(str(file)), api_name="/generate")
        except Exception as error:  # noqa: BLE001 - Gradio's client raises what the server said as errors of many kinds
            return f"{name} refused" if "disconnect" not in str(error).lower() else f"{name} disconnected"
        finally:
            file.unlink()
        self.strange.append(f"{name} was taken for a GLB")
        return f"{name} taken"

    def ask_nonsense(self, client, chance: random.Random) -> str:
        """Prompts, ids and numbers that are none; each is refused, which `program` counts."""
        calls = [
            lambda: client.predict(chance.choice(BAD_PROMPTS), api_name="/generate"),
            lambda: client.predict("../../etc", api_name="/scores"),
            lambda: client.predict("run-AAAAAAAAAAAAAAAA", 5, api_name="/continue"),
            lambda: client.predict("a red car", iterations=10**9, api_name="/generate"),
            lambda: client.predict("a red car", uids="no-such-uid", api_name="/generate"),
        ]
        chance.choice(calls)()
        return "TAKEN"

    # The browser

    def browser(self, chance: random.Random) -> None:
        """Open a page, look around, sometimes create an object, and leave."""
        executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if executable is None:
            self.strange.append("there is no Chromium")
            return
        with sync_api.sync_playwright() as playwright:
            while not self.over:
                opened = playwright.chromium.launch(executable_path=executable, args=list(QUIET))
                for _ in range(5):
                    if not self.over:
                        try:
                            self.count(f"page: {self._visit(opened, chance)}")
                        except sync_api.Error as error:
                            self.count("page: failed")
                            if not self.over:
                                self.strange.append(f"page: {str(error)[:300]}")
                with suppress(sync_api.Error):
                    opened.close()

    def _visit(self, browser, chance: random.Random) -> str:
        context = browser.new_context()
        context.add_init_script(SLOW_FRAMES)
        page = context.new_page()
        try:
            page.goto(self.app.address, wait_until="domcontentloaded", timeout=120_000)
            prompt = page.get_by_label("Describe an object")
            prompt.wait_for(timeout=120_000)
            done = "left at once"
            for tab in chance.sample(TABS, chance.randint(0, 3)):
                open_tab(page, tab)
                page.wait_for_timeout(chance.uniform(200, 2500))
                done = "tabs"
            if chance.random() < 0.3:
                open_tab(page, "Create")
                prompt.fill(chance.choice(PROMPTS))
                prompt.press("Enter")
                page.wait_for_timeout(chance.uniform(500, 20_000))
                done = "created"
            return done
        finally:
            context.close()


# ---------------------------------------------------------------- what is watched


def sample(app: App, seconds: float) -> dict[str, float]:
    """A row of samples.csv."""
    row = {"seconds": round(seconds, 1), "memory_mb": 0.0, "threads": 0, "files": 0, "children": -1}
    for process in app.processes():
        with suppress(psutil.Error):
            row["memory_mb"] += process.memory_info().rss / MEGABYTE
            row["threads"] += process.num_threads()
            row["files"] += process.num_fds()
            row["children"] += 1
    runs = [path for path in app.runs.iterdir() if ID.fullmatch(path.name)]
    own, stray = split(app.runs)
    row |= {"temporary_mb": size(app.temporary), "stray_mb": stray, "uploads_mb": size(app.uploads)}
    begun = time.monotonic()
    with suppress(OSError):
        urllib.request.urlopen(app.address, timeout=120).close()
    row |= {"runs": len(runs), "mb_per_run": own / max(len(runs), 1), "page_seconds": time.monotonic() - begun}
    return row


def files_below(folder: Path) -> list[tuple[Path, int]]:
    found = []
    for path in folder.rglob("*"):
        with suppress(OSError):  # removed in this moment
            if path.is_file():
                found.append((path, path.stat().st_size))
    return found


def size(folder: Path) -> float:
    """Megabytes of all files below a folder."""
    return sum(size for _, size in files_below(folder)) / MEGABYTE


def split(runs: Path) -> tuple[float, float]:
    """Megabytes in the runs folder that belong to runs, and those that do not: what is hidden for less than ten minutes is
    being written."""
    own = stray = 0
    for path, size in files_below(runs):
        run, _, name = path.relative_to(runs).as_posix().partition("/")
        hidden = any(part.startswith(".") for part in name.split("/"))
        with suppress(OSError):
            if (ID.fullmatch(run) and OWN.fullmatch(name)) or (hidden and time.time() - path.stat().st_mtime < 600):
                own += size
            else:
                stray += size
                logging.getLogger("soak").info("stray file: %s", path.relative_to(runs))
    return own / MEGABYTE, stray / MEGABYTE


def unhandled(log: str) -> list[str]:
    """The last lines of the log's tracebacks that are no refusals of Gradio's, and other signs of a fault."""
    found = [line.strip() for line in log.splitlines() if any(sign in line for sign in FAULTS[1:])]
    for block in log.split(FAULTS[0])[1:]:
        last = next((line for line in block.splitlines()[1:] if line and not line.startswith((" ", "\t"))), "")
        if not last.startswith(REFUSALS) and not last.startswith("During handling") and last:
            found.append(last[:160])
    return found


def slope(rows: list[dict], name: str) -> float:
    """Growth an hour over the last two thirds of the samples: the median of all pairs' slopes (Theil and Sen)."""
    from scipy.stats import theilslopes

    rows = rows[len(rows) // 3 :]
    return float(theilslopes([r[name] for r in rows], [r["seconds"] / 3600 for r in rows])[0])


def plot(rows: list[dict], path: Path) -> None:
    """A panel for each column."""
    from PIL import Image, ImageDraw

    width, height, columns = 460, 200, 3
    lines = -(-len(COLUMNS) // columns)
    image = Image.new("RGB", (columns * width, lines * height), "white")
    draw = ImageDraw.Draw(image)
    last = max(rows[-1]["seconds"], 1)
    for place, (name, (title, _)) in enumerate(COLUMNS.items()):
        left, top = place % columns * width + 50, place // columns * height + 26
        values = [row[name] for row in rows]
        low, high = min(values), max(values)
        span = (high - low) or 1
        draw.text((left, top - 18), title, fill="black")
        draw.rectangle((left, top, left + width - 70, top + height - 60), outline="lightgray")
        for value, y in ((high, top), (low, top + height - 60)):
            draw.text((left - 46, y - 6), f"{value:.4g}", fill="gray")
        points = [
            (left + row["seconds"] / last * (width - 70), top + (height - 60) * (1 - (row[name] - low) / span))
            for row in rows
        ]
        draw.line(points, fill="navy", width=2)
        draw.text((left + width - 130, top + height - 54), f"{last / 60:.0f} min", fill="gray")
    image.save(path)


# ---------------------------------------------------------------- all of it


def watch(
    app: App, soak: Soak, threads: list[threading.Thread], options: argparse.Namespace
) -> tuple[list[dict], dict]:
    """Sample until the time is over, and once more after a rest; the rows, and that last one."""
    rows, start = [], time.monotonic()
    with (options.out / "samples.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["seconds", *COLUMNS])
        writer.writeheader()
        while not soak.over:
            rows.append(sample(app, time.monotonic() - start))
            writer.writerow(rows[-1])
            file.flush()
            if options.trace and len(rows) in (6, len(rows) // 6 * 6):  # about every minute
                app.process.send_signal(signal.SIGUSR1)
            time.sleep(options.every)
        if not app.alive:
            return rows, rows[-1]
        logging.getLogger("soak").info("resting")
        end = time.monotonic() + WAIT
        while time.monotonic() < end and (
            any(t.is_alive() for t in threads) or any(map(locks.is_busy, app.runs.glob("run-*")))
        ):
            for run in app.runs.glob("run-*"):  # nothing is left to be made
                with suppress(OSError):
                    _post(app, "stop", run.name)
            time.sleep(5)
        time.sleep(REST)
        rest = sample(app, time.monotonic() - start)
        writer.writerow(rest)
    return rows, rest


def _post(app: App, call: str, run: str) -> None:
    body = json.dumps({"data": [run]}).encode()
    request = urllib.request.Request(
        f"{app.address}/gradio_api/call/{call}", body, {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=120).close()


def verdict(app: App, soak: Soak, rows: list[dict], rest: dict, start: dict, say: Callable[[str], None]) -> bool:
    """Say what was seen; whether all is well."""
    good = app.alive
    seconds, made = rows[-1]["seconds"], rows[-1]["runs"]
    say(f"{seconds / 60:.0f} minutes, {made} runs, {sum(soak.outcomes.values())} calls and pages:")
    for outcome, count in sorted(soak.outcomes.items()):
        say(f"    {count:5d}  {outcome}")
    short = seconds < SHORT
    for name, (title, most) in COLUMNS.items():
        per_hour = slope(rows, name)
        bad = most is not None and per_hour > most and (not short or name == "stray_mb")
        good &= not bad
        limit = "" if most is None else f" (at most {most:g})"
        say(
            f"{title}: {start[name]:.1f} at the start, {rows[len(rows) // 3][name]:.1f} after a third, {rows[-1][name]:.1f} at the "
            f"end, {rest[name]:.1f} after a rest; {per_hour:+.2f} an hour{limit}{': TOO MUCH' if bad else ''}"
        )
    if short:
        say(f"Shorter than {SHORT // 60} minutes: the slopes are no verdict.")
    faults = collections.Counter(unhandled(app.log.read_text(errors="replace")))
    for name, found in (
        ("Unhandled errors in the app's log", faults),
        ("Strange answers", collections.Counter(soak.strange)),
    ):
        say(f"{name}: {sum(found.values())}")
        for line, count in found.most_common(20):
            say(f"    {count:5d}  {line}")
        good &= not found
    say("The app ended." if not app.alive else "All is well." if good else "Not all is well.")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--minutes", type=float, default=60, help="default: %(default)s")
    parser.add_argument("--stack", choices=("mini", "tiny"), default="mini", help="default: %(default)s")
    parser.add_argument("--iterations", type=int, default=8, help="of a run, at most (default: %(default)s)")
    parser.add_argument("--every", type=float, default=10, help="seconds between samples (default: %(default)s)")
    parser.add_argument("--trace", action="store_true", help="trace allocations: OUT/trace.txt; slower")
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True)
    logging.basicConfig(filename=options.out / "soak.log", level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("soak").setLevel(logging.INFO)

    def say(line: str) -> None:
        print(line, flush=True)
        logging.getLogger("soak").info(line)

    before = FEW_SESSIONS + TRACE.replace("{out}", str(options.out / "trace.txt")) * options.trace
    with running(options.stack, options.out / "app", before=before) as app:
        start = sample(app, 0)
        soak = Soak(app, options)
        threads = soak.start()
        try:
            rows, rest = watch(app, soak, threads, options)
        except KeyboardInterrupt:
            soak.end = 0.0
            say("Interrupted.")
            return 1
        plot(rows, options.out / "samples.png")
        good = verdict(app, soak, rows, rest, start, say)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
