"""Iterations of a stack's preset on this device, as in a run: whether they work, how long they take, what is in use."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import torch

from redream.distillation.loop import Distillation, DivergenceError, Step, is_read
from redream.distillation.prior import Prior
from redream.settings import Settings
from redream.stack.benchmark import PROMPT, FastPath, fast_paths, now, peak_gb, sample_asset

UNTIMED = 4  # iterations at the beginning of each resolution, at most half of them: passes are captured there
OVERFLOWS = 0.05  # share of scores that may overflow in half precision


@dataclass(frozen=True)
class SelfTest:
    """What iterations came to."""

    iterations: int  # done
    seconds: float  # of everything
    ms: Mapping[int, float]  # milliseconds of an iteration, by resolution in pixels
    losses: Mapping[str, float]  # that were read last
    peak_gb: float | None  # 10⁹ bytes of GPU memory, on a CPU of the process; None: unknown
    fast_paths: Sequence[FastPath]
    faults: Sequence[str]  # a sentence for each; without any it is a pass


def self_test(prior: Prior, settings: Settings, progress: Callable[[str], None] = lambda sentence: None) -> SelfTest:
    """Make all iterations of the settings with one particle, on a made-up asset; `progress` gets what is done next.

    An error of the device, as when its memory runs out, is one of the faults.
    """
    settings, total = settings.with_(particles=1), settings.iterations
    if prior.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begin, ms, done, faults = time.perf_counter(), {}, [], []
    try:
        progress("preparing")
        distillation = Distillation(prior, settings, PROMPT, [sample_asset()])
        steps = distillation.steps()
        for pixels, group in groupby(range(total), lambda n: settings.rendering.resolution_at(n / total)):
            progress(f"{pixels} px: {(count := len(list(group)))} iterations")
            done += islice(steps, untimed := min(UNTIMED, count // 2))
            start = now(prior.device)
            done += islice(steps, count - untimed)
            ms[pixels] = 1000 * (now(prior.device) - start) / (count - untimed)
        faults += _faults(distillation, done)
    except torch.OutOfMemoryError:
        faults.append(f"The device's memory ran out after {len(done)} iterations: close other programs that use it.")
    except DivergenceError as error:
        faults.append(str(error))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        faults.append(f"The device reported an error after {len(done)} iterations: {reason}.")
    losses = next((step.losses for step in reversed(done) if step.losses), {})
    seconds = time.perf_counter() - begin
    return SelfTest(len(done), seconds, ms, losses, peak_gb(prior.device), fast_paths(prior), faults)


def _faults(distillation: Distillation, steps: Sequence[Step]) -> list[str]:
    """What is not finite after all iterations."""
    faults, overflows = [], sum(step.overflows for step in steps)
    if overflows > OVERFLOWS * len(steps):
        faults.append(f"{overflows} of {len(steps)} scores were not finite.")
    expected = {"score"} | ({"variational"} if distillation.variational is not None else set())
    last = next(step for step in reversed(steps) if is_read(step.iteration, distillation.total))
    faults += [f"The loss {name} is not finite at the end." for name in sorted(expected - set(last.losses))]
    if not all(p.isfinite().all() for p in distillation.particles[0].field.parameters()):
        faults.append("The object's values are not finite.")
    return faults
