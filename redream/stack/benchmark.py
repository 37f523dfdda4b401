"""How long an iteration takes on this device, part by part, and why: FLOP, launches, waits, memory, fast paths.

The true loop runs, on a made-up asset. The whole is timed as it runs; the parts in further iterations, with the device
synchronised around each of them, so that they add up to a little more than the whole.
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
import trimesh

from redream.distillation.adaptation import CaptionedAsset
from redream.distillation.guidance import asset_loss
from redream.distillation.loop import Distillation
from redream.distillation.prior import Prior
from redream.scene import kernels
from redream.scene.assets import from_mesh
from redream.settings import DISTILLATION, MAX_ITERATIONS, WARM_UP, Settings
from redream.stack import environment
from redream.stack.architecture import on_meta
from redream.stack.flops import flop_of_parts
from redream.stack.probes import ADAPTATION, ORDER, WHOLE, Meter, OperationCounter, launches_of, probed

PROMPT, CAPTION = "a purple owl", "a red owl"
FIT_STEPS, FIT_SIZE, FIT_GRID_EVERY = 64, 64, 8  # of the field to the asset, so that its grid is as empty as in a run
VIEWS_ADAPTED = 6  # stored views for the adaptation: its steps are timed, not its preparation
UNTIMED = 4  # iterations before those that count: with and without delta denoising
COUNTED = 6  # iterations whose launches are counted
OCCUPIED = 0.11  # share of the occupancy grid's cells, of a field that nobody has fitted


@dataclass(frozen=True)
class FastPath:
    """Something that makes iterations fast, whether it is in use, and why (not)."""

    name: str
    on: bool
    reason: str


@dataclass(frozen=True)
class Part:
    """A part of an iteration, in the mean over iterations; "adaptation step": of one step."""

    part: str
    ms: float | None = None  # None: not timed
    tflop: float | None = None  # None: not counted
    launches: float | None = None  # of GPU kernels and graphs; on a CPU dispatched operations
    waits: float | None = None  # of the host for the GPU

    @property
    def tflop_per_s(self) -> float | None:
        return self.tflop / self.ms * 1000 if self.tflop and self.ms else None


@dataclass(frozen=True)
class Measurement:
    """The iterations at one resolution of the render."""

    resolution: int  # pixels
    parts: tuple[Part, ...]
    tflop: float  # of an iteration after the warm-up, in the mean over all
    tflop_without_delta: float  # and over those without delta denoising
    seconds: Mapping[str, float]  # of an iteration by stage, the warm-up's without adaptation steps; {}: not timed
    launches: float | None = None  # of an iteration after the warm-up
    waits: float | None = None
    to_host_bytes: float | None = None  # likewise; None where it cannot be counted
    occupied: float = OCCUPIED  # share of the occupancy grid's cells
    peak_gb: float | None = None  # 10⁹ bytes of GPU memory; on a CPU of the process

    def seconds_of(self, part: str) -> float:
        """Seconds of a part; 0 if there is no such part."""
        return next((p.ms / 1000 for p in self.parts if p.part == part and p.ms), 0.0)


def fast_paths(prior: Prior) -> list[FastPath]:
    """What could make iterations fast, and whether it does here. The one place to name a new fast path in."""
    cuda, dtype = torch.cuda.is_available(), prior.unet.dtype
    unfused = kernels.unavailable(prior.device)
    precision = "the U-Net's weights are in half precision" if dtype == torch.float16 else "half precision needs CUDA"
    not_compiled = prior.compile_error or "REDREAM_COMPILE=1 asks for it, on CUDA and not on ZeroGPU"
    return [
        FastPath("CUDA", cuda, torch.cuda.get_device_name() if cuda else "there is no CUDA device"),
        FastPath("half precision", dtype == torch.float16, precision),
        FastPath("fused kernels", not unfused, unfused or "the hash grid and rendering, by Triton"),
        FastPath("captured passes", prior.capture is not None, "CUDA graphs" if prior.capture else "graphs need CUDA"),
        FastPath("compiled U-Net", prior.is_compiled, "torch.compile" if prior.is_compiled else not_compiled),
    ]


def measure(
    prior: Prior,
    settings: Settings,
    resolution: int,
    iterations: int = 24,
    progress: Callable[[str], None] = lambda sentence: None,
) -> Measurement:
    """Time iterations at a resolution (pixels) and count what they do; `progress` gets what is done next.

    iterations: how many count; 24 hold every kind in its proportion
    """
    progress(f"{resolution} px: fitting a field to an asset")
    distillation = sample_distillation(prior, settings, resolution)
    _fit(distillation)
    if prior.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = {}
    for stage in (WARM_UP, DISTILLATION):
        progress(f"{resolution} px: {iterations} iterations of the {stage}")
        _go_to(distillation, stage)
        _iterate(distillation, UNTIMED)
        start = now(prior.device)
        _iterate(distillation, iterations)
        seconds[stage] = (now(prior.device) - start) / iterations
    peak = peak_gb(prior.device)
    progress(f"{resolution} px: {iterations} iterations, part by part")
    times = Meter(lambda: now(prior.device))
    with probed(distillation, times.around):
        _iterate(distillation, iterations)
    adapting = _seconds_of_adaptation(distillation, max(iterations // 8, 1))
    progress(f"{resolution} px: counting")
    launches, waits, to_host = _launches(distillation)
    occupied = float(distillation.particles[0].grid.mask.float().mean())
    counted = count(on_meta(prior), settings, resolution, occupied)
    tflop = {p.part: p.tflop for p in counted.parts}
    parts = [
        Part(
            part,
            1000 * times.totals[part] / iterations,
            tflop.get(part),
            launches[part] / COUNTED,
            None if waits is None else waits[part] / COUNTED,
        )
        for part in sorted(times.totals, key=ORDER.index)
    ]
    if adapting is not None:
        parts.append(Part(ADAPTATION, 1000 * adapting, tflop[ADAPTATION]))
    return Measurement(
        resolution,
        tuple(parts),
        counted.tflop,
        counted.tflop_without_delta,
        seconds,
        launches[WHOLE] / COUNTED,
        None if waits is None else waits[WHOLE] / COUNTED,
        None if to_host is None else to_host / COUNTED,
        occupied,
        peak,
    )


def count(meta_prior: Prior, settings: Settings, resolution: int, occupied: float = OCCUPIED) -> Measurement:
    """Count the TFLOP of the parts on meta tensors (`on_meta`, `random_prior`), and time nothing."""
    distillation, every = sample_distillation(meta_prior, settings, resolution), settings.distillation.delta_every
    share = 1 / every if every and distillation.assets and settings.initialise else 0.0  # of delta denoising
    plain, delta = flop_of_parts(distillation, resolution, occupied)
    tflop = {part: ((1 - share) * plain[part] + share * delta[part]) / 1e12 for part in plain}
    parts = tuple(Part(part, tflop=value) for part, value in tflop.items())
    adapting = plain.get(ADAPTATION, 0) / 1e12  # no part of an iteration
    total, without_delta = sum(tflop.values()) - adapting, sum(plain.values()) / 1e12 - adapting
    return Measurement(resolution, parts, total, without_delta, {}, occupied=occupied)


def seconds_at(measurements: Sequence[Measurement], stage: str, side: int) -> float | None:
    """Seconds of an iteration of a stage at a resolution in pixels, between the timed ones linear in the number of pixels;
    None beyond them."""
    timed = {m.resolution**2: m.seconds[stage] for m in sorted(measurements, key=lambda m: m.resolution) if m.seconds}
    if not timed or not min(timed) <= side**2 <= max(timed):
        return None
    return float(np.interp(side**2, list(timed), list(timed.values())))


def projected_seconds(settings: Settings, measurements: Sequence[Measurement]) -> float | None:
    """Seconds of all iterations of a run, adaptation included; None if it renders at other resolutions than between the
    timed ones. What comes before and after the iterations is not in it."""
    s = settings
    warmup = s.initialisation.warmup if s.uses_assets and s.initialise else 0.0
    adapts = s.uses_assets and s.adapt
    total = s.adaptation.steps * measurements[0].seconds_of(ADAPTATION) if adapts else 0.0
    for begin, end in pairwise(sorted({start for start, _ in s.rendering.resolutions} | {warmup, 1.0})):
        side = s.rendering.resolution_at(begin)
        seconds = seconds_at(measurements, WARM_UP if begin < warmup else DISTILLATION, side)
        if seconds is None:
            return None
        total += (end - begin) * s.iterations * s.particles * seconds
    return total


# A run in small


def sample_distillation(prior: Prior, settings: Settings, resolution: int) -> Distillation:
    """A distillation of the settings at one resolution, from `sample_asset`."""
    settings = settings.with_(
        iterations=MAX_ITERATIONS,  # so that all iterations that count are of one stage
        particles=1,
        rendering={"resolutions": ((0.0, resolution),)},
        adaptation={"views": min(settings.adaptation.views, VIEWS_ADAPTED)},
    )
    return Distillation(prior, settings, PROMPT, [sample_asset()])


def sample_asset() -> CaptionedAsset:
    """An asset that needs no library: a ball with a red face."""
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.45)
    colours = np.where(ball.vertices[:, :1] > 0.2, [[200, 40, 40, 255]], [[90, 90, 120, 255]])  # (v, 4)
    ball.visual.vertex_colors = colours.astype(np.uint8)
    return CaptionedAsset(from_mesh(ball), CAPTION)


def _fit(distillation: Distillation) -> None:
    """Fit the field to the asset by Eq. 3 alone, until its occupancy grid is as empty as that of a run."""
    (particle,), asset = distillation.particles, distillation.assets[0].asset
    generator = distillation.generators.device
    for step in range(1, FIT_STEPS + 1):
        camera, background, rendering = distillation.render_random_view(particle, FIT_SIZE)
        target = asset.render(camera, FIT_SIZE, background)
        particle.optimizer_step(asset_loss(rendering, *target, distillation.settings.initialisation, 0.0))
        if step % FIT_GRID_EVERY == 0:
            particle.grid.update(particle.field.density, generator)


def _go_to(distillation: Distillation, stage: str) -> None:
    """Go to the beginning of the warm-up, one adaptation step before its end so that none is due, or to the middle of the
    run, with all of them done."""
    distillation.iteration = 0 if stage == WARM_UP else distillation.total // 2
    if distillation.adaptation is not None:
        steps = distillation.settings.adaptation.steps
        distillation.adaptation.steps_done = steps - 1 if stage == WARM_UP else steps


def _iterate(distillation: Distillation, iterations: int) -> None:
    for _ in islice(distillation.steps(), iterations):
        pass


def _seconds_of_adaptation(distillation: Distillation, steps: int) -> float | None:
    """Seconds of a step of Eq. 5; None without adaptation."""
    if distillation.adaptation is None:
        return None
    device = distillation.prior.device
    distillation.adaptation.steps_done = 0
    distillation.adaptation.step()
    start = now(device)
    for _ in range(steps):
        distillation.adaptation.step()
    seconds = (now(device) - start) / steps
    distillation.adaptation.steps_done = distillation.settings.adaptation.steps  # else the loop would make up for them
    return seconds


def now(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_gb(device: torch.device) -> float | None:
    """The most memory so far, in GB (10⁹ bytes): of the GPU, on a CPU of the process; None if unknown."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else environment.peak_memory_gb()


def _launches(distillation: Distillation) -> tuple[Counter[str], Counter[str] | None, int | None]:
    """Of `COUNTED` iterations: launches by part and as a `WHOLE`, waits likewise, bytes to the host. On a CPU: operations."""
    if distillation.prior.device.type != "cuda":
        with OperationCounter() as operations, probed(distillation, (meter := Meter(lambda: operations.count)).around):
            _iterate(distillation, COUNTED)
        return meter.totals | Counter({WHOLE: operations.count}), None, None
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with (
        torch.profiler.profile(activities=activities) as profiler,
        probed(distillation, torch.profiler.record_function),
    ):
        _iterate(distillation, COUNTED)
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        return launches_of(json.loads(file.read_text(encoding="utf-8"))["traceEvents"])
