"""The library to look through: what is nearest to some words, filtered by licence, and one asset closely."""

from functools import lru_cache
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
import pyarrow.compute as pc

from redream.app.components import asset_facts, data_uri, quiet, turning
from redream.app.wiring import PRIVATE, RETRIGGER, STREAMING, UNQUEUED, reports_errors
from redream.retrieval.index import AssetUnavailable
from redream.retrieval.orientation import align
from redream.runs import outputs
from redream.runs.queue import Worker
from redream.scene import assets
from redream.scene.glb_validation import GlbError
from redream.settings import PRESETS, PROMPT_LIMIT
from redream.stack.models import Models
from redream.stack.vocabulary import parse_prompt

SHOWN = 12  # cards on a page
SEARCHED = 400  # assets that a licence is looked for among
KEPT = 400  # strips of views
CHOOSES = """element.addEventListener('click', (event) => {  // for the widget with the cards
  const chosen = event.target.closest('[data-uid]');
  if (chosen) trigger('click', {uid: chosen.dataset.uid});
});"""


class Library:
    """A stack's assets as cards."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self.strip = lru_cache(KEPT)(self._strip)

    @property
    def licences(self) -> list[str]:
        """All there are, in order."""
        return sorted(text for text in pc.unique(self.models.index.table["license"]).to_pylist() if text)

    def search(self, words: str, licence: str | None = None, count: int = SHOWN) -> list[dict]:
        """The assets nearest to some words, best first, or the first ones without words; as rows with a similarity.

        Raises `redream.stack.stack.PromptError` for words that are no prompt.
        """
        index = self.models.index
        if words.strip():
            checked = parse_prompt(words, self.models.stack.vocabulary)
            hits = index.search(checked.prompt, self.models.clip("retrieval"), SEARCHED, SEARCHED)
            rows = [index.row(hit.uid) | {"similarity": hit.similarity} for hit in hits]
        else:
            rows = index.table.slice(0, SEARCHED).to_pylist()
        return [row for row in rows if licence in (None, "", row["license"])][:count]

    def cards_html(self, rows: list[dict]) -> str:
        """A card that can be chosen for each row."""
        if not rows:
            return quiet("The library has nothing like that.")
        cards = "".join(
            f"<button class='card' type='button' data-uid='{escape(row['uid'])}'>"
            f"{self._turning(row)}<b>{escape(row['caption'])}</b>"
            f"<span class='small'>{escape(row['license'] or '')}</span></button>"
            for row in rows
        )
        there = self.models.index.table.num_rows
        more = quiet(f"The library has {there:,}; search to see others.") if len(rows) < there else ""
        return f"{more}<div class='cards library'>{cards}</div>"

    def asset_html(self, uid: str) -> str:
        """One asset: its views from its front on, its front and how clear it is, faces, where it is from."""
        row, settings = self.models.index.row(uid), PRESETS[self.models.stack.preset]["redream"]
        asset = assets.load(self.models.index.asset_path(uid))
        alignment = align(asset, row["caption"], self.models.clip("retrieval"), settings)
        front = f"front found, {alignment.yaw_deg:.0f}° from where it was" if alignment.clear else "no clear front"
        facts = asset_facts(row, [f"{len(asset.mesh.faces):,} faces", front, f"uid {uid}"])
        views = turning(self._drawn(asset.rotated(alignment.yaw_deg)), f"{row['caption']}, from its front on")
        return f"<div class='card one'>{views}<b>{escape(row['caption'])}</b>{facts}</div>"

    def _turning(self, row: dict) -> str:
        """An asset's views, or nothing where its file cannot be had."""
        try:
            return turning(self.strip(row["uid"]), row["caption"])
        except (AssetUnavailable, assets.AssetError, GlbError) as error:
            return quiet(str(error))

    def _strip(self, uid: str) -> str:
        """Eight views of an asset, as a data URI."""
        return self._drawn(assets.load(self.models.index.asset_path(uid)))

    def _drawn(self, asset: assets.Asset) -> str:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "strip.png"
            outputs.save_strip(asset, PRESETS[self.models.stack.preset]["redream"], file)
            return data_uri(file)


def library_tab(worker: Worker, tab: gr.Tab, tabs: gr.Tabs, uid: gr.Textbox, more: gr.Accordion) -> None:
    """The widgets of the tab; `uid` and `more` are those of Create that an asset is chosen for."""
    library, opened = Library(worker.models), gr.State("")
    with gr.Row():
        words = gr.Textbox(label="Search the library", max_length=PROMPT_LIMIT, scale=3)
        licence = gr.Dropdown([("any", ""), *library.licences], value="", label="Licence", scale=1)
    error_box, one = gr.HTML(elem_classes="trouble"), gr.HTML(visible=False)
    start = gr.Button("Start from this", visible=False, variant="primary")
    cards = gr.HTML(js_on_load=CHOOSES)

    @reports_errors(error_box)
    def search(words, licence):
        yield {cards: library.cards_html(library.search(words or "", licence))}

    @reports_errors(error_box)
    def look(event: gr.EventData):
        shown = gr.update(value=library.asset_html(str(event.uid)), visible=True)
        yield {opened: str(event.uid), one: shown, start: gr.update(visible=True)}

    def adopt(name):
        gr.Info("The next object that you create starts from this asset, which stands under More.")
        return name, gr.Accordion(open=True), gr.Tabs(selected="create")

    wanted = [tab.select, words.submit, licence.input]
    gr.on(wanted, search, [words, licence], [cards, error_box], **RETRIGGER, **STREAMING, **PRIVATE)
    cards.click(look, None, [opened, one, start, error_box], **STREAMING, **PRIVATE)
    start.click(adopt, opened, [uid, more, tabs], **UNQUEUED)
