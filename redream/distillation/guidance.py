"""SDS, VSD and delta denoising: pure functions from noise predictions to gradients.

Every gradient here is a *loss* gradient with respect to latents: θ ← θ − η · grad (METHOD.md, "Signs").

    x_t = α_t z + σ_t ε         ε̂: the prior's guided prediction         w(t) = σ_t²
"""

from jaxtyping import Float
from torch import Tensor

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


def gradient_loss(latents: Latents, gradient: Latents) -> Float[Tensor, ""]:
    """A loss whose gradient with respect to `latents` is `gradient`, averaged over the batch.

    ½ Σ (z − stopgrad(z − grad))² / b    ⇒    ∂/∂z = grad / b
    """
    target = (latents - gradient).detach()
    return 0.5 * (latents - target).square().sum() / latents.shape[0]
