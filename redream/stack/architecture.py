"""A prior without its weights: a stack's architecture with random ones, for timing, or with none, for counting FLOP."""

import json
import string
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from redream.distillation.prior import Prior
from redream.stack import environment
from redream.stack.models import quietly
from redream.stack.stack import Stack, StackError

FILE = (
    "architecture.json"  # in a stack's folder: the configs of the prior's U-Net, autoencoder, text encoder, scheduler
)
START, END = "<|startoftext|>", "<|endoftext|>"


def random_prior(stack: Stack, device: torch.device | str, seed: int = 0) -> Prior:
    """The prior of a stack with random weights, on a device ("meta": none at all), in the precisions of `Prior.load`.

    Nothing is downloaded. Raises `StackError` for a stack without an architecture.json.
    """
    configs, device = _configs(stack.base / FILE), torch.device(device)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(**configs["unet"])
        vae = AutoencoderKL(**configs["vae"])
        text_encoder = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))
    if device.type == "cuda":
        with quietly():
            unet, text_encoder = unet.half(), text_encoder.half()
    tokenizer = _spelling_tokenizer(text_encoder.config)
    prior = _prior(unet, vae, text_encoder, tokenizer, PNDMScheduler(**configs["scheduler"]))
    if environment.compiles(device.type):
        prior.compile()
    return prior


def on_meta(prior: Prior) -> Prior:
    """The same prior on meta tensors, without adapters: its operations can be counted, nothing is calculated."""
    with torch.device("meta"), quietly():
        unet, vae = (type(module).from_config(module.config) for module in (prior.unet, prior.vae))
        text_encoder = type(prior.text_encoder)(prior.text_encoder.config)
    scheduler = PNDMScheduler.from_config(prior.scheduler_config)
    return _prior(unet, vae, text_encoder, prior.tokenizer, scheduler)


def _configs(file: Path) -> dict[str, dict]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StackError(f"The stack {file.parent.name} states no architecture for random weights ({FILE}).") from error


def _prior(unet: nn.Module, vae: nn.Module, text_encoder: nn.Module, tokenizer, scheduler) -> Prior:
    unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    parts = {"unet": unet, "vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "scheduler": scheduler}
    return Prior(StableDiffusionPipeline(**parts, **unused))


def _spelling_tokenizer(config: CLIPTextConfig) -> CLIPTokenizer:
    """A CLIP tokenizer without merges: a token for each letter, the marks at the ends with the ids of the config."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    vocabulary = {token: i for i, token in enumerate([*letters, *(letter + "</w>" for letter in letters)])}
    vocabulary |= {START: config.bos_token_id, END: config.eos_token_id}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=config.max_position_embeddings)
