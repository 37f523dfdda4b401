"""Prompts: `parse_prompt` checks every prompt from outside, against the vocabulary of models that know few words."""

import json
import re
import unicodedata
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from redream.errors import RedreamError
from redream.settings import PROMPT_LIMIT

INFLECTIONS = (  # an ending of plurals or genitives, and what the word itself has there
    *(("'s", ""), ("s", ""), ("xes", "x"), ("ches", "ch"), ("shes", "sh"), ("ses", "s")),
    *(("ies", "y"), ("ves", "f"), ("ves", "fe"), ("men", "man")),
)


class VocabularyError(RedreamError):
    """A vocabulary file that cannot be read; the message says what to do."""


class PromptError(RedreamError):
    """A prompt that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt as the models get it, with warnings for its author."""

    prompt: str
    warnings: tuple[str, ...] = ()
    kind: str | None = None  # the kind of thing it names, and
    colour: str | None = None  # its colour, if a vocabulary has them
    has_front: bool | None = None  # whether things of that kind look different from the front
    subject: tuple[str, ...] = ()  # its words that name kinds and colours, the most important ones first


@dataclass(frozen=True)
class Vocabulary:
    """The words that small models know: phrases for kinds and colours, and other words."""

    name: str  # as it stands in a sentence: "the miniature model"
    kinds: dict[str, list[str]]  # "owl": ["owl", "owls", "owlet"]
    symmetric: list[str]  # the kinds without a front
    colours: dict[str, list[str]]
    words: list[str]

    @staticmethod
    def load(path: Path) -> "Vocabulary":
        """Read a vocabulary file. Raises `VocabularyError`."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            fields = {key: values[key] for key in ("kinds", "symmetric", "colours", "words")}
            return Vocabulary(name=values.get("name", "this model"), **fields)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise VocabularyError(f"The vocabulary {path.name} cannot be read; restore the stack's files.") from error

    def parse(self, prompt: str) -> ParsedPrompt:
        """Parse a prompt; unknown words are dropped with a warning, plurals and genitives become the words themselves.
        Raises `PromptError` if no known kind is named."""
        phrases = [phrase for table in (self.kinds, self.colours) for group in table.values() for phrase in group]
        known = {word.lower() for phrase in [*phrases, *self.words] for word in phrase.split()}
        tokens = re.findall(r"[^\W_]+(?:'[^\W_]+)?", prompt.lower().replace("’", "'"))
        tokens = [_known_form(token, known) or token for token in tokens]
        kinds, colours = _phrases(tokens, self.kinds), _phrases(tokens, self.colours)
        unknown = list(dict.fromkeys(token for token in tokens if token not in known))
        name = self.name[:1].upper() + self.name[1:]
        if not kinds:
            reason = f"does not know the {_words(unknown)}" if unknown else "finds no thing it knows in this prompt"
            listed = ", ".join(sorted(self.kinds))
            raise PromptError(f"{name} {reason}. It knows {len(self.kinds)} kinds of things: {listed}.")
        them = "it" if len(unknown) == 1 else "them"
        warnings = (f"{name} does not know the {_words(unknown)} and ignores {them}.",) if unknown else ()
        kept = " ".join(token for token in tokens if token in known)
        (kind, _), (colour, _) = kinds[0], (colours or [(None, ())])[0]
        named = [phrase for _, phrase in [*kinds[:1], *colours[:1], *kinds[1:], *colours[1:]]]
        subject = tuple(dict.fromkeys(word for phrase in named for word in phrase))
        return ParsedPrompt(kept, warnings, kind, colour, kind not in self.symmetric, subject)


def parse_prompt(prompt: str, vocabulary: Vocabulary | None = None) -> ParsedPrompt:
    """Parse a prompt from outside: one line of 1 to `PROMPT_LIMIT` characters, in NFC. Raises `PromptError`."""
    if len(prompt) > PROMPT_LIMIT:
        raise PromptError(f"This prompt has {len(prompt):,} characters; the limit is {PROMPT_LIMIT}. Shorten it.")
    prompt = " ".join(unicodedata.normalize("NFC", prompt).split())
    prompt = "".join(character for character in prompt if unicodedata.category(character) != "Cf")  # invisible marks
    if any(unicodedata.category(character) in ("Cc", "Cs") or _is_noncharacter(character) for character in prompt):
        raise PromptError("This prompt has control characters in it; type it as plain text.")
    if not prompt.strip():
        raise PromptError("The prompt is empty; describe an object in a few words.")
    return vocabulary.parse(prompt) if vocabulary else ParsedPrompt(prompt)


def _phrases(tokens: list[str], table: dict[str, list[str]]) -> list[tuple[str, tuple[str, ...]]]:
    """The entries of a table {entry: phrases} that the tokens name, in order, each with its phrase; at one place the
    longest phrase wins."""
    spelled = {tuple(phrase.lower().split()): entry for entry, phrases in table.items() for phrase in phrases}
    longest = max((len(phrase) for phrase in spelled), default=0)
    entries, place = [], 0
    while place < len(tokens):
        lengths = range(min(longest, len(tokens) - place), 0, -1)
        phrases = (tuple(tokens[place : place + length]) for length in lengths)
        phrase = next((phrase for phrase in phrases if phrase in spelled), ())
        if phrase:
            entries.append((spelled[phrase], phrase))
        place += max(len(phrase), 1)
    return entries


def _known_form(word: str, known: Container[str]) -> str | None:
    """The word if it is known, else the known word that it is a plural or genitive of; None if there is none."""
    bases = (word.removesuffix(ending) + own for ending, own in INFLECTIONS if word.endswith(ending))
    return next((form for form in (word, *bases) if form in known and (form == word or len(form) > 1)), None)


def _is_noncharacter(character: str) -> bool:
    """Whether it is one of the code points that will never be a character; others without a name may be new ones."""
    return ord(character) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(character) <= 0xFDEF


def _words(words: list[str]) -> str:
    starred = [f"*{word}*" for word in words]
    return f"word {starred[0]}" if len(words) == 1 else f"words {', '.join(starred[:-1])} and {starred[-1]}"
