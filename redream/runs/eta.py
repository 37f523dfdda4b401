"""The estimated time of a run (ETA): learned from earlier runs of the same stack on the same device.

A run is split into parts: iterations by method, stage and resolution ("redream/warm-up/64"), and the stages around them
("retrieval", "orientation", "turntables", "meshes", "scores"). A part takes

    seconds = work × rate

`work` is the amount of it that the settings ask for, in units of about one pass of an image through the U-Net; the rate is
in seconds per unit. Each earlier run gives a rate of each of its parts; the median over the latest runs counts. A part
that no run has had is scaled from the others: it gets the rate of whole runs. So the units below, which are proportions
measured with the miniature on a CPU, matter only for what has not been seen on this device. A benchmark (`Benchmarked`)
counts as a run before all others.
"""

import json
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from redream.files import replacing, why_not_written
from redream.runs.run import Run, RunError, runs_folder
from redream.settings import DISTILLATION, METHODS, PRESETS, WARM_UP, Settings
from redream.stack import environment

HISTORY_RUNS = 5  # that rates are learned from
SHORT_BENCHMARK = 6  # iterations of each stage and resolution
RECENT = 20  # iterations of a session that its own rates come from

# Units of work of an iteration
SCORE = 2.7  # guided noise prediction, encoding, and the gradient through it
RENDER = 1.5  # 64 × 64 rays of 48 samples, with their gradient
VARIATIONAL = 3.2  # prediction and training of ζ
DELTA = 1.0  # noise prediction for the asset
ADAPTATION = 1.0  # an image of the adaptation's batch
PREVIEW = 6.0
# and of the other stages
RETRIEVAL, ORIENTATION = 5.0, 6.0  # an asset
FRAME = 4.0  # of the turntable, 96 × 96 rays of 48 samples
MESH = 240.0  # 96³ samples
SCORES = 43.0
SAMPLE = 4.0  # an image of the prior in 3 steps

RESULTS = ("turntables", "meshes", "scores")  # the stages after the iterations
RATE_OF_RUNS = "run"  # the key of the rate over all parts of a run


