"""The public functions: `generate`, `resume`, `retrieve`, `sample` and `prior_samples`.

App, command line and evaluation call them. What is asked for is checked and written down here, `redream.runs.session` does
the work. Importing this is cheap, so that settings.json is written before anything large is imported.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from redream.errors import RedreamError
from redream.files import encodable
from redream.retrieval.licences import require_commercial_use
from redream.runs import faults, locks
from redream.runs.events import Event, Failed, Progress
from redream.runs.run import Request, Run, RunError, UploadedAsset
from redream.settings import MAX_ASSETS, MAX_ITERATIONS, PRESETS, Settings
from redream.stack.models import Models
from redream.stack.stack import Entry, Stack
from redream.stack.vocabulary import ParsedPrompt, parse_prompt

FAULT = "The run broke off by a fault of this program, which its log names. Continue goes on from its last checkpoint."

# Prior samples go from the back by the side to the front: the embeddings of two views are interpolated.
VIEW_STEPS = (  # (view, next view, weight of the next view)
    ("back", "side", 0.0),
    ("back", "side", 0.5),
    ("side", "front", 0.0),
    ("side", "front", 0.5),
    ("side", "front", 1.0),
)


class PipelineError(RedreamError):
    """A combination that makes no run; the message says why."""


class UploadError(PipelineError):
    """An uploaded GLB that cannot be used; `file` is its path."""

    def __init__(self, file: Path, sentence: str) -> None:
        super().__init__(sentence)
        self.file = file


@dataclass(frozen=True)
class BeforeAfter:
    """Samples of the prior before and after adaptation, one batch for each of `VIEW_STEPS`."""

    before: list  # of Float[Tensor, "count 3 h w"], in [0, 1]
    after: list


def run_to_end() -> bool:
    """The default `stop`: never."""
    return False


def generate(
    prompt: str,
    *,
    stack: Stack | str | Path = "mini",
    settings: Settings | None = None,
    assets: Sequence[tuple[str | Path, str]] = (),
    uids: Sequence[str] = (),
    commercial_use: bool = False,
    out: str | Path | None = None,
    stop: Callable[[], bool] = run_to_end,
    models: Models | None = None,
    deadline: float = math.inf,
) -> Iterator[Event]:
    """Make a 3D object of a prompt in a new run's folder; yields the run's events.

    The inputs are checked and settings.json is written before this returns; the run proceeds as its events are consumed.

    settings: default: the stack's preset
    assets: pairs of a GLB file and its caption ("": the prompt), used instead of retrieved assets
    uids: assets of the library, used instead of retrieved ones; they come before `assets`
    commercial_use: only assets of the library whose licence is known to allow it
    out: a new or empty folder; default: a fresh one under `runs_folder()`
    stop: asked at every iteration; once True, results are made of what was optimised so far
    models: shared between runs; the stack is then theirs
    deadline: of time.monotonic(); before it the run pauses at a checkpoint, to be resumed. One that is past only finds the
        assets

    Raises a `RedreamError`.
    """
    stack = models.stack if models else stack if isinstance(stack, Stack) else Stack.load(stack)
    settings = settings or PRESETS[stack.preset]["redream"]
    parsed = parse_prompt(prompt, stack.vocabulary)
    if (assets or uids) and not settings.uses_assets:
        do = "choose ReDream" if settings.method != "redream" else "start from them, or adapt to them"
        raise PipelineError(f"Assets are of no use here: {do}, or leave them out.")
    if (count := len(assets) + len(uids)) > MAX_ASSETS:
        raise PipelineError(f"These are {count} assets; the limit is {MAX_ASSETS}.")
    if uids:
        models = models or Models.load(stack)
        _fetch(models, ("index",), stop)
        for uid in uids:
            row = models.index.row(uid)  # raises if the library has no such asset
            if commercial_use:
                require_commercial_use(row)
    uploads, files = _validated(assets, parsed, models or Models.load(stack), stop) if assets else ((), {})
    name, overrides = _address(stack)
    request = Request(prompt, settings, name, overrides, uploads, uids=tuple(uids), commercial_use=commercial_use)
    run = Run.create(request, out, files)
    return _events(run, stack, parsed, models, stop, deadline, uploads_validated=True)


def resume(
    folder: str | Path,
    iterations: int | None = None,
    *,
    stop: Callable[[], bool] = run_to_end,
    models: Models | None = None,
    deadline: float = math.inf,
) -> Iterator[Event]:
    """Continue a run, by its folder or id, from its last checkpoint; yields the events of this session.

    The result is that of an uninterrupted run. `iterations` adds so many per particle to those planned, at the end values
    of the schedules. A finished run without more to do has no events; results that it lacks are made. `models` are used if
    they are of the run's stack, `deadline` is that of `generate`. Raises a `RedreamError`.
    """
    run = Run.open(folder)
    request = run.request
    if iterations is not None and not 1 <= iterations <= MAX_ITERATIONS - request.settings.iterations - request.extra:
        raise RunError(f"{iterations} further iterations are out of range; a run has at most {MAX_ITERATIONS:,}.")
    if iterations is None and run.finished and not run.lacks_results:
        return iter(())
    stack = Stack.load(request.stack, request.overrides)
    parsed = parse_prompt(request.prompt, stack.vocabulary)
    run.extend(iterations or 0)
    models = models if models and models.stack == stack else None
    return _events(run, stack, parsed, models, stop, deadline)


def retrieve(
    prompt: str,
    stack: Stack | str | Path = "mini",
    k: int = 3,
    *,
    commercial_use: bool = False,
    models: Models | None = None,
) -> list:
    """Return the `k` assets nearest to a prompt, best first, as a list of `redream.retrieval.index.Hit`.

    commercial_use: only those whose licence is known to allow it
    """
    models = models or Models.load(stack)
    parsed = models.parse(prompt)
    candidates = max(k, PRESETS[models.stack.preset]["redream"].retrieval.candidates)
    licences = models.index.commercial_licences if commercial_use else None
    return models.index.search(parsed.prompt, models.clip("retrieval"), k, candidates, licences)


def sample(
    prompt: str,
    view: str | None = None,
    adapt: bool = False,
    count: int = 8,
    *,
    stack: Stack | str | Path = "mini",
    settings: Settings | None = None,
    models: Models | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
):
    """Sample the 2D prior (fig. 4): `count` images of the prompt in a view, Float[Tensor, "count 3 h w"] in [0, 1].

    view: "front", "side" or "back"; None: no view is named
    adapt: first adapt the prior to the views of the retrieved assets; the view is then its learned prefix, and the
        adapter counts in full, while distillation uses `settings.adaptation.scale` of it
    progress: called after each step of the adaptation with (steps done, all steps)

    Raises a `RedreamError`.
    """
    models = models or Models.load(stack)
    settings = settings or PRESETS[models.stack.preset]["redream"]
    parsed = models.parse(prompt)
    import torch

    from redream.scene.cameras import view_prompt

    text, prefix = parsed.prompt if adapt or view is None else view_prompt(parsed.prompt, view), None
    if adapt:
        for adaptation in _adaptation_steps(parsed.prompt, models, settings):
            progress(adaptation.steps_done, settings.adaptation.steps)
        prefix = None if view is None else adaptation.prefix(view)
    with torch.no_grad():
        embedding = models.prior.embed([text], prefix)  # (1, l, d)
        return _images(models.prior, embedding, count, settings.seed, adapted=adapt)


def prior_samples(
    prompt: str,
    count: int = 2,
    *,
    settings: Settings | None = None,
    models: Models,
    stop: Callable[[], bool] = run_to_end,
) -> Iterator[Progress | BeforeAfter]:
    """Sample the 2D prior from back to front, before and after adaptation, from equal noise (fig. 4 and 14).

    Yields `Progress` and at last a `BeforeAfter` with `count` images for each of `VIEW_STEPS`; nothing more once `stop`
    is True. The adapter counts in full, as in `sample`. Raises as `sample`, before it returns.
    """
    settings = settings or PRESETS[models.stack.preset]["redream"]
    parsed = models.parse(prompt)
    return _prior_samples(parsed.prompt, count, settings, models, stop)


def _prior_samples(
    prompt: str, count: int, settings: Settings, models: Models, stop: Callable[[], bool]
) -> Iterator[Progress | BeforeAfter]:
    import torch

    from redream.retrieval.fetch import FetchStopped
    from redream.scene.cameras import VIEWS, view_prompt
    from redream.stack.fetching import SetupStopped

    def along_views(embeddings: dict, adapted: bool) -> list:
        """Images along `VIEW_STEPS`, of {view: Float[Tensor, "1 l d"]}."""
        steps = [torch.lerp(embeddings[view], embeddings[other], weight) for view, other, weight in VIEW_STEPS]
        return [_images(models.prior, step, count, settings.seed, adapted) for step in steps]

    total = settings.adaptation.steps
    yield Progress("sampling", 0, total)
    try:
        _fetch(models, ("prior", "index", "clips.retrieval"), stop)
    except SetupStopped:
        return
    with torch.no_grad():
        before = along_views({view: models.prior.embed([view_prompt(prompt, view)]) for view in VIEWS}, adapted=False)
    try:
        for adaptation in _adaptation_steps(prompt, models, settings, stop):
            if stop():
                return
            yield Progress("learning the views", adaptation.steps_done, total)
    except FetchStopped:
        return
    yield Progress("sampling", total, total)
    with torch.no_grad():
        after = along_views(
            {view: models.prior.embed([prompt], adaptation.prefix(view)) for view in VIEWS}, adapted=True
        )
    yield BeforeAfter(before, after)


def _adaptation_steps(
    prompt: str, models: Models, settings: Settings, stop: Callable[[], bool] = run_to_end
) -> Iterator:
    """The `Adaptation` of the prior to the assets retrieved for a prompt, after each of its steps.

    `stop` ends only the download of the assets, with `FetchStopped`.
    """
    from redream.distillation.adaptation import Adaptation
    from redream.distillation.generators import Generators
    from redream.retrieval.fetch import finished
    from redream.runs.retrieved import oriented, searching

    retrieved, _ = finished(searching(prompt, models, settings, stop))
    captioned = [oriented(asset, models, settings)[0].captioned for asset in retrieved]
    adaptation = Adaptation(models.prior, settings, captioned, Generators(settings.seed, models.prior.device))
    while not adaptation.finished:
        adaptation.step()
        yield adaptation


def _fetch(models: Models, names: Sequence[str], stop: Callable[[], bool]) -> None:
    """Bring models here, by their names in stack.json. Raises `SetupStopped` soon after a stop."""
    for name in names:
        for _ in models.fetching(name, stop):
            pass


def _images(prior, embedding, count: int, seed: int, adapted: bool):
    """Samples of an embedding (1, l, d) with or without the adapter, from noise that is equal for equal seeds."""
    import torch

    from redream.distillation.adaptation import ADAPTER

    with prior.using(ADAPTER if adapted else None):
        return prior.sample(embedding.expand(count, -1, -1), torch.Generator().manual_seed(seed)).cpu()


def _events(
    run: Run,
    stack: Stack,
    parsed: ParsedPrompt,
    models: Models | None,
    stop: Callable[[], bool],
    deadline: float,
    uploads_validated: bool = False,
) -> Iterator[Event]:
    """The session's events, each of them written to events.jsonl before it is yielded."""
    from redream.runs.session import Session

    def stops() -> bool:
        return stop() or locks.stop_requested(run.folder)

    try:
        models = models or Models.load(stack)
        parsed = models.truncated(parsed, stops)
        for event in Session(run, stack, parsed, models, stops, deadline, uploads_validated).events():
            yield run.log(event)
    except Exception as error:  # whatever it was, pages that follow the events must learn that the run has ended
        named = error if isinstance(error, RedreamError) else faults.explained(error, run)
        with suppress(OSError):  # the disk is full
            run.log(Failed(FAULT if named is None else str(named)))
        if named is None or named is error:
            raise
        raise named from error


