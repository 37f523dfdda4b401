"""Score distillation where everything is known: a Gaussian prior and the identity as renderer.

For x ~ N(μ, s² I) and x_t = α_t x + σ_t ε the best prediction of the noise is

    ε*(x_t) = σ_t (x_t − α_t μ) / (α_t² s² + σ_t²)
"""

import math

import pytest
import torch

from redream.distillation.guidance import (
    asset_loss,
    delta_denoised,
    gradient_loss,
    guided,
    regularisers,
    sample_timestep,
    sds_gradient,
    vsd_gradient,
)
from redream.scene.volume import Rendering
from redream.settings import DistillationSettings, InitialisationSettings

MU = torch.tensor([0.7, -0.4, 0.2])[None, :, None, None]  # (1, 3, 1, 1)
SPREAD = 0.3
ALPHAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square().neg().add(1).cumprod(0)  # Stable Diffusion's ᾱ_t


def best_noise(noised, alpha, sigma, mean, variance):
    """ε* for a Gaussian with this mean and (one per dimension) variance."""
    alpha, sigma = alpha[:, None, None, None], sigma[:, None, None, None]
    return sigma * (noised - alpha * mean) / (alpha**2 * variance + sigma**2)


@pytest.fixture
def case(generator):
    """z, ε, α_t, σ_t and x_t of five latents in three dimensions."""
    latents, noise = torch.randn(2, 5, 3, 1, 1, generator=generator)
    product = ALPHAS[torch.tensor([20, 200, 500, 800, 980])]
    alpha, sigma = product.sqrt(), (1 - product).sqrt()
    noised = alpha[:, None, None, None] * latents + sigma[:, None, None, None] * noise
    return latents, noise, alpha, sigma, noised


def test_guidance_starts_at_the_empty_prompt_and_passes_the_prompt_at_one(generator):
    empty, prompt = torch.randn(2, 2, 3, 4, 4, generator=generator)
    torch.testing.assert_close(guided(empty, prompt, 0.0), empty)
    torch.testing.assert_close(guided(empty, prompt, 1.0), prompt)
    torch.testing.assert_close(guided(empty, prompt, 7.5), 7.5 * prompt - 6.5 * empty)


def test_the_gradient_of_sds_points_from_the_mode_in_the_mean_over_noise(case):
    """E_ε[w (ε* − ε)] = σ³ α (z − μ) / (α² s² + σ²); linear in ε, so ε and −ε give the mean exactly."""
    latents, noise, alpha, sigma, _ = case
    a, s = alpha[:, None, None, None], sigma[:, None, None, None]
    both = []
    for sign in (1, -1):
        prediction = best_noise(a * latents + sign * s * noise, alpha, sigma, MU, SPREAD**2)
        both.append(sds_gradient(prediction, sign * noise, sigma))
    expected = s**3 * a * (latents - MU) / (a**2 * SPREAD**2 + s**2)
    torch.testing.assert_close(sum(both) / 2, expected)


def test_the_gradient_of_vsd_vanishes_where_the_particles_are_the_prior(case):
    _, _, alpha, sigma, noised = case
    prediction = best_noise(noised, alpha, sigma, MU, SPREAD**2)
    assert vsd_gradient(prediction, prediction.clone(), sigma).abs().max() == 0


def test_the_gradient_of_vsd_is_the_distance_of_the_means_where_the_spreads_agree(case):
    """w (ε* − ε_q) = σ³ α (m − μ) / (α² s² + σ²): whatever z and ε are."""
    _, _, alpha, sigma, noised = case
    a, s = alpha[:, None, None, None], sigma[:, None, None, None]
    mean = MU + 0.5
    prior, variational = (best_noise(noised, alpha, sigma, m, SPREAD**2) for m in (MU, mean))
    expected = s**3 * a * (mean - MU) / (a**2 * SPREAD**2 + s**2)
    torch.testing.assert_close(vsd_gradient(prior, variational, sigma), expected)


def test_the_gradient_of_vsd_drives_particles_apart_that_are_too_narrow(case):
    _, _, alpha, sigma, _ = case
    outside = alpha[:, None, None, None] * (MU + 0.1)  # x_t of a particle off the common mean, without noise
    prior, variational = (best_noise(outside, alpha, sigma, MU, q**2) for q in (SPREAD, 0.01))
    assert (vsd_gradient(prior, variational, sigma) < 0).all()  # θ ← θ − η grad moves it further out


def test_vsd_with_the_noise_itself_as_variational_score_is_sds(case):
    _, noise, alpha, sigma, noised = case
    prediction = best_noise(noised, alpha, sigma, MU, SPREAD**2)
    torch.testing.assert_close(vsd_gradient(prediction, noise, sigma), sds_gradient(prediction, noise, sigma))


def test_the_loss_has_exactly_the_given_gradient(generator):
    latents, gradient = torch.randn(2, 3, 4, 8, 8, generator=generator)
    latents.requires_grad_()
    gradient_loss(latents, gradient.requires_grad_()).backward()
    torch.testing.assert_close(latents.grad, gradient.detach() / 3)  # the mean over the batch
    assert gradient.grad is None


