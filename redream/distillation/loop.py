"""The iteration: METHOD.md's steps in order, from references to particles. Yields progress; can stop and resume.

s iteration   ψ camera   θ particle   ε̂ prior_noise   ε_{φ,ζ} variational_noise   τ warmup   σ asset_sigma
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from redream.distillation.adaptation import ADAPTER, Adaptation, CaptionedAsset, sample_background
from redream.distillation.guidance import gradient_loss, sds_gradient, vsd_gradient
from redream.distillation.prior import Prior
from redream.distillation.variational import Variational
from redream.errors import RedreamError
from redream.files import replacing
from redream.scene.cameras import VIEWS, Camera, CameraRange
from redream.scene.field import Field
from redream.scene.volume import OccupancyGrid, Rendering, render
from redream.settings import Settings

GRID_EVERY = 8  # iterations of a particle between two looks at its occupancy
REMEMBERED = 0.8  # share of what was known of a particle's disagreement that stays when it is seen again
RATE_FACTORS = 0.1, 6.0  # the least and the most that a disagreement makes of the learning rates
RAYS_PER_CHUNK = 2**14


class CheckpointError(RedreamError):
    """A checkpoint that does not fit this run; the message says why."""


@dataclass(frozen=True)
class Step:
    """What one iteration tells."""

    iteration: int  # 1 … total, over all particles
    total: int
    particle: int
    stage: str  # "warm-up" or "distillation"
    losses: dict[str, float]  # a "score" that is not finite counted as zero


class Particle:
    """θ⁽ⁱ⁾: a field, its occupancy grid and its optimizer."""

    def __init__(self, settings: Settings, generator: torch.Generator, device: torch.device) -> None:
        self.settings = settings
        self.field = Field(settings, generator).to(device)
        self.grid = OccupancyGrid(settings.rendering.occupancy_resolution, settings.field.bound).to(device)
        self.optimizer = torch.optim.AdamW(
            self.field.parameter_groups(settings), betas=(0.9, 0.99), eps=1e-15, weight_decay=0.0
        )
        self.score_rms: float | None = None  # running mean of (RMS of the score gradient) / s while it is painted

    @torch.no_grad()
    def render(self, camera: Camera, size: int, background: Float[Tensor, "3"]) -> Rendering:
        """What a camera sees, without gradients and without randomness."""
        return render(
            self.field,
            camera,
            size,
            background,
            self.grid,
            self.settings.rendering.samples_per_ray,
            None,
            RAYS_PER_CHUNK,
        )

    def set_rate(self, share: float, score_rms: float | None = None) -> None:
        """Learning rates after this share of the iterations: they fall exponentially to `learning_rate_end`.

        `score_rms` is that of the prior with the view just seen, (RMS of the score gradient) / s, delta denoising
        included: with `score_rms_reference` the rates are multiplied by the square of its running mean over that reference.
        AdamW's steps are of one length however small the gradients are; so what already looks like the prompt would
        drift as fast as what does not (ours).
        """
        factor, reference = 1.0, self.settings.distillation.score_rms_reference
        if reference and score_rms is not None:
            known = score_rms if self.score_rms is None else self.score_rms
            self.score_rms = REMEMBERED * known + (1 - REMEMBERED) * score_rms
        if reference and self.score_rms is not None:
            least, most = RATE_FACTORS
            factor = min(max((self.score_rms / reference) ** 2, least), most)
        for group, start in zip(self.optimizer.param_groups, self.field.parameter_groups(self.settings), strict=True):
            group["lr"] = start["lr"] * self.settings.distillation.learning_rate_end**share * factor

    def optimizer_step(self, loss: Float[Tensor, ""]) -> None:
        """One step of the optimizer down a loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        set_epsilon(self.optimizer, self.settings.distillation.epsilon)
        self.optimizer.step()

    def reset_optimizer(self) -> None:
        """Start the optimizer's moments anew: those of v_asset would damp the rest of a short run (ours)."""
        self.optimizer.state.clear()


def set_epsilon(optimizer: torch.optim.AdamW, share: float) -> None:
    """Before a step: AdamW's ε of each group becomes this share of the RMS of its √v; with 0 it stays what it was.

        v ← β₂ v + (1 − β₂) g²,    ε = share · (mean of v / (1 − β₂^step))^½

    A step is then small where gradients are far below the group's, in empty space and inside of things. With a tiny ε
    all step alike however small their gradients, and what is hardly seen drifts: floaters and speckles.
    """
    if not share:
        return
    for group in optimizer.param_groups:
        beta, total, count = group["betas"][1], 0.0, 0
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            steps = int(state.get("step", 0)) + 1
            second = beta * state.get("exp_avg_sq", 0.0) + (1 - beta) * parameter.grad.square()
            total += float(second.sum()) / (1 - beta**steps)
            count += second.numel()
        group["eps"] = max(share * (total / count) ** 0.5, 1e-15)