def _validated(
    assets: Sequence[tuple[str | Path, str]], parsed: ParsedPrompt, models: Models, stop: Callable[[], bool]
) -> tuple[tuple[UploadedAsset, ...], dict[str, bytes]]:
    """Uploaded assets as a request names them, and {file: GLB}, validated and reduced to what is drawn.

    Raises `UploadError`, and `ReadingStopped` once `stop` is True; `PipelineError` for a caption that is too long; the default
    is the prompt as the models get it.
    """
    from redream.scene.glb import AssetError, GlbError
    from redream.scene.glb_reader import GlbReader

    files = {}
    with GlbReader() as reader:
        for number, (path, _) in enumerate(assets):
            try:
                files[f"upload-{number}.glb"] = reader.validate(Path(path), stop=stop)
            except (GlbError, AssetError) as error:
                which = f"{encodable(Path(path).name)}: " if len(assets) > 1 else ""
                raise UploadError(Path(path), f"{which}{error}") from error
    uploads, prompt = [], models.truncated(parsed).prompt
    for file, (path, caption) in zip(files, assets, strict=True):
        caption = encodable(caption).strip() or prompt
        if (shorter := models.truncated(ParsedPrompt(caption)).prompt) != caption:
            raise PipelineError(f"A caption is longer than the models can read; shorten it, perhaps to “{shorter}”.")
        uploads.append(UploadedAsset(file, encodable(Path(path).name), caption))
    return tuple(uploads), files


def _address(stack: Stack) -> tuple[str, dict[str, str]]:
    """How `Stack.load` gets this stack again: its name or folder, and the environment variables that replace entries."""
    plain = Stack.load(stack.address, environ={})
    pairs = {"REDREAM_PRIOR": (stack.prior, plain.prior), "REDREAM_INDEX": (stack.index, plain.index)}
    return stack.address, {key: _spelled(entry) for key, (entry, default) in pairs.items() if entry != default}


def _spelled(entry: Entry) -> str:
    return f"{entry.source}@{entry.revision}" if entry.revision else str(entry.source)
