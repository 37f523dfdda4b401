"""From a prompt to a run: the one way that app, command line and evaluation take. A generator of events.

What is asked is checked and written down here; `redream.runs.session` does it. Importing this is cheap, so that settings.json
is there before anything large is imported.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from redream.errors import RedreamError
from redream.runs.events import Event, Failed, Progress
from redream.runs.run import Request, Run, RunError, UploadedAsset
from redream.settings import MAX_ASSETS, MAX_ITERATIONS, PRESETS, Settings
from redream.stack.models import Models
from redream.stack.stack import STACKS, Entry, Stack
from redream.stack.vocabulary import ParsedPrompt, parse_prompt


class PipelineError(RedreamError):
    """A combination that makes no run; the message says why."""


def never() -> bool:
    """Do not stop."""
    return False


def generate(
    prompt: str,
    *,
    stack: Stack | str | Path = "mini",
    settings: Settings | None = None,
    assets: Sequence[tuple[str | Path, str]] = (),
    uids: Sequence[str] = (),
    out: str | Path | None = None,
    stop: Callable[[], bool] = never,
    models: Models | None = None,
) -> Iterator[Event]:
    """Make a 3D object of a prompt in a new run's folder, and tell about it.

    What can be checked is checked before this returns; the run goes on as its events are asked for. `settings`: by
    default the stack's preset. `assets`: GLB files and captions ("": the prompt) used instead of retrieved ones; `uids`:
    assets of the library, likewise. `out`: a new or empty folder. `stop` is asked at every iteration; then results are
    made of what there is. `models` are shared between runs, and then theirs is the stack. Raises a named error, each
    with a sentence for its author.
    """
    stack = models.stack if models else stack if isinstance(stack, Stack) else Stack.load(stack)
    settings = settings or PRESETS[stack.preset]["redream"]
    checked = parse_prompt(prompt, stack.vocabulary)
    if (assets or uids) and not settings.uses_assets:
        raise PipelineError("Assets are used by ReDream's initialisation and adaptation only; switch one of them on.")
    if assets and uids:
        raise PipelineError("Give your own assets or name some of the library, not both.")
    if (count := len(assets) + len(uids)) > MAX_ASSETS:
        raise PipelineError(f"These are {count} assets; the limit is {MAX_ASSETS}.")
    if uids:
        index = (models or Models.load(stack)).index
        for uid in uids:
            index.row(uid)
    given, files = _given(assets, checked.prompt)
    name, overrides = _address(stack)
    run = Run.create(Request(prompt, settings, name, overrides, given, uids=tuple(uids)), out, files)
    return _events(run, stack, checked, models, stop)


def resume(
    folder: str | Path,
    iterations: int | None = None,
    *,
    stop: Callable[[], bool] = never,
    models: Models | None = None,
) -> Iterator[Event]:
    """Continue a run (by its folder or id) from its last checkpoint to its end, as if it had not been interrupted.

    `iterations` adds so many per particle to its plan, at the end values of the schedules. A finished run without more
    to do has no events. `models` are used if they are of the run's stack. Raises as `generate`.
    """
    run = Run.open(folder)
    request = run.request
    if iterations is not None and not 1 <= iterations <= MAX_ITERATIONS - request.settings.iterations - request.extra:
        raise RunError(f"{iterations} further iterations are out of range; a run has at most {MAX_ITERATIONS:,}.")
    if iterations is None and run.finished:
        return iter(())
    stack = Stack.load(request.stack, request.overrides)
    checked = parse_prompt(request.prompt, stack.vocabulary)
    if iterations is not None:
        run.extend(iterations)
    models = models if models and models.stack == stack else None
    return _events(run, stack, checked, models, stop)


def retrieve(prompt: str, stack: Stack | str | Path = "mini", k: int = 3, *, models: Models | None = None) -> list:
    """The `k` assets nearest to a prompt, best first, as `redream.retrieval.index.Hit`."""
    models = models or Models.load(stack)
    checked = parse_prompt(prompt, models.stack.vocabulary)
    candidates = max(k, PRESETS[models.stack.preset]["redream"].retrieval.candidates)
    return models.index.search(checked.prompt, models.clip("retrieval"), k, candidates)


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
    """What the 2D prior sees (fig. 4): `count` pictures of the prompt in a view, as Float[Tensor, "count 3 h w"] in [0, 1].

    The view is named in words; with `adapt` the prior first learns the retrieved assets' views, and the view is a
    learned prefix. What was learned counts in full here, while distillation uses `adaptation_scale` of it. None: no view.
    `progress` is told the adaptation's steps (done, total).
    """
    models = models or Models.load(stack)
    settings = settings or PRESETS[models.stack.preset]["redream"]
    checked = parse_prompt(prompt, models.stack.vocabulary)
    import torch

    prior, prefix, words = models.prior, None, checked.prompt if view is None else f"{checked.prompt}, {view} view"
    learned = None
    if adapt:
        for learned in _adapt_steps(checked.prompt, models, settings):
            progress(learned.steps_done, settings.adaptation.steps)
        prefix, words = (None if view is None else learned.prefix(view)), checked.prompt
    with torch.no_grad():
        return _pictures(models.prior, prior.embed([words], prefix), count, settings.seed, learned is not None)


@dataclass(frozen=True)
class BeforeAfter:
    """What the prior sees before and after it learned an asset's views: `VIEW_STEPS` times `count` pictures each."""

    before: list  # of Float[Tensor, "count 3 h w"], from the back by the side to the front
    after: list


