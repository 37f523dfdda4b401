"""The variational score ε_{φ,ζ}: a LoRA and a camera embedding that learn what noisy renders look like (Eq. 4).

    min_ζ  E ‖ε_{φ,ζ}(x_t, t, c, ψ) − ε‖²,      x_t of the particles' renders, t ~ U(0, 1)

The camera input is the flattened camera-to-world matrix through a two-layer network, added to the timestep embedding;
one step in ten sees a zero camera (threestudio). The LoRA's up matrices and the network's last layer start at zero, so
that ε_{φ,ζ} starts as ε_φ.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from redream.distillation.prior import ATTENTION, Prior, optimizer_step
from redream.scene.cameras import Camera
from redream.settings import Settings

ADAPTER = "variational"
CAMERA_DROPPED = 0.1


class Variational:
    """ζ, one for all particles."""

    def __init__(self, prior: Prior, settings: Settings, prompt: str, generator: torch.Generator) -> None:
        self.prior, self.generator = prior, generator
        with torch.no_grad():
            self.embedding = prior.embed([prompt])  # (1, l, d): the plain prompt
        seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        self.lora = prior.add_adapter(ADAPTER, settings.variational.rank, seed, ATTENTION)
        width = prior.unet.time_embedding.linear_2.out_features
        self.camera_network = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width)).to(prior.device)
        first, last = self.camera_network[0], self.camera_network[2]
        with torch.no_grad():
            drawn = torch.rand(first.weight.shape, generator=generator, device=generator.device) * 2 - 1
            first.weight.copy_(drawn / first.in_features**0.5)
            first.bias.zero_()
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self.lora, "lr": settings.variational.learning_rate},
                {"params": list(self.camera_network.parameters()), "lr": settings.variational.learning_rate},
            ],
            betas=(0.9, 0.99),
            weight_decay=0.01,
        )

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
        pose = torch.zeros(1, 16, device=self.prior.device) if camera is None else self._pose(camera)
        return (self._predict(self.prior.add_noise(latents, t, noise), t, pose) - noise).square().mean()

    def step(self, latents: Float[Tensor, "b c h w"], camera: Camera) -> float:
        """One step of Eq. 4 on the latents of the render just made; returns the loss."""
        g = self.generator
        t = torch.randint(self.prior.timesteps, (len(latents),), generator=g, device=g.device).to(latents.device)
        noise = torch.randn(latents.shape, generator=g, device=g.device).to(latents)
        dropped = float(torch.rand(1, generator=g, device=g.device)) < CAMERA_DROPPED
        with self.prior.using(ADAPTER, train=True):
            loss = self.loss(latents.detach(), t, noise, None if dropped else camera)
            optimizer_step(loss, self.optimizer)
        return float(loss.detach())

    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps, by name."""
        return {"lora": nn.ParameterList(self.lora), "camera": self.camera_network}

    def _pose(self, camera: Camera) -> Tensor:
        return camera.pose.reshape(1, 16).to(self.prior.device)

    def _predict(self, noised: Tensor, t: Tensor, pose: Tensor) -> Tensor:
        embedding = self.embedding.expand(len(noised), -1, -1)
        return self.prior.predict_noise(noised, t, embedding, self.camera_network(pose).expand(len(noised), -1))