def test_the_gradient_of_the_loss_flows_on_into_the_render(generator):
    """Chain rule: for z = Aθ it is Aᵀ grad."""
    jacobian, theta = torch.randn(12, 5, generator=generator), torch.randn(5, generator=generator).requires_grad_()
    gradient = torch.randn(1, 3, 2, 2, generator=generator)
    gradient_loss((jacobian @ theta).view(1, 3, 2, 2), gradient).backward()
    torch.testing.assert_close(theta.grad, jacobian.T @ gradient.flatten())


def distill(method: str, generator: torch.Generator, steps: int = 1500, count: int = 64):
    """`count` particles with g(θ) = θ; the variational score is that of the Gaussian fitted to them at each step."""
    theta = (2 * torch.randn(count, 3, 1, 1, generator=generator) - 1).requires_grad_()
    optimiser = torch.optim.SGD([theta], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: 0.5 * (1 + math.cos(math.pi * i / steps)))
    for _ in range(steps):
        product = ALPHAS[torch.randint(20, 980, (count,), generator=generator)]
        alpha, sigma = product.sqrt(), (1 - product).sqrt()
        noise = torch.randn(theta.shape, generator=generator)
        latents = theta.detach()
        noised = alpha[:, None, None, None] * latents + sigma[:, None, None, None] * noise
        prior = best_noise(noised, alpha, sigma, MU, SPREAD**2)
        if method == "vsd":
            fitted = latents.mean(0), latents.var(0, correction=0)
            gradient = vsd_gradient(prior, best_noise(noised, alpha, sigma, *fitted), sigma)
        else:
            gradient = sds_gradient(prior, noise, sigma)
        optimiser.zero_grad()
        (gradient_loss(theta, gradient) * count).backward()
        optimiser.step()
        schedule.step()
    return theta.detach()


def test_particles_reach_the_prior_under_vsd_and_collapse_to_its_mode_under_sds(generator):
    vsd, sds = distill("vsd", generator), distill("sds", generator)
    for particles in (vsd, sds):
        torch.testing.assert_close(particles.mean(0), MU[0], atol=0.03, rtol=0)
    torch.testing.assert_close(vsd.std(0, correction=0), torch.full((3, 1, 1), SPREAD), atol=0.03, rtol=0)
    assert sds.std(0).max() < 0.03


def test_after_the_colour_release_eq_3_holds_the_silhouette_and_hardly_colours():
    settings = InitialisationSettings(warmup=0.5, asset_colour_until=0.4, asset_colour_after=0.25, asset_sigma=0.1)
    image, opacity = torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8)
    other = Rendering(image + 0.1, opacity + 0.2, opacity)
    colour, cover = 3 * 0.1**2 / 0.1**2, 0.2**2 / 0.1**2
    losses = [float(asset_loss(other, image, opacity, settings, progress)) for progress in (0.0, 0.19, 0.2, 0.49)]
    assert losses == pytest.approx([colour + cover] * 2 + [0.25 * colour + cover] * 2, rel=1e-4)


def test_timesteps_stay_in_their_range_before_and_after_the_anneal(generator):
    settings = DistillationSettings(t_min=0.1, t_max=(0.9, 0.4), t_anneal=0.5)
    early = [int(sample_timestep(settings, 0.2, 1000, generator)) for _ in range(300)]
    late = [int(sample_timestep(settings, 0.7, 1000, generator)) for _ in range(300)]
    assert 95 <= min(early) < 150 and 800 < max(early) <= 900
    assert 95 <= min(late) < 130 and 370 < max(late) <= 400


def test_delta_denoising_subtracts_the_weighted_gradient_of_the_asset(generator):
    gradients = torch.randn(2, 4, 3, 3, generator=generator)
    torch.testing.assert_close(delta_denoised(gradients, 0.3), gradients[:1] - 0.3 * gradients[1:])
    assert torch.equal(delta_denoised(gradients[:1], 0.3), gradients[:1])


def test_the_entropy_of_opacity_counts_after_the_anneal_and_is_largest_at_one_half():
    settings = DistillationSettings(opaque=2.0, sparsity=0.0, t_anneal=0.2)
    values = [float(regularisers(torch.full((1, 1, 4, 4), o), settings, 0.5)) for o in (0.1, 0.5, 0.9)]
    assert values == pytest.approx([2 * 0.325083, 2 * math.log(2), 2 * 0.325083], rel=1e-4)
    assert float(regularisers(torch.full((1, 1, 4, 4), 0.5), settings, 0.1)) == 0.0


def test_sparsity_is_the_smoothed_mean_of_opacity():
    settings = DistillationSettings(opaque=0.0, sparsity=10.0)
    opacity = torch.full((1, 1, 2, 2), 0.5)
    assert float(regularisers(opacity, settings, 0.0)) == pytest.approx(10 * math.sqrt(0.25 + 0.01))
