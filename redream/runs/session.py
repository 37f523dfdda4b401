"""One call's work on a run, from the first event to the last.

prompt → assets → orientation → (adaptation ‖ warm-up) → distillation → turntables, meshes, scores, record
"""

import math
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from redream import __version__
from redream.files import read_json
from redream.retrieval.fetch import FetchProgress, FetchStopped
from redream.retrieval.licences import attribution
from redream.retrieval.orientation import Alignment
from redream.runs import outputs, retrieved
from redream.runs.eta import RESULTS, RuntimeEstimator, SessionClock
from redream.runs.events import (
    Event,
    Fetching,
    Finished,
    Oriented,
    Paused,
    Preview,
    Progress,
    Retrieved,
    Started,
    Warned,
)
from redream.runs.results import UNSCORED, Results
from redream.runs.retrieved import RetrievedAsset
from redream.runs.run import Run, RunError
from redream.runs.timing import StageTimes
from redream.runs.upgrade import FORMAT
from redream.stack import environment
from redream.stack.fetching import SetupStopped
from redream.stack.models import Models
from redream.stack.stack import SCORING_ENTRIES, Stack
from redream.stack.vocabulary import ParsedPrompt

T = TypeVar("T")
ALIGNMENT = ("yaw_deg", "margin", "clear")  # what orientation.json keeps of an asset's `Alignment`
# Models that chose and oriented the assets: a later session may load none of them.
ORIENTED_BY = ("index", "own library", "clips.retrieval")


def is_previewed(iteration: int, every: int) -> bool:
    """Whether an iteration (1, 2, …) has a preview: every multiple, and before the first one the powers of two, when most
    changes."""
    return iteration % every == 0 or (iteration < every and iteration.bit_count() == 1)


