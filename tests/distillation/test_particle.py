"""A particle's optimizer: learning rates that follow the score, and a relative epsilon."""

import pytest
import torch
from tiny_stack import TINY

from redream.distillation.particle import RATE_FACTORS, FieldAdam, Particle


def test_learning_rates_follow_the_square_of_the_score_rms_within_limits():
    particle = Particle(TINY.with_(distillation={"score_rms_reference": 0.1}), torch.Generator(), torch.device("cpu"))
    plain = Particle(TINY.with_(distillation={"score_rms_reference": 0.0}), torch.Generator(), torch.device("cpu"))

    def factor(score_rms, progress=0.5):
        for one in (particle, plain):
            one.set_learning_rates(progress, None if score_rms is None else torch.tensor(score_rms))
        rates = [[group["lr"] for group in one.optimizer.param_groups] for one in (particle, plain)]
        assert rates[0] == rates[1] and plain.optimizer.factor == 1
        return float(particle.optimizer.factor)

    assert factor(None) == 1
    assert factor(0.2) == pytest.approx(4) == factor(0.2)
    assert factor(0.1) == pytest.approx((0.8 * 2 + 0.2) ** 2)  # a running mean
    assert factor(None) == pytest.approx((0.8 * 2 + 0.2) ** 2) == factor(float("nan")) == factor(float("inf"))
    least, most = RATE_FACTORS
    for score_rms, expected in ((10.0, most), (1e-6, least)):
        particle.score_rms = torch.tensor(float("nan"))
        assert factor(score_rms) == pytest.approx(expected)


def trained(optimizer_of, gradients):
    """Two parameters of one group after a step down each of these gradients."""
    parameters = [torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(5))]
    optimizer = optimizer_of([{"params": parameters, "lr": 0.1}])
    for pair in gradients:
        for parameter, gradient in zip(parameters, pair, strict=True):
            parameter.grad = gradient
        optimizer.step()
    return parameters, optimizer


@pytest.fixture
def gradients(generator):
    return [(torch.randn(4, 3, generator=generator), torch.randn(5, generator=generator)) for _ in range(6)]


def test_without_a_relative_epsilon_the_field_is_stepped_by_adam(gradients):
    ours, _ = trained(lambda groups: FieldAdam(groups, 0.0), gradients)
    theirs, _ = trained(
        lambda groups: torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-15, weight_decay=0), gradients
    )
    torch.testing.assert_close(ours, theirs)


def test_the_common_factor_multiplies_every_step(gradients):
    def with_factor(groups):
        optimizer = FieldAdam(groups, 0.1)
        optimizer.factor = torch.tensor(0.25)
        return optimizer

    whole, part = (trained(of, gradients)[0] for of in (lambda groups: FieldAdam(groups, 0.1), with_factor))
    for one, other in zip(whole, part, strict=True):
        torch.testing.assert_close(other - 1, 0.25 * (one - 1))


def test_epsilon_is_the_fraction_of_the_root_mean_square_of_adams_second_moment(gradients):
    """The last step, by its formula from the moments."""
    (before, _), (after, optimizer) = (
        trained(lambda groups: FieldAdam(groups, 0.3), g) for g in (gradients[:5], gradients)
    )
    moments = [optimizer.state[parameter] for parameter in after]
    second = torch.cat([m["exp_avg_sq"].flatten() for m in moments]) / (1 - 0.99**6)
    first = torch.cat([m["exp_avg"].flatten() for m in moments]) / (1 - 0.9**6)
    step = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)])
    torch.testing.assert_close(
        step.detach(), -0.1 * first / (second.sqrt() + 0.3 * second.mean().sqrt()), rtol=1e-4, atol=1e-6
    )


def moved(scales, fraction, steps=5):
    """How far four parameters are moved whose random gradients are of these sizes."""
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = FieldAdam([{"params": [parameter], "lr": 0.1}], fraction)
    for _ in range(steps):
        parameter.grad = (1 + 0.1 * torch.rand(4, generator=generator)) * torch.tensor(scales)
        optimizer.step()
    return parameter.detach().abs()


def test_a_relative_epsilon_stops_parameters_with_millionths_of_the_gradients():
    fast, calm = (moved([1.0, 1.0, 1.0, 1e-6], fraction) for fraction in (0.0, 0.1))
    assert fast[3] == pytest.approx(float(fast[0]), rel=0.05)
    assert calm[3] < 1e-4 * calm[0] and calm[0] > 0.85 * fast[0]


def test_steps_with_a_relative_epsilon_do_not_depend_on_the_scale_of_gradients():
    small, large = moved([1e-4, 2e-4, 3e-4, 1e-6], 0.1), moved([1e2, 2e2, 3e2, 1.0], 0.1)
    torch.testing.assert_close(small, large)


def test_a_parameter_without_a_gradient_stays(gradients):
    parameters = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))]
    optimizer = FieldAdam([{"params": parameters, "lr": 0.1}], 0.1)
    parameters[0].grad = torch.ones(2)
    optimizer.step()
    assert (parameters[0] < 1).all() and (parameters[1] == 1).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_a_step_whose_gradients_are_not_finite_moves_nothing_and_the_next_ones_do(gradients, bad):
    """3e38 is a number, but its square is none: so is what Adam would keep of it."""
    spoilt = [pair[0].clone() for pair in gradients[:1]]
    spoilt[0][1, 2] = bad
    three = [gradients[0], (spoilt[0], gradients[0][1].clone()), gradients[1]]

    def clones(pairs):
        return [tuple(gradient.clone() for gradient in pair) for pair in pairs]

    counts = [trained(lambda groups: FieldAdam(groups, 0.1), clones(three[:count]))[0] for count in (1, 2, 3)]
    for once, skipped, after in zip(*counts, strict=True):
        assert torch.equal(once, skipped) and after.isfinite().all() and not torch.equal(after, skipped)


def test_skipped_steps_are_counted(generator):
    particle = Particle(TINY, generator, torch.device("cpu"))
    (first, *_) = particle.field.parameters()
    for factor in (1.0, float("nan"), 1.0, float("inf")):
        particle.optimizer_step((first.square().sum() + 1) * factor)
    assert int(particle.skipped) == 2 and all(p.isfinite().all() for p in particle.field.parameters())
