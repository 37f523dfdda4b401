"""What the stack for a GPU lacks, above the tabs: how much that is, how long it takes, and a button that fetches it.

A job does the work, in a thread of its own: pages show it and may come and go. It belongs to who runs the app on a
computer of theirs; on a Space there is the sentence alone, as a visitor must not start it.
"""

import threading
from collections.abc import Callable, Generator, Sequence

import gradio as gr

from redream.app.components import duration, render
from redream.app.wiring import UNQUEUED, error_sentence
from redream.stack import environment
from redream.stack.fetching import SetupProgress
from redream.stack.inventory import NeededFile, in_bytes, missing_files, total_size
from redream.stack.setup import setup
from redream.stack.stack import Stack

FETCH, STOP, STOPPING = "Fetch what is missing", "Stop fetching", "Stopping"
UPDATE_SECONDS = 1.0
USUAL_SPEED = 12_500_000  # bytes a second: 100 Mbit/s, while none was measured
ON_A_SPACE = (
    "Its owner can have them fetched when the Space is built, by preload_from_hub in the README's front matter."
)
WITHOUT_STACK, WITHOUT_LPIPS = "The miniature works meanwhile.", "A-LPIPS is left out meanwhile."
COMPLETE = "Everything is here. Start the app again to use it."


class SetupJob:
    """The setup of a stack: begun, stopped and begun again, from any page."""

    def __init__(self, stack: Stack, missing: Sequence[NeededFile], setup: Callable[..., Generator] = setup) -> None:
        self.stack, self.missing, self._setup = stack, tuple(missing), setup
        self.progress: SetupProgress | None = None  # of the present or last setup
        self.sentences: tuple[str, ...] = ()  # what could not be had, or why setup ended
        self._speed = float(USUAL_SPEED)  # bytes a second, measured last
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # one start after the other

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_stopping(self) -> bool:
        return self.is_running and self._stop.is_set()

    @property
    def seconds(self) -> float:
        """How long what is missing takes at the speed measured last, or at the usual one."""
        return total_size(self.missing) / self._speed

    @property
    def speed_name(self) -> str:
        """That speed in words."""
        return "100 Mbit/s" if self._speed == USUAL_SPEED else f"the {in_bytes(round(self._speed))}/s measured so far"

    def start(self) -> None:
        """Begin, or go on; does nothing while it runs."""
        with self._lock:
            if not self.is_running:
                self._stop.clear()
                self.progress, self.sentences = None, ()
                self._thread = threading.Thread(target=self._work, name="redream-setup", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Let it end within two seconds; what has come stays."""
        self._stop.set()

    def _work(self) -> None:
        try:
            for progress in self._steps():
                self.progress, self._speed = progress, progress.bytes_per_second or self._speed
        except Exception as error:  # noqa: BLE001 - whatever it was, the page says so
            self.sentences = (error_sentence(error),)
        self.missing = tuple(missing_files(Stack.load(self.stack.base)))  # of an index that was built, too

    def _steps(self) -> Generator[SetupProgress, None, None]:
        self.sentences = yield from self._setup(self.stack, self._stop.is_set)


class SetupPanel:
    """The widgets and their events; on a Space there are none."""

    def __init__(self, demo: gr.Blocks, job: SetupJob) -> None:
        self.job = job
        if environment.on_space():
            gr.HTML(panel_html(job, ON_A_SPACE))
            return
        with gr.Row(elem_classes="setup-row"):
            self.text = gr.HTML(panel_html(job))
            self.button = gr.Button(FETCH, size="sm", scale=0, min_width=180)
        self.timer = gr.Timer(UPDATE_SECONDS, active=False)
        outputs = [self.text, self.button, self.timer]
        self.button.click(self.press, self.button, outputs, **UNQUEUED)
        gr.on([self.timer.tick, demo.load], self.update, None, outputs, **UNQUEUED)

    def press(self, label: str) -> dict:
        """Start or stop, as the button's label said when it was pressed."""
        if label == FETCH:
            self.job.start()
        else:
            self.job.stop()
        return self.update()

    def update(self) -> dict:
        """How far it is. While it runs the page asks again."""
        running = self.job.is_running
        label = STOPPING if self.job.is_stopping else STOP if running else FETCH
        fetchable = any(file.on_hub for file in self.job.missing)
        button = gr.update(value=label, interactive=label != STOPPING, visible=running or fetchable)
        return {self.text: panel_html(self.job), self.button: button, self.timer: gr.Timer(active=running)}


def panel_html(job: SetupJob, advice: str = "") -> str:
    """What is missing, or how far its setup is; `advice` is a further sentence."""
    if job.is_running:
        progress = job.progress
        text = "Looking at what is missing" if progress is None else f"{progress.stage.capitalize()}: {progress.amount}"
        if progress is not None and progress.seconds_left is not None:
            text += f", {duration(progress.seconds_left)} left"
        done = progress.done / max(progress.total, 1) if progress else 0.0
        return render("setup.html", text=text, progress=done, files=[], sentences=[])
    if not job.missing:
        return render("setup.html", text=COMPLETE, progress=None, files=[], sentences=job.sentences)
    entries = ", ".join(dict.fromkeys(file.entry for file in job.missing))
    text = f"There is a GPU, but the stack {job.stack.name} lacks files: {entries}."
    if size := total_size(job.missing):
        text += f" They are about {in_bytes(size)}, which take {duration(job.seconds)} at {job.speed_name}."
    text += f" {WITHOUT_LPIPS if all(file.is_optional for file in job.missing) else WITHOUT_STACK} {advice}".rstrip()
    return render(
        "setup.html", text=text, progress=None, files=[str(file) for file in job.missing], sentences=job.sentences
    )
