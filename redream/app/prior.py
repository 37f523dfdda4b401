"""What the 2D prior sees of a prompt, turned from back to front, before and after it learned the views of the assets."""

from collections.abc import Iterator

import gradio as gr
import torch

from redream import pipeline
from redream.app.components import bar, picture, quiet, waiting
from redream.app.form import preset_of
from redream.app.wiring import PRIVATE, RETRIGGER, STREAMING, UNQUEUED, reports_errors
from redream.runs import outputs
from redream.runs.events import Progress
from redream.runs.queue import Waiting, Worker
from redream.settings import PROMPT_LIMIT

NAMES = ("back", "between back and side", "side", "between side and front", "front")
COUNT = 3  # pictures of each
NOTHING = quiet("Type a prompt: the model is asked for its back, its side and its front.")


def prior_samples(worker: Worker, prompt: str) -> Iterator[tuple[str, list[str]]]:
    """A line of state and, at last, what is seen from each of `NAMES`, as HTML. Raises as `pipeline.views`."""
    made = pipeline.views(prompt, COUNT, settings=preset_of(worker)["redream"], models=worker.models)  # refused at once
    made.close()
    for news in worker.do(
        lambda stop: pipeline.views(
            prompt, COUNT, settings=preset_of(worker)["redream"], models=worker.models, stop=stop
        )
    ):
        match news:
            case Waiting(ahead, seconds):
                yield quiet(waiting(ahead, seconds)), []
            case Progress(stage, done, total):
                yield f"<p class='now'>{stage.capitalize()}</p>{bar(done / total)}", []
            case pipeline.BeforeAfter(before, after):
                yield "", [_both(name, *pair) for name, *pair in zip(NAMES, before, after, strict=True)]


def _both(name: str, before: torch.Tensor, after: torch.Tensor) -> str:
    rows = "".join(
        f"<figure>{picture(outputs.grid(images, COUNT), f'{words}, asked for the {name}')}<figcaption>{words}</figcaption></figure>"
        for words, images in (("Before adaptation", before), ("After adaptation", after))
    )
    return f"<p class='now'>Asked for: {name}</p><div class='sights'>{rows}</div>"


def prior_tab(worker: Worker) -> None:
    """The widgets of the tab."""
    seen = gr.State([])
    with gr.Row():
        prompt = gr.Textbox("a purple owl", label="What the 2D model sees", max_length=PROMPT_LIMIT, scale=3)
        button = gr.Button("Show it", variant="primary", scale=1)
    error_box, state = gr.HTML(elem_classes="trouble"), gr.HTML(NOTHING)
    front = len(NAMES) - 1
    turn = gr.Slider(0, front, front, step=1, label="Side asked for: 0 back, 2 side, 4 front")
    shown = gr.HTML()

    @reports_errors(error_box)
    def look(prompt, turn):
        for line, found in prior_samples(worker, prompt or ""):
            yield {state: line} | ({seen: found, shown: found[int(turn)]} if found else {})

    wanted = [button.click, prompt.submit]
    gr.on(wanted, look, [prompt, turn], [state, error_box, seen, shown], **STREAMING, **PRIVATE)
    turn.change(lambda turn, seen: seen[int(turn)] if seen else gr.skip(), [turn, seen], shown, **RETRIGGER, **UNQUEUED)
