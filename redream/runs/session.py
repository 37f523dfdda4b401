"""One call's work on a run, from the first event to the last.

prompt → assets → fronts → (adaptation ‖ warm-up) → distillation → turntables, meshes, scores, record
"""

import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from redream import __version__
from redream.hub import HubError
from redream.retrieval.clip import ClipError
from redream.runs import eta, outputs, retrieved
from redream.runs.events import (
    Artefact,
    Event,
    Finished,
    Oriented,
    Preview,
    Progress,
    Retrieved,
    Scored,
    Started,
    Warned,
)
from redream.runs.retrieved import RetrievedAsset
from redream.runs.run import Run
from redream.scene import turntable
from redream.scene.mesh import MeshError
from redream.scene.turntable import TurntableError
from redream.scoring.metrics import MetricsError
from redream.stack import environment
from redream.stack.models import Models
from redream.stack.stack import Stack, StackError
from redream.stack.vocabulary import ParsedPrompt

RECENT = 20  # iterations that the time left is estimated from
FILM_NEWS = 10  # times that is told how far a film is
UNSCORED = (ClipError, HubError, MetricsError, StackError)  # why there is no score: the run is worth keeping without it


def is_previewed(iteration: int, every: int) -> bool:
    """At every multiple, and before the first one at the powers of two: then most changes, and somebody waits."""
    return iteration % every == 0 or (iteration < every and iteration.bit_count() == 1)


