"""A small CLIP tokenizer (byte-pair encoding, lower case) whose merges come from the world's own captions."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.-'!?"


def make_tokenizer(captions: Iterable[str], length: int) -> CLIPTokenizer:
    """Every word of the captions becomes one token; others fall apart into pieces down to letters.

    Ids depend on the words alone. END has the largest, because CLIP's text towers pool at the largest token id.
    """
    words = sorted({word for caption in captions for word in caption.lower().replace(",", " ").split()})
    tokens = [*LETTERS, *(letter + "</w>" for letter in LETTERS)]
    merges = []
    split = [[*word[:-1], word[-1] + "</w>"] for word in words]
    while pairs := Counter(pair for word in split for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))  # the most frequent; the first in order among equals
        merges.append(best)
        tokens.append("".join(best))
        split = [_merged(word, best) for word in split]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, START, END]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for token in word:
        if out and (out[-1], token) == pair:
            out[-1] += token
        else:
            out.append(token)
    return out