@dataclass
class Session:
    """What one call of `generate` or `resume` does; a run that is resumed has several."""

    run: Run
    stack: Stack
    parsed: ParsedPrompt
    models: Models
    stop: Callable[[], bool]
    deadline: float = math.inf  # of time.monotonic(): the session pauses before it, at a checkpoint
    uploads_validated: bool = False  # and stored by this call; a resumed run's folder may have been changed since
    assets: list[dict] = field(default_factory=list)  # for the record: retrieved.json's entries and their orientation
    oriented_by: dict[str, dict] = field(default_factory=dict)  # for the record: provenance of `ORIENTED_BY`
    times: StageTimes = field(default_factory=StageTimes)
    unscored: Exception | None = None  # why there will be no scores
    clock: SessionClock = field(init=False)

    def events(self) -> Iterator[Event]:
        """All events, in order. Raises `RunError` at the first one if another program works on the run."""
        with self.run.working():
            yield from self._events()

    def _events(self) -> Iterator[Event]:
        run, settings, prompt = self.run, self.run.request.settings, self.parsed.prompt
        checkpoints = run.checkpoints()
        done, total = int(checkpoints[-1].name) if checkpoints else 0, run.request.total
        yield Started(str(run.folder), prompt, settings, done, total)
        for sentence in self.parsed.warnings:
            yield Warned(sentence)
        retrieved_assets: list[RetrievedAsset] = []
        try:
            if settings.uses_assets:
                yield from self._fetch_models("index", "clips.retrieval")
                yield from self._retrieve(retrieved_assets)
                yield from self._orient(retrieved_assets)
            if self._time_is_over():  # a session that only prepares the run
                yield Finished(stopped=True) if self.stop() and not done else Paused()
                return
            yield Progress("loading", done, total)
            yield from self._fetch_models("prior")
            try:
                yield from self._fetch_models(*SCORING_ENTRIES)
            except UNSCORED as error:
                self.unscored = error
                yield Warned(f"There will be no scores. {error}")
        except (FetchStopped, SetupStopped):  # there is nothing to make results of; a resumed run fetches again
            yield Finished(stopped=True)
            return

        with self.times.measure("loading"):
            from redream.distillation.loop import Distillation  # takes seconds: by now the assets are on the page

            captioned = [asset.captioned for asset in retrieved_assets]
            prior = self.models.prior
            self._require_same_prior()
            distillation = Distillation(prior, settings, prompt, captioned)
            yield from self._load(distillation, checkpoints)
            distillation.store_views()
        yield from self._distil(distillation)
        done, before = distillation.iteration, done
        halfway = done < total and not self.stop()
        if self._time_is_over(self._seconds_of_results()) and (halfway or done > before):
            if done < total:  # a record of all iterations would say that there are results
                run.write_json("record.json", self._record(done))
            yield Paused()
            return
        if done:  # else there is nothing to make results of
            results = Results(run, self.parsed, self.models, self.stop, self.clock, self.times)
            yield from results.make(distillation.particles, done, self.unscored)
        run.write_json("record.json", self._record(done))
        yield Finished(stopped=done < total)

    def _fetch_models(self, *names: str) -> Iterator[Fetching]:
        """Bring the files of models here, by their names in stack.json, unless they are loaded. Raises `SetupStopped`, and as
        `redream.stack.fetching.fetching`."""
        for name in names:
            for progress in self.models.fetching(name, self.stop):
                if progress.total:
                    yield Fetching(progress.done, progress.total, name)

    def _retrieve(self, assets: list[RetrievedAsset]) -> Iterator[Event]:
        """Fill `assets` with those named by uid and the uploaded ones, those of the first session, or the best hits."""
        run, prompt, warnings = self.run, self.parsed.prompt, []
        with self.times.measure("retrieval"):
            if run.request.uids:
                named = retrieved.by_uid(run.request.uids, prompt, self.models, self.stop, self._stop_reading)
                assets += yield from self._fetch(named)
            if run.request.assets:
                assets += retrieved.from_upload(
                    run.request.assets, run.folder, prompt, self.models, self.uploads_validated, self._stop_reading
                )
            if not assets:
                best, warnings = yield from self._fetch(self._best())
                assets += best
            entries = [asset.entry for asset in assets]
            self._require_same_assets(entries)
            run.write_json("retrieved.json", {"prompt": run.request.prompt, "assets": entries})
            for number, asset in enumerate(assets):
                self._save_strip(asset, f"asset-{number}.png")
        for sentence in warnings:
            yield Warned(sentence)
        yield Retrieved(tuple(entries), tuple(f"asset-{number}.png" for number in range(len(assets))))

    def _best(self) -> Generator[FetchProgress, None, tuple[list[RetrievedAsset], list[str]]]:
        """The assets of the run's first session, else the best hits; and sentences on those that are left out."""
        request, models, stop = self.run.request, self.models, self.stop
        if (self.run.folder / "retrieved.json").is_file():
            entries = self.run.read_json("retrieved.json")["assets"]
            return (yield from retrieved.reload(entries, models, stop, self._stop_reading)), []
        search = retrieved.searching(self.parsed.prompt, models, request.settings, stop, request.commercial_use)
        return (yield from search)

    def _stop_reading(self) -> bool:
        """Whether to stop before the assets are read: not if there are iterations, whose results are made with them."""
        return self.stop() and not self.run.checkpoints()

    @staticmethod
    def _fetch(retrieval: Generator[FetchProgress, None, T]) -> Generator[Fetching, None, T]:
        """Return what a retrieval returns, with the progress of its downloads as events."""
        while True:
            try:
                progress = next(retrieval)
            except StopIteration as end:
                return end.value
            yield Fetching(progress.received, progress.size)

    def _orient(self, assets: list[RetrievedAsset]) -> Iterator[Event]:
        """Replace each asset by the same with its front at +x, which the run's first session has found."""
        settings, known = self.run.request.settings, self._known_alignments()
        for number, asset in enumerate(list(assets)):
            with self.times.measure("orientation"):
                oriented, alignment = retrieved.oriented(asset, self.models, settings, known.get(number))
                strip = f"asset-{number}-turned.png"
                self._save_strip(oriented, strip)
            assets[number] = oriented
            self.assets.append(asset.entry | asdict(alignment))
            yield Oriented(number, alignment.yaw_deg, alignment.margin, alignment.clear, strip)
        provenance = self.models.provenance()
        self.oriented_by |= {name: provenance[name] for name in ORIENTED_BY if name in provenance}
        alignments = [{key: a[key] for key in ALIGNMENT} for a in self.assets]
        self.run.write_json("orientation.json", {"assets": alignments, "models": self.oriented_by})

    def _known_alignments(self) -> dict[int, Alignment]:
        """How an earlier session oriented the assets, by their places; {} if none did. Its models are kept for the record."""
        if not (self.run.folder / "orientation.json").is_file():
            return {}
        try:
            stored = self.run.read_json("orientation.json")
            self.oriented_by = dict(stored.get("models", {}))  # earlier versions stored none
            return {
                n: Alignment(float(a["yaw_deg"]), float(a["margin"]), bool(a["clear"]))
                for n, a in enumerate(stored["assets"])
            }
        except (RunError, KeyError, TypeError, ValueError):  # malformed: the fronts are found anew
            return {}

    def _save_strip(self, asset: RetrievedAsset, name: str) -> None:
        """Write an asset's views, unless an earlier session has."""
        if not (self.run.folder / name).is_file():
            outputs.save_strip(asset.asset, self.run.request.settings, self.run.folder / name)

    def _require_same_assets(self, entries: list[dict]) -> None:
        """Raise `RunError` if the library has another file now for an asset that the run began with.

        Earlier versions stored no hashes, and uploads have none.
        """
        began = read_json(self.run.folder / "retrieved.json") or {"assets": []}
        hashes = {asset["uid"]: asset["sha256"] for asset in began["assets"] if "sha256" in asset}
        for entry in entries:
            if entry.get("sha256") != hashes.get(entry["uid"], entry.get("sha256")):
                raise RunError(
                    f"The library's asset “{entry['caption']}” ({entry['uid']}) is another file than when this run began. "
                    "Restore it, or start a new run."
                )

    def _require_same_prior(self) -> None:
        """Raise `RunError` if the run began with another prior: its checkpoints would be continued by a different score."""
        origin = self.models.origins["prior"]
        if not (self.run.folder / "prior.json").is_file():
            self.run.write_json("prior.json", origin)
            return
        began = self.run.read_json("prior.json")
        known = began.get("revision"), origin["revision"]
        if began.get("files") != origin["files"] or (all(known) and known[0] != known[1]):
            was = " at ".join(filter(None, (began.get("source"), began.get("revision"))))
            raise RunError(
                f"This run began with another prior ({was}), whose files are different now. Restore them, or start a new run."
            )

    def _load(self, distillation, checkpoints: list[Path]) -> Iterator[Event]:
        """Continue from the last checkpoint that is intact. Raises `CheckpointError`, and changes no file, if none is."""
        from redream.distillation.checkpoint import CheckpointError

        unreadable = []
        for checkpoint in reversed(checkpoints):
            try:
                distillation.load(checkpoint)
                break
            except CheckpointError:
                unreadable.append(checkpoint)
                if len(unreadable) == len(checkpoints):
                    raise
        for checkpoint in unreadable:
            aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)
            at, instead = int(checkpoint.name), distillation.iteration
            yield Warned(f"The checkpoint of iteration {at} is damaged; the run goes on from iteration {instead}.")

    def _distil(self, distillation) -> Iterator[Event]:
        """Iterate, with previews and checkpoints, until all is done, it is stopped or its time is over; the last state is
        always saved."""
        request, saved = self.run.request, distillation.iteration
        settings = request.settings
        clip, overflowed, skipped = None, 0, 0
        learned = RuntimeEstimator.of_latest_runs(self.stack.name, self.models.device_name)
        self.clock = SessionClock(settings, request.extra, learned)
        steps, last = distillation.steps(request.extra, self._ends), time.perf_counter()
        while not self._ends():
            with self.times.measure("distillation"):
                step = next(steps, None)
            if step is None:
                break
            done, now = step.iteration, time.perf_counter()
            self.clock.add(done, now - last)  # with the last one's preview and checkpoint
            last = now
            yield Progress(step.stage, done, step.total, self.clock.seconds_left(done), step.losses)
            overflowed, skipped = overflowed + step.overflows, skipped + step.skipped
            if is_previewed(done, settings.output.preview_every):
                if clip is None and self.unscored is None:
                    try:
                        clip = self.models.clip("a")
                    except UNSCORED as error:
                        self.unscored = error
                        yield Warned(f"Previews have no score. {error}")
                yield self._preview(distillation, clip)
            if done % settings.output.checkpoint_every == 0:
                saved = self._save(distillation)
        if saved < distillation.iteration:
            self._save(distillation)
        if overflowed:
            yield Warned(f"Iterations whose score was not a number, and counted as zero: {overflowed}.")
        if skipped:
            yield Warned(f"Steps of the object that were skipped, as their gradients were not numbers: {skipped}.")

    def _preview(self, distillation, clip) -> Preview:
        """Render a preview; without a CLIP (None) it has no score."""
        settings, iteration = self.run.request.settings, distillation.iteration
        with self.times.measure("previews"):
            number = iteration // settings.output.preview_every
            particle, camera = number % settings.particles, outputs.preview_camera(settings, number)
            image = outputs.preview(distillation.particles[particle], camera)  # (1, 3, h, w)
            file = f"preview/{iteration:06d}.png"
            outputs.save_png(image[0], self.run.folder / file)
            score = float(clip.embed_images(image)[0] @ clip.embed_texts([self.parsed.prompt])[0]) if clip else math.nan
        return Preview(file, iteration, particle, camera.azimuth_deg, score if math.isfinite(score) else None)

    def _save(self, distillation) -> int:
        """Save a checkpoint; return its iteration."""
        with self.times.measure("checkpoints"), self.run.checkpoint(distillation.iteration) as folder:
            distillation.save(folder)
        return distillation.iteration

    def _ends(self) -> bool:
        return self.stop() or self._time_is_over()

    def _time_is_over(self, seconds: float = 0.0) -> bool:
        """Whether what takes so long would end after the deadline."""
        return time.monotonic() + seconds >= self.deadline

    def _seconds_of_results(self) -> float:
        """Estimate the seconds that the results take; 0 if unknown."""
        return sum(self.clock.finishing(stage) or 0.0 for stage in RESULTS)

    def _record(self, done: int) -> dict:
        """Everything that reproduces the run, and how long its parts took in this session."""
        request = self.run.request
        per_iteration = self.clock.seconds_per_iteration
        return {
            "format": FORMAT,
            "redream": __version__,
            "command": request.command,
            "prompt": request.prompt,
            "understood_as": self.parsed.prompt,
            "stack": self.stack.name,
            "settings": asdict(request.settings),
            "extra": request.extra,
            "assets": self.assets,
            "attribution": attribution(self.assets),
            "models": dict(sorted((self.oriented_by | self.models.provenance()).items())),
            "device": self.models.device_name,
            "versions": environment.versions(),
            "done": done,
            "stopped": done < request.total,
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.times.seconds.items()},
            "seconds_per_iteration": {part: round(seconds, 6) for part, seconds in per_iteration.items()},
        }
