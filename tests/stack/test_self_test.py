"""Iterations on this device pass with their figures, or a sentence says what failed."""

import pytest
import torch
from tiny_stack import TINY

from redream.distillation.loop import Distillation
from redream.stack.self_test import self_test

SETTINGS = TINY.with_(iterations=6, rendering={"resolutions": ((0.0, 16), (0.5, 24))})


def test_iterations_that_work_pass_with_the_figures_of_every_resolution(models):
    reported = []
    result = self_test(models.prior, SETTINGS, reported.append)
    assert result.faults == [] and result.iterations == 6
    assert list(result.ms) == [16, 24] and all(ms > 0 for ms in result.ms.values())
    assert result.peak_gb > 0 and sum(result.ms.values()) * 3 / 1000 < 2 * result.seconds
    assert {"score", "variational"} <= set(result.losses) and "24 px: 3 iterations" in reported
    assert "CUDA" in {path.name for path in result.fast_paths}


def test_scores_that_are_not_finite_fail(models, monkeypatch):
    real = models.prior.guided_noise
    monkeypatch.setattr(models.prior, "guided_noise", lambda *values: real(*values) * torch.nan)
    result = self_test(models.prior, SETTINGS)
    assert "6 of 6 scores were not finite." in result.faults
    assert "The loss score is not finite at the end." in result.faults


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "memory ran out after 2 iterations"),
        (
            RuntimeError("CUDA error: no kernel image\nmore"),
            "an error after 2 iterations: CUDA error: no kernel image.",
        ),
    ],
)
def test_an_error_of_the_device_is_a_fault(models, monkeypatch, error, sentence):
    real = Distillation.steps

    def steps(self):
        for step in real(self):
            yield step
            if step.iteration == 2:
                raise error

    monkeypatch.setattr(Distillation, "steps", steps)
    result = self_test(models.prior, SETTINGS)
    assert result.iterations == 2 and len(result.faults) == 1 and sentence in result.faults[0]
