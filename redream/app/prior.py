"""The tab Prior: samples of the 2D model from back to front, before and after its adaptation to the assets' views."""

from collections.abc import Callable, Iterator

import gradio as gr
import torch

from redream import pipeline
from redream.app.components import hint, hints, png_uri, queue_status, render
from redream.app.form import preset_of
from redream.app.run_page import stage_name
from redream.app.wiring import PRIVATE, RETRIGGER, STREAMING, UNQUEUED, error_box, reports_errors
from redream.runs import outputs
from redream.runs.events import Progress
from redream.runs.queue import Queued, Worker
from redream.settings import PROMPT_LIMIT

SAMPLES = 3  # of each view
NO_SAMPLES = hint("Type a prompt: the model is asked for its back, its side and its front.")


def _view_name(view: str, other: str, weight: float) -> str:
    return {0.0: view, 1.0: other}.get(weight, f"between {view} and {other}")


VIEWS = tuple(_view_name(*step) for step in pipeline.VIEW_STEPS)  # from the back to the front


def samples_html(
    worker: Worker, prompt: str, prior_samples: Callable = pipeline.prior_samples
) -> Iterator[tuple[str, list[str]]]:
    """A status line while the model works and, at the end, the samples of each of `VIEWS`; both as HTML. Raises as
    `pipeline.prior_samples`."""
    options = {"settings": preset_of(worker)["redream"], "models": worker.models}
    prior_samples(prompt, SAMPLES, **options).close()  # a bad prompt is refused before it waits for its turn
    warnings = hints(worker.models.parse(prompt).warnings)
    for update in worker.run_exclusive(lambda stop: prior_samples(prompt, SAMPLES, **options, stop=stop)):
        match update:
            case Queued(position, seconds):
                yield hint(queue_status(position, seconds)) + warnings, []
            case Progress(stage, steps, total):
                yield render("prior_state.html", status=stage_name(stage), progress=steps / total) + warnings, []
            case pipeline.BeforeAfter(before, after):
                yield warnings, [_view_html(*samples) for samples in zip(VIEWS, before, after, strict=True)]


def _view_html(view: str, before: torch.Tensor, after: torch.Tensor) -> str:
    """The samples of a view, each (SAMPLES, 3, h, w) in [0, 1], side by side."""
    pictures = [
        ("Before adaptation", png_uri(outputs.grid(before, SAMPLES))),
        ("After adaptation", png_uri(outputs.grid(after, SAMPLES))),
    ]
    return render("prior_samples.html", view=view, pictures=pictures)


class PriorTab:
    """The widgets and their events; `prior_samples` is that of `redream.pipeline`."""

    def __init__(self, worker: Worker, prior_samples: Callable = pipeline.prior_samples) -> None:
        self.worker, self._prior_samples = worker, prior_samples
        self.samples = gr.State([])  # HTML of each view
        with gr.Row():
            prompt = gr.Textbox("a purple owl", label="What the 2D model sees", max_length=PROMPT_LIMIT, scale=3)
            button = gr.Button("Show the samples", variant="primary", scale=1)
        self.error_box, self.state = error_box(), gr.HTML(NO_SAMPLES)
        view = gr.Slider(0, len(VIEWS) - 1, len(VIEWS) - 1, step=1, label="View: 0 back, 2 side, 4 front")
        self.shown = gr.HTML()

        outputs = [self.state, self.error_box, self.samples, self.shown]
        sample = reports_errors(self.error_box)(self.sample)
        gr.on([button.click, prompt.submit], sample, [prompt, view], outputs, **STREAMING, **PRIVATE)
        view.change(_samples_of_view, [view, self.samples], self.shown, **RETRIGGER, **UNQUEUED)

    def sample(self, prompt: str, view: int) -> Iterator[dict]:
        """Updates with the status, and at the end with the samples."""
        for status, samples in samples_html(self.worker, prompt or "", self._prior_samples):
            update = {self.samples: samples, self.shown: samples[int(view)]} if samples else {}
            yield {self.state: status} | update


def _samples_of_view(view: int, samples: list[str]):
    return samples[int(view)] if samples else gr.skip()
