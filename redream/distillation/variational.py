"""The variational score ε_{φ,ζ}: a LoRA and a camera embedding that learn what noisy renders look like (Eq. 4).

    min_ζ  E ‖ε_{φ,ζ}(x_t, t, c, ψ) − ε‖²,      x_t of the particles' renders, t ~ U(0, 1)

The camera input is the flattened camera-to-world matrix through a two-layer network, added to the timestep embedding;
one step in ten sees a zero camera (threestudio). The LoRA's up matrices and the network's last layer start at zero, so
that ε_{φ,ζ} starts as ε_φ.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from redream.distillation.captured import Captured
from redream.distillation.generators import Generators
from redream.distillation.lora import lora_optimizer, optimizer_step
from redream.distillation.prior import ATTENTION, Prior
from redream.scene.cameras import Camera
from redream.settings import Settings

ADAPTER = "variational"
CAMERA_DROPPED = 0.1


class Variational:
    """ζ, one for all particles."""

    def __init__(self, prior: Prior, settings: Settings, prompt: str, generators: Generators) -> None:
        self.prior, self.generators = prior, generators
        with torch.no_grad():
            self.embedding = prior.embed([prompt])  # (1, l, d): the plain prompt
        self.lora = prior.add_adapter(ADAPTER, settings.variational.rank, generators.host, ATTENTION)
        width = prior.unet.time_embedding.linear_2.out_features
        self.camera_network = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width)).to(prior.device)
        first, last = self.camera_network[0], self.camera_network[2]
        with torch.no_grad():
            drawn = torch.rand(first.weight.shape, generator=generators.host) * 2 - 1
            first.weight.copy_(drawn / first.in_features**0.5)
            first.bias.zero_()
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        parameters = (self.lora, list(self.camera_network.parameters()))
        rate = settings.variational.learning_rate
        self.optimizer = lora_optimizer([{"params": p, "lr": rate} for p in parameters], prior.device)
        self._steps = Captured(self._step, prior.capture, self.optimizer)
        self._shared_steps: dict[int, Captured] = {}  # by the number of latents

    @torch.no_grad()
    def predict(
        self, noised: Float[Tensor, "b c h w"], t: Int[Tensor, "b"], camera: Camera
    ) -> Float[Tensor, "b c h w"]:
        """ε_{φ,ζ}(x_t, t, c, ψ): no guidance, the plain prompt."""
        with self.prior.using(ADAPTER):
            return self._predict(noised, t, self._pose(camera))

    def loss(
        self,
        latents: Float[Tensor, "b c h w"],
        t: Int[Tensor, "b"],
        noise: Float[Tensor, "b c h w"],
        camera: Camera | None,
    ) -> Float[Tensor, ""]:
        """Eq. 4 at given latents, timesteps and noise; to be called within `prior.using`. None: a zero camera."""
        return self._loss(latents, t, noise, self._pose(camera))

    def step(self, latents: Float[Tensor, "b c h w"], camera: Camera) -> Float[Tensor, ""]:
        """One step of Eq. 4 on the latents of the render just made; returns the loss."""
        host = self.generators.host
        t = torch.randint(self.prior.timesteps, (len(latents),), generator=host)
        dropped = float(torch.rand(1, generator=host)) < CAMERA_DROPPED
        noise = self.generators.noise(latents)
        t = t.to(self.prior.device, non_blocking=True)
        with self.prior.using(ADAPTER, train=True):
            return self._steps(latents.detach(), t, noise, self._pose(None if dropped else camera))

    def predict_and_step(
        self, noised: Float[Tensor, "b c h w"], t: Int[Tensor, "b"], noise: Float[Tensor, "b c h w"], camera: Camera
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, ""]]:
        """`predict`, and a step of Eq. 4 on the first of the latents with the same t and ε, in one pass (ours).

        Returns the prediction of before the step, and the loss.
        """
        if len(noised) not in self._shared_steps:
            self._shared_steps[len(noised)] = Captured(self._shared_step, self.prior.capture, self.optimizer)
        with self.prior.using(ADAPTER, train=True), torch.enable_grad():
            return self._shared_steps[len(noised)](noised, t, noise, self._pose(camera))

    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps, by name."""
        return {"lora": nn.ParameterList(self.lora), "camera": self.camera_network}

    def _pose(self, camera: Camera | None) -> Float[Tensor, "1 16"]:
        pose = torch.zeros(1, 16) if camera is None else camera.pose.reshape(1, 16)
        return pose.to(self.prior.device, non_blocking=True)

    def _step(self, latents: Tensor, t: Tensor, noise: Tensor, pose: Tensor) -> Tensor:
        loss = self._loss(latents, t, noise, pose)
        optimizer_step(loss, self.optimizer)
        return loss.detach()

    def _shared_step(self, noised: Tensor, t: Tensor, noise: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        predicted = self._predict(noised, t, pose)
        loss = (predicted[:1] - noise[:1]).square().mean()
        optimizer_step(loss, self.optimizer)
        return predicted.detach(), loss.detach()

    def _loss(self, latents: Tensor, t: Tensor, noise: Tensor, pose: Tensor) -> Tensor:
        return (self._predict(self.prior.add_noise(latents, t, noise), t, pose) - noise).square().mean()

    def _predict(self, noised: Tensor, t: Tensor, pose: Tensor) -> Tensor:
        embedding = self.embedding.expand(len(noised), -1, -1)
        return self.prior.predict_noise(noised, t, embedding, self.camera_network(pose).expand(len(noised), -1))
