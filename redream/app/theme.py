"""How the page looks, besides page.css: colours that are told apart in light and dark, fonts that every computer has."""

from pathlib import Path

import gradio as gr

STYLE = Path(__file__).with_name("static") / "page.css"
# The 3D viewer puts itself before everything else that the tab key reaches.
SCRIPT = """() => new MutationObserver(() => {
  for (const canvas of document.querySelectorAll('canvas[tabindex="1"]')) canvas.tabIndex = 0;
}).observe(document.body, {subtree: true, childList: true, attributes: true, attributeFilter: ['tabindex']})"""
# On a phone results are below what was asked for; elsewhere they may be above what is in sight.
SHOW_RESULTS = """() => {
  const results = document.getElementById('results'), {top} = results.getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) results.scrollIntoView();
}"""


def theme() -> gr.themes.Base:
    """Quiet labels; texts of at least 4.5 : 1 against what they stand on."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    plain = {"background_fill": "none", "text_color": "*body_text_color", "padding": "0"}
    labels = {f"block_title_{key}": value for key, value in plain.items()}
    solid = {"background_fill": "*primary_700", "background_fill_hover": "*primary_800"}
    primary = {f"button_primary_{key}{dark}": value for key, value in solid.items() for dark in ("", "_dark")}
    chosen = {f"checkbox_label_background_fill_selected{dark}": "*primary_700" for dark in ("", "_dark")}
    quiet = {"body_text_color_subdued": "*neutral_600", "body_text_color_subdued_dark": "*neutral_300"}
    quiet |= {"block_info_text_color": "*neutral_600", "block_info_text_color_dark": "*neutral_300"}
    quiet |= {"input_placeholder_color": "*neutral_600", "input_placeholder_color_dark": "*neutral_300"}
    links = {"link_text_color": "*primary_700", "link_text_color_dark": "*primary_300"}
    links |= {"link_text_color_visited": "*primary_700", "link_text_color_visited_dark": "*primary_300"}
    links |= {"link_text_color_hover": "*primary_800", "link_text_color_hover_dark": "*primary_200"}
    marks = {"block_label_text_color": "*primary_800", "block_label_text_color_dark": "*primary_100"}
    return gr.themes.Soft(primary_hue="violet", neutral_hue="slate", **fonts).set(
        background_fill_primary="*neutral_50", **labels, **primary, **chosen, **quiet, **links, **marks
    )
