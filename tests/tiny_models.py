"""Models with random weights, small enough to be made in a test."""

import json
from collections.abc import Iterable
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["a", "an", "the", "of", "photo", "front", "side", "back", "view"]
WORDS += ["red", "green", "blue", "purple", "yellow", "white", "black", "brown"]
WORDS += ["owl", "cat", "dog", "rabbit", "car", "chair", "mug", "robot", "vase", "tree"]


def make_tokenizer(words: Iterable[str] = WORDS) -> PreTrainedTokenizerFast:
    """One token per word. The end token has the last id, because open_clip's text tower pools at the largest one."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unknown>", "<start>", *dict.fromkeys(words), "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(mark, vocabulary[mark]) for mark in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unknown>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=16,
    )


def make_tiny_clip(folder: Path, seed: int = 0, words: Iterable[str] = WORDS, dim: int = 16) -> Path:
    """An open_clip folder: config, half-precision safetensors and a word tokenizer; 32 px, `dim` numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(words)
    tokenizer.save_pretrained(folder)
    config = {
        "embed_dim": dim,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": len(tokenizer), "width": 32, "heads": 2, "layers": 2},
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config)
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
    (folder / "open_clip_config.json").write_text(text)
    return folder
