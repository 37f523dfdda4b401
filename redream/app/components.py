"""Shared parts of the page: templates, static files, pictures as data URIs, durations and queue positions in words.

All HTML is made by the templates, whose environment escapes every value: prompts, captions and authors stay text.
"""

import base64
import io
import re
from collections.abc import Iterable
from pathlib import Path

import jinja2
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from redream.runs.outputs import SPRITE_COLUMNS, STRIP_VIEWS
from redream.scene.turntable import as_bytes
from redream.scoring.scores import quantities_on

TEMPLATES = Path(__file__).with_name("templates")
STATIC = Path(__file__).with_name("static")
SHOWN_QUANTITIES = quantities_on("page")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"sprite_columns": SPRITE_COLUMNS, "strip_views": STRIP_VIEWS}
    environment.filters["emphasis"] = emphasis
    environment.tests["web_link"] = is_web_link
    return environment


def render(template: str, **values) -> str:
    """A template's HTML."""
    return _ENVIRONMENT.get_template(template).render(**values)


def hint(text: str) -> str:
    """A muted sentence where there is nothing else to show yet."""
    return render("hint.html", text=text)


def hints(texts: Iterable[str]) -> str:
    """A muted sentence for each text."""
    return "".join(map(hint, texts))


def script(name: str) -> str:
    """A JavaScript file of static/, for Gradio's `js` and `js_on_load`."""
    return (STATIC / name).read_text(encoding="utf-8").strip()


def emphasis(text: str) -> list[str]:
    """Split a sentence at its asterisks: plain and *emphasised* parts in turn, a plain one first."""
    return re.split(r"\*([^*]+)\*", text)


def is_web_link(text: str) -> bool:
    """Whether a source is an address of the web; nothing else becomes a link."""
    return str(text).startswith(("https://", "http://"))


def data_uri(file: Path) -> str:
    """A PNG or JPEG file as a data URI."""
    return _data_uri("png" if file.suffix == ".png" else "jpeg", file.read_bytes())


def png_uri(image: Float[Tensor, "3 h w"]) -> str:
    """A picture in [0, 1] as a PNG's data URI."""
    png = io.BytesIO()
    Image.fromarray(as_bytes(image)).save(png, "PNG")
    return _data_uri("png", png.getvalue())


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def duration(seconds: float) -> str:
    """Seconds in words: "38 s", "1 min 40 s", "2 h 5 min"."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def queue_status(position: int, seconds: float | None) -> str:
    """A position in the queue in words: how many runs come before, and how many seconds they take (None: unknown)."""
    wait = "" if seconds is None else f", about {duration(seconds)}"
    return f"Waiting for its turn: {position} {'run is' if position == 1 else 'runs are'} before it{wait}"


_ENVIRONMENT = _environment()
