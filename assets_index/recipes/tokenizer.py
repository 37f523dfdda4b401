"""A small CLIP tokenizer (byte-level BPE, lower case) whose every merge comes from the world's own captions."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer(captions: Iterable[str], length: int) -> CLIPTokenizer:
    """Every word of the captions becomes one token; others fall apart into letters. END has the largest id, because
    CLIP's text towers pool at the largest token id."""
    tokenizer = Tokenizer(BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789,.-'!?")
    trainer = BpeTrainer(
        vocab_size=4000, initial_alphabet=letters, end_of_word_suffix="</w>", special_tokens=[], show_progress=False
    )
    corpus = sorted({c.lower() for c in captions}) + [" ".join(letters)] + letters
    tokenizer.train_from_iterator(corpus, trainer)

    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = {token: i for i, token in enumerate(sorted(model["vocab"], key=model["vocab"].get))}
    for token in (START, END):
        vocabulary[token] = len(vocabulary)
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)