@dataclass
class Session:
    """What one call of `generate` or `resume` does; a run that is resumed has several."""

    run: Run
    stack: Stack
    parsed: ParsedPrompt
    models: Models
    stop: Callable[[], bool]
    uploads_validated: bool = False  # and stored by this call; a resumed run's folder may have been changed since
    assets: list[dict] = field(default_factory=list)  # for the record: retrieved.json's and where their fronts were
    timings: dict[str, float] = field(default_factory=dict)  # seconds by stage
    ratio: float | None = None  # seconds per unit of cost, of the latest iterations (`redream.runs.eta`)

    def events(self) -> Iterator[Event]:
        """Everything, in order. Raises `RunError` at the first one if another program works on the run."""
        with self.run.working():
            yield from self._events()

    def _events(self) -> Iterator[Event]:
        run, settings, prompt = self.run, self.run.request.settings, self.parsed.prompt
        checkpoints = run.checkpoints()
        done, total = int(checkpoints[-1].name) if checkpoints else 0, run.request.total
        yield Started(str(run.folder), prompt, settings, done, total)
        for sentence in self.parsed.warnings:
            yield Warned(sentence)
        retrieved_assets = []
        if settings.uses_assets:
            yield from self._retrieve(retrieved_assets)
            yield from self._orient(retrieved_assets)

        yield Progress("loading", done, total)
        with self._timed("loading"):
            from redream.distillation.loop import Distillation  # takes seconds: by now the assets are seen

            captioned = [asset.captioned for asset in retrieved_assets]
            distillation = Distillation(self.models.prior, settings, prompt, captioned)
            yield from self._load(distillation, checkpoints)
        yield from self._distil(distillation)
        if distillation.iteration:  # else there is nothing to show
            yield from self._make(distillation)
        run.write_json("record.json", self._record(distillation.iteration))
        yield Finished(stopped=distillation.iteration < total)

    def _retrieve(self, assets: list[RetrievedAsset]) -> Iterator[Event]:
        """Fill `assets` with the uploaded ones, those named by uid, those of the run's first session, or the best hits."""
        run, settings, prompt, warnings = self.run, self.run.request.settings, self.parsed.prompt, []
        with self._timed("retrieval"):
            if run.request.assets:
                assets += retrieved.from_upload(
                    run.request.assets, run.folder, prompt, self.models, self.uploads_validated
                )
            elif run.request.uids:
                assets += retrieved.by_uid(run.request.uids, prompt, self.models)
            elif (run.folder / "retrieved.json").is_file():
                assets += retrieved.reload(run.read_json("retrieved.json")["assets"], self.models)
            else:
                best, warnings = retrieved.search(prompt, self.models, settings)
                assets += best
            entries = [asset.entry for asset in assets]
            run.write_json("retrieved.json", {"prompt": run.request.prompt, "assets": entries})
            for number, asset in enumerate(assets):
                outputs.save_strip(asset.asset, settings, run.folder / f"asset-{number}.png")
        for sentence in warnings:
            yield Warned(sentence)
        yield Retrieved(tuple(entries), tuple(f"asset-{number}.png" for number in range(len(assets))))

    def _orient(self, assets: list[RetrievedAsset]) -> Iterator[Event]:
        """Replace each asset by the same with its front at +x."""
        settings = self.run.request.settings
        for number, asset in enumerate(list(assets)):
            with self._timed("orientation"):
                oriented, alignment = retrieved.oriented(asset, self.models, settings)
                strip = f"asset-{number}-turned.png"
                outputs.save_strip(oriented.asset, settings, self.run.folder / strip)
            assets[number] = oriented
            self.assets.append(asset.entry | asdict(alignment))
            yield Oriented(number, alignment.yaw_deg, alignment.margin, alignment.clear, strip)

    def _load(self, distillation, checkpoints: list[Path]) -> Iterator[Event]:
        """Continue from the last checkpoint that is whole; `CheckpointError`, and nothing is touched, if none is."""
        from redream.distillation.checkpoint import CheckpointError

        damaged = []
        for checkpoint in reversed(checkpoints):
            try:
                distillation.load(checkpoint)
                break
            except CheckpointError:
                damaged.append(checkpoint)
                if len(damaged) == len(checkpoints):
                    raise
        for checkpoint in damaged:
            aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)
            at, instead = int(checkpoint.name), distillation.iteration
            yield Warned(f"The checkpoint of iteration {at} is damaged; the run goes on from iteration {instead}.")

    def _distil(self, distillation) -> Iterator[Event]:
        """Iterate, with previews and checkpoints, until it is done or stopped; the last state is always saved."""
        settings, saved = self.run.request.settings, distillation.iteration
        previews, overflowed = True, 0
        costs, finishing = eta.iteration_costs(settings, self.run.request.extra), eta.finishing_cost(settings)
        moments = deque([time.perf_counter()], maxlen=RECENT + 1)
        steps = distillation.steps(self.run.request.extra, self.stop)
        while not self.stop():
            with self._timed("distillation"):
                step = next(steps, None)
            if step is None:
                break
            moments.append(time.perf_counter())
            done = step.iteration
            self.ratio = (moments[-1] - moments[0]) / float(costs[done + 1 - len(moments) : done].sum())
            left = float(self.ratio * (costs[done:].sum() + finishing))
            yield Progress(step.stage, done, step.total, left, step.losses)
            overflowed += not math.isfinite(step.losses["score"])
            if previews and is_previewed(done, settings.output.preview_every):
                try:
                    told = self._preview(distillation)
                except UNSCORED as error:
                    previews, told = False, Warned(f"There are no more previews. {error}")
                yield told
            if done % settings.output.checkpoint_every == 0:
                saved = self._save(distillation)
        if saved < distillation.iteration:
            self._save(distillation)
        if overflowed:
            yield Warned(f"Iterations whose score was not a number, and counted as zero: {overflowed}.")

    def _preview(self, distillation) -> Preview:
        settings, iteration, clip = self.run.request.settings, distillation.iteration, self.models.clip("a")
        with self._timed("previews"):
            number = iteration // settings.output.preview_every
            particle, camera = number % settings.particles, outputs.preview_camera(settings, number)
            image = outputs.preview(distillation.particles[particle], camera)  # (1, 3, h, w)
            file = f"preview/{iteration:06d}.png"
            outputs.save_png(image[0], self.run.folder / file)
            likeness = float(clip.embed_images(image)[0] @ clip.embed_texts([self.parsed.prompt])[0])
        return Preview(file, iteration, particle, camera.azimuth_deg, likeness if math.isfinite(likeness) else None)

    def _save(self, distillation) -> int:
        with self._timed("checkpoints"), self.run.checkpoint(distillation.iteration) as folder:
            distillation.save(folder)
        return distillation.iteration

    def _make(self, distillation) -> Iterator[Event]:
        """A turntable, a mesh and scores of every particle; where one has no scores, no scores.json."""
        run, total, settings = self.run, self.run.request.total, self.run.request.settings
        finishing = self.ratio and self.ratio * eta.finishing_cost(settings) / settings.particles  # of one object
        filming = self.ratio and self.ratio * eta.filming_cost(settings)
        scored, unscored = [], None
        try:
            size = self.models.score_size
        except UNSCORED as error:
            size, unscored = 64, error
        for number, particle in enumerate(distillation.particles):
            studio = outputs.CachedViews(particle, settings, size)
            frames, count = [], settings.output.turntable_frames
            left = finishing and finishing * (settings.particles - number)
            try:
                with self._timed("turntables"):
                    for frame in studio.frames():
                        if len(frames) % math.ceil(count / FILM_NEWS) == 0:
                            rest = left and left - filming * len(frames) / count
                            yield Progress("filming", distillation.iteration, total, rest)
                        frames.append(frame)
                    turntable.write(frames, run.folder / f"turntable-{number}.mp4")
                yield Artefact("turntable", number, f"turntable-{number}.mp4")
            except TurntableError as error:
                (run.folder / f"turntable-{number}.mp4").unlink(missing_ok=True)  # one of an earlier session
                yield Warned(str(error))
            yield Progress("meshing", distillation.iteration, total, left and left - filming)
            try:
                with self._timed("meshes"):
                    outputs.save_mesh(particle, settings, run.folder / f"mesh-{number}.glb")
                yield Artefact("mesh", number, f"mesh-{number}.glb")
            except MeshError as error:
                (run.folder / f"mesh-{number}.glb").unlink(missing_ok=True)  # one of an earlier session
                yield Warned(str(error))
            if unscored is None:
                yield Progress("scoring", distillation.iteration, total)
                try:
                    with self._timed("scores"):
                        scored.append(outputs.scores_of(studio, self.parsed.prompt, self.models, self.parsed.has_front))
                except UNSCORED as error:
                    unscored = error
        if unscored is not None:
            (run.folder / "scores.json").unlink(missing_ok=True)  # one of an earlier session
            yield Warned(f"There are no scores. {unscored}")
            return
        scores = {"prompt": self.parsed.prompt, "objects": scored}
        run.write_json("scores.json", scores)
        yield Scored(scores)

    def _record(self, done: int) -> dict:
        """Everything that reproduces the run."""
        request = self.run.request
        return {
            "format": 1,
            "redream": __version__,
            "command": request.command,
            "prompt": request.prompt,
            "understood_as": self.parsed.prompt,
            "stack": self.stack.name,
            "settings": asdict(request.settings),
            "extra": request.extra,
            "assets": self.assets,
            "models": self.models.provenance(),
            "device": environment.device_name(self.models.device),
            "versions": environment.versions(),
            "done": done,
            "stopped": done < request.total,
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.timings.items()},
        }

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - start
