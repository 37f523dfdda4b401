"""ζ learns what noisy renders look like, and where they were seen from."""

import pytest
import torch

from assets_index.world import Thing
from redream.distillation.generators import Generators
from redream.distillation.prior import Prior
from redream.distillation.variational import Variational
from redream.scene.cameras import Camera, ring
from redream.settings import Settings


@pytest.fixture
def prior(tiny_stack):
    return Prior.load(tiny_stack / "prior")


def variational(prior, **changes):
    return Variational(prior, Settings(variational=changes), "a red owl", Generators(0))


def test_an_untrained_variational_score_is_the_priors_for_every_camera(prior, generator):
    zeta = variational(prior)
    noised, t = torch.randn(1, 4, prior.latent_size, prior.latent_size, generator=generator), torch.tensor([400])
    with torch.no_grad():
        expected = prior.predict_noise(noised, t, prior.embed(["a red owl"]))
    for azimuth in (0.0, 77.0, 180.0):
        assert torch.allclose(zeta.predict(noised, t, Camera(azimuth, 10.0, 1.6, 40.0)), expected, atol=1e-5)


def test_a_step_changes_the_variational_score_but_not_the_prior(prior, generator):
    zeta = variational(prior, learning_rate=0.1)
    latents, t = torch.randn(1, 4, prior.latent_size, prior.latent_size, generator=generator), torch.tensor([400])
    embedding, camera = prior.embed(["a red owl"]), Camera(10.0, 10.0, 1.6, 40.0)
    with torch.no_grad():
        before = prior.predict_noise(latents, t, embedding)
    zeta.step(latents, camera)
    zeta.step(latents, camera)
    with torch.no_grad():
        assert torch.equal(prior.predict_noise(latents, t, embedding), before)
    assert not torch.allclose(zeta.predict(latents, t, camera), before, atol=1e-4)


def test_a_shared_step_predicts_as_before_it_and_learns_from_the_first_latents_noise(prior, generator):
    zeta = variational(prior, learning_rate=0.1)
    latents, noise = torch.randn(2, 2, 4, prior.latent_size, prior.latent_size, generator=generator)
    noise, t, camera = noise[:1].expand_as(latents), torch.tensor([400, 400]), Camera(10.0, 10.0, 1.6, 40.0)
    noised = prior.add_noise(latents, t, noise)
    before = zeta.predict(noised, t, camera)
    predicted, loss = zeta.predict_and_step(noised, t, noise, camera)
    torch.testing.assert_close(predicted, before)
    torch.testing.assert_close(loss, (before[:1] - noise[:1]).square().mean())
    assert not torch.allclose(zeta.predict(noised, t, camera), before, atol=1e-4)
    assert not predicted.requires_grad and not loss.requires_grad


def test_the_variational_loss_is_lower_with_true_cameras_than_with_shuffled_ones(mini, generator):
    """Renders of a house, whose views differ much. Most of a view shows in the noised latents themselves, so the gain
    is small: it is tested in pairs with equal noise, and must exceed three standard errors of their mean difference.
    """
    prior, asset = Prior.load(mini.folder(mini.prior)), Thing("house", "green", 0).asset()
    zeta = Variational(prior, Settings(variational={"learning_rate": 2e-3}), "a green house", Generators(0))
    cameras = ring(8, 15.0, 1.6, 40.0)
    with torch.no_grad():
        latents = [prior.encode(asset.render(camera, prior.size, torch.ones(3))[0]) for camera in cameras]
    for step in range(160):
        zeta.step(latents[step % 8], cameras[step % 8])

    def errors(camera: Camera) -> torch.Tensor:
        return (zeta.predict(noised, t, camera) - noise).square().mean(dim=(1, 2, 3))  # (16,)

    gains, t = [], torch.tensor([350, 450, 550, 650] * 4)
    for number, (z, true) in enumerate(zip(latents, cameras, strict=True)):
        noise = torch.randn(len(t), *z.shape[1:], generator=generator)
        noised = prior.add_noise(z.expand_as(noise), t, noise)
        others = [cameras[(number + shift) % 8] for shift in (2, 4, 6)]
        gains.append(sum(map(errors, others)) / 3 - errors(true))
    gain = torch.cat(gains)
    assert gain.mean() > 3 * gain.std() / len(gain) ** 0.5
