"""Bring here what a stack lacks: files of the Hub, torchvision's backbones for LPIPS, and an index, built if there is none.

What is complete stays, and what was cut off is gone on with, so setup may be stopped or killed at any time.
"""

import functools
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

from redream import hub
from redream.errors import RedreamError
from redream.stack.fetching import Counts, SetupProgress, SetupStopped, fetched, followed
from redream.stack.inventory import missing_files
from redream.stack.stack import Stack, built_index

# What an index is built of that the Hub does not have: fields of `redream.retrieval.objaverse.Objaverse`.
OBJAVERSE = {"min_score": 1, "without": ("scene",)}

IndexBuilder = Callable[[Stack, Path, Callable[[], bool]], Generator[SetupProgress, None, None]]


def build_index(stack: Stack, folder: Path, stop: Callable[[], bool]) -> Generator[SetupProgress, None, None]:
    """Build the index of a stack that the Hub has none for, into `folder`, where `Stack.load` finds it: of Objaverse's
    captions, as `python -m redream index build objaverse` does. What was begun is gone on with.

    Raises `SetupStopped` within two seconds of a stop, and what `redream.retrieval.assemble.build` raises.
    """
    from redream.retrieval import assemble
    from redream.retrieval.clip import embedding_of
    from redream.retrieval.objaverse import Objaverse
    from redream.retrieval.parts import Job
    from redream.stack.models import retrieval_clip

    progress = SetupProgress("index: reading", 0, 1, "files")

    def build(check: Callable[[], None]) -> None:
        nonlocal progress
        embedding = embedding_of(stack.folder(stack.clips["retrieval"]))
        job = Job(functools.partial(retrieval_clip, stack))
        with closing(assemble.build(Objaverse(**OBJAVERSE), folder, job, embedding=embedding)) as steps:
            for step in steps:
                check()
                stage = f"index: {step.stage}"
                progress = SetupProgress(stage, int(step.done), step.total, step.unit, step.seconds_left)

    yield from followed(build, "index", lambda: progress, stop)


def setup(
    stack: Stack, stop: Callable[[], bool] = lambda: False, build_index: IndexBuilder = build_index
) -> Generator[SetupProgress, None, tuple[str, ...]]:
    """Bring here what `missing_files` names; yields the progress, returns a sentence for each thing that could not be had.

    Once `stop` is True, which is asked ten times a second, `SetupStopped` is raised. Raises `hub.HubUnreachable`.
    """
    missing = missing_files(stack)
    counts, failures = Counts(missing), []
    names = dict.fromkeys(file.entry for file in missing if file.on_hub)
    for name in sorted(names, key=lambda name: name == "index"):  # last: to be built it needs a CLIP
        files = [file for file in missing if file.entry == name and file.on_hub]
        try:
            try:
                yield from fetched(stack, name, files, counts, stop)
            except hub.HubRepositoryMissing:
                if name != "index":
                    raise
                yield from build_index(stack, built_index(stack.name), stop)
        except (hub.HubUnreachable, SetupStopped):
            raise
        except RedreamError as error:
            failures.append(str(error))
    failures += [f"This file cannot be fetched; restore it: {file}." for file in missing if not file.on_hub]
    return tuple(failures)
