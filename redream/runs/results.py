"""The results of a run: of every particle a turntable, a mesh and scores.

What cannot be made is said in a sentence, and the rest is made.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from redream.hub import HubError
from redream.retrieval.clip import ClipError
from redream.runs import outputs
from redream.runs.eta import RESULTS, SessionClock
from redream.runs.events import Artefact, Event, Progress, Scored, Warned
from redream.runs.outputs import CachedViews, Renderable
from redream.runs.run import Run
from redream.runs.timing import StageTimes
from redream.scene import export, turntable
from redream.scene.mesh import MeshError
from redream.scene.turntable import TurntableError
from redream.scoring.metrics import MetricsError
from redream.stack.models import Models
from redream.stack.stack import StackError
from redream.stack.vocabulary import ParsedPrompt

NO_SHAPE = "Try another seed, more iterations, or ReDream with its initialisation."
CONTINUE = "Once that is mended, continue the run (python -m redream resume), which makes what is missing."
FILM_UPDATES = 10  # while a turntable is rendered
UNSCORED = (ClipError, HubError, MetricsError, StackError)  # why there are no scores: a run is worth keeping without


@dataclass
class Results:
    """Makes a run's results. An earlier session's files are replaced, or removed where they cannot be made again."""

    run: Run
    parsed: ParsedPrompt
    models: Models
    stop: Callable[[], bool]  # ends the encoding of a turntable
    clock: SessionClock
    times: StageTimes

    def make(self, particles: Sequence[Renderable], done: int, unscored: Exception | None) -> Iterator[Event]:
        """Make everything; if one particle cannot be scored, there is no scores.json.

        done: iterations, over all particles
        unscored: why there will be no scores, if that is known
        """
        run, total = self.run, self.run.request.total
        scored, size = [], 64
        if unscored is None:
            try:
                size = self.models.score_size
            except UNSCORED as error:
                unscored = error
        for number, particle in enumerate(particles):
            views = CachedViews(particle, run.request.settings, size)
            yield from self._make_turntable(views, number, done)
            if outputs.fills_its_box(particle, run.request.settings):
                yield Warned(f"{self._name(number)} fills its whole box: no shape was found. {NO_SHAPE}")
            yield from self._make_mesh(particle, number, done)
            if unscored is None:
                yield Progress("scoring", done, total)
                try:
                    with self.times.measure("scores"):
                        scored.append(outputs.scores_of(views, self.parsed.prompt, self.models, self.parsed.has_front))
                except UNSCORED as error:
                    unscored = error
        for sentence in self.models.unavailable.values():
            yield Warned(f"A-LPIPS lacks one of its networks. {sentence}")
        if unscored is not None:
            (run.folder / "scores.json").unlink(missing_ok=True)
            yield Warned(f"There are no scores. {unscored} {CONTINUE}")
            return
        scores = {"prompt": self.parsed.prompt, "objects": scored}
        run.write_json("scores.json", scores)
        yield Scored(scores)

    def _make_turntable(self, views: CachedViews, number: int, done: int) -> Iterator[Event]:
        """Render and write the turntable of one particle; that of the first also as the gallery's sprites."""
        run, count, frames = self.run, self.run.request.settings.output.turntable_frames, []
        file = run.folder / f"turntable-{number}.mp4"
        try:
            with self.times.measure("turntables"):
                for frame in views.frames():
                    if len(frames) % math.ceil(count / FILM_UPDATES) == 0:
                        left = self._seconds_left(number, filmed=len(frames) / count)
                        yield Progress("filming", done, run.request.total, left)
                    frames.append(frame)
                if number == 0:
                    outputs.save_sprites(frames, run.folder / "sprite.jpg")
                turntable.write(frames, file, stop=self.stop)
            yield Artefact("turntable", number, file.name)
        except TurntableError as error:
            file.unlink(missing_ok=True)
            yield Warned(f"There is no turntable. {error} {CONTINUE}")

    def _make_mesh(self, particle: Renderable, number: int, done: int) -> Iterator[Event]:
        run, file = self.run, self.run.folder / f"mesh-{number}.glb"
        yield Progress("meshing", done, run.request.total, self._seconds_left(number, filmed=1.0))
        export.remove_exports(file)
        try:
            with self.times.measure("meshes"):
                outputs.save_mesh(particle, run.request.settings, file)
            yield Artefact("mesh", number, file.name)
        except MeshError as error:
            file.unlink(missing_ok=True)
            yield Warned(f"{self._name(number)} has no mesh. {error} {NO_SHAPE}")

    def _name(self, number: int) -> str:
        particles = self.run.request.settings.particles
        return "The object" if particles == 1 else f"Object {number + 1} of {particles}"

    def _seconds_left(self, number: int, filmed: float) -> float | None:
        """Estimate the seconds left while results of particle `number` are made; `filmed`: how much of its turntable is
        rendered, 0 to 1."""
        particles = self.run.request.settings.particles
        stages = [self.clock.finishing(stage) for stage in RESULTS]  # of all particles
        return None if None in stages else (sum(stages) * (particles - number) - stages[0] * filmed) / particles
