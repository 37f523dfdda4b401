"""The result of an experiment as one picture."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from examples.experiments.context import PICTURE_SIZE, Row
from redream.scene.turntable import as_bytes

GAP = 4  # pixels between two pictures
INK = "#222222"


def sheet(rows: Sequence[Row], heads: Sequence[str] = (), size: int = PICTURE_SIZE) -> Image.Image:
    """Return rows of pictures with their labels at the left and the heads above, dark on white."""
    font = ImageFont.load_default(13)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))

    def extent(text: str) -> tuple[int, int]:
        return tuple(int(x) + 1 for x in measure.multiline_textbbox((0, 0), text, font)[2:])

    columns = max((len(row.images) for row in rows if row.images is not None), default=0)
    left = max((extent(row.label)[0] for row in rows if row.images is not None), default=0) + 3 * GAP
    top = 6 * GAP if heads else GAP
    heights = [extent(row.label)[1] + 2 * GAP for row in rows]
    heights = [h if row.images is None else max(h, size + GAP) for h, row in zip(heights, rows)]
    width = max([left + columns * (size + GAP), *(extent(row.label)[0] + 2 * GAP for row in rows)])
    canvas = Image.new("RGB", (width, top + sum(heights)), "white")
    draw = ImageDraw.Draw(canvas)
    for number, head in enumerate(heads):
        draw.text((left + number * columns / len(heads) * (size + GAP), GAP), head, INK, font)
    y = top
    for row, height in zip(rows, heights, strict=True):
        draw.multiline_text((GAP, y + GAP), row.label, INK, font)
        for column, image in enumerate(() if row.images is None else row.images):
            picture = Image.fromarray(as_bytes(image)).resize((size, size), Image.Resampling.LANCZOS)
            canvas.paste(picture, (left + column * (size + GAP), y))
        y += height
    return canvas
