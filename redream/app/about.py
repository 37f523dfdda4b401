"""The tab About: how the method works, what the scores mean, what the page runs on, and its limits."""

from pathlib import Path

import gradio as gr

from redream.app.components import data_uri, render
from redream.scoring.scores import QUANTITIES, SCORES, keys_of
from redream.stack import environment
from redream.stack.stack import Stack

PICTURES = Path(__file__).parents[2] / "examples" / "about"  # 1.jpg to 5.jpg, one for each step of the method


def about_tab(stack: Stack, reason: str) -> None:
    """The tab's widgets; `reason` says why this stack is in use."""
    gr.HTML(about_html(stack, reason))


def about_html(stack: Stack, reason: str) -> str:
    """The whole tab."""
    scores = [
        {"name": score.name, "labels": [SCORES[key].label for key in keys_of(name)], "explanation": score.explanation}
        for name, score in QUANTITIES.items()
    ]
    facts = {
        "Stack": f"{stack.name}: {reason}",
        "Device": environment.device_name(environment.device()),
        "Versions": ", ".join(f"{name} {version}" for name, version in environment.versions().items()),
    }
    pictures = {int(file.stem): data_uri(file) for file in PICTURES.glob("[0-9].jpg")}
    return render("about.html", pictures=pictures, scores=scores, facts=facts)
