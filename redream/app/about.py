"""How it works, what the scores mean, what it runs on, and its limits."""

from html import escape
from pathlib import Path

from redream.app.components import as_html, data_uri, quiet
from redream.scoring.scores import SCORES, Score
from redream.stack import environment
from redream.stack.stack import Stack

PICTURES = Path(__file__).parents[2] / "examples" / "about"  # 1.jpg …
STEPS = (
    (
        "It looks the words up.",
        "CLIP finds the library's captions nearest to the prompt, then ranks those assets by their pictures.",
    ),
    ("It finds their fronts.", "CLIP says which side of each asset is its front, and the asset is turned to face it."),
    ("It starts from them.", "The object, a small NeRF, is at first pulled towards an asset: initialisation, Eq. 3."),
    (
        "It teaches the model their views.",
        "Text-to-image models mostly know fronts. A small LoRA and three prefixes learn front, side and back: adaptation, Eq. 5.",
    ),
    (
        "The model paints the object.",
        "Renders from all sides are compared with what the model expects there: variational score distillation, Eq. 20.",
    ),
)
PAPER = "Equations are numbered as in Retrieval-Augmented Score Distillation for Text-to-3D Generation (ReDream, ICML 2024)."
LIMITS = (
    "Retrieved assets shape the result. Their authors and licences are shown with every run and stand in its record: keep to them.",
    "True objects, beside which scores stand, are what was asked for as its maker modelled it.",
    "Scores are made by models, and models can be pleased: a plain ball changes little from view to view. Look at the object.",
    "Without a GPU the miniature runs: it knows a few kinds of things in a few colours, and says which.",
)


def page_html(stack: Stack, reason: str) -> str:
    """The whole tab."""
    steps = "".join(
        f"<li>{_picture(number, head)}<b>{head}</b><br>{words}</li>" for number, (head, words) in enumerate(STEPS, 1)
    )
    scores = "".join(
        f"<tr><th scope='row'>{escape(s.name)}<br><span class='small'>{_labels(key)}</span></th><td>{escape(_read(s))}</td></tr>"
        for key, s in SCORES.items()
        if not key.endswith("_b")
    )
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions().items())
    facts = {
        "stack": f"{stack.name}: {reason}",
        "device": environment.device_name(environment.device()),
        "versions": versions,
    }
    facts_html = "".join(f"<tr><th scope='row'>{k}</th><td>{escape(v)}</td></tr>" for k, v in facts.items())
    limits = "".join(f"<li>{as_html(sentence)}</li>" for sentence in LIMITS)
    return (
        f"<div class='about'><h2>How it works</h2><ol class='steps'>{steps}</ol>{quiet(PAPER)}<h2>What the scores say</h2>"
        f"<table class='scores'>{scores}</table><h2>What it runs on</h2><table class='scores'>{facts_html}</table>"
        f"<h2>Limits and licences</h2><ul>{limits}</ul></div>"
    )


def _labels(key: str) -> str:
    """What a score is called in tables; where two models give it, both."""
    other = SCORES.get(f"{key.removesuffix('_a')}_b")
    return escape(SCORES[key].label + (f"; {other.label} (two models)" if other else ""))


def _read(score: Score) -> str:
    """What a score means and which way is better."""
    return score.meaning if score.better == "neither" else f"{score.meaning}; {score.better} is better"


def _picture(number: int, words: str) -> str:
    file = PICTURES / f"{number}.jpg"
    return f"<img src='{data_uri(file)}' alt='{escape(words)}'>" if file.is_file() else ""
