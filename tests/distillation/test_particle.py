"""A particle's optimizer: learning rates that follow the score, and a relative epsilon."""

import pytest
import torch
from tiny_stack import TINY

from redream.distillation.particle import RATE_FACTORS, Particle, set_adam_epsilon


def test_learning_rates_follow_the_square_of_the_score_rms_within_limits():
    particle = Particle(TINY.with_(distillation={"score_rms_reference": 0.1}), torch.Generator(), torch.device("cpu"))
    plain = Particle(TINY.with_(distillation={"score_rms_reference": 0.0}), torch.Generator(), torch.device("cpu"))

    def factor(score_rms, progress=0.5):
        for one in (particle, plain):
            one.set_learning_rates(progress, score_rms)
        rates = [[group["lr"] for group in one.optimizer.param_groups] for one in (particle, plain)]
        (same,) = {round(a / b, 6) for a, b in zip(*rates, strict=True)}
        return same

    assert factor(None) == 1
    assert factor(0.2) == pytest.approx(4) == factor(0.2)
    assert factor(0.1) == pytest.approx((0.8 * 2 + 0.2) ** 2)  # a running mean
    assert factor(None) == pytest.approx((0.8 * 2 + 0.2) ** 2)
    least, most = RATE_FACTORS
    particle.score_rms = None
    assert factor(10.0) == pytest.approx(most)
    particle.score_rms = None
    assert factor(1e-6) == pytest.approx(least)


def moved(scales, fraction, steps=5):
    """How far AdamW moves four parameters whose random gradients are of these sizes."""
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, betas=(0.9, 0.99), eps=1e-15, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        parameter.grad = (1 + 0.1 * torch.rand(4, generator=generator)) * torch.tensor(scales)
        set_adam_epsilon(optimizer, fraction)
        optimizer.step()
    return parameter.detach().abs()


def test_a_relative_epsilon_stops_parameters_with_millionths_of_the_gradients():
    fast, calm = (moved([1.0, 1.0, 1.0, 1e-6], fraction) for fraction in (0.0, 0.1))
    assert fast[3] == pytest.approx(float(fast[0]), rel=0.05)
    assert calm[3] < 1e-4 * calm[0] and calm[0] > 0.85 * fast[0]


def test_steps_with_a_relative_epsilon_do_not_depend_on_the_scale_of_gradients():
    small, large = moved([1e-4, 2e-4, 3e-4, 1e-6], 0.1), moved([1e2, 2e2, 3e2, 1.0], 0.1)
    torch.testing.assert_close(small, large)


def test_epsilon_is_the_fraction_of_the_root_mean_square_of_adams_second_moment():
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer, gradients = torch.optim.AdamW([parameter], betas=(0.9, 0.99)), torch.randn(4, 3)
    for gradient in gradients:
        parameter.grad = gradient
        set_adam_epsilon(optimizer, 0.3)
        optimizer.step()
    second = optimizer.state[parameter]["exp_avg_sq"] / (1 - 0.99 ** len(gradients))
    assert optimizer.param_groups[0]["eps"] == pytest.approx(0.3 * float(second.mean().sqrt()), rel=1e-5)
