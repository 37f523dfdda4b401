"""ZeroGPU: `generate`, `resume` and `prior_samples` of `redream.pipeline`, computed within calls of `@spaces.GPU`.

A call runs in a forked process, at most `MAX_SECONDS`, on the quota of the visitor whose request it belongs to. So a run is
made in several calls, each in a request of its own, as the token of a request is short-lived: a call that ends before its
run does pauses it at a checkpoint, and the page, or a script by /continue, asks for the next one. What travels between the
processes is the run's folder: its name and the seconds go in, events come out.

Assets are found and oriented on the CPU before the call. What comes later is computed within it, the encoding of the MP4 and
the unwrapping of the GLB too. Elsewhere than on ZeroGPU the app calls `redream.pipeline` itself.
"""

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import gradio as gr

from redream import pipeline
from redream.errors import RedreamError
from redream.pipeline import BeforeAfter, run_to_end
from redream.processes import on_zerogpu
from redream.runs.eta import RuntimeEstimator
from redream.runs.events import Event, Failed, Finished, Paused, Progress
from redream.runs.locks import STOP
from redream.runs.run import Run
from redream.settings import MAX_WAITING, PRESETS, Settings
from redream.stack.models import Models
from redream.stack.stack import CLIPS, PERCEPTUALS, Stack

ENABLED = on_zerogpu()
if ENABLED:
    import spaces  # before anything uses CUDA

MAX_SECONDS = 75  # of a call
MIN_SECONDS = 25  # a shorter one would be spent on its start
RESERVED_SECONDS = 10  # of a call, for its start and its last checkpoint
PARALLEL = MAX_WAITING + 1  # runs at once: those that wait are in ZeroGPU's own queue

WORKER_ERROR, ABORTED = "ZeroGPU worker error", "GPU task aborted"  # aborted: killed, as for overrunning its time
QUOTA = re.compile(r"\((\d+)s requested vs\. (-?\d+)s left\)\. Try again in ([\w :,]+)\.")
SENTENCES = {  # by the titles of what `spaces` raises
    "ZeroGPU quota exceeded": "No GPU quota is left for this request. Log in to Hugging Face on the Space's own page, or give "
    "your script a token, and try again.",
    "ZeroGPU illegal duration": "This visitor may not use a GPU for so long at once. Log in to Hugging Face, or choose a "
    "shorter time.",
    "ZeroGPU pending credits exceeded": "Your other runs hold all of your GPU quota. Try again once they have ended.",
    "ZeroGPU queue timeout": "No GPU became free within a minute. Try again in some minutes; visitors who are logged in come "
    "first.",
    "ZeroGPU client error": "This request got no GPU: none is free, or the page was open for too long. Reload the page and "
    "try again.",
}
NO_SAMPLES = "The samples could not be made, by a fault of this program, which its log names. Try again."
NO_CALL = "ZeroGPU gave no GPU, by a fault that this program's log names. Continue tries again."
OVERRUN = "The GPU's time was over before anything was saved. Try again; if that does not help, choose a shorter time."

_models: Models | None = None  # those of `load`: forked processes inherit them


class ZeroGpuError(RedreamError):
    """A call that ZeroGPU refused or ended; the message says what to do."""


def load(stack: Stack, device: str = "cuda") -> Models:
    """All models of a stack for the calls, loaded; retrieval's on the CPU.

    Before the app is launched, and in the main thread: there `spaces` takes over what is moved to "cuda".
    """
    from redream.distillation import loop  # noqa: F401 - so that no call spends its time on importing it
    from redream.runs import session  # noqa: F401 - likewise

    global _models
    _models = Models(stack, device, retrieval_device="cpu")
    _ = _models.device_name, _models.index, _models.prior
    for name in CLIPS:
        _models.clip(name)
    for name in PERCEPTUALS:
        _models.perceptual(name)
    return _models


def preset_of(stack: Stack) -> str:
    """The preset of a stack that is made for such calls, if it has one, else its own."""
    short = f"{stack.preset}-zerogpu"
    return short if short in PRESETS else stack.preset


def quota_seconds(seconds: float) -> float:
    """How much of a visitor's quota so many seconds of the GPU cost."""
    from spaces.zero.config import get_config

    return seconds * get_config()["duration_factor"]


# ---------------------------------------------------------------- as the app calls them


def generate(prompt: str, *, out: Path, stop: Callable[[], bool], models: Models, **inputs) -> Iterator[Event]:
    """As `pipeline.generate`, until the run is finished or paused."""
    prepared = pipeline.generate(prompt, out=out, stop=stop, models=models, deadline=0.0, **inputs)
    return _prepared_and_called(prepared, out, stop, models)


def resume(folder: Path, iterations: int | None = None, *, stop: Callable[[], bool], models: Models) -> Iterator[Event]:
    """As `pipeline.resume`, until the run is finished or paused again."""
    prepared = pipeline.resume(folder, iterations, stop=stop, models=models, deadline=0.0)
    return _prepared_and_called(prepared, folder, stop, models)


def prior_samples(
    prompt: str, count: int = 2, *, settings: Settings, models: Models, stop: Callable[[], bool] = run_to_end
) -> Iterator[Progress | BeforeAfter]:
    """As `pipeline.prior_samples`, in one call."""
    pipeline.prior_samples(prompt, count, settings=settings, models=models).close()  # raises for a bad prompt
    return _samples_of_call(prompt, count, settings, stop)


# ---------------------------------------------------------------- within a call: the forked process


def _seconds_asked(*arguments) -> int:
    return arguments[-1]


