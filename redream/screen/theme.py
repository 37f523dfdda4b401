"""How the page looks, besides page.css."""

from pathlib import Path

import gradio as gr

STYLE = Path(__file__).with_name("page.css")


def theme() -> gr.themes.Base:
    """Quiet labels, and only fonts that every computer has."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    plain = {"background_fill": "none", "text_color": "*body_text_color", "padding": "0"}
    labels = {f"block_title_{key}": value for key, value in plain.items()}
    return gr.themes.Soft(primary_hue="violet", neutral_hue="slate", **fonts).set(
        background_fill_primary="*neutral_50", **labels
    )
