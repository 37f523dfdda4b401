"""The tiny stacks that other tests run on load like real ones."""

import pytest
import torch
from tiny_stack import KINDS

from redream.distillation.prior import Prior
from redream.retrieval.clip import Clip
from redream.retrieval.index import Index
from redream.scene.assets import load
from redream.scoring.perceptual import PerceptualNet
from redream.stack.stack import Stack
from redream.stack.vocabulary import PromptError, parse_prompt


@pytest.fixture(params=["tiny_stack", "tiny_stack_v"])
def stack(request) -> Stack:
    return Stack.load(request.getfixturevalue(request.param), environ={})


@pytest.mark.parametrize(
    ("stack", "prediction_type", "levels", "numbers_of_heads"),
    [("tiny_stack", "epsilon", 2, {1, 2}), ("tiny_stack_v", "v_prediction", 4, {1, 2, 4})],
    indirect=["stack"],
)
def test_the_tiny_prior_has_the_structure_of_stable_diffusion(stack, prediction_type, levels, numbers_of_heads):
    prior = Prior.load(stack.folder(stack.prior))
    assert prior.prediction_type == prediction_type
    assert (prior.size, prior.latent_size, prior.timesteps) == (64, 8, 1000)
    assert len(prior.unet.config.block_out_channels) == levels and prior.unet.config.use_linear_projection
    assert {module.heads for module in prior.unet.modules() if hasattr(module, "heads")} == numbers_of_heads


def test_the_tiny_index_was_built_with_the_tiny_clip_and_its_assets_load(stack):
    clip, index = Clip.load(stack.folder(stack.clips["retrieval"])), Index.load(stack.folder(stack.index))
    hits = index.search("a red owl", clip, assets=3, candidates=6)
    assert len(index) == len(KINDS) and len({hit.uid for hit in hits}) == 3
    assert all(load(index.asset_path(hit.uid)).mesh.vertices.any() for hit in hits)


def test_the_three_tiny_clips_differ(stack):
    clips = [Clip.load(stack.folder(entry)) for entry in stack.clips.values()]
    assert len({clip.sha256 for clip in clips}) == 3
    assert torch.stack([clip.embed_texts(["a cat"]) for clip in clips]).std(dim=0).max() > 0.01


def test_the_tiny_perceptual_nets_distinguish_pictures(stack, generator):
    a, b = torch.rand(2, 2, 3, 32, 32, generator=generator)
    for entry in stack.perceptual.values():
        net = PerceptualNet.load(stack.folder(entry))
        assert net(a, a).abs().max() < 1e-6 < net(a, b).min()


def test_the_first_tiny_stack_has_a_vocabulary_and_the_second_takes_any_prompt(tiny_stack, tiny_stack_v):
    with pytest.raises(PromptError, match="does not know the word"):
        parse_prompt("an ironman", Stack.load(tiny_stack, environ={}).vocabulary)
    assert parse_prompt("an ironman", Stack.load(tiny_stack_v, environ={}).vocabulary).prompt == "an ironman"