class Iterations:
    """The iterations of a run, over all particles in turn, by part. `extra`: further iterations per particle."""

    def __init__(self, settings: Settings, extra: int = 0) -> None:
        s = settings
        of_particle = np.arange((s.iterations + extra) * s.particles) // s.particles
        progress = np.minimum(of_particle / s.iterations, 1.0)
        pixels = np.zeros(len(progress), int)
        for start, side in s.rendering.resolutions:
            pixels[progress >= start] = side
        warming_up = (progress < s.initialisation.warmup) & s.uses_assets
        codes, self._indices = np.unique(2 * pixels + warming_up, return_inverse=True)
        kinds = [(WARM_UP if code % 2 else DISTILLATION, int(code) // 2) for code in codes]
        self._parts = [f"{s.method}/{stage}/{side}" for stage, side in kinds]
        adapted = int(warming_up.sum()) or len(progress)  # without a warm-up the adaptation is spread over all of them
        self.work = {  # units of work of one iteration
            part: _iteration_work(s, stage, side, adapted)
            for part, (stage, side) in zip(self._parts, kinds, strict=True)
        }

    def part(self, iteration: int) -> str:
        """The part of an iteration (1, 2, …)."""
        return self._parts[self._indices[iteration - 1]]

    def counts(self, begin: int = 0) -> dict[str, int]:
        """How many iterations of each part come after the first `begin` ones."""
        counts = np.bincount(self._indices[begin:], minlength=len(self._parts)).tolist()
        return {part: count for part, count in zip(self._parts, counts, strict=True) if count}


def _iteration_work(settings: Settings, stage: str, pixels: int, adapted: int) -> float:
    """Units of work of one iteration, in the mean; `adapted`: how many iterations the adaptation is spread over."""
    s = settings
    render = RENDER * s.rendering.samples_per_ray / 48 * (pixels / 64) ** 2
    work = SCORE + render + PREVIEW / s.output.preview_every
    if s.is_variational:
        work += VARIATIONAL
    if s.uses_assets and s.initialise:
        if stage == WARM_UP:
            work += (s.initialisation.asset_steps - 1) * render
        if s.distillation.delta_every:
            work += DELTA / s.distillation.delta_every
    if s.uses_assets and s.adapt and (stage == WARM_UP or not s.initialisation.warmup):
        work += s.adaptation.steps * s.adaptation.batch * ADAPTATION / adapted
    return work


def work_of_stages(settings: Settings) -> dict[str, float]:
    """Units of work of the stages before and after the iterations."""
    s = settings
    assets = s.retrieval.assets if s.uses_assets else 0
    frame = FRAME * (s.output.turntable_rays / 96) ** 2 * s.rendering.samples_per_ray / 48
    return {
        "retrieval": assets * RETRIEVAL,
        "orientation": assets * ORIENTATION,
        "turntables": s.particles * s.output.turntable_frames * frame,
        "meshes": s.particles * MESH * (s.output.mesh_resolution / 96) ** 2,
        "scores": s.particles * SCORES,
    }


def rates_of(record: Mapping, settings: Settings, extra: int = 0) -> dict[str, float]:
    """Seconds per unit of work of each part that a record.json has the time of, and of all of them together.

    Raises `KeyError` or `TypeError` for a record without times.
    """
    iterations = Iterations(settings, extra)
    counts = iterations.counts()
    work = {part: counts[part] * iterations.work[part] for part in counts} | work_of_stages(settings)
    seconds = {part: value * counts[part] for part, value in record["seconds_per_iteration"].items()}
    seconds |= {stage: value for stage, value in record["seconds"].items() if work.get(stage)}
    rates = {part: value / work[part] for part, value in seconds.items()}
    return rates | {RATE_OF_RUNS: sum(seconds.values()) / sum(work[part] for part in seconds)}


@dataclass
class RuntimeEstimator:
    """Estimates the seconds that runs of a stack take on a device; it learns from runs that were made there."""

    stack: str
    device: str  # as `environment.device_name` says it
    runs: deque[dict[str, float]] = field(default_factory=lambda: deque(maxlen=HISTORY_RUNS))  # the rates of each
    measured: float | None = None  # seconds per unit of work, while no run is known

    @staticmethod
    def of_latest_runs(stack: str, device: str) -> "RuntimeEstimator":
        """An estimator that has learned from the stack's benchmark, and the runs under `runs_folder()` that ended last."""
        estimator = RuntimeEstimator(stack, device)
        if (benchmarked := Benchmarked.read(stack)) and benchmarked.device == device:
            estimator.runs.append(benchmarked.rates())
        records = sorted(runs_folder().glob("run-*/record.json"), key=_written)
        for record in records[-HISTORY_RUNS:]:
            with suppress(RunError, OSError):
                estimator.learn(Run.open(record.parent))
        return estimator

    @staticmethod
    def of_device(models, progress: Callable[[str], None]) -> "RuntimeEstimator":
        """As `of_latest_runs`, for the stack and device of `Models`; where nothing is known, after a short benchmark, which
        is stored if it can be, and tells `progress` what it does."""
        device, stack = environment.device_name(models.device), models.stack
        if not (estimator := RuntimeEstimator.of_latest_runs(stack.name, device)).runs:
            from redream.stack.benchmark import measure

            settings = PRESETS[stack.preset]["redream"]
            sides = sorted({settings.rendering.resolutions[0][1], settings.rendering.resolutions[-1][1]})
            at = [measure(models.prior, settings, side, SHORT_BENCHMARK, progress) for side in sides]
            benchmarked = Benchmarked.of(stack.name, device, stack.preset, at)
            estimator.runs.append(benchmarked.rates())
            with suppress(RunError):  # the run says it, unless it has a folder elsewhere
                benchmarked.store()
        return estimator

    def learn(self, run: Run) -> None:
        """Learn the rates of a run; those of another stack or device, and those without times, are ignored."""
        with suppress(RunError, KeyError, TypeError, AttributeError, ZeroDivisionError):  # malformed, or it broke off
            record = run.read_json("record.json")
            here = (record["stack"], record["device"]) == (self.stack, self.device)
            if here and record["seconds_per_iteration"]:  # else it was stopped before its first iteration
                self.runs.append(rates_of(record, run.request.settings, run.request.extra))

    def measure(self, prior) -> None:
        """Time samples of a `redream.distillation.prior.Prior`: their rate counts while no run is known."""
        import torch

        embedding, generator = prior.embed([""]), torch.Generator().manual_seed(0)
        moments = []
        for _ in range(4):  # the first one is slower
            prior.sample(embedding, generator, steps=3)
            moments.append(time.perf_counter())
        self.measured = float(np.diff(moments).min()) / SAMPLE

    def rate(self, part: str) -> float | None:
        """Seconds per unit of work of a part; None if nothing is known."""
        known = [rates[part] for rates in self.runs if part in rates] or [rates[RATE_OF_RUNS] for rates in self.runs]
        return statistics.median(known) if known else self.measured

    def seconds(self, settings: Settings, extra: int = 0, begin: int = 0) -> float | None:
        """Estimate the seconds of a run from its iteration `begin` on; None if nothing is known."""
        iterations = Iterations(settings, extra)
        work = {part: count * iterations.work[part] for part, count in iterations.counts(begin).items()}
        work |= work_of_stages(settings)
        rates = {part: self.rate(part) for part in work}
        return None if None in rates.values() else sum(work[part] * rates[part] for part in work)


@dataclass(frozen=True)
class Benchmarked:
    """What a benchmark of a stack measured, stored under `runs_folder()`."""

    stack: str
    device: str  # as `environment.device_name` says it
    preset: str
    seconds_per_iteration: dict[str, float]  # by part, as in a record.json; of every method

    @staticmethod
    def of(stack: str, device: str, preset: str, measurements: Sequence) -> "Benchmarked":
        """Of a list of `redream.stack.benchmark.Measurement`, at the resolutions of the preset between theirs."""
        from redream.stack.benchmark import seconds_at
        from redream.stack.probes import ADAPTATION

        settings, known = PRESETS[preset]["redream"], {}
        steps_due = settings.adaptation.steps / max(settings.initialisation.warmup * settings.iterations, 1)
        for _, side in settings.rendering.resolutions:
            if (seconds := seconds_at(measurements, DISTILLATION, side)) is not None:
                known |= {f"{method}/{DISTILLATION}/{side}": seconds for method in METHODS}  # others: at most
                adapting = steps_due * measurements[0].seconds_of(ADAPTATION)
                known[f"redream/{WARM_UP}/{side}"] = seconds_at(measurements, WARM_UP, side) + adapting
        return Benchmarked(stack, device, preset, known)

    @staticmethod
    def read(stack: str) -> "Benchmarked | None":
        """The stored benchmark of a stack; None if there is none that can be read."""
        try:
            values = Benchmarked(**json.loads(_benchmark_file(stack).read_text(encoding="utf-8")))
            return values if values.rates() else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def store(self) -> None:
        """Store it, instead of an earlier one of the stack. Raises `RunError` if the folder of all runs cannot be written to."""
        try:
            runs_folder().mkdir(parents=True, exist_ok=True)
            with replacing(_benchmark_file(self.stack)) as file:
                file.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")
        except OSError as error:
            raise RunError(
                f"{why_not_written(runs_folder(), error)}; set REDREAM_RUNS to a folder of yours."
            ) from error

    def rates(self) -> dict[str, float]:
        """Seconds per unit of work of each part, and the least of them for what was not measured."""
        rates, by_method = {}, PRESETS[self.preset]
        for part, seconds in self.seconds_per_iteration.items():
            method, stage, side = part.rsplit("/", 2)
            settings = by_method[method]
            adapted = max(round(settings.initialisation.warmup * settings.iterations), 1)
            rates[part] = seconds / _iteration_work(settings, stage, int(side), adapted)
        return rates | {RATE_OF_RUNS: min(rates.values())} if rates else {}  # other stages mostly render


def _written(file: Path) -> float:
    """When a file was last written; 0 if it was removed meanwhile."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _benchmark_file(stack: str) -> Path:
    return runs_folder() / f"benchmark-{stack}.json"


class SessionClock:
    """The time left in one session: iterations at its own recent rates, the stages after them at those learned before."""

    def __init__(self, settings: Settings, extra: int, learned: RuntimeEstimator) -> None:
        self._learned, self._stages = learned, work_of_stages(settings)
        self._iterations = Iterations(settings, extra)
        self._total: Counter[str] = Counter()  # seconds of all iterations by part, and
        self._count: Counter[str] = Counter()  # how many they were
        self._recent: dict[str, deque[float]] = {}  # seconds of the latest ones

    def add(self, iteration: int, seconds: float) -> None:
        """Add the time that an iteration (1, 2, …) took."""
        part = self._iterations.part(iteration)
        self._total[part] += seconds
        self._count[part] += 1
        self._recent.setdefault(part, deque(maxlen=RECENT)).append(seconds)

    @property
    def seconds_per_iteration(self) -> dict[str, float]:
        """The mean of each part, for record.json."""
        return {part: self._total[part] / count for part, count in self._count.items()}

    def seconds_left(self, done: int) -> float | None:
        """Estimate the seconds until everything is made, after `done` iterations; None if unknown."""
        left = [self._of_iterations(part, count) for part, count in self._iterations.counts(done).items()]
        left += map(self.finishing, RESULTS)
        return None if None in left else sum(left)

    def finishing(self, stage: str) -> float | None:
        """Estimate the seconds of one of `RESULTS`, of all particles; None if unknown."""
        rate = self._rate(stage)
        return None if rate is None else self._stages[stage] * rate

    def _of_iterations(self, part: str, count: int) -> float | None:
        if part in self._recent:
            return count * statistics.fmean(self._recent[part])
        rate = self._rate(part)
        return None if rate is None else count * self._iterations.work[part] * rate

    def _rate(self, part: str) -> float | None:
        """Seconds per unit of work of a part that this session has not reached: the learned rate, else that of its latest
        iterations; None before the first one."""
        if self._learned.runs:
            return self._learned.rate(part)
        work = sum(self._iterations.work[part] * len(recent) for part, recent in self._recent.items())
        return sum(map(sum, self._recent.values())) / work if work else None
