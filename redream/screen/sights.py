"""What the 2D prior sees of a prompt, turned from back to front, before and after it learned the views of the assets."""

from collections.abc import Iterator

import torch

from redream import pipeline, results
from redream.events import Progress
from redream.jobs import Waiting, Worker
from redream.screen.markup import bar, picture, quiet, waiting
from redream.screen.wishes import preset_of

NAMES = ("back", "between back and side", "side", "between side and front", "front")
COUNT = 3  # pictures of each
NOTHING = quiet("Type a prompt: the model is asked for its back, its side and its front.")


def sights(worker: Worker, prompt: str) -> Iterator[tuple[str, list[str]]]:
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
            case pipeline.Seen(before, after):
                yield "", [_both(name, *pair) for name, *pair in zip(NAMES, before, after, strict=True)]


def _both(name: str, before: torch.Tensor, after: torch.Tensor) -> str:
    rows = "".join(
        f"<figure>{picture(results.grid(images, COUNT), f'{words}, asked for the {name}')}<figcaption>{words}</figcaption></figure>"
        for words, images in (("Before adaptation", before), ("After adaptation", after))
    )
    return f"<p class='now'>Asked for: {name}</p><div class='sights'>{rows}</div>"
