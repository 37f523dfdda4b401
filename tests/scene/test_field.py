"""The field's ranges, its start and its learning rates."""

import math

import pytest
import torch

from redream.scene.field import Field
from redream.settings import Settings

SETTINGS = Settings(
    field={"levels": 3, "features": 2, "log2_table": 10, "base_resolution": 4, "max_resolution": 16, "hidden": 8}
)


def make(settings: Settings = SETTINGS) -> Field:
    return Field(settings, torch.Generator().manual_seed(0))


def test_colours_and_densities_stay_in_range_whatever_the_parameters():
    field = make()
    for parameter in field.parameters():
        parameter.data.uniform_(-20, 20, generator=torch.Generator().manual_seed(1))
    rgb, density = field(torch.rand(500, 3) - 0.5)
    assert rgb.min() >= 0 and rgb.max() <= 1
    assert density.min() >= 0 and density.isfinite().all()


def test_density_starts_as_the_soft_ball_of_the_settings():
    """The grid starts within 1e-4 of zero, so density is softplus(λ(1 − |x|/r)) to that order."""
    field = make()
    for distance in (0.0, 0.25, 0.5):
        expected = math.log1p(math.exp(SETTINGS.field.density_scale * (1 - distance / SETTINGS.field.density_radius)))
        assert field.density(torch.tensor([[0.0, distance, 0.0]])).item() == pytest.approx(expected, abs=1e-2)


def test_density_is_zero_outside_the_box_on_every_side():
    field = make()
    inside = torch.full((1, 3), SETTINGS.field.bound - 1e-3)
    assert field.density(inside) > 0
    for axis in range(3):
        for sign in (-1, 1):
            point = torch.zeros(1, 3)
            point[0, axis] = sign * (SETTINGS.field.bound + 1e-3)
            assert field.density(point) == 0


def test_the_same_seed_gives_the_same_field_and_loading_restores_another():
    a, b, other = make(), make(), Field(SETTINGS, torch.Generator().manual_seed(7))
    points = torch.rand(20, 3) - 0.5
    assert torch.equal(a(points)[0], b(points)[0])
    assert not torch.equal(a(points)[0], other(points)[0])
    other.load_state_dict(a.state_dict())
    assert torch.equal(a(points)[0], other(points)[0])


def test_every_parameter_is_in_one_group_with_its_own_learning_rate():
    field = make()
    groups = field.parameter_groups(SETTINGS)
    rates = [SETTINGS.distillation.learning_rate_grid] * len(field.grid.levels) + [
        SETTINGS.distillation.learning_rate_network
    ]
    assert [group["lr"] for group in groups] == rates
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in field.parameters())


def test_a_field_learns_a_coloured_ball():
    field, draws = make(), torch.Generator().manual_seed(2)
    optimiser = torch.optim.AdamW(field.parameter_groups(SETTINGS), betas=(0.9, 0.99), eps=1e-15)
    losses = []
    for _ in range(150):
        points = torch.rand(512, 3, generator=draws) - 0.5
        rgb, density = field(points)
        solid = (points.norm(dim=-1) < 0.3).float()
        loss = ((1 - (-density).exp() - solid) ** 2).mean() + ((rgb - (points + 0.5)) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
