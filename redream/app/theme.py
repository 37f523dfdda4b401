"""Colours and fonts beside static/page.css: contrast of at least 4.5 : 1 in light and dark, fonts every computer has."""

import gradio as gr


def theme() -> gr.themes.Base:
    """Gradio's Soft theme with quiet labels and readable contrasts."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    plain = {"background_fill": "none", "text_color": "*body_text_color", "padding": "0"}
    titles = {f"block_title_{key}": value for key, value in plain.items()}
    solid = {"background_fill": "*primary_700", "background_fill_hover": "*primary_800"}
    primary = {f"button_primary_{key}{dark}": value for key, value in solid.items() for dark in ("", "_dark")}
    selected = {f"checkbox_label_background_fill_selected{dark}": "*primary_700" for dark in ("", "_dark")}
    subdued = _light_and_dark("*neutral_600", "*neutral_300", "body_text_color_subdued", "block_info_text_color")
    subdued |= _light_and_dark("*neutral_600", "*neutral_300", "input_placeholder_color")
    links = _light_and_dark("*primary_700", "*primary_300", "link_text_color", "link_text_color_visited")
    links |= _light_and_dark("*primary_800", "*primary_200", "link_text_color_hover")
    labels = _light_and_dark("*primary_800", "*primary_100", "block_label_text_color")
    return gr.themes.Soft(primary_hue="violet", neutral_hue="slate", **fonts).set(
        background_fill_primary="*neutral_50", **titles, **primary, **selected, **subdued, **links, **labels
    )


def _light_and_dark(light: str, dark: str, *names: str) -> dict[str, str]:
    """A theme's variables with their colours in light and in dark mode."""
    return {name: light for name in names} | {f"{name}_dark": dark for name in names}
