"""The arithmetic of an iteration, counted on meta tensors: on any machine, without weights and without calculating."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from redream.distillation import adaptation, variational
from redream.distillation.loop import Distillation
from redream.scene.cameras import VIEWS
from redream.settings import Settings


def flop_of(call: Callable[[], object]) -> int:
    """FLOP of a call: matrix products, convolutions and attention, two for each multiplication with its addition.

    On meta tensors attention is taken apart into its two matrix products, which are counted.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def flop_of_parts(
    distillation: Distillation, resolution: int, occupied: float
) -> tuple[dict[str, int], dict[str, int]]:
    """FLOP of each part of one iteration after the warm-up, and of one adaptation step: without delta denoising, and with it.

    distillation: on meta tensors
    occupied: the share of a ray's samples that lie in occupied cells, where the field is asked
    """
    d = distillation
    image = torch.zeros(1, 3, d.prior.size, d.prior.size, device="meta", requires_grad=True)
    encoder = flop_of(lambda: d.prior.encode(image))
    backward = flop_of(lambda: d.prior.encode(image).sum().backward()) - encoder
    field = round(occupied * resolution**2 * d.settings.rendering.samples_per_ray) * _field(d.settings)
    flop = {"render": field, "encode": encoder, **_scoring(d, 1), "backward": backward + 2 * field}
    if d.variational is not None:
        flop["variational step"] = flop_of(lambda: _variational_step(d, 1))
    if d.adaptation is not None:
        flop["adaptation step"] = flop_of(lambda: _adaptation_step(d))
    delta = flop | {"encode": 2 * encoder} | _scoring(d, 2)  # with the asset's latents
    if d.variational is not None and d.settings.variational.shared_noise:
        delta["variational step"] = flop_of(lambda: _variational_step(d, 2))
    return flop, delta


def _field(settings: Settings) -> int:
    """FLOP of the field's network at one point; its gradient takes twice as many."""
    s = settings.field
    return 2 * s.hidden * (s.levels * s.features + 4)


@torch.no_grad()
def _scoring(d: Distillation, count: int) -> dict[str, int]:
    """Of the noise predictions for so many latents."""
    noised, t = _latents(d, count), _timesteps(count)
    condition = d.empty_embedding.expand(count, -1, -1)

    def guided() -> None:
        with d.prior.using(adaptation.ADAPTER if d.adaptation else None):
            d.prior.guided_noise(noised, t, condition, condition, settings.guidance)

    settings, camera = d.settings.distillation, d.camera_range.sample(torch.Generator())
    flop = {"prior": flop_of(guided)}
    if d.variational is not None and not d.settings.variational.shared_noise:
        flop["variational prediction"] = flop_of(lambda: d.variational.predict(noised, t, camera))
    return flop


def _variational_step(d: Distillation, count: int) -> None:
    """A step of Eq. 4; where noise is shared, in the pass that predicts for so many latents."""
    latents = _latents(d, count)
    with d.prior.using(variational.ADAPTER, train=True):
        d.variational.loss(latents, _timesteps(count), latents, None).backward()


def _adaptation_step(d: Distillation) -> None:
    count = d.settings.adaptation.batch
    prefix = d.adaptation.prefix(VIEWS[0]).requires_grad_(d.settings.adaptation.prefix_learned)
    with d.prior.using(adaptation.ADAPTER, train=True):
        embedding = d.prior.embed([d.prompt] * count, prefix)
        d.prior.predict_noise(_latents(d, count), _timesteps(count), embedding).sum().backward()


def _latents(d: Distillation, count: int) -> Tensor:
    side = d.prior.latent_size
    return torch.zeros(count, d.prior.unet.config.in_channels, side, side, device="meta")  # (b, c, hl, wl)


def _timesteps(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.long, device="meta")
