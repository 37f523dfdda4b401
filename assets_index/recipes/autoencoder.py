"""The prior's autoencoder: 64 × 64 pictures to 16 × 16 latents of 10 channels and back (diffusers' AutoencoderTiny).

The encoder is the best linear one, written down instead of trained: principal components of 4 × 4 patches. The prior
can so be trained at once, and the gradient that distillation sends back through the encoder is that of an orthogonal
projection. The decoder is convolutional and trained; it also removes the seams between patches.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from assets_index.recipes.renders import Renders
from assets_index.recipes.training import train

LATENT_CHANNELS = 10
WIDTH = 48  # 4 × 4 × 3: the numbers in a patch
WHITENING = 0.5  # latents' spreads are those of the components to this power: details are not drowned in noise


def build_autoencoder(renders: Renders) -> AutoencoderTiny:
    """0.5 M parameters; the encoder is ready, the decoder is not trained."""
    model = AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 3,
        decoder_block_out_channels=(WIDTH,) * 3,
        num_encoder_blocks=(0, 0, 0),
        num_decoder_blocks=(2, 2, 1),
        latent_channels=LATENT_CHANNELS,
    )
    _write_encoder(model, *_components(renders))
    return model


def _components(renders: Renders) -> tuple[Tensor, Tensor]:
    """Rows of the map from patches (channel, row, column; values in [−1, 1]) to latents, (10, 48), and its offset."""
    rng = np.random.default_rng(4)
    pictures = renders.pictures(rng.integers(0, len(renders.kind), 3000), rng) * 2 - 1
    patches = nn.functional.unfold(pictures, 4, stride=4).permute(0, 2, 1).reshape(-1, WIDTH)
    mean = patches.mean(dim=0)
    variance, directions = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    spread = variance.flip(0)[:LATENT_CHANNELS].sqrt()  # (10,)
    rows = directions.flip(1)[:, :LATENT_CHANNELS].T / spread[:, None]  # unit spread
    wanted = spread**WHITENING / (spread ** (2 * WHITENING)).mean().sqrt()  # mean square one
    rows = rows * wanted[:, None]
    return rows, -rows @ mean


@torch.no_grad()
def _write_encoder(model: AutoencoderTiny, rows: Tensor, offset: Tensor) -> None:
    """Space-to-depth by two convolutions of stride 2, then the rows; AutoencoderTiny first maps pictures to [0, 1]."""
    convolutions = [m for m in model.encoder.modules() if isinstance(m, nn.Conv2d)]
    first, second, third, last = convolutions  # 3 → 48, stride 2, stride 2, 48 → 10
    for convolution in convolutions:
        convolution.weight.zero_()
        if convolution.bias is not None:
            convolution.bias.zero_()
    for channel in range(3):
        first.weight[channel, channel, 1, 1] = 1
        for y in range(2):
            for x in range(2):
                second.weight[channel * 4 + y * 2 + x, channel, 1 + y, 1 + x] = 1
                for v in range(2):
                    for u in range(2):
                        source, target = channel * 4 + y * 2 + x, channel * 16 + (2 * v + y) * 4 + 2 * u + x
                        third.weight[target, source, 1 + v, 1 + u] = 1
    last.weight[:, :, 1, 1] = 2 * rows
    last.bias.copy_(offset - rows.sum(dim=1))


def train_decoder(
    model: AutoencoderTiny, renders: Renders, build: Path, steps: int, batch: int = 16
) -> AutoencoderTiny:
    """Mean absolute and squared error and that of edges, from latents with a little noise, as samples have it."""
    torch.manual_seed(1)
    model.encoder.requires_grad_(False)

    def loss(step: int, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        pictures = renders.pictures(rng.integers(0, len(renders.kind), batch), rng) * 2 - 1  # (b, 3, 64, 64)
        latents = model.encode(pictures).latents
        amount = 0.15 * torch.rand(batch, 1, 1, 1, generator=generator).square()
        latents = latents + amount * torch.randn(latents.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = model.decode(latents).sample
        difference = decoded.float() - pictures
        edges = difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
        return {
            "absolute": difference.abs().mean(),
            "squared": 4 * difference.square().mean(),
            "edges": 0.5 * edges,
        }

    return train("decoder", model, loss, steps=steps, learning_rate=2e-3, build=build, average=0.995, weight_decay=0)


@torch.no_grad()
def psnr(model: AutoencoderTiny, renders: Renders, count: int = 512) -> float:
    """Mean peak signal-to-noise ratio of reconstructions, dB."""
    rng = np.random.default_rng(6)
    pictures = renders.pictures(rng.integers(0, len(renders.kind), count), rng)
    values = []
    for p in pictures.split(64):
        decoded = (model.decode(model.encode(p * 2 - 1).latents).sample / 2 + 0.5).clamp(0, 1)
        values.append(-10 * (decoded - p).square().mean(dim=(1, 2, 3)).log10())
    return float(torch.cat(values).mean())