def _use_one_thread() -> None:
    """OpenMP's threads do not survive a fork: what shared its work with them would wait for ever."""
    import faiss
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def _on_gpu(task: Callable) -> Callable:
    """A generator function whose last argument is how many seconds it may take, as one that `spaces` calls on a GPU."""
    return spaces.GPU(task, duration=_seconds_asked) if ENABLED else task


@_on_gpu
def _iterate(folder: str, seconds: int) -> Iterator[Event]:
    """Go on with a run that is prepared, until it is finished or its time is over."""
    _use_one_thread()
    deadline = time.monotonic() + seconds - RESERVED_SECONDS
    with suppress(RedreamError):  # its sentence is in events.jsonl
        yield from pipeline.resume(folder, models=_models, deadline=deadline)


@_on_gpu
def _sample(prompt: str, count: int, settings: Settings, seconds: int) -> Iterator:
    """`pipeline.prior_samples` with arrays instead of tensors, whose storage would end with this process."""
    _use_one_thread()
    try:
        for update in pipeline.prior_samples(prompt, count, settings=settings, models=_models):
            if isinstance(update, BeforeAfter):
                update = BeforeAfter(*([image.numpy() for image in images] for images in (update.before, update.after)))
            yield update
    except RedreamError as error:  # of others than `gr.Error` only the class's name reaches the app's process
        raise gr.Error(str(error), print_exception=False) from error


# ---------------------------------------------------------------- around a call: the app's process


def _prepared_and_called(
    prepared: Iterator[Event], folder: Path, stop: Callable[[], bool], models: Models
) -> Iterator[Event]:
    event = None
    for event in prepared:
        yield event
    if isinstance(event, Paused):
        yield from _call(Run.open(folder), stop, models)


def _call(run: Run, stop: Callable[[], bool], models: Models) -> Iterator[Event]:
    """The events of one call. One that overran its time counts as one that paused at its last checkpoint.

    Raises `ZeroGpuError`; its sentence is the run's last event then.
    """
    saved, event = _last_checkpoint(run), None
    try:
        for event in _within_quota(_iterate, str(run.folder), seconds=_seconds(run, models)):
            if stop():
                (run.folder / STOP).touch()
            yield event
    except gr.Error as error:
        if error.message == ABORTED and _last_checkpoint(run) != saved:
            yield run.log(Paused())
            return
        raise _failed(run, pipeline.FAULT if _is_fault(error) else _sentence(error)) from error
    except Exception as error:  # of `spaces` itself, as when the device API does not answer
        logging.getLogger(__name__).exception("%s got no GPU", run.folder.name)
        raise _failed(run, NO_CALL) from error
    if isinstance(event, Finished):
        (run.folder / STOP).unlink(missing_ok=True)
    if isinstance(event, Paused) and _last_checkpoint(run) == saved:  # it would be so for ever
        raise _failed(run, OVERRUN)


def _samples_of_call(
    prompt: str, count: int, settings: Settings, stop: Callable[[], bool]
) -> Iterator[Progress | BeforeAfter]:
    import torch

    try:
        with closing(_within_quota(_sample, prompt, count, settings, seconds=MAX_SECONDS)) as updates:
            for update in updates:
                if stop():
                    return
                if isinstance(update, BeforeAfter):
                    update = BeforeAfter(*(list(map(torch.from_numpy, i)) for i in (update.before, update.after)))
                yield update
    except gr.Error as error:
        raise ZeroGpuError(NO_SAMPLES if _is_fault(error) else _sentence(error)) from error


def _within_quota(call: Callable[..., Iterator], *arguments, seconds: int) -> Iterator:
    """What a call yields; if the visitor's quota is less than it asks for, it asks again for what is left."""
    try:
        yield from call(*arguments, seconds)
    except gr.Error as error:  # a refusal comes before everything else
        if not (found := QUOTA.search(error.message)):
            raise
        requested, left = int(found[1]), int(found[2])
        if (fewer := seconds * left // requested - 1) < MIN_SECONDS:
            raise
        yield from call(*arguments, fewer)


def _seconds(run: Run, models: Models) -> int:
    """The seconds to ask for: what is left of the run, as far as is known, at most `MAX_SECONDS`."""
    learned = RuntimeEstimator.of_latest_runs(models.stack.name, models.device_name)
    left = learned.seconds(run.request.settings, run.request.extra, int(_last_checkpoint(run) or 0))
    return MAX_SECONDS if left is None else min(MAX_SECONDS, max(MIN_SECONDS, round(1.2 * left) + RESERVED_SECONDS))


def _last_checkpoint(run: Run) -> str:
    """The name of the run's last checkpoint; "" if there is none."""
    return ([path.name for path in run.checkpoints()] or [""])[-1]


def _is_fault(error: gr.Error) -> bool:
    """Whether the task raised it, not ZeroGPU."""
    return error.title == WORKER_ERROR and error.message != ABORTED


def _sentence(error: gr.Error) -> str:
    """What ZeroGPU says, and what to do, in a sentence of ours."""
    if error.message == ABORTED:
        return OVERRUN
    if found := QUOTA.search(error.message):
        _, left, wait = found.groups()
        return (
            f"{left} s of your GPU quota are left, too little for the shortest call. Log in to Hugging Face for more of it, or "
            f"try again in {wait} (h:min:s)."
        )
    return SENTENCES.get(error.title, str(error.message))


def _failed(run: Run, sentence: str) -> ZeroGpuError:
    """The error of a call, which is the run's last event then, as the forked process may have logged it before."""
    last = deque(run.events(), maxlen=1)
    if not (last and isinstance(last[0], Failed)):
        run.log(Failed(sentence))
    return ZeroGpuError(sentence)