class Distillation:
    """One run's particles, variational score and adaptation, and the loop over them.

    Everything random comes from one generator seeded with `settings.seed`; on the same machine an equal run follows
    (on a GPU a nearly equal one: some of its sums have no fixed order), also when it is saved and loaded in between.
    """

    def __init__(
        self, prior: Prior, settings: Settings, prompt: str, references: Sequence[CaptionedAsset] = ()
    ) -> None:
        self.prior, self.settings, self.prompt = prior, settings, prompt
        self.references = list(references) if settings.uses_assets else []
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.iteration = 0  # done, over all particles
        self.ranges = CameraRange(settings.cameras.elevation_deg, settings.cameras.distance, settings.cameras.fovy_deg)
        self.particles = [Particle(settings, self.generator, prior.device) for _ in range(settings.particles)]
        self.variational = None
        if settings.method != "sds":
            self.variational = Variational(prior, settings, prompt, self.generator)
        self.adaptation = None
        if settings.adapt and self.references:
            self.adaptation = Adaptation(prior, settings, self.references, self.generator)
        with torch.no_grad():
            self.empty = prior.embed([""])  # (1, l, d)
            self.view_embeddings = {v: prior.embed([f"{prompt}, {v} view"]) for v in VIEWS}  # c_ψ
        self.weights = (
            prior.latent_weights()[:, None, None] if settings.distillation.latent_weights else 1.0
        )  # (c, 1, 1)
        self.adapted_embeddings: dict[str, Tensor] = {}  # cat(e_ψ, c), once e_ψ is final

    @property
    def total(self) -> int:
        """Iterations planned, over all particles."""
        return self.settings.iterations * self.settings.particles

    def steps(self, extra: int = 0, stop: Callable[[], bool] = lambda: False) -> Iterator[Step]:
        """Iterate until the plan is done, and `extra` times per particle beyond it at the schedule's end values.

        The caller may stop consuming after any step and use, or save, what there is. So that nobody waits for many steps
        of Eq. 5, `stop` is asked before each of them: it ends the steps, and what was learned so far counts later.
        """
        settings, prior = self.settings, self.prior
        total = self.total + extra * settings.particles
        while self.iteration < total:
            number, own = self.iteration % settings.particles, self.iteration // settings.particles
            share = min(own / settings.iterations, 1.0)  # of this particle's iterations
            warming = bool(self.references) and settings.initialise and share < settings.initialisation.warmup
            particle = self.particles[number]
            losses = self._adapt(share, stop)
            if losses is None:
                return

            # 1. A camera, a background, a render, its latents.
            size = [pixels for start, pixels in settings.rendering.resolutions if share >= start][-1]
            camera, background, seen = self.render_random_view(particle, size)
            latents = prior.encode(seen.image)  # (1, c, hl, wl); gradients flow through the encoder

            # 2. to 5. Score gradient, of the asset's render too where delta denoising is on (App. B).
            target = None
            delta = (
                settings.distillation.delta_every > 0
                and own % settings.distillation.delta_every == 0
                and settings.initialise
            )
            if self.references and (warming or delta):
                asset = self.references[number % len(self.references)].asset
                target = asset.render(camera, size, background)  # (1, 3, h, w), (1, 1, h, w)
            compared = [latents.detach()]
            if target is not None and delta:
                with torch.no_grad():
                    compared.append(prior.encode(target[0]))
            gradients = self._score_gradient(torch.cat(compared), camera, share)  # (1 or 2, c, hl, wl)
            gradient = gradients[:1]
            if len(compared) == 2:
                gradient = gradient - settings.distillation.delta_weight * gradients[1:]
            losses["score"] = float(gradient.norm())
            score_rms = losses["score"] / (settings.distillation.guidance or 1) / gradient.numel() ** 0.5
            if not math.isfinite(losses["score"]):  # half precision overflowed: rather no score than no particle
                gradient, score_rms = torch.zeros_like(gradient), None
            loss = gradient_loss(latents, self.weights * gradient)
            if warming:
                matching = self._asset_loss(seen, *target, share)  # Eq. 3
                losses["asset"] = float(matching.detach())
                loss = loss + matching
            loss = loss + self._regularisers(seen, share)

            # 6. The particle, then one step of Eq. 4 on ζ with the render just made.
            particle.set_rate(share, None if warming else score_rms)
            particle.optimizer_step(loss)
            for _ in range(
                settings.initialisation.asset_steps - 1 if warming else 0
            ):  # v_asset alone, from further cameras
                other, background, seen = self.render_random_view(particle, size)
                particle.optimizer_step(self._asset_loss(seen, *asset.render(other, size, background), share))
            if (own + 1) % GRID_EVERY == 0:
                particle.grid.update(particle.field.density, self.generator)
            if self.variational is not None:
                losses["variational"] = self.variational.step(latents.detach(), camera)
            if warming and (own + 1) / settings.iterations >= settings.initialisation.warmup:
                particle.reset_optimizer()

            self.iteration += 1
            yield Step(self.iteration, total, number, "warm-up" if warming else "distillation", losses)

    def _adapt(self, share: float, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Those steps of Eq. 5 that are due: spread over the warm-up, all done at τ; None if they were stopped."""
        adaptation, settings = self.adaptation, self.settings
        if adaptation is None or (adaptation.finished and self.adapted_embeddings):
            return {}
        reached = (
            1.0
            if share >= settings.initialisation.warmup
            else (share + 1 / settings.iterations) / settings.initialisation.warmup
        )
        due = min(settings.adaptation.steps, math.ceil(settings.adaptation.steps * reached))
        loss = None
        while adaptation.steps_done < due:
            if stop():
                return None
            loss = adaptation.step()
        self._embed_prefixes()
        return {} if loss is None else {"adaptation": loss}

    @torch.no_grad()
    def _embed_prefixes(self) -> None:
        """cat(e_ψ, c) of every view, if e_ψ is final."""
        a = self.adaptation
        final = a is not None and a.finished
        self.adapted_embeddings = {v: self.prior.embed([self.prompt], a.prefix(v)) for v in VIEWS} if final else {}

    @torch.no_grad()
    def _score_gradient(self, latents: Tensor, camera: Camera, share: float) -> Tensor:
        """v_2D of latents (b, c, hl, wl) that share camera, timestep and noise: Eq. 1, 2 or 20."""
        settings, prior, g = self.settings, self.prior, self.generator
        t = self._timestep(share).expand(len(latents))  # (b,)
        noise = torch.randn(latents[:1].shape, generator=g, device=g.device).to(latents).expand_as(latents)
        noised = prior.add_noise(latents, t, noise)
        adapted = bool(self.adapted_embeddings)
        words = (self.adapted_embeddings if adapted else self.view_embeddings)[camera.view]
        with prior.using(ADAPTER if adapted else None, scale=settings.adaptation.scale):
            prior_noise = prior.guided_noise(
                noised,
                t,
                words.expand(len(latents), -1, -1),
                self.empty.expand(len(latents), -1, -1),
                settings.distillation.guidance,
            )
        sigma = prior.alpha_sigma(t)[1]
        if self.variational is None:
            return sds_gradient(prior_noise, noise, sigma)
        return vsd_gradient(prior_noise, self.variational.predict(noised, t, camera), sigma)

    def _timestep(self, share: float) -> Tensor:
        """t ~ U(t_min, t_max(s)), one number (1,)."""
        low, high = (
            self.settings.distillation.t_min,
            self.settings.distillation.t_max[0 if share < self.settings.distillation.t_anneal else 1],
        )
        last = self.prior.timesteps - 1
        u = torch.rand(1, generator=self.generator, device=self.generator.device)
        return ((low + (high - low) * u) * last).long().to(self.prior.device)

    def render_random_view(self, particle: Particle, size: int) -> tuple[Camera, Float[Tensor, "3"], Rendering]:
        """A camera ψ and a background, drawn, and the render g(θ, ψ) with gradients."""
        camera = self.ranges.sample(self.generator)
        background = sample_background(self.generator)[0].to(self.prior.device)  # (3,)
        samples = self.settings.rendering.samples_per_ray
        return (
            camera,
            background,
            render(particle.field, camera, size, background, particle.grid, samples, self.generator),
        )

    def _asset_loss(self, seen: Rendering, image: Tensor, opacity: Tensor, share: float) -> Tensor:
        """Eq. 3: (1/σ²) mean ‖g(θ, ψ) − g(θ_ret, ψ)‖², and the same of opacity with its own weight (ours).

        Late in the warm-up colours are let go and outlines held: what has another colour than its asset can turn to it
        while the rates are high (ours)."""
        settings = self.settings
        colour = (seen.image - image).square().sum(dim=1).mean()
        cover = (seen.opacity - opacity).square().mean()
        held = (
            1.0
            if share < settings.initialisation.asset_colour_until * settings.initialisation.warmup
            else settings.initialisation.asset_colour_after
        )
        return (
            held * colour + settings.initialisation.asset_opacity_weight * cover
        ) / settings.initialisation.asset_sigma**2

    def _regularisers(self, seen: Rendering, share: float) -> Tensor:
        """Sparsity and, after the anneal, opacity that is all or nothing (threestudio)."""
        opacity = seen.opacity.clamp(1e-3, 1 - 1e-3)
        loss = self.settings.distillation.sparsity * (opacity.square() + 0.01).sqrt().mean()
        if self.settings.distillation.opaque and share >= self.settings.distillation.t_anneal:
            entropy = -(opacity * opacity.log() + (1 - opacity) * (1 - opacity).log())
            loss = loss + self.settings.distillation.opaque * entropy.mean()
        return loss

    # Checkpoints

    def save(self, folder: Path) -> None:
        """Write `state.safetensors` and `state.json` into `folder`; from them an equal run continues."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"generator": self.generator.get_state()}
        for name, module in self._modules().items():
            tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
        for name, optimizer in self._optimizers().items():
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}.optimizer/{index}/{key}": torch.as_tensor(v) for key, v in state.items()}
        tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        state = {"format": 1, "iteration": self.iteration}
        state["disagreements"] = [particle.score_rms for particle in self.particles]
        state["adaptation_steps"] = self.adaptation.steps_done if self.adaptation else 0
        with replacing(folder / "state.safetensors") as file:
            save_file(tensors, file)
        with replacing(folder / "state.json") as file:
            file.write_text(json.dumps(state))

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote; `CheckpointError` if it belongs to other settings or is damaged: then only
        another one can be loaded, as half of this one may be here."""
        try:
            tensors, state = load_file(folder / "state.safetensors"), json.loads((folder / "state.json").read_text())
            for name, module in self._modules().items():
                own = {key[len(name) + 1 :]: v for key, v in tensors.items() if key.startswith(f"{name}/")}
                module.load_state_dict(own)
            for name, optimizer in self._optimizers().items():
                moments: dict[int, dict[str, Tensor]] = {}
                for key, value in tensors.items():
                    if key.startswith(f"{name}.optimizer/"):
                        index, field = key.rsplit("/", 2)[1:]
                        moments.setdefault(int(index), {})[field] = value
                optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
            self.iteration = int(state["iteration"])
            for particle, score_rms in zip(self.particles, state["disagreements"], strict=True):
                particle.score_rms = None if score_rms is None else float(score_rms)
            if self.adaptation:
                self.adaptation.steps_done = int(state["adaptation_steps"])
            self.generator.set_state(tensors["generator"])
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                "This checkpoint is damaged or does not fit the run's settings; start the run anew."
            ) from error
        self._embed_prefixes()

    def _modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {}
        for number, particle in enumerate(self.particles):
            modules |= {f"particle-{number}": particle.field, f"grid-{number}": particle.grid}
        for name, part in (("variational", self.variational), ("adaptation", self.adaptation)):
            if part is not None:
                modules |= {f"{name}.{key}": module for key, module in part.modules().items()}
        return modules

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizers = {f"particle-{n}": p.optimizer for n, p in enumerate(self.particles)}
        for name, part in (("variational", self.variational), ("adaptation", self.adaptation)):
            if part is not None:
                optimizers[name] = part.optimizer
        return optimizers


def load_particles(folder: Path, settings: Settings, device: str = "cpu") -> list[Particle]:
    """The particles of a checkpoint alone, to look at: no prior is needed. `CheckpointError` if it does not fit."""
    try:
        tensors = load_file(folder / "state.safetensors")
        particles = [Particle(settings, torch.Generator(), torch.device(device)) for _ in range(settings.particles)]
        for number, particle in enumerate(particles):
            for name, module in ((f"particle-{number}/", particle.field), (f"grid-{number}/", particle.grid)):
                module.load_state_dict({k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)})
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError("This checkpoint does not fit the run's settings; start the run anew.") from error
    return particles
