"""The loop: METHOD.md's six steps in order, from retrieved assets to particles. It yields progress, stops and resumes.

s iteration   ψ camera   θ particle   ε̂ prior_noise   ε_{φ,ζ} variational_noise   τ warmup   σ asset_sigma
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from redream.distillation import checkpoint
from redream.distillation.adaptation import ADAPTER, Adaptation, CaptionedAsset, sample_background
from redream.distillation.checkpoint import CheckpointError
from redream.distillation.generators import Generators
from redream.distillation.guidance import (
    asset_loss,
    delta_denoised,
    gradient_loss,
    regularisers,
    sample_timestep,
    sds_gradient,
    vsd_gradient,
)
from redream.distillation.particle import Particle
from redream.distillation.prior import Prior
from redream.distillation.variational import Variational
from redream.errors import RedreamError
from redream.scene.assets import Asset
from redream.scene.cameras import VIEWS, Camera, CameraRange, view_prompt
from redream.scene.posed import PosedAsset
from redream.scene.volume import Rendering, render
from redream.settings import DISTILLATION, WARM_UP, Settings

GRID_EVERY = 8  # steps of a particle between two updates of its occupancy grid
LOSSES_EVERY = 10  # iterations between two readings of the losses, which wait for the device; before them powers of two


PATIENCE = 20  # iterations that may be without effect one after the other


class DivergenceError(RedreamError):
    """A run whose numbers stay not finite; the message says what to change."""


@dataclass(frozen=True)
class Step:
    """The progress of one iteration."""

    iteration: int  # 1 … total, over all particles
    total: int
    particle: int
    stage: str  # `WARM_UP` or `DISTILLATION`
    losses: dict[str, float]  # means since they were last read, after `is_read` iterations; else {}
    overflows: int = 0  # scores since then that were not finite, and counted as zero
    skipped: int = 0  # steps of the field since then whose gradients were not finite


def is_read(iteration: int, total: int) -> bool:
    """Whether the losses are read after an iteration: every `LOSSES_EVERY`, at first after powers of two, and at the end."""
    early = iteration < LOSSES_EVERY and iteration.bit_count() == 1
    return early or iteration % LOSSES_EVERY == 0 or iteration == total


class Distillation:
    """One run's particles, ζ and ω, and the loop over them.

    Everything random comes from generators seeded with `settings.seed`; on the same machine an equal run follows
    (on a GPU a nearly equal one: some of its sums have no fixed order), also when it is saved and loaded in between.
    Between two readings of the losses nothing waits for the device.
    """

    def __init__(self, prior: Prior, settings: Settings, prompt: str, assets: Sequence[CaptionedAsset] = ()) -> None:
        self.prior, self.settings, self.prompt = prior, settings, prompt
        self.assets = list(assets) if settings.uses_assets else []  # θ_ret⁽ⁿ⁾
        self.generators = Generators(settings.seed, prior.device)
        self.iteration = 0  # done, over all particles
        self.camera_range = CameraRange.of(settings.cameras)
        self.particles = [Particle(settings, self.generators.host, prior.device) for _ in range(settings.particles)]
        self._targets = self._posed_assets()  # what particles are compared with in the steps 4 and 5
        self.variational = None  # ζ
        if settings.is_variational:
            self.variational = Variational(prior, settings, prompt, self.generators)
        self.adaptation = None  # ω and e_ψ
        if settings.adapt and self.assets:
            self.adaptation = Adaptation(prior, settings, self.assets, self.generators)
        with torch.no_grad():
            self.empty_embedding = prior.embed([""])  # (1, l, d)
            self.view_embeddings = {v: prior.embed([view_prompt(prompt, v)]) for v in VIEWS}  # c_ψ
        weigh = settings.distillation.latent_weights
        self.latent_weights = prior.latent_weights()[:, None, None] if weigh else 1.0  # (c, 1, 1)
        self.adapted_embeddings: dict[str, Tensor] = {}  # cat(e_ψ, c), once e_ψ is final
        self._losses: list[dict[str, Tensor]] = []  # of the iterations since the last reading
        self._without_effect = 0  # iterations up to the last reading
        self._field_steps = 0  # since the last reading

    @property
    def total(self) -> int:
        """Iterations planned, over all particles."""
        return self.settings.iterations * self.settings.particles

    def store_views(self) -> None:
        """Render and encode the views that ω learns from, unless it is final; the first iteration does it otherwise."""
        if self.adaptation and not self.adaptation.finished:
            _ = self.adaptation.latents

    def steps(self, extra: int = 0, stop: Callable[[], bool] = lambda: False) -> Iterator[Step]:
        """Iterate until the plan is done, and `extra` times per particle beyond it at the schedule's end values.

        The caller may stop consuming after any step and use, or save, the present state. `stop` is asked before each step
        of Eq. 5: it ends the loop there, and the steps done so far count when it goes on.

        Raises `DivergenceError` after `PATIENCE` iterations without a number that is finite.
        """
        settings, prior = self.settings, self.prior
        distillation, initialisation = settings.distillation, settings.initialisation
        total = self.total + extra * settings.particles
        while self.iteration < total:
            own_iteration, number = divmod(self.iteration, settings.particles)  # s and i
            progress = min(own_iteration / settings.iterations, 1.0)
            particle, asset = self.particles[number], self._target(number)
            warming_up = asset is not None and settings.initialise and progress < initialisation.warmup
            losses = self._adapt(progress, stop)  # Eq. 5, interleaved with the warm-up
            if losses is None:
                return

            # 1. Camera ψ and background; render x = g(θ, ψ); encode z. Gradients flow through the encoder.
            size = settings.rendering.resolution_at(progress)
            delta = self._is_delta_iteration(own_iteration)
            compared_with = asset if warming_up or delta else None
            camera, background, rendering = self.render_random_view(particle, size, compared_with)
            latents = prior.encode(rendering.image)  # (1, c, hl, wl)

            # 2., 3. and 5. t, ε, x_t; the score gradient, minus the asset's where delta denoising is on (App. B).
            target = compared_with.render(camera, size, background) if compared_with else None
            compared = [latents.detach()]
            if delta:
                with torch.no_grad():
                    compared.append(prior.encode(target[0]))
            gradients, variational_loss = self._score_gradient(torch.cat(compared), camera, progress)  # (1 or 2, …)
            gradient = delta_denoised(gradients, distillation.delta_weight)  # (1, c, hl, wl)
            losses["score"] = norm = gradient.norm()
            score_rms = norm / (distillation.guidance or 1) / gradient.numel() ** 0.5
            # Half precision may overflow: rather no score than no particle.
            gradient = torch.where(norm.isfinite(), gradient, 0.0)
            loss = gradient_loss(latents, self.latent_weights * gradient)

            # 4. While s ≤ τ, the asset velocity (Eq. 3); and the regularisers.
            if warming_up:
                matching = asset_loss(rendering, *target, initialisation, progress)
                losses["asset"] = matching.detach()
                loss = loss + matching
            loss = loss + regularisers(rendering.opacity, distillation, progress)

            # 6. A step of θ, further ones of v_asset alone (ours); then one step of Eq. 4 on ζ.
            particle.set_learning_rates(progress, None if warming_up else score_rms)
            particle.optimizer_step(loss)
            field_steps = initialisation.asset_steps if warming_up else 1
            self._field_steps += field_steps
            for _ in range(field_steps - 1):
                other, background, rendering = self.render_random_view(particle, size, asset)
                target = asset.render(other, size, background)
                particle.optimizer_step(asset_loss(rendering, *target, initialisation, progress))
            if (own_iteration + 1) % max(GRID_EVERY // field_steps, 1) == 0:
                particle.grid.update(particle.field.density, self.generators.device)
            if self.variational is not None:
                shared = variational_loss is not None
                losses["variational"] = variational_loss if shared else self.variational.step(latents.detach(), camera)
            if warming_up and (own_iteration + 1) / settings.iterations >= initialisation.warmup:
                particle.reset_optimizer()

            self.iteration += 1
            self._losses.append(losses)
            read = self._read_losses() if is_read(self.iteration, total) else ({}, 0, 0)
            yield Step(self.iteration, total, number, WARM_UP if warming_up else DISTILLATION, *read)

    def render_random_view(
        self, particle: Particle, size: int, compared_with: Asset | PosedAsset | None = None
    ) -> tuple[Camera, Float[Tensor, "3"], Rendering]:
        """A random camera ψ and background, and the render g(θ, ψ), `size` pixels square, with gradients.

        ψ is one of the stored poses of what it is compared with, if that has any.
        """
        host, samples = self.generators.host, self.settings.rendering.samples_per_ray
        camera = (compared_with if isinstance(compared_with, PosedAsset) else self.camera_range).sample(host)
        background = sample_background(host)[0].to(self.prior.device, non_blocking=True)  # (3,)
        rendering = render(particle.field, camera, size, background, particle.grid, samples, self.generators.device)
        return camera, background, rendering

    def _posed_assets(self) -> list[Asset | PosedAsset]:
        """The assets as particles are compared with them: cast anew each time, or at stored poses."""
        settings, count = self.settings, self.settings.initialisation.stored_poses
        assets = [captioned.asset for captioned in self.assets]
        if not count or not settings.initialise:
            return assets
        size = max(pixels for _, pixels in settings.rendering.resolutions)
        return [
            PosedAsset(asset, self.camera_range.uniform(count, self.generators.host), size, self.prior.device)
            for asset in assets[: settings.particles]
        ]

    def _target(self, number: int) -> Asset | PosedAsset | None:
        """The asset a_i = i mod N of a particle; None without assets."""
        return self._targets[number % len(self._targets)] if self._targets else None

    def _read_losses(self) -> tuple[dict[str, float], int, int]:
        """Means of the finite losses since the last reading, and the numbers of scores and of steps that were not finite; in
        one transfer. Raises `DivergenceError`."""
        named = [(name, value) for losses in self._losses for name, value in losses.items()]
        iterations, self._losses = len(self._losses), []
        counts = [particle.skipped for particle in self.particles]
        *values, skipped = torch.stack([*(value.float() for _, value in named), sum(counts)]).tolist()
        for count in counts:
            count.zero_()
        read: dict[str, list[float]] = {}
        for (name, _), value in zip(named, values, strict=True):
            read.setdefault(name, []).append(value)
        finite = {name: [v for v in values if math.isfinite(v)] for name, values in read.items()}
        overflows = len(read["score"]) - len(finite["score"])
        without_effect = overflows == iterations or skipped == self._field_steps > 0
        self._field_steps = 0
        self._without_effect = self._without_effect + iterations if without_effect else 0
        if self._without_effect >= PATIENCE:
            d = self.settings.distillation
            raise DivergenceError(
                f"The last {self._without_effect} iterations gave no finite numbers. Start a new run with another seed, a lower "
                f"guidance (distillation.guidance, now {d.guidance:g}) or a lower learning rate "
                f"(distillation.learning_rate_grid, now {d.learning_rate_grid})."
            )
        return {name: sum(v) / len(v) for name, v in finite.items() if v}, overflows, int(skipped)

    def _is_delta_iteration(self, own_iteration: int) -> bool:
        every = self.settings.distillation.delta_every
        return bool(self.assets) and self.settings.initialise and every > 0 and own_iteration % every == 0

    def _adapt(self, progress: float, stop: Callable[[], bool]) -> dict[str, Tensor] | None:
        """Do the steps of Eq. 5 that are due and return the last one's loss; None if they were stopped.

        They are spread over the warm-up, and all are done at τ.
        """
        adaptation, settings = self.adaptation, self.settings
        if adaptation is None or (adaptation.finished and self.adapted_embeddings):
            return {}
        warmup, steps = settings.initialisation.warmup, settings.adaptation.steps
        reached = 1.0 if progress >= warmup else (progress + 1 / settings.iterations) / warmup
        due = min(steps, math.ceil(steps * reached))
        loss = None
        while adaptation.steps_done < due:
            if stop():
                return None
            loss = adaptation.step()
        self._embed_adapted()
        return {} if loss is None else {"adaptation": loss}

    @torch.no_grad()
    def _embed_adapted(self) -> None:
        """Set cat(e_ψ, c) of every view and merge ω, if they are final."""
        a = self.adaptation
        final = a is not None and a.finished
        self.adapted_embeddings = {v: self.prior.embed([self.prompt], a.prefix(v)) for v in VIEWS} if final else {}
        if final:
            self.prior.merge_adapter(ADAPTER, self.settings.adaptation.scale)

    @torch.no_grad()
    def _score_gradient(
        self, latents: Float[Tensor, "b c h w"], camera: Camera, progress: float
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, ""] | None]:
        """v_2D of latents that share camera, timestep and noise: Eq. 1, 2 or 20; and the loss of ζ, if it was trained on
        the same noise."""
        settings, prior = self.settings, self.prior
        timestep = sample_timestep(settings.distillation, progress, prior.timesteps, self.generators.host)
        t = timestep.to(prior.device, non_blocking=True).expand(len(latents))  # (b,)
        noise = self.generators.noise(latents[:1]).expand_as(latents)
        noised = prior.add_noise(latents, t, noise)
        adapted = bool(self.adapted_embeddings)  # until ω is frozen, φ with c_ψ
        embedding = (self.adapted_embeddings if adapted else self.view_embeddings)[camera.view]
        with prior.using(ADAPTER if adapted else None, scale=settings.adaptation.scale):
            prior_noise = prior.guided_noise(
                noised,
                t,
                embedding.expand(len(latents), -1, -1),
                self.empty_embedding.expand(len(latents), -1, -1),
                settings.distillation.guidance,
            )
        sigma = prior.alpha_sigma(t)[1]
        if self.variational is None:
            return sds_gradient(prior_noise, noise, sigma), None
        if settings.variational.shared_noise:
            variational_noise, loss = self.variational.predict_and_step(noised, t, noise, camera)
        else:
            variational_noise, loss = self.variational.predict(noised, t, camera), None
        return vsd_gradient(prior_noise, variational_noise, sigma), loss

    # Checkpoints

    def save(self, folder: Path) -> None:
        """Write the state into `folder` (`redream.distillation.checkpoint`); from it an equal run continues."""
        means = [float(particle.score_rms) for particle in self.particles]
        state = {"iteration": self.iteration, "score_rms": [None if math.isnan(mean) else mean for mean in means]}
        state["adaptation_steps"] = self.adaptation.steps_done if self.adaptation else 0
        checkpoint.save(folder, self._modules(), self._optimizers(), self.generators.state(), state)

    def load(self, folder: Path) -> None:
        """Continue from a state that `save` wrote. Raises `CheckpointError` as `checkpoint.load`."""
        tensors, state = checkpoint.load(folder, self._modules(), self._optimizers())
        try:
            self.iteration = int(state["iteration"])
            for particle, score_rms in zip(self.particles, state["score_rms"], strict=True):
                particle.score_rms.fill_(math.nan if score_rms is None else float(score_rms))
            if self.adaptation:
                self.adaptation.steps_done = int(state["adaptation_steps"])
            self.generators.load(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError("This checkpoint is damaged; start the run anew.") from error
        self._embed_adapted()

    def _modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {}
        for number, particle in enumerate(self.particles):
            modules |= {f"particle-{number}": particle.field, f"grid-{number}": particle.grid}
        for name, part in self._networks().items():
            modules |= {f"{name}.{key}": module for key, module in part.modules().items()}
        return modules

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizers = {f"particle-{n}": p.optimizer for n, p in enumerate(self.particles)}
        return optimizers | {name: part.optimizer for name, part in self._networks().items()}

    def _networks(self) -> dict[str, Variational | Adaptation]:
        """ζ and ω by name, those that this run has."""
        networks = {"variational": self.variational, "adaptation": self.adaptation}
        return {name: part for name, part in networks.items() if part is not None}
