"""What a run's losses and its previews' likeness do, as small curves in one SVG each."""

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, POINTS = 220, 56, 110  # of a curve: units of its drawing, at most so many points
NAMES = {  # as `Progress.losses` names them: in words, and the paper's
    "likeness": ("Likeness of the preview", "CLIP score"),
    "score": ("Size of the score", "‖v₂D‖, with delta denoising"),
    "asset": ("Distance to the asset", "Eq. 3"),
    "variational": ("What the renders look like", "Eq. 4"),
    "adaptation": ("Learning the views", "Eq. 5"),
}


def curves_html(series: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """A curve for each series of (iteration, value) that has at least two points; "" if none has."""
    drawn = [_curve(name, series[name]) for name in NAMES if len(series.get(name, ())) > 1]
    return f"<div class='curves'>{''.join(drawn)}</div>" if drawn else ""


def _curve(name: str, points: Sequence[tuple[int, float]]) -> str:
    points = thinned(points)
    words, term = NAMES[name]
    (first, _), (last, value) = points[0], points[-1]
    values = [v for _, v in points]
    low, high = min(values), max(values)
    across, up = WIDTH / max(1, last - first), (HEIGHT - 4) / ((high - low) or 1.0)
    line = " ".join(f"{(i - first) * across:.1f},{HEIGHT - 2 - (v - low) * up:.1f}" for i, v in points)
    said = f"{words}: from {values[0]:.3g} to {value:.3g} over {last - first} iterations"
    return (
        f"<figure><figcaption>{escape(words)} <span class='small'>{escape(term)}</span><b>{value:.3g}</b></figcaption>"
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(said)}' preserveAspectRatio='none'>"
        f"<polyline points='{line}'/></svg></figure>"
    )


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `POINTS` of them: the means of equally many neighbours, each at the last one's iteration."""
    size = -(-len(points) // POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(v for _, v in group) / len(group)) for group in groups]
