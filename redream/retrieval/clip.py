"""open_clip behind two functions: embed texts, embed images."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import open_clip
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from redream.errors import RedreamError
from redream.files import sha256

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
CLIP_VOCABULARY = 49408  # size of the vocabulary that open_clip itself brings
CHUNK = 64  # texts or images at once


class ClipError(RedreamError):
    """A CLIP folder that cannot be loaded; the message says what it lacks."""


def find_weights(folder: Path) -> Path:
    """The weights' file of an open_clip folder. Raises `ClipError`."""
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None or not (folder / "open_clip_config.json").is_file():
        raise ClipError(f"The CLIP {folder.name} needs open_clip_config.json and {WEIGHTS[0]}; fetch it again.")
    return weights


def embedding_of(folder: Path) -> dict[str, str]:
    """Name and SHA-256 of an open_clip folder, as an index names the CLIP it was made with. Raises `ClipError`."""
    return {"name": folder.name, "sha256": sha256(find_weights(folder))}


def load_tokenizer(folder: Path) -> Callable:
    """The tokenizer of an open_clip folder; of its files it needs no weights. Raises `ClipError`."""
    try:
        text = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
        if text.get("vocab_size", CLIP_VOCABULARY) == CLIP_VOCABULARY or text.get("hf_tokenizer_name"):
            return open_clip.get_tokenizer(f"local-dir:{folder}")
        return open_clip.tokenizer.HFTokenizer(str(folder), context_length=text.get("context_length", 77))
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, AttributeError) as error:
        raise _unreadable(folder) from error


def text_check(folder: Path) -> Callable[[str], bool]:
    """Return what says whether the CLIP of an open_clip folder takes all of a text. Raises `ClipError`."""
    tokenize = load_tokenizer(folder)

    def fits(text: str) -> bool:
        (tokens,) = tokenize([text])  # (context,)
        (longer,) = tokenize([text], context_length=len(tokens) + 1)
        return torch.equal(longer[:-1], tokens)  # a cut text has its end token too early

    return fits


def _unreadable(folder: Path) -> ClipError:
    return ClipError(f"The files of the CLIP {folder.name} are damaged or do not belong together; fetch them again.")


class Clip:
    """A frozen CLIP in float32 and evaluation mode. Embeddings have unit norm, so a dot product is a cosine."""

    def __init__(self, model: nn.Module, tokenize: Callable[[list[str]], Int[Tensor, "b n"]], weights: Path) -> None:
        """`model` is one of open_clip's, with its preprocessing attached; `weights` is the file it was read from."""
        self.model = model.eval().requires_grad_(False)
        self.tokenize = tokenize
        self.weights = weights
        size = model.visual.image_size
        self.size: int = size if isinstance(size, int) else size[0]  # pixels
        self.scale: float = model.logit_scale.exp().item()  # CLIP's own inverse temperature
        self.device: torch.device = model.logit_scale.device
        self._mean = torch.tensor(model.visual.image_mean, device=self.device)[:, None, None]  # (3, 1, 1)
        self._std = torch.tensor(model.visual.image_std, device=self.device)[:, None, None]  # (3, 1, 1)

    @staticmethod
    def load(folder: Path, device: torch.device | str = "cpu") -> "Clip":
        """Read an open_clip folder: open_clip_config.json, safetensors and, if it is its own, a tokenizer.

        Weights may be stored in half precision; they are computed with in float32. Raises `ClipError`.
        """
        weights = find_weights(folder)
        try:
            model = open_clip.create_model(f"local-dir:{folder}")  # prefers files in the order of WEIGHTS
        except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
            raise _unreadable(folder) from error
        return Clip(model.to(device), load_tokenizer(folder), weights)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the weights' file: which CLIP an index was made with."""
        return sha256(self.weights)

    @property
    def name(self) -> str:
        return self.weights.parent.name

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """One unit vector per text."""
        chunks = [list(texts[i : i + CHUNK]) for i in range(0, len(texts), CHUNK)]
        tokens = (self.tokenize(chunk).to(self.device) for chunk in chunks)  # each (b, context)
        return torch.cat([self.model.encode_text(t, normalize=True) for t in tokens])  # (b, d)

    @torch.no_grad()
    def embed_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """One unit vector per image in [0, 1], square and of any size: it is resized (bicubic, anti-aliased)."""
        return torch.cat(
            [self.model.encode_image(self._ready(x), normalize=True) for x in images.split(CHUNK)]
        )  # (b, d)

    def _ready(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        images = images.to(self.device)
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, size=(self.size, self.size), mode="bicubic", antialias=True)
        return (images.clamp(0, 1) - self._mean) / self._std  # (b, 3, s, s)
