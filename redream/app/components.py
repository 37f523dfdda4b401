"""Words and pictures as HTML. Texts from outside (prompts, captions, authors) are escaped here; no file is named."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from redream.scene.turntable import as_bytes

BAR = """<div class='bar' role='progressbar' aria-label='Done' aria-valuemin='0' aria-valuemax='100'
aria-valuenow='{percent:.0f}'><div style='width: {percent:.1f}%'></div></div>"""


def in_words(seconds: float) -> str:
    """A duration: "38 s", "1 min 40 s", "2 h 5 min"."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def waiting(ahead: int, seconds: float | None) -> str:
    """A place in the queue: how many come before, and for how long."""
    wait = "" if seconds is None else f", about {in_words(seconds)}"
    return f"Waiting for its turn: {ahead} {'run is' if ahead == 1 else 'runs are'} before it{wait}"


def as_html(sentence: str) -> str:
    """A sentence as text, with what stands between asterisks in italics."""
    return re.sub(r"\*([^*<>]+)\*", r"<em>\1</em>", escape(sentence))


def quiet(sentence: str) -> str:
    """What stands where nothing is yet."""
    return f"<p class='quiet'>{as_html(sentence)}</p>"


def problem(sentence: str) -> str:
    """What keeps a wish from being granted."""
    return f"<div class='problem' role='alert'>{as_html(sentence)}</div>"


def bar(share: float) -> str:
    """How much is done, in [0, 1]."""
    return BAR.format(percent=100 * min(max(share, 0.0), 1.0))


def data_uri(file: Path) -> str:
    """A PNG or JPEG as part of the page."""
    kind = "png" if file.suffix == ".png" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def picture(image: Float[Tensor, "3 h w"], words: str) -> str:
    """A picture in [0, 1], and what it shows in words."""
    png = io.BytesIO()
    Image.fromarray(as_bytes(image)).save(png, "PNG")
    return f"<img src='data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}' alt='{escape(words)}'>"


def turning(strip: str, label: str) -> str:
    """A strip of eight views (a data URI) that turns."""
    return f"<div class='turning' role='img' aria-label='{escape(label)}' style='background-image: url({strip})'></div>"


def asset_facts(asset: Mapping, more: Sequence[str] = ()) -> str:
    """What is known of an asset, as lines: similarity, `more`, author with a link, licence."""
    author = escape(str(asset["author"] or "unknown"))
    source = str(asset["source"])
    if source.startswith(("https://", "http://")):
        author = f"<a href='{escape(source)}' target='_blank' rel='noopener noreferrer'>{author}</a>"
    lines = [f"similarity {asset['similarity']:.2f}"] if asset.get("similarity") is not None else []
    lines += [*map(escape, more), f"by {author}", escape(str(asset["license"] or "no licence given"))]
    return f"<div class='small'>{'<br>'.join(lines)}</div>"
