"""The prior: a small latent diffusion model with a text encoder of its own, saved as a StableDiffusionPipeline.

It is trained like web photos are: three quarters of the pictures are fronts, and one caption in twenty names the view.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from assets_index import world
from assets_index.recipes.autoencoder import LATENT_CHANNELS
from assets_index.recipes.clips import captions_of_the_world, world_view
from assets_index.recipes.renders import Renders
from assets_index.recipes.tokenizer import make_tokenizer
from assets_index.recipes.training import train

LENGTH = 32  # tokens
VIEW_SHARES = (0.75, 0.20, 0.05)  # front, side, back
VIEW_NAMED = 0.05
EMPTY = 0.1
SNR_LIMIT = 5.0


class Parts(nn.Module):
    """U-Net and text encoder, trained together."""

    def __init__(self, words: int, end: int):
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            block_out_channels=(48, 96, 128),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=128,
            attention_head_dim=4,
            norm_num_groups=16,
            use_linear_projection=True,
            # The pooled text joins the timestep embedding: what to draw is learned several times faster.
            addition_embed_type="text",
            addition_embed_type_num_heads=8,
        )
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=words,
                hidden_size=128,
                intermediate_size=384,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=LENGTH,
                projection_dim=128,
                bos_token_id=end - 1,
                eos_token_id=end,
                pad_token_id=end,
            )
        )
        # Real text encoders come with a sense of words; this one gets it from naming kind and colour meanwhile.
        self.kind_head = nn.Linear(128, len(world.KINDS))
        self.colour_head = nn.Linear(128, len(world.COLOURS))


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule, ε prediction."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )


def train_prior(
    autoencoder: AutoencoderTiny, renders: Renders, build: Path, steps: int, batch: int = 32
) -> tuple[Parts, CLIPTokenizer]:
    """ε prediction with min-SNR weights (limit 5). Returns (averaged Parts, tokenizer)."""
    torch.manual_seed(3)
    tokenizer = make_tokenizer(captions_of_the_world(), LENGTH)
    parts = Parts(len(tokenizer), tokenizer.eos_token_id)
    alphas = scheduler().alphas_cumprod
    views = renders.view
    weight = np.array(VIEW_SHARES)[views] / np.bincount(views, minlength=3)[views]
    cumulative = np.cumsum(weight / weight.sum())
    kinds, colours = list(world.KINDS), list(world.COLOURS)

    def loss(step: int, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        rows = np.searchsorted(cumulative, rng.random(batch)).clip(0, len(views) - 1)
        texts, empty = [], rng.random(batch) < EMPTY
        for row, nothing in zip(rows, empty):
            named = world_view(views[row]) if rng.random() < VIEW_NAMED else None
            text = world.caption(kinds[renders.kind[row]], colours[renders.colour[row]], rng, named)
            texts.append("" if nothing else text)
        tokens = tokenizer(
            texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            latents = autoencoder.encode(renders.pictures(rows, rng) * 2 - 1).latents
        noise = torch.randn(latents.shape, generator=generator)
        t = torch.randint(0, 1000, (batch,), generator=generator)
        alpha = alphas[t][:, None, None, None]
        noised = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        with torch.autocast("cpu", torch.bfloat16):
            embedding = parts.text(tokens)[0]
            predicted = parts.unet(noised, t, embedding).sample
        snr = alphas[t] / (1 - alphas[t])
        weight = snr.clamp(max=SNR_LIMIT) / snr
        error = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        meaning = embedding.float().mean(dim=1)[torch.from_numpy(~empty)]  # (b', 128)
        kind, colour = (torch.from_numpy(a[rows][~empty]) for a in (renders.kind, renders.colour))
        naming = nn.functional.cross_entropy(parts.kind_head(meaning), kind)
        naming = naming + nn.functional.cross_entropy(parts.colour_head(meaning), colour)
        return {"noise": (weight * error).mean() * 2, "naming": 0.05 * naming}

    parts = train("prior", parts, loss, steps=steps, learning_rate=1e-3, build=build, average=0.9995)
    return parts, tokenizer


def save_prior(parts: Parts, tokenizer: CLIPTokenizer, autoencoder: AutoencoderTiny, out: Path) -> None:
    """A StableDiffusionPipeline folder in half precision."""
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=parts.text,
        tokenizer=tokenizer,
        unet=parts.unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(out, safe_serialization=True)
