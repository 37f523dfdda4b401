"""Volume rendering of listed samples, with its gradients."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from redream.scene.kernels.launch import add, kernel, launch, tl
from redream.scene.kernels.marching import Samples, tiles


def composite(
    rgb: Float[Tensor, "k 3"], density: Float[Tensor, "k"], samples: Samples, tile: int | None = None
) -> Float[Tensor, "n 5"]:
    """RGB on black, opacity, and distance times opacity of rays; gradients go to `rgb` and `density`.

    T_i = exp(−Σ_{j<i} σ_j δ),    w_i = T_i (1 − exp(−σ_i δ)),    pixel = Σ_i w_i (rgb_i, 1, distance_i)
    """
    return _Composite.apply(rgb, density, samples, tile)


def visible(density: Float[Tensor, "k"], samples: Samples, least: float, tile: int | None = None) -> Int64[Tensor, "n"]:
    """How many samples of each ray, front to back, have a transmittance above `least` in front of them."""
    counts = torch.empty_like(samples.counts)
    sides = tiles(samples.rays, tile)
    launch(
        _visible, len(counts), sides["RAYS"], density.contiguous(), samples.first, samples.counts, samples.rays.length,
        counts, least, len(counts), **sides,
    )  # fmt: skip
    return counts


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rgb, density, samples, tile):
        rgb, density, length = rgb.contiguous(), density.contiguous(), samples.rays.length
        ctx.save_for_backward(rgb, density, samples.distance, samples.first, samples.counts, length)
        ctx.tiles = tiles(samples.rays, tile)
        pixels = length.new_empty(len(length), 5)
        launch(
            _composite_forward, len(length), ctx.tiles["RAYS"], rgb, density, samples.distance, samples.first,
            samples.counts, length, pixels, len(length), **ctx.tiles,
        )  # fmt: skip
        return pixels

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rgb, density, distance, first, counts, length = ctx.saved_tensors
        grad_rgb, grad_density = torch.zeros_like(rgb), torch.zeros_like(density)
        launch(
            _composite_backward, len(length), ctx.tiles["RAYS"], rgb, density, distance, first, counts, length,
            grad.contiguous(), grad_rgb, grad_density, len(length), **ctx.tiles,
        )  # fmt: skip
        return grad_rgb, grad_density, None, None


# n: rays, i: their samples; a tile is (n, i)


@kernel
def _optical(n, here, density, first, counts, length, SAMPLES: tl.constexpr):
    """Slots of the rays' samples, which of them there are, and their optical depths σδ."""
    i = tl.arange(0, SAMPLES)[None, :]
    there = i < tl.load(counts + n, here, 0)[:, None]
    slot = tl.load(first + n, here, 0)[:, None] + i
    return slot, there, tl.load(density + slot, there, 0.0) * tl.load(length + n, here, 0.0)[:, None]


@kernel
def _absorbed(x):
    """1 − exp(−x) for x ≥ 0, small ones to all digits: Triton has no expm1."""
    series = x * (1 - x / 2 * (1 - x / 3 * (1 - x / 4 * (1 - x / 5 * (1 - x / 6 * (1 - x / 7))))))
    return tl.where(x < 0.25, series, 1 - tl.exp(-x))


@kernel
def _visible(
    density,
    first,
    counts,
    length,
    visible_counts,
    least,
    count,
    RAYS: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    here = n < count
    _, there, optical = _optical(n, here, density, first, counts, length, SAMPLES)
    transmittance = tl.exp(optical - tl.associative_scan(optical, 1, add))
    seen = (there & (transmittance > least)).to(tl.int32)
    tl.store(visible_counts + n, tl.reduce(seen, 1, add).to(tl.int64), here)


@kernel
def _composite_forward(
    rgb,
    density,
    distance,
    first,
    counts,
    length,
    pixels,
    count,
    RAYS: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    here = n < count
    slot, there, optical = _optical(n, here, density, first, counts, length, SAMPLES)
    weight = tl.exp(optical - tl.associative_scan(optical, 1, add)) * _absorbed(optical)
    for channel in tl.static_range(3):
        colour = tl.load(rgb + slot * 3 + channel, there, 0.0)
        tl.store(pixels + n * 5 + channel, tl.reduce(weight * colour, 1, add), here)
    tl.store(pixels + n * 5 + 3, tl.reduce(weight, 1, add), here)
    tl.store(pixels + n * 5 + 4, tl.reduce(weight * tl.load(distance + slot, there, 0.0), 1, add), here)


@kernel
def _composite_backward(
    rgb,
    density,
    distance,
    first,
    counts,
    length,
    grad,
    grad_rgb,
    grad_density,
    count,
    RAYS: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    # With g = ∂L/∂pixel and u_i = g · (rgb_i, 1, distance_i) = ∂L/∂w_i:
    #     ∂L/∂rgb_i = w_i g_rgb,    ∂L/∂σ_i = δ (T_{i+1} u_i − Σ_{j>i} w_j u_j)
    n = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    here = n < count
    slot, there, optical = _optical(n, here, density, first, counts, length, SAMPLES)
    transmittance = tl.exp(optical - tl.associative_scan(optical, 1, add))
    weight = transmittance * _absorbed(optical)
    to_opacity, to_depth = tl.load(grad + n * 5 + 3, here, 0.0), tl.load(grad + n * 5 + 4, here, 0.0)
    u = to_opacity[:, None] + to_depth[:, None] * tl.load(distance + slot, there, 0.0)
    for channel in tl.static_range(3):
        to_colour = tl.load(grad + n * 5 + channel, here, 0.0)[:, None]
        u += to_colour * tl.load(rgb + slot * 3 + channel, there, 0.0)
        tl.store(grad_rgb + slot * 3 + channel, to_colour * weight, there)
    behind = tl.associative_scan(weight * u, 1, add, reverse=True) - weight * u
    along = (transmittance * tl.exp(-optical) * u - behind) * tl.load(length + n, here, 0.0)[:, None]
    tl.store(grad_density + slot, along, there)
