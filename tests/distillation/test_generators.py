"""A run's two generators."""

import torch

from redream.distillation.generators import Generators


def drawn(generators):
    return torch.rand(3, generator=generators.host), generators.noise(torch.zeros(2, 3))


def test_equal_seeds_draw_equal_numbers_and_the_two_generators_different_ones():
    one, same, other = (drawn(Generators(seed)) for seed in (3, 3, 4))
    assert all(map(torch.equal, one, same)) and not any(map(torch.equal, one, other))
    host = Generators(3)
    assert not torch.equal(host.noise(torch.zeros(3)), torch.randn(3, generator=host.host))


def test_a_state_that_is_loaded_goes_on_with_the_same_numbers():
    first, second = Generators(0), Generators(1)
    drawn(first)
    second.load(first.state())
    assert all(map(torch.equal, drawn(first), drawn(second)))


def test_a_state_without_numbers_for_this_device_leaves_its_generator_as_it_is():
    first, second = Generators(0), Generators(1)
    second.load({"generator": first.state()["generator"], "generator-cuda": torch.zeros(16, dtype=torch.uint8)})
    host, noise = drawn(second)
    assert torch.equal(host, drawn(first)[0]) and torch.equal(noise, Generators(1).noise(torch.zeros(2, 3)))
