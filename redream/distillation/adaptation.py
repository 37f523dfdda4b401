"""Lightweight adaptation of the 2D prior (Eq. 5): a small LoRA and view prefixes learn the assets' views.

    min_{ω, e}  E ‖ε_{ω,φ}(x_t, t, cat(e_ψ, c_ret)) − ε‖²,      x_t of renders of the retrieved assets, t ~ U(0, 1)^(1/p)

ω is the adapter "prior"; e_ψ are input embeddings put before the caption's, started from the words "front view",
"side view" and "back view".
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from redream.distillation.captured import Captured
from redream.distillation.generators import Generators
from redream.distillation.lora import lora_optimizer, optimizer_step
from redream.distillation.prior import ATTENTION, CONVOLUTIONS, Prior
from redream.scene.assets import Asset
from redream.scene.cameras import VIEWS, Camera, CameraRange
from redream.settings import Settings

ADAPTER = "prior"


@dataclass(frozen=True)
class CaptionedAsset:
    """A retrieved asset θ_ret⁽ⁿ⁾ and its caption c_ret; its semantic front faces +x."""

    asset: Asset
    caption: str


@dataclass(frozen=True)
class StoredViews:
    """Renders of one asset: colour premultiplied by opacity, and opacity, from known cameras."""

    rgba: UInt8[Tensor, "n 4 h w"]
    cameras: tuple[Camera, ...]

    def on(self, rows: Sequence[int], backgrounds: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3 h w"]:
        """These views over these backgrounds."""
        rgba = self.rgba[list(rows)].to(backgrounds) / 255
        return rgba[:, :3] + (1 - rgba[:, 3:]) * backgrounds[:, :, None, None]


def store_views(asset: Asset, cameras: Sequence[Camera], size: int) -> StoredViews:
    """Renders of an asset, `size` pixels square, cast by all cores."""
    black = torch.zeros(3)

    def cast(camera: Camera) -> UInt8[Tensor, "1 4 h w"]:
        return (torch.cat(asset.render(camera, size, black), dim=1) * 255).round().to(torch.uint8)

    with ThreadPoolExecutor() as pool:
        return StoredViews(torch.cat(list(pool.map(cast, cameras))), tuple(cameras))


def sample_background(generator: torch.Generator, count: int = 1) -> Float[Tensor, "n 3"]:
    """Plain backgrounds as photographs of objects have them: half pale, half of any colour."""
    colour = torch.rand(count, 3, generator=generator, device=generator.device)
    pale = torch.rand(count, 1, generator=generator, device=generator.device) < 0.5
    return torch.where(pale, 0.75 + 0.25 * colour, colour)


class Adaptation:
    """ω and e_ψ while they are learned, on the stored views of all assets, whatever the number of particles."""

    def __init__(
        self, prior: Prior, settings: Settings, assets: Sequence[CaptionedAsset], generators: Generators
    ) -> None:
        self.prior, self.settings, self.generators = prior, settings, generators
        self.steps_done = 0
        with torch.no_grad():
            self._empty = prior.embed([""])  # (1, l, d): ∅
        self._assets, ranges, count = (
            [r.asset for r in assets],
            CameraRange.of(settings.cameras),
            settings.adaptation.views,
        )
        # At equally spaced azimuths, with the training cameras' elevations and framing (A).
        self.cameras = [ranges.uniform(count, generators.host) for _ in assets]  # N × n
        self._backgrounds = [sample_background(generators.host, count) for _ in assets]  # N × (n, 3)
        self.asset_of = [i for i, cameras in enumerate(self.cameras) for _ in cameras]  # (N n,)
        self.view_of = [camera.view for cameras in self.cameras for camera in cameras]  # (N n,)
        self.prefixes = nn.ParameterDict({view: nn.Parameter(prior.token_embeddings(f"{view} view")) for view in VIEWS})
        self.prefixes.requires_grad_(settings.adaptation.prefix_learned)
        self._captions = prior.tokens([r.caption for r in assets], room=len(self.prefixes[VIEWS[0]]))  # (N, l) ids
        self.lora = prior.add_adapter(ADAPTER, settings.adaptation.rank, generators.host, ATTENTION + CONVOLUTIONS)
        parameters = (self.lora, list(self.prefixes.parameters()))
        groups = [{"params": p, "lr": rate} for p, rate in zip(parameters, self._rates(), strict=True)]
        self.optimizer = lora_optimizer(groups, prior.device)
        self._steps = Captured(self._step, prior.capture, self.optimizer)

    def step(self) -> Float[Tensor, ""]:
        """One step of Eq. 5 on a batch of views, front, side and back in equal shares; returns the loss.

        The learning rates fall linearly to zero: a short run ends with settled weights (ours).
        """
        for group, start in zip(self.optimizer.param_groups, self._rates(), strict=True):
            group["lr"].fill_(start * (1 - self.steps_done / self.settings.adaptation.steps))
        rows = self._balanced_rows(self.settings.adaptation.batch)
        t = self._random_timesteps(len(rows))
        dropped = torch.rand(len(rows), generator=self.generators.host) < self.settings.adaptation.empty
        numbers = [rows, [self.asset_of[row] for row in rows], [VIEWS.index(self.view_of[row]) for row in rows]]
        rows_, assets, views = self._to_device(torch.tensor(numbers))  # (b,) each
        latents = self.latents[rows_]  # (b, c, hl, wl)
        noise = self.generators.noise(latents)
        with self.prior.using(ADAPTER, train=True):
            loss = self._steps(latents, t, noise, self._captions[assets], views, self._to_device(dropped))
        self.steps_done += 1
        return loss

    @cached_property
    def latents(self) -> Float[Tensor, "n c hl wl"]:
        """The stored views of all assets, encoded, over one background each. Made at first use: a run that is continued
        after its adaptation needs none."""
        latents = []
        for asset, cameras, backgrounds in zip(self._assets, self.cameras, self._backgrounds, strict=True):
            views, backgrounds = store_views(asset, cameras, self.prior.size), backgrounds.to(self.prior.device)
            for rows in torch.arange(len(cameras)).split(25):
                with torch.no_grad():
                    latents.append(self.prior.encode(views.on(rows.tolist(), backgrounds[rows])))
        return torch.cat(latents)

    @property
    def finished(self) -> bool:
        """Whether ω and e_ψ are final: they are learned for a fixed number of steps, then frozen."""
        return self.steps_done >= self.settings.adaptation.steps

    def prefix(self, view: str) -> Float[Tensor, "n d"]:
        """e_ψ of a view name."""
        return self.prefixes[view].detach()

    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps, by name."""
        return {"prefixes": self.prefixes, "lora": nn.ParameterList(self.lora)}

    def _step(
        self, latents: Tensor, t: Tensor, noise: Tensor, captions: Tensor, views: Tensor, dropped: Tensor
    ) -> Tensor:
        prefix = torch.stack([self.prefixes[view] for view in VIEWS])[views]  # (b, n, d): e_ψ
        embedding = self.prior.embed_tokens(captions, prefix)  # (b, l, d): of cat(e_ψ, c_ret)
        embedding = torch.where(dropped[:, None, None], self._empty, embedding)
        predicted = self.prior.predict_noise(self.prior.add_noise(latents, t, noise), t, embedding)
        loss = (predicted - noise).square().mean()
        optimizer_step(loss, self.optimizer)
        return loss.detach()

    def _balanced_rows(self, count: int) -> list[int]:
        host = self.generators.host
        groups = [[i for i, v in enumerate(self.view_of) if v == view] for view in VIEWS]
        groups = [group for group in groups if group]
        start = int(torch.randint(len(groups), (1,), generator=host))
        picks = torch.rand(count, generator=host).tolist()
        cycle = [groups[(start + i) % len(groups)] for i in range(count)]
        return [group[int(u * len(group))] for group, u in zip(cycle, picks)]

    def _rates(self) -> tuple[float, float]:
        """Learning rates at the start, of ω and of e_ψ."""
        return self.settings.adaptation.learning_rate, self.settings.adaptation.prefix_learning_rate

    def _random_timesteps(self, count: int) -> Int[Tensor, "b"]:
        """t = T u^(1/p), u ~ U(0, 1): p = 1 is the paper's U(0, T); a larger p prefers the high noise at which a
        picture's view is decided (ours)."""
        u = torch.rand(count, generator=self.generators.host) ** (1 / self.settings.adaptation.t_power)
        return self._to_device((self.prior.timesteps * u).long().clamp(max=self.prior.timesteps - 1))

    def _to_device(self, values: Tensor) -> Tensor:
        return values.to(self.prior.device, non_blocking=True)
