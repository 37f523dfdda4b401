"""Loss curves: a run's losses and its previews' CLIP score over the iterations, one small SVG each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redream.app.components import render

WIDTH, HEIGHT, POINTS = 220, 56, 110  # of a drawing, in its own units; at most so many points
MARGIN = 2  # between the curve and the upper and lower edge
NAMES = {  # by name in `Progress.losses`: name, the paper's term
    "clip_score": ("CLIP score", "of the preview"),
    "score": ("Score gradient", "‖v₂D‖, with delta denoising"),
    "asset": ("Asset loss", "Eq. 3"),
    "variational": ("Variational loss", "Eq. 4"),
    "adaptation": ("Adaptation loss", "Eq. 5"),
}

Series = Sequence[tuple[int, float]]  # (iteration, value)


@dataclass(frozen=True)
class Curve:
    """A curve as the template draws it."""

    name: str
    term: str
    first: float
    last: float
    iterations: int  # from its first to its last point
    points: str  # "x,y x,y …" in the drawing's units


def curves_html(series: Mapping[str, Series]) -> str:
    """A curve for each named series that has at least two points; "" if none has."""
    curves = [_curve(name, thinned(series[name])) for name in NAMES if len(series.get(name, ())) > 1]
    return render("curves.html", curves=curves, width=WIDTH, height=HEIGHT) if curves else ""


def _curve(name: str, series: Series) -> Curve:
    (begin, first), (end, last) = series[0], series[-1]
    values = [value for _, value in series]
    low, high = min(values), max(values)
    x_scale = WIDTH / max(1, end - begin)
    y_scale = (HEIGHT - 2 * MARGIN) / ((high - low) or 1.0)
    points = (f"{(i - begin) * x_scale:.1f},{HEIGHT - MARGIN - (v - low) * y_scale:.1f}" for i, v in series)
    return Curve(*NAMES[name], first, last, end - begin, " ".join(points))


def thinned(series: Series) -> list[tuple[int, float]]:
    """At most `POINTS` points: the means of equally many neighbours, each at its last one's iteration."""
    size = -(-len(series) // POINTS)
    groups = [series[i : i + size] for i in range(0, len(series), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
