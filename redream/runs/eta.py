"""How long a run takes: the parts its settings ask for, what each of them costs, and how fast this machine is.

Costs are seconds on one machine, so that only their proportions matter: what the parts that are done took tells what the
rest will take, and runs that were made here tell what the next one will take.
"""

import statistics
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from redream.runs.events import Started
from redream.runs.run import Run, RunError
from redream.settings import Settings

# Seconds on one core with the miniature. A view is a render of 64 × 64 rays of 48 samples.
START = 1.0  # look up and turn the assets
SCORE = 0.08  # an iteration's encoding, guided noise and their gradient
VIEW = 0.045  # a render with its gradient
VARIATIONAL = 0.095  # predict and learn by ζ
DELTA = 0.03  # the asset's noise, where delta denoising is on
TAUGHT = 0.031  # a picture of adaptation's batch
PREVIEW = 0.19
FRAME = 0.125  # a frame of the turntable, of 96 × 96 rays
MESH = 7.3  # of 96³ cells
SCORES = 1.3
SAMPLED = 0.12  # a picture of the prior in 3 steps
REMEMBERED = 5  # runs


def iteration_costs(settings: Settings, extra: int = 0) -> Float[np.ndarray, "n"]:
    """The cost of each iteration, over all particles in turn, with `extra` more for each of them."""
    s = settings
    own = np.arange((s.iterations + extra) * s.particles) // s.particles
    share = np.minimum(own / s.iterations, 1.0)
    view = VIEW * s.rendering.samples_per_ray / 48 * np.ones_like(share)
    for start, pixels in s.rendering.resolutions:
        view = np.where(share >= start, VIEW * s.rendering.samples_per_ray / 48 * (pixels / 64) ** 2, view)
    costs = SCORE + view + PREVIEW / s.output.preview_every
    if s.method != "sds":
        costs = costs + VARIATIONAL
    if s.uses_assets and s.initialise:
        costs = costs + (share < s.initialisation.warmup) * (s.initialisation.asset_steps - 1) * view
        if s.distillation.delta_every:
            costs = costs + (own % s.distillation.delta_every == 0) * DELTA
    if s.uses_assets and s.adapt:
        teaching = share < s.initialisation.warmup
        teaching[0] = True  # with τ = 0 all of it comes first
        costs = costs + teaching * (s.adaptation.steps * s.adaptation.batch * TAUGHT / teaching.sum())
    return costs


def filming_cost(settings: Settings) -> float:
    """The cost of one object's turntable."""
    s = settings
    return s.output.turntable_frames * FRAME * (s.output.turntable_rays / 96) ** 2 * s.rendering.samples_per_ray / 48


def finishing_cost(settings: Settings) -> float:
    """The cost of films, meshes and scores."""
    s = settings
    return s.particles * (filming_cost(s) + MESH * (s.output.mesh_resolution / 96) ** 2 + SCORES)


def cost(settings: Settings, extra: int = 0, begin: int = 0) -> float:
    """The cost of a run from its iteration `begin` on (0: from its start)."""
    start = START if settings.uses_assets else 0.0
    return start + float(iteration_costs(settings, extra)[begin:].sum()) + finishing_cost(settings)


@dataclass
class RuntimeEstimator:
    """How fast a stack is on a device: seconds per unit of cost of the latest runs, or at first of a few pictures."""

    stack: str
    device: str  # in words
    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    first: float | None = None  # what counts while no run is known

    def learn(self, run: Run) -> None:
        """Remember how long a run took, if it was made here and by one session from its start to its end."""
        try:
            record = run.read_json("record.json")
            seconds = sum(value for stage, value in record["seconds"].items() if stage != "loading")
            here = (record["stack"], record["device"]) == (self.stack, self.device)
            once = sum(isinstance(event, Started) for event in run.events()) == 1
            if here and once and record["done"] == run.request.total:
                self.ratios.append(seconds / cost(run.request.settings, run.request.extra))
        except (RunError, KeyError, TypeError, AttributeError):  # damaged, or one that broke off
            pass

    def measure(self, prior) -> None:
        """Time a picture of a `redream.distillation.prior.Prior`, as long as no run is known."""
        import torch

        words, generator = prior.embed([""]), torch.Generator().manual_seed(0)
        moments = []
        for _ in range(4):  # the first one is slower
            prior.sample(words, generator, steps=3)
            moments.append(time.perf_counter())
        self.first = float(np.diff(moments).min()) / SAMPLED

    def seconds(self, settings: Settings, extra: int = 0, begin: int = 0) -> float | None:
        """How long a run will take from its iteration `begin` on; None if nothing is known yet."""
        ratio = statistics.median(self.ratios) if self.ratios else self.first
        return None if ratio is None else ratio * cost(settings, extra, begin)
