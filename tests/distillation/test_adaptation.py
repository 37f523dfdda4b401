"""Eq. 5: ω and e_ψ learn the views of the references, and nothing else changes."""

import pytest
import torch
from tiny_stack import TINY

from redream.distillation import adaptation as adaptation_module
from redream.distillation.adaptation import Adaptation, CaptionedAsset, sample_background, store_views
from redream.distillation.generators import Generators
from redream.distillation.prior import Prior
from redream.scene.assets import load
from redream.scene.cameras import VIEWS, CameraRange


@pytest.fixture
def prior(tiny_stack):
    return Prior.load(tiny_stack / "prior")


@pytest.fixture
def assets(tiny_stack):
    files = sorted((tiny_stack / "assets").glob("*.glb"))[:2]
    return [
        CaptionedAsset(load(file), caption) for file, caption in zip(files, ("a red owl", "a green cat"), strict=True)
    ]


def test_stored_views_are_the_assets_renders_on_any_background(assets, generator):
    asset, cameras = assets[0].asset, CameraRange.of(TINY.cameras).uniform(5, generator)
    views, background = store_views(asset, cameras, 16), torch.tensor([0.2, 0.9, 0.4])
    for row, camera in enumerate(cameras):
        direct, _ = asset.render(camera, 16, background)
        assert torch.allclose(views.on([row], background[None]), direct, atol=2 / 255)


def test_stored_views_go_once_around_the_asset(prior, assets):
    for cameras in Adaptation(prior, TINY, assets, Generators(0)).cameras:
        azimuths = [camera.azimuth_deg for camera in cameras]
        assert azimuths == [360 * i / TINY.adaptation.views for i in range(TINY.adaptation.views)]


def test_views_are_rendered_once_and_not_for_an_adaptation_that_is_final(prior, assets, monkeypatch):
    rendered = []
    original = adaptation_module.store_views
    monkeypatch.setattr(adaptation_module, "store_views", lambda *a: rendered.append(a) or original(*a))
    final = Adaptation(prior, TINY, assets, Generators(0))
    final.steps_done = TINY.adaptation.steps
    assert final.finished and final.prefix("front").numel() and not rendered
    adaptation = Adaptation(prior, TINY, assets, Generators(0))
    adaptation.step()
    adaptation.step()
    assert len(rendered) == len(assets)


def test_prefixes_start_as_the_words_of_their_views(prior, assets):
    adaptation = Adaptation(prior, TINY, assets, Generators(0))
    for view in VIEWS:
        assert torch.equal(adaptation.prefix(view), prior.token_embeddings(f"{view} view"))


def test_an_untrained_prefix_gives_the_embedding_of_its_words(prior, assets):
    adaptation = Adaptation(prior, TINY, assets, Generators(0))
    with torch.no_grad():
        adapted_embeddings = prior.embed(["a red owl"], adaptation.prefix("side"))
        view_embeddings = prior.embed(["side view a red owl"])
    assert torch.allclose(adapted_embeddings, view_embeddings, atol=1e-5)


def test_adaptation_lowers_the_loss_on_the_assets_and_leaves_the_frozen_prior_alone(prior, assets):
    settings = TINY.with_(adaptation={"steps": 60, "batch": 8, "learning_rate": 1e-2, "empty": 0.0, "t_power": 1.0})
    adaptation = Adaptation(prior, settings, assets, Generators(0))
    frozen = {name: p.clone() for name, p in prior.unet.named_parameters() if ".prior" not in name}
    losses = [adaptation.step() for _ in range(60)]
    assert sum(losses[-15:]) < 0.9 * sum(losses[:15])
    for name, parameter in prior.unet.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name])


def test_learned_prefixes_move_and_frozen_ones_stay(prior, assets):
    for learned in (True, False):
        adaptation = Adaptation(
            prior, TINY.with_(adaptation={"prefix_learned": learned, "steps": 3}), assets, Generators(0)
        )
        start = adaptation.prefix("front").clone()
        for _ in range(3):
            adaptation.step()
        assert torch.equal(adaptation.prefix("front"), start) != learned


def test_adaptation_rates_fall_linearly_to_almost_zero(prior, assets):
    adaptation = Adaptation(prior, TINY.with_(adaptation={"steps": 20}), assets, Generators(0))
    moves = []
    while not adaptation.finished:
        before = torch.cat([p.detach().flatten().clone() for p in adaptation.lora])
        adaptation.step()
        moves.append(float((torch.cat([p.detach().flatten() for p in adaptation.lora]) - before).norm()))
    assert moves[-1] < 0.1 * moves[0]


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_timesteps_are_below_half_of_all_with_probability_two_to_the_minus_power(prior, assets, power):
    adaptation = Adaptation(prior, TINY.with_(adaptation={"t_power": power}), assets, Generators(0))
    t = adaptation._random_timesteps(20_000)
    assert 0 <= t.min() and t.max() <= prior.timesteps - 1
    assert float((t < prior.timesteps / 2).float().mean()) == pytest.approx(0.5**power, abs=0.015)


def test_an_adaptation_batch_has_the_three_views_in_equal_parts(prior, assets):
    adaptation = Adaptation(prior, TINY.with_(adaptation={"views": 12}), assets, Generators(0))
    views = [adaptation.view_of[row] for row in adaptation._balanced_rows(9)]
    assert {view: views.count(view) for view in VIEWS} == {"front": 3, "side": 3, "back": 3}


def test_backgrounds_are_colours_and_half_of_them_pale(generator):
    colours = sample_background(generator, 2000)
    assert 0 <= colours.min() and colours.max() <= 1
    pale = (colours >= 0.75).all(dim=1).float().mean()
    assert 0.45 < pale < 0.58  # one in 64 of the others is pale by chance
