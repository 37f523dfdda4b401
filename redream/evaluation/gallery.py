"""All objects of an evaluation on one page: prompts down, methods across, all sprites turning in step.

The page is one file that fetches nothing: images, styles and script are in it, and its content security policy forbids
anything else. Its HTML is in templates/.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from redream.runs.outputs import SPRITE_COLUMNS, SPRITE_FRAMES, SPRITE_QUALITY, SPRITE_SIDE

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Cell:
    """The object that one method made of one prompt; without an image if `failure` says why there is none."""

    sprite: Path | None
    scores: Sequence[tuple[str, str]]  # (label, value)
    failure: str | None = None


@dataclass(frozen=True)
class AssetStrip:
    """A retrieved asset: an image of its views in a row, and where it is from."""

    strip: Path
    caption: str
    origin: str  # author and licence


@dataclass(frozen=True)
class Row:
    """One prompt: the object of each method, and the retrieved assets. `split` and `kind` are "" where there is none."""

    prompt: str
    split: str
    kind: str
    cells: Mapping[str, Cell]
    assets: Sequence[AssetStrip] = ()


def page(title: str, rows: Sequence[Row]) -> str:
    """Return the page as HTML; all texts are escaped."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True)
    environment.filters["jpeg"] = _data_uri
    return environment.get_template("gallery.html").render(
        title=title,
        rows=rows,
        methods=list(dict.fromkeys(method for row in rows for method in row.cells)),
        splits=sorted({row.split for row in rows} - {""}),
        kinds=sorted({row.kind for row in rows} - {""}),
        columns=SPRITE_COLUMNS,
        frames=SPRITE_FRAMES,
        side=SPRITE_SIDE,
    )


def _data_uri(image: Path) -> str:
    """An image file as a data: address; one that is no JPEG is encoded as one."""
    jpeg = image.read_bytes()
    if image.suffix != ".jpg":
        buffer = io.BytesIO()
        Image.open(image).convert("RGB").save(buffer, "JPEG", quality=SPRITE_QUALITY)
        jpeg = buffer.getvalue()
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
