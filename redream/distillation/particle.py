"""A particle θ⁽ⁱ⁾: one NeRF, its occupancy grid and its optimizer."""

import torch
from jaxtyping import Float
from torch import Tensor

from redream.scene.cameras import Camera
from redream.scene.field import Field
from redream.scene.volume import OccupancyGrid, Rendering, render
from redream.settings import Settings

SCORE_RMS_DECAY = 0.8  # of the running mean of the score's RMS
RATE_FACTORS = 0.1, 6.0  # the least and the most that the score's RMS makes of the learning rates
RAYS_PER_CHUNK = 2**14


class Particle:
    """One sample of the variational distribution γ. It is a `Renderable`: turntables, meshes and scores are made of it."""

    def __init__(self, settings: Settings, generator: torch.Generator, device: torch.device) -> None:
        self.settings = settings
        self.field = Field(settings, generator).to(device)
        self.grid = OccupancyGrid(settings.rendering.occupancy_resolution, settings.field.bound).to(device)
        self.optimizer = torch.optim.AdamW(
            self.field.parameter_groups(settings), betas=(0.9, 0.99), eps=1e-15, weight_decay=0.0
        )
        self.score_rms: float | None = None  # running mean of (RMS of the score gradient) / s, after the warm-up

    @torch.no_grad()
    def render(self, camera: Camera, size: int, background: Float[Tensor, "3"]) -> Rendering:
        """The view of a camera, `size` pixels square, without gradients and without randomness."""
        samples = self.settings.rendering.samples_per_ray
        return render(self.field, camera, size, background, self.grid, samples, None, RAYS_PER_CHUNK)

    def set_learning_rates(self, progress: float, score_rms: float | None = None) -> None:
        """Set the learning rates for this progress in [0, 1]: they fall exponentially to `learning_rate_end`.

            lr = lr₀ · end^progress · clamp((d / d₀)², 0.1, 6)

        d is the running mean of `score_rms` = (RMS of the score gradient, delta denoising included) / s, and d₀ is
        `score_rms_reference` (ours; 0: the last factor is 1). AdamW's steps are of one length however small the gradients
        are; without it a view that already fits the prompt would drift as fast as one that does not.
        """
        settings, factor = self.settings.distillation, 1.0
        if settings.score_rms_reference:
            if score_rms is not None:
                before = score_rms if self.score_rms is None else self.score_rms
                self.score_rms = SCORE_RMS_DECAY * before + (1 - SCORE_RMS_DECAY) * score_rms
            if self.score_rms is not None:
                least, most = RATE_FACTORS
                factor = min(max((self.score_rms / settings.score_rms_reference) ** 2, least), most)
        for group, start in zip(self.optimizer.param_groups, self.field.parameter_groups(self.settings), strict=True):
            group["lr"] = start["lr"] * settings.learning_rate_end**progress * factor

    def optimizer_step(self, loss: Float[Tensor, ""]) -> None:
        """One step of AdamW down a loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        set_adam_epsilon(self.optimizer, self.settings.distillation.epsilon)
        self.optimizer.step()

    def reset_optimizer(self) -> None:
        """Clear AdamW's moments: those of v_asset would damp the rest of a short run (ours)."""
        self.optimizer.state.clear()


def set_adam_epsilon(optimizer: torch.optim.AdamW, fraction: float) -> None:
    """Set AdamW's ε of each group to `fraction` of the RMS of its √v, before a step; 0 leaves it as it is (ours).

        v ← β₂ v + (1 − β₂) g²,    ε = fraction · (mean of v / (1 − β₂^step))^½

    A step is then small where gradients are far below the group's: in empty space and inside of things. With a tiny ε
    all steps are equally long however small their gradients, which leaves floaters and speckles.
    """
    if not fraction:
        return
    for group in optimizer.param_groups:
        beta, total, count = group["betas"][1], 0.0, 0
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            steps = int(state.get("step", 0)) + 1
            second = beta * state.get("exp_avg_sq", 0.0) + (1 - beta) * parameter.grad.square()
            total += float(second.sum()) / (1 - beta**steps)
            count += second.numel()
        group["eps"] = max(fraction * (total / count) ** 0.5, 1e-15)
