"""Prompts that are longer than the context of a stack's text encoders: what is left out, and what is kept.

Text encoders cut what is too long at its end, where the subject may stand, and the name of a view always does. Here generic
phrases are left out first, then words from the end; the words that name the subject stay.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from redream.stack.vocabulary import ParsedPrompt

MODIFIERS = "beautiful|close-?up|dslr|product|stock|studio|zoomed out|3d"
GENERIC = (  # phrases that say nothing about the object, the emptiest first
    r"(?:very |highly |ultra |extremely |hyper )*[- ]?(?:detailed|realistic|hyperrealistic|photorealistic)",
    r"(?:very |ultra )*(?:high|best|top|great)[- ](?:quality|resolution|definition)|masterpiece|award[- ]winning|u?hd|[48]k",
    r"(?:\w+ )?(?:lighting|background)|sharp focus|depth of field|octane render|unreal engine|trending on artstation",
    rf"(?:(?:a|an|the|my|one) )?(?:(?:{MODIFIERS}) )*(?:photo|photograph|picture|image|render|rendering|3d model) of",
)
DANGLING = ("a", "an", "and", "at", "by", "for", "from", "in", "its", "my", "of", "on", "or", "the", "to", "with")
PUNCTUATION = " ,.;:!-–—"


def truncated(parsed: ParsedPrompt, fits: Callable[[str], bool]) -> ParsedPrompt:
    """The same prompt if it fits, else as much of it as does, with a warning that says what is left out.

    fits: whether every text encoder takes a prompt and the name of a view
    """
    if fits(parsed.prompt):
        return parsed
    words = parsed.prompt.split()
    kept, prompt = set(range(len(words))), parsed.prompt
    for phrase in _removals(words, parsed.subject):
        kept = kept - phrase or kept  # one word remains
        prompt = _joined(words, kept)
        if fits(prompt):
            break
    while len(prompt) > 1 and not fits(prompt):  # one long word, or a script without spaces
        prompt = prompt[:-1]
    phrases = [f"“{phrase}”" for phrase in _left_out(words, kept)] or [f"what follows “{prompt}”"]
    listed = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    warning = f"This prompt is longer than the models can read, so they do not get {listed}."
    warning += f" Retrieval, 2D model and scores get “{prompt}”."
    return replace(parsed, prompt=prompt, warnings=(*parsed.warnings, warning))


def _removals(words: Sequence[str], subject: Sequence[str]) -> Iterator[set[int]]:
    """Places of the words to leave out, group by group: generic phrases, other words from the last one on, and of the
    subject's words the least important ones."""
    ranks = {words.index(word): rank for rank, word in enumerate(subject)}  # of the subject's words, by place
    for phrase in GENERIC:
        for match in re.finditer(rf"(?<!\S)(?:{phrase})(?=[\s,.;]|$)", " ".join(words), re.IGNORECASE):
            start = match.string[: match.start()].count(" ")
            yield {*range(start, start + match[0].count(" ") + 1)} - ranks.keys()
    yield from ({place} for place in reversed(range(len(words))) if place not in ranks)
    yield from ({place} for place in sorted(ranks, key=ranks.get, reverse=True))


def _joined(words: Sequence[str], kept: set[int]) -> str:
    """The words that are kept; `kept` loses those at its end that mean nothing there, such as "on a"."""
    places = sorted(kept)
    while len(places) > 1 and places[-1] < len(words) - 1 and words[places[-1]].lower() in DANGLING:
        kept.discard(places.pop())
    return " ".join(words[place] for place in places).strip(PUNCTUATION) or words[places[0]]


def _left_out(words: Sequence[str], kept: set[int]) -> list[str]:
    """The words that are not kept, those that stand together as one text."""
    texts = " ".join(word if place not in kept else "\n" for place, word in enumerate(words)).split("\n")
    return [text.strip(PUNCTUATION) for text in texts if text.strip(PUNCTUATION)]
