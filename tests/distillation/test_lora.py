"""Adapters against peft's, merged adapters against unmerged ones."""

import copy
import itertools

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from redream.distillation.lora import Adapters
from redream.distillation.prior import ATTENTION, CONVOLUTIONS

TARGETS = ATTENTION + CONVOLUTIONS
RANK = 3


@pytest.fixture
def unet(tiny_stack):
    return UNet2DConditionModel.from_pretrained(tiny_stack / "prior/unet")


@pytest.fixture
def case(unet, generator):
    width = unet.config.cross_attention_dim
    latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, width, generator=generator)
    return latents, torch.tensor([700, 200]), text


def noise(unet, case):
    return unet(*case, return_dict=False)[0]


def adapted(unet, generator, *names):
    """Adapters with nothing left at zero, each its own."""
    adapters = Adapters(unet)
    for name in names:
        adapters.add(name, RANK, TARGETS, generator)
        for up in adapters.parameters(name)[1::2]:
            nn.init.normal_(up, std=0.1, generator=generator)
    return adapters


def test_the_adapted_network_and_its_gradients_are_pefts(unet, case, generator):
    reference = copy.deepcopy(unet)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS), init_lora_weights=False)
    reference = inject_adapter_in_model(config, reference)
    theirs = [p for name, p in reference.named_parameters() if ".lora_" in name]
    adapters = adapted(unet, generator, "one")
    ours = adapters.parameters("one")
    with torch.no_grad():
        for mine, its in zip(ours, theirs, strict=True):  # equal shapes in an equal order
            its.copy_(mine)
    adapters.use("one", train=True)
    for parameter in ours:
        parameter.requires_grad_(True)
    predicted, expected = noise(unet, case), noise(reference, case)
    torch.testing.assert_close(predicted, expected)
    for mine, its in zip(
        *(torch.autograd.grad(x.square().sum(), p) for x, p in ((predicted, ours), (expected, theirs)))
    ):
        torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@torch.no_grad()
def test_a_merged_adapter_gives_what_it_gives_unmerged(unet, case, generator, scale):
    adapters = adapted(unet, generator, "one", "other")
    base = noise(unet, case)
    adapters.use("one", scale)
    unmerged = noise(unet, case)
    adapters.merge("one", scale)
    adapters.use("one", scale)
    torch.testing.assert_close(noise(unet, case), unmerged, rtol=1e-4, atol=1e-5)
    adapters.use("other", scale)
    other = noise(unet, case)
    adapters.use(None)
    assert torch.equal(noise(unet, case), base)
    assert (unmerged - base).abs().max() > 1e-3 and (other - unmerged).abs().max() > 1e-3


@torch.no_grad()
def test_a_merged_adapter_serves_its_own_scale_alone_and_no_training(unet, case, generator):
    adapters = adapted(unet, generator, "one")
    adapters.merge("one", 0.5)
    for parameter in adapters.parameters("one"):
        parameter.zero_()  # the merged weights stay
    adapters.use(None)
    base = noise(unet, case)
    for scale, train, is_base in ((0.5, False, False), (1.0, False, True), (0.5, True, True)):
        adapters.use("one", scale, train)
        assert torch.allclose(noise(unet, case), base) == is_base


def test_the_weights_keep_their_names_and_are_the_same_parameters(unet, generator):
    before = dict(unet.named_parameters())
    adapted(unet, generator, "one")
    after = dict(unet.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert all(".down.one" in name or ".up.one" in name for name in after.keys() - before.keys())


def test_compiled_layers_follow_the_adapter_in_use(generator):
    """What `torch.compile` traced is traced anew for another kind of pass, and for no other reason."""
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(64, 5))
    adapters, x = Adapters(network.requires_grad_(False)), torch.randn(2, 4, 4, 4, generator=generator)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def add(name):
        adapters.add(name, RANK, ("0", "3"), generator)
        for up in adapters.parameters(name)[1::2]:
            nn.init.normal_(up, std=0.1, generator=generator)

    def outputs():
        values = []
        for use in [(None,), ("one",), ("two",), ("two", 0.5), ("one", 0.25)]:
            adapters.use(*use)
            torch.testing.assert_close(compiled(x), network(x))
            values.append(compiled(x))
        adapters.use(None)
        return values

    add("one"), add("two")
    adapters.merge("two", 0.5)
    torch.compiler.reset()
    compiled = torch.compile(network, backend=backend, dynamic=False)
    with torch.no_grad():
        first = outputs()
        kinds = len(graphs)
        adapters.remove("one")
        add("one")  # of another run
        second = outputs()
    assert all((a - b).abs().max() > 1e-4 for a, b in itertools.combinations(first, 2))
    assert (first[1] - second[1]).abs().max() > 1e-4
    assert kinds == len(graphs) > 1
