"""Between two readings of the losses the loop waits for nothing: on a GPU every wait is made an error."""

from contextlib import contextmanager

import pytest
import torch
from tiny_stack import TINY

from redream.distillation.adaptation import CaptionedAsset
from redream.distillation.loop import Distillation, is_read
from redream.distillation.prior import Prior
from redream.scene.assets import load

ITERATIONS = 20
# In the first iterations of each stage passes are captured, kernels compiled and ω merged, once and for all. The others
# are with and without delta denoising, adaptation steps, and updates of the occupancy grid.
STEADY = {*range(4, 9), *range(14, ITERATIONS)}


@contextmanager
def waiting_is(mode: str):
    """Within it a wait for the GPU is an "error", or what it is by "default"; without a GPU there are none."""
    if not torch.cuda.is_available():
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize(
    "device, shared_noise",
    [
        ("cpu", False),
        *(pytest.param("cuda", shared, marks=pytest.mark.gpu) for shared in (False, True)),
    ],
)
def test_nothing_waits_for_the_device_but_the_reading_of_the_losses(tiny_stack, monkeypatch, device, shared_noise):
    reading, readings = Distillation._read_losses, []

    def read(distillation):
        readings.append(distillation.iteration)
        with waiting_is("default"):
            return reading(distillation)

    monkeypatch.setattr(Distillation, "_read_losses", read)
    settings = TINY.with_(iterations=ITERATIONS, adaptation={"steps": 20}, variational={"shared_noise": shared_noise})
    files = sorted((tiny_stack / "assets").glob("*.glb"))[:3]
    assets = [CaptionedAsset(load(file), "a red owl") for file in files]
    steps = Distillation(Prior.load(tiny_stack / "prior", device), settings, "a red owl", assets).steps()
    for iteration in range(ITERATIONS):
        with waiting_is("error" if iteration in STEADY else "default"):
            next(steps)
    assert readings == [i for i in range(1, ITERATIONS + 1) if is_read(i, ITERATIONS)]
