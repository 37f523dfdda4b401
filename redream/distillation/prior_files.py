"""What a prior's repository or folder must hold, decided by the names of its files and by its configs.

Importing this is cheap, and nothing large is read: a prior that cannot be used is refused before its weights come.
"""

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from redream.errors import RedreamError

PARTS = ("unet", "text_encoder", "vae")
VARIANT = "fp16"  # in the names of half-precision weights
NEEDED = "A Stable Diffusion 1.x or 2.x text-to-image pipeline with safetensors weights is needed."


class PriorError(RedreamError):
    """A prior folder that cannot be used; the message says why and what to do."""


def text_check(folder: Path) -> Callable[[str], bool]:
    """Return what says whether the prior of a pipeline folder takes all of a text. Raises `PriorError`."""
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise PriorError("The prior's tokenizer cannot be read; download the prior again.") from error
    return lambda text: len(tokenizer(text, verbose=False).input_ids) <= tokenizer.model_max_length


def check(folder: Path, names: Sequence[str]) -> None:
    """Raise `PriorError` unless a prior is a pipeline that can be distilled from.

    folder: has at least its JSON files
    names: of all its files, relative to it with "/"
    """
    if "model_index.json" not in names:
        raise PriorError(f"This prior has no model_index.json, so it is not a diffusers pipeline. {NEEDED}")
    parts = _json(folder / "model_index.json")
    scheduler = str((parts.get("scheduler") or [None, None])[-1])
    if "transformer" in parts or scheduler.startswith("Flow"):
        raise PriorError(f"This prior is a flow or transformer model, which predicts no noise. {NEEDED}")
    if "text_encoder_2" in parts:
        raise PriorError(f"This prior is of the SDXL family, with two text encoders. {NEEDED}")
    if missing := [part for part in (*PARTS, "tokenizer", "scheduler") if part not in parts]:
        raise PriorError(f"This prior has no {' and no '.join(missing)}. {NEEDED}")
    unet, vae = (_json(folder / part / "config.json") for part in ("unet", "vae"))
    taken, latent = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if taken != latent:
        raise PriorError(
            f"This prior's U-Net takes {taken} channels, not its latents' {latent}: it edits pictures. {NEEDED}"
        )
    if any(unet.get(key) is not None for key in ("class_embed_type", "num_class_embeds")):
        raise PriorError(f"This prior's U-Net takes class labels, which a text-to-image model has none of. {NEEDED}")
    for part in PARTS:
        if not _has_weights(names, part, ".safetensors"):
            if _has_weights(names, part, ".bin"):
                raise PriorError(f"This prior's weights are pickles (.bin), which are never loaded. {NEEDED}")
            raise PriorError(f"This prior lacks the weights of its {part}. {NEEDED}")


def variant(names: Collection[str], prefer_half: bool) -> str | None:
    """The variant to load a pipeline with: `VARIANT` if half precision is preferred and there, or if a part has nothing else.

    Parts without this variant are then loaded in full.
    """
    half = [part for part in PARTS if is_there(names, part, VARIANT)]
    return VARIANT if (half and prefer_half) or not all(is_there(names, part) for part in PARTS) else None


def is_there(names: Collection[str], part: str, variant: str | None = None) -> bool:
    """Whether there are weights of a part in a variant (None: in full)."""
    weights = [name for name in names if name.startswith(f"{part}/") and name.endswith(".safetensors")]
    return any((f".{VARIANT}." in name) == (variant is not None) and ".non_ema." not in name for name in weights)


def _has_weights(names: Collection[str], part: str, ending: str) -> bool:
    return any(name.startswith(f"{part}/") and name.endswith(ending) for name in names)


def _json(file: Path) -> dict:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PriorError(f"This prior's {file.parent.name}/{file.name} is missing or not JSON. {NEEDED}") from error
    if not isinstance(values, dict):
        raise PriorError(f"This prior's {file.parent.name}/{file.name} is not an object. {NEEDED}")
    return values
