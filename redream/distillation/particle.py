"""A particle θ⁽ⁱ⁾: one NeRF, its occupancy grid and its optimizer."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

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
        self.optimizer = FieldAdam(self.field.parameter_groups(settings), settings.distillation.epsilon)
        # Running mean of (RMS of the score gradient) / s, after the warm-up; NaN before there is one.
        self.score_rms = torch.full((), float("nan"), device=device)
        self.skipped = torch.zeros((), device=device)  # steps whose gradients were not finite

    @torch.no_grad()
    def render(self, camera: Camera, size: int, background: Float[Tensor, "3"]) -> Rendering:
        """The view of a camera, `size` pixels square, without gradients and without randomness."""
        samples = self.settings.rendering.samples_per_ray
        return render(self.field, camera, size, background, self.grid, samples, None, RAYS_PER_CHUNK)

    @torch.no_grad()
    def set_learning_rates(self, progress: float, score_rms: Float[Tensor, ""] | None = None) -> None:
        """Set the learning rates for this progress in [0, 1]: they fall exponentially to `learning_rate_end`.

            lr = lr₀ · end^progress · clamp((d / d₀)², 0.1, 6)

        d is the running mean of `score_rms` = (RMS of the score gradient, delta denoising included) / s, and d₀ is
        `score_rms_reference` (ours; 0: the last factor is 1). AdamW's steps are of one length however small the gradients
        are; without it a view that already fits the prompt would drift as fast as one that does not. An RMS that is not
        finite does not count.
        """
        settings, mean = self.settings.distillation, self.score_rms
        if settings.score_rms_reference:
            if score_rms is not None:
                updated = torch.where(
                    mean.isnan(), score_rms, SCORE_RMS_DECAY * mean + (1 - SCORE_RMS_DECAY) * score_rms
                )
                self.score_rms = mean = torch.where(score_rms.isfinite(), updated, mean)
            factor = (mean / settings.score_rms_reference).square().clamp(*RATE_FACTORS)
            self.optimizer.factor = factor.nan_to_num(1.0)
        for group, start in zip(self.optimizer.param_groups, self.field.parameter_groups(self.settings), strict=True):
            group["lr"] = start["lr"] * settings.learning_rate_end**progress

    def optimizer_step(self, loss: Float[Tensor, ""]) -> None:
        """One step of Adam down a loss; one whose gradients are not finite is skipped and counted."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.skipped += ~self.optimizer.step()

    def reset_optimizer(self) -> None:
        """Clear Adam's moments: those of v_asset would damp the rest of a short run (ours)."""
        self.optimizer.state.clear()


class FieldAdam(torch.optim.Optimizer):
    """Adam (betas .9 and .99) whose ε is a share of the RMS of √v of its group, and whose rates have a common factor.

        m ← β₁ m + (1 − β₁) g,    v ← β₂ v + (1 − β₂) g²,    m̂ = m / (1 − β₁ᵏ),    v̂ = v / (1 − β₂ᵏ)
        θ ← θ − factor · lr · m̂ / (√v̂ + ε),    ε = max(epsilon · (mean of v̂ over the group)^½, 1e-15)        (ours)

    A step is small where gradients are far below the group's: in empty space and inside of things. With a tiny ε
    (`epsilon` 0) all steps are equally long however small their gradients, which leaves floaters and speckles. A step whose
    gradients are not all finite moves no parameter, and counts as a gradient of zero in m and v. ε, the `factor` and whether
    gradients are finite, tensors, stay on the device.
    """

    BETAS = 0.9, 0.99

    def __init__(self, groups: list[dict], epsilon: float) -> None:
        super().__init__(groups, {"lr": 0.0})
        self.epsilon = epsilon
        self.factor = torch.ones((), device=groups[0]["params"][0].device)

    @torch.no_grad()
    def step(self) -> Bool[Tensor, ""]:
        """One step down the present gradients, if they are finite, which is returned; parameters without one stay."""
        groups = [([p for p in group["params"] if p.grad is not None], group["lr"]) for group in self.param_groups]
        gradients = [p.grad for parameters, _ in groups for p in parameters]
        finite = nn.utils.get_total_norm(gradients).isfinite()
        for gradient in gradients:
            gradient.masked_fill_(~finite, 0.0)
        for parameters, rate in groups:
            if parameters:
                self._step(parameters, rate, finite)
        return finite

    def _step(self, parameters: list[Tensor], rate: float, finite: Tensor) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter].update(step=torch.zeros(()), **moments)
            self.state[parameter]["step"] += 1
        gradients = [p.grad for p in parameters]
        m, v = ([self.state[p][name] for p in parameters] for name in ("exp_avg", "exp_avg_sq"))
        (first, second), count = self.BETAS, int(self.state[parameters[0]]["step"])
        torch._foreach_lerp_(m, gradients, 1 - first)
        torch._foreach_mul_(v, second)
        torch._foreach_addcmul_(v, gradients, gradients, value=1 - second)
        mean = sum(x.sum() for x in v) / sum(x.numel() for x in v) / (1 - second**count)
        epsilon = (self.epsilon * mean.sqrt()).clamp(min=1e-15)
        denominators = torch._foreach_sqrt(v)
        torch._foreach_div_(denominators, (1 - second**count) ** 0.5)
        torch._foreach_add_(denominators, epsilon)
        steps = torch._foreach_div(m, denominators)
        torch._foreach_mul_(steps, -rate / (1 - first**count) * (self.factor * finite))
        torch._foreach_add_(parameters, steps)
