"""ζ learns what noisy renders look like, and where they were seen from."""

import pytest
import torch

from redream.distillation.prior import Prior
from redream.distillation.variational import Variational
from redream.scene.cameras import Camera, ring
from redream.settings import Settings


@pytest.fixture
def prior(tiny_stack):
    return Prior.load(tiny_stack / "prior")


def variational(prior, generator, **changes):
    return Variational(prior, Settings(**changes), "a red owl", generator)


def test_before_any_step_it_predicts_what_the_prior_predicts_whatever_the_camera(prior, generator):
    zeta = variational(prior, generator)
    noised, t = torch.randn(1, 4, prior.latent_size, prior.latent_size, generator=generator), torch.tensor([400])
    with torch.no_grad():
        expected = prior.predict_noise(noised, t, prior.embed(["a red owl"]))
    for azimuth in (0.0, 77.0, 180.0):
        assert torch.allclose(zeta.predict(noised, t, Camera(azimuth, 10.0, 1.6, 40.0)), expected, atol=1e-5)


def test_a_step_changes_it_but_not_the_prior(prior, generator):
    zeta = variational(prior, generator, learning_rate_variational=0.1)
    latents, t = torch.randn(1, 4, prior.latent_size, prior.latent_size, generator=generator), torch.tensor([400])
    embedding, camera = prior.embed(["a red owl"]), Camera(10.0, 10.0, 1.6, 40.0)
    with torch.no_grad():
        before = prior.predict_noise(latents, t, embedding)
    zeta.step(latents, camera)
    zeta.step(latents, camera)
    with torch.no_grad():
        assert torch.equal(prior.predict_noise(latents, t, embedding), before)
    assert not torch.allclose(zeta.predict(latents, t, camera), before, atol=1e-4)


def test_its_held_out_loss_is_lower_with_true_cameras_than_with_shuffled_ones(prior, generator):
    """Latents that depend on the camera alone: +1 seen from the left half of the circle, −1 from the right.

    At a high noise level the camera is the only clue to the sign, so after training the true cameras must help.
    """
    zeta = variational(prior, generator, learning_rate_variational=0.02)
    cameras = ring(8, 10.0, 1.6, 40.0)
    shape = (1, 4, prior.latent_size, prior.latent_size)
    latents = [torch.full(shape, 1.0 if camera.azimuth_deg < 180 else -1.0) for camera in cameras]
    for step in range(120):
        zeta.step(latents[step % 8], cameras[step % 8])

    def held_out(seen_from: list[Camera]) -> float:
        noise = [torch.randn(shape, generator=generator) for _ in range(8)]
        with torch.no_grad(), prior.using("variational"):
            losses = [
                zeta.loss(z, torch.tensor([900]), e, c) for z, e, c in zip(latents, noise, seen_from, strict=True)
            ]
        return float(torch.stack(losses).mean())

    state = generator.get_state()
    true = held_out(cameras)
    generator.set_state(state)
    shuffled = held_out(cameras[4:] + cameras[:4])
    assert true < 0.97 * shuffled
