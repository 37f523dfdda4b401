"""The losses of distillation as pure functions: SDS, VSD, delta denoising, Eq. 3, regularisers, timesteps.

Every gradient here is a *loss* gradient with respect to latents: θ ← θ − η · grad (METHOD.md, "Signs").

    x_t = α_t z + σ_t ε         ε̂: the prior's guided prediction         w(t) = σ_t²
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from redream.scene.volume import Rendering
from redream.settings import DistillationSettings, InitialisationSettings

Latents = Float[Tensor, "b c h w"]


def guided(empty_noise: Latents, prompt_noise: Latents, scale: float) -> Latents:
    """Classifier-free guidance, ε̂ = ε(∅) + s (ε(c) − ε(∅)) (the diffusers convention)."""
    return empty_noise + scale * (prompt_noise - empty_noise)


def sds_gradient(prior_noise: Latents, noise: Latents, sigma: Float[Tensor, "b"]) -> Latents:
    """Gradient of score distillation sampling with respect to the latents (Eq. 1).

    grad = w(t) (ε̂ − ε)
    """
    return vsd_gradient(prior_noise, noise, sigma)  # SDS is VSD with ε for ε_{φ,ζ}


def vsd_gradient(prior_noise: Latents, variational_noise: Latents, sigma: Float[Tensor, "b"]) -> Latents:
    """Gradient of variational score distillation with respect to the latents (Eq. 2; PD Eq. 9; with ω, Eq. 20).

    grad = w(t) (ε̂ − ε_{φ,ζ})
    """
    return sigma.square()[:, None, None, None] * (prior_noise - variational_noise)


def delta_denoised(gradients: Latents, weight: float) -> Float[Tensor, "1 c h w"]:
    """The particle's gradient minus `weight` times the asset's (delta denoising, App. B).

    `gradients`: the particle's and, where delta denoising is on, the asset's, of the same ψ, t and ε.
    """
    return gradients[:1] - weight * gradients[1:] if len(gradients) == 2 else gradients


def gradient_loss(latents: Latents, gradient: Latents) -> Float[Tensor, ""]:
    """A loss whose gradient with respect to `latents` is `gradient`, averaged over the batch.

    ½ Σ (z − stopgrad(z − grad))² / b    ⇒    ∂/∂z = grad / b
    """
    target = (latents - gradient).detach()
    return 0.5 * (latents - target).square().sum() / latents.shape[0]


def sample_timestep(
    settings: DistillationSettings, progress: float, timesteps: int, generator: torch.Generator
) -> Int[Tensor, "1"]:
    """t ~ U(t_min, t_max(s)) · (T − 1), on the generator's device.

    t_max falls from its first to its second value at the fraction `t_anneal` of the run; `progress` is in [0, 1], T =
    `timesteps`.
    """
    low, high = settings.t_min, settings.t_max[0 if progress < settings.t_anneal else 1]
    u = torch.rand(1, generator=generator, device=generator.device)
    return ((low + (high - low) * u) * (timesteps - 1)).long()


def asset_loss(
    rendering: Rendering,
    image: Float[Tensor, "1 3 h w"],
    opacity: Float[Tensor, "1 1 h w"],
    settings: InitialisationSettings,
    progress: float,
) -> Float[Tensor, ""]:
    """Eq. 3 with a term for opacity and the colour release (ours): v_asset is its gradient.

        (1/σ²) (w_c mean ‖g(θ, ψ) − g(θ_ret, ψ)‖² + w_o mean (opacity − opacity_ret)²)

    `image` and `opacity` are the asset's from the same camera ψ and background. w_c is 1 and, after the share
    `asset_colour_until` of the warm-up, `asset_colour_after`: the silhouette is held while colours may leave the asset's.
    """
    colour = (rendering.image - image).square().sum(dim=1).mean()
    cover = (rendering.opacity - opacity).square().mean()
    is_held = progress < settings.asset_colour_until * settings.warmup
    weight = 1.0 if is_held else settings.asset_colour_after
    return (weight * colour + settings.asset_opacity_weight * cover) / settings.asset_sigma**2


def regularisers(
    opacity: Float[Tensor, "1 1 h w"], settings: DistillationSettings, progress: float
) -> Float[Tensor, ""]:
    """Sparsity of opacity o and, after the anneal, its entropy, which makes it all or nothing (threestudio).

    λ_sparse mean √(o² + .01)  +  λ_opaque mean (−o log o − (1 − o) log(1 − o))
    """
    opacity = opacity.clamp(1e-3, 1 - 1e-3)
    loss = settings.sparsity * (opacity.square() + 0.01).sqrt().mean()
    if settings.opaque and progress >= settings.t_anneal:
        entropy = -(opacity * opacity.log() + (1 - opacity) * (1 - opacity).log())
        loss = loss + settings.opaque * entropy.mean()
    return loss
