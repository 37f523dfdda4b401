"""The tab Library: search the assets without generating, filter them by licence, and look at one of them closely."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr

from redream.app.components import data_uri, hint, hints, render, script
from redream.app.create import CreateTab
from redream.app.wiring import PRIVATE, RETRIGGER, STREAMING, UNQUEUED, error_box, reports_errors
from redream.retrieval.fetch import AssetUnavailable
from redream.retrieval.orientation import align
from redream.runs import outputs
from redream.runs.queue import Worker
from redream.scene.assets import Asset, AssetError
from redream.scene.glb import GlbError
from redream.scene.glb_reader import GlbReader
from redream.settings import PRESETS, PROMPT_LIMIT
from redream.stack.models import Models

MAX_CARDS = 12  # on a page
CANDIDATES = 400  # N′ of a search here
CACHED_STRIPS = 400
NOTHING_FOUND = hint("The library has nothing like that.")
ON_THE_HUB = "Click to fetch it from the Hub and see it."
FETCHING = "Fetching the asset"


class Library:
    """A stack's assets as cards."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self.settings = PRESETS[models.stack.preset]["redream"]
        self.strip = lru_cache(CACHED_STRIPS)(self._strip)

    @property
    def licences(self) -> list[str]:
        """All licences of the index, sorted."""
        return self.models.index.licences

    def search(self, text: str, licence: str | None = None, count: int = MAX_CARDS) -> list[dict]:
        """The assets nearest to a text, best first, as rows of the index with their similarity; without a text the first
        ones. Raises `redream.stack.vocabulary.PromptError` for a text that is no prompt."""
        index, licences = self.models.index, [licence] if licence else None
        if not text.strip():
            return list(index.first(count, licences))
        prompt = self.models.parse(text).prompt
        hits = index.search(prompt, self.models.clip("retrieval"), count, CANDIDATES, licences)
        return [index.row(hit.uid) | {"similarity": hit.similarity} for hit in hits]

    def warnings(self, text: str) -> tuple[str, ...]:
        """What a search ignores of a text. Raises `PromptError`."""
        return self.models.parse(text).warnings if text.strip() else ()

    def cards_html(self, rows: list[dict]) -> str:
        """A card for each row; a click on it is an event (static/library_cards.js)."""
        if not rows:
            return NOTHING_FOUND
        size = len(self.models.index)
        return render("library_cards.html", cards=[self._card(row) for row in rows], more=len(rows) < size, size=size)

    def fetching(self, uid: str) -> Iterator[str]:
        """Bring an asset's GLB here; yields how far it is, in words. Raises `AssetUnavailable`."""
        if self.models.index.is_here(uid):
            return
        yield FETCHING
        fetch = self.models.index.fetch([uid])
        while True:
            try:
                progress = next(fetch)
            except StopIteration as end:
                for error in end.value.values():
                    raise error from None
                return
            yield f"{FETCHING}, {progress.received / 1e6:.1f} of {progress.size / 1e6:.1f} MB"

    def asset_html(self, uid: str) -> str:
        """One asset: its views from its front on, its front's yaw, faces and source. Raises `AssetUnavailable`."""
        row = self.models.index.row(uid)
        asset = self._load(uid)
        alignment = align(asset, row["caption"], self.models.clip("retrieval"), self.settings)
        front = f"front found, turned by {alignment.yaw_deg:.0f}°" if alignment.clear else "no clear front"
        details = [f"{len(asset.mesh.faces):,} faces", front, f"uid {uid}"]
        image = self._render_strip(asset.rotated(alignment.yaw_deg))
        return render("library_asset.html", asset=row, image=image, details=details)

    def _card(self, row: dict) -> dict:
        """A row with its views, or with a sentence where its file is unavailable or still on the Hub."""
        try:
            if not self.models.index.is_here(row["uid"]):
                return {"asset": row, "image": None, "error": ON_THE_HUB}
            return {"asset": row, "image": self.strip(row["uid"]), "error": ""}
        except (AssetUnavailable, AssetError, GlbError) as error:
            return {"asset": row, "image": None, "error": str(error)}

    def _strip(self, uid: str) -> str:
        return self._render_strip(self._load(uid))

    def _load(self, uid: str) -> Asset:
        with GlbReader() as reader:
            return reader.load(self.models.index.asset_path(uid))

    def _render_strip(self, asset: Asset) -> str:
        """Eight views of an asset in a row, as a data URI."""
        with TemporaryDirectory() as folder:
            file = Path(folder) / "strip.png"
            outputs.save_strip(asset, self.settings, file)
            return data_uri(file)


class LibraryTab:
    """The widgets and their events."""

    def __init__(self, worker: Worker, tab: gr.Tab) -> None:
        self.library = Library(worker.models)
        self.uid = gr.State("")  # of the asset that is looked at
        with gr.Row():
            self.text = gr.Textbox(label="Search the library", max_length=PROMPT_LIMIT, scale=3)
            choices = [("any", ""), *self.library.licences]
            self.licence = gr.Dropdown(choices, value="", label="Licence", scale=1)
        self.error_box, self.asset = error_box(), gr.HTML(visible=False)
        self.start_button = gr.Button("Start from this", visible=False, variant="primary")
        self.cards = gr.HTML(js_on_load=script("library_cards.js"))

        search, show = (reports_errors(self.error_box)(event) for event in (self.search, self.show))
        starts, inputs = [tab.select, self.text.submit, self.licence.input], [self.text, self.licence]
        gr.on(starts, search, inputs, [self.cards, self.error_box], **RETRIGGER, **STREAMING, **PRIVATE)
        shown = [self.uid, self.asset, self.start_button, self.error_box]
        self.cards.click(show, None, shown, **STREAMING, **PRIVATE)

    def connect_create(self, tabs: gr.Tabs, create: CreateTab) -> None:
        """The button "Start from this" adds the asset to those chosen in Create."""
        assets = create.form.assets

        def start(uids: list[str], uid: str) -> dict:
            return assets.added(uids, uid) | {tabs: gr.Tabs(selected="create")}

        self.start_button.click(start, [assets.uids, self.uid], [assets.uids, assets.box, tabs], **UNQUEUED)

    def search(self, text: str, licence: str | None) -> Iterator[dict]:
        """Updates with the cards of a search."""
        cards = self.library.cards_html(self.library.search(text or "", licence))
        yield {self.cards: hints(self.library.warnings(text or "")) + cards}

    def show(self, event: gr.EventData) -> Iterator[dict]:
        """Updates with the asset whose card was clicked."""
        uid = str(event.uid)
        for progress in self.library.fetching(uid):
            yield {
                self.asset: gr.update(value=hint(progress), visible=True),
                self.start_button: gr.update(visible=False),
            }
        asset = gr.update(value=self.library.asset_html(uid), visible=True)
        yield {self.uid: uid, self.asset: asset, self.start_button: gr.update(visible=True)}