VIEW_STEPS = (0.0, 0.5, 1.0, 1.5, 2.0)  # 0: back, 1: side, 2: front; between them the words' features are mixed


def views(
    prompt: str,
    count: int = 2,
    *,
    settings: Settings | None = None,
    models: Models,
    stop: Callable[[], bool] = never,
) -> Iterator[Progress | BeforeAfter]:
    """What the 2D prior sees from back to front, before and after adaptation (fig. 4 and 14), always of the same noise.

    What was learned counts in full here, while distillation uses `adaptation_scale` of it. Tells how far it is, and at last
    a `BeforeAfter`, or nothing more if it is stopped. Raises as `sample`, at once.
    """
    settings = settings or PRESETS[models.stack.preset]["redream"]
    checked = parse_prompt(prompt, models.stack.vocabulary)

    def told() -> Iterator[Progress | BeforeAfter]:
        import torch

        from redream.scene.cameras import VIEWS

        def around(ends: dict, adapted: bool) -> Iterator:
            for place in VIEW_STEPS:
                near, far = ("back", "side") if place < 1 else ("side", "front")
                words = torch.lerp(ends[near], ends[far], place - (place >= 1))  # (1, l, d)
                yield _pictures(models.prior, words, count, settings.seed, adapted)

        total = settings.adaptation.steps
        yield Progress("sampling", 0, total)
        with torch.no_grad():
            ends = {view: models.prior.embed([f"{checked.prompt}, {view} view"]) for view in VIEWS}
            before = list(around(ends, adapted=False))
        for learned in _adapt_steps(checked.prompt, models, settings):
            if stop():
                return
            yield Progress("learning the views", learned.steps_done, total)
        yield Progress("sampling", total, total)
        with torch.no_grad():
            ends = {view: models.prior.embed([checked.prompt], learned.prefix(view)) for view in VIEWS}
            after = list(around(ends, adapted=True))
        yield BeforeAfter(before, after)

    return told()


def _adapt_steps(prompt: str, models: Models, settings: Settings) -> Iterator:
    """The `Adaptation` of the prior to the assets found for a prompt, after each of its steps."""
    import torch

    from redream.distillation.adaptation import Adaptation
    from redream.runs.retrieved import as_reference, search, turned

    found, _ = search(prompt, models, settings)
    known = [as_reference(turned(f, models, settings)[0]) for f in found]
    adaptation = Adaptation(models.prior, settings, known, torch.Generator().manual_seed(settings.seed))
    while not adaptation.finished:
        adaptation.step()
        yield adaptation


def _pictures(prior, words, count: int, seed: int, adapted: bool):
    """Float[Tensor, "count 3 h w"]: samples of the same noise with and without adaptation."""
    import torch

    from redream.distillation.adaptation import ADAPTER

    with prior.using(ADAPTER if adapted else None):
        return prior.sample(words.expand(count, -1, -1), torch.Generator().manual_seed(seed)).cpu()


def _events(
    run: Run, stack: Stack, checked: ParsedPrompt, models: Models | None, stop: Callable[[], bool]
) -> Iterator[Event]:
    """The session's events, each of them in the run's history before it is told."""
    from redream.runs.session import Session

    try:
        for event in Session(run, stack, checked, models or Models.load(stack), stop).events():
            yield run.log(event)
    except Exception as error:  # who follows the history is told, whatever it was
        run.log(
            Failed(
                str(error)
                if isinstance(error, RedreamError)
                else "The run broke off by a fault of this program; resume it."
            )
        )
        raise


def _given(assets: Sequence[tuple[str | Path, str]], prompt: str) -> tuple[tuple[UploadedAsset, ...], dict[str, bytes]]:
    """Given assets as a request names them, and their files, checked and reduced to what is drawn."""
    if not assets:
        return (), {}
    from redream.scene import glb_validation

    files = {f"given-{number}.glb": glb_validation.check(Path(path)) for number, (path, _) in enumerate(assets)}
    given = (
        UploadedAsset(file, Path(path).name, caption.strip() or prompt)
        for file, (path, caption) in zip(files, assets, strict=True)
    )
    return tuple(given), files


def _address(stack: Stack) -> tuple[str, dict[str, str]]:
    """How `Stack.load` finds this stack again: its name or folder, and what the environment replaced in it."""
    name = stack.base.name if stack.base.parent == STACKS.resolve() else str(stack.base)
    plain = Stack.load(name, environ={})
    pairs = {"REDREAM_PRIOR": (stack.prior, plain.prior), "REDREAM_INDEX": (stack.index, plain.index)}
    return name, {key: _spelled(entry) for key, (entry, usual) in pairs.items() if entry != usual}


def _spelled(entry: Entry) -> str:
    return f"{entry.source}@{entry.revision}" if entry.revision else str(entry.source)
