"""The fold "Assets" of Create: which assets of the library, and which GLBs of one's own, the next object starts from."""

from collections.abc import Iterator, Sequence

import gradio as gr

from redream import pipeline
from redream.app.limits import accepting_addresses
from redream.app.wiring import PRIVATE, STREAMING, UNQUEUED, reports_errors
from redream.retrieval.fetch import AssetUnavailable
from redream.runs.queue import Worker
from redream.runs.run import Request
from redream.settings import MAX_ASSETS, PRESETS

OFFERED = 12  # assets to choose from, the nearest first
LICENCES_HELP = "Leaves out those with NC, and assets without a known licence."
UIDS_HELP = (
    "None: the nearest to the prompt. Remove one with ×, choose more, type a uid; the tab Library adds to them too."
)


class AssetChoice:
    """The widgets and their events."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        with gr.Accordion(_label(0), open=False) as self.box:
            self.commercial_use = gr.Checkbox(
                False, label="Only licences that allow commercial use", info=LICENCES_HELP
            )
            self.button = gr.Button("Show the assets for this prompt", size="sm")
            choose = {"multiselect": True, "allow_custom_value": True, "max_choices": MAX_ASSETS}
            self.uids = gr.Dropdown(
                [], value=[], label="Start from these assets of the library", info=UIDS_HELP, **choose
            )
            own = {"label": "Start from your own GLBs", "file_types": [".glb"], "file_count": "multiple", "height": 160}
            self.files = accepting_addresses(gr.File(**own))

    @property
    def values(self) -> list[gr.blocks.Block]:
        """The widgets that a run's request fills again."""
        return [self.uids, self.commercial_use]

    def connect(self, prompt: gr.Textbox, error_box: gr.HTML) -> None:
        """Wire the fold."""
        show, outputs = reports_errors(error_box)(self.show), [self.uids, error_box]
        self.button.click(show, [prompt, self.commercial_use], outputs, **STREAMING, **PRIVATE)
        changes, chosen = [self.uids.change, self.files.change], [self.uids, self.files]
        gr.on(changes, lambda uids, files: _box(len(uids) + len(files or ())), chosen, self.box, **UNQUEUED)

    def show(self, prompt: str, commercial_use: bool) -> Iterator[dict]:
        """Updates that offer the assets nearest to a prompt, and choose as many of them as a run retrieves."""
        models = self.worker.models
        hits = pipeline.retrieve(prompt or "", k=OFFERED, commercial_use=commercial_use, models=models)
        uids = [hit.uid for hit in hits]
        chosen = uids[: PRESETS[models.stack.preset]["redream"].retrieval.assets]
        yield {self.uids: gr.update(choices=self._choices(uids), value=chosen)}

    def added(self, uids: Sequence[str], uid: str) -> dict:
        """Updates that add an asset to those chosen."""
        gr.Info("The next object that you create starts from this asset; it stands under Assets.")
        chosen = list(dict.fromkeys([*uids, uid]))
        return {self.uids: gr.update(choices=self._choices(chosen), value=chosen), self.box: gr.update(open=True)}

    def restored(self, request: Request) -> dict:
        """Updates with the choice of a run's request, without its own GLBs."""
        uids = list(request.uids)
        return {
            self.uids: gr.update(choices=self._choices(uids), value=uids),
            self.commercial_use: request.commercial_use,
        }

    def _choices(self, uids: Sequence[str]) -> list[tuple[str, str]]:
        return [(self._name(uid), uid) for uid in uids]

    def _name(self, uid: str) -> str:
        """Caption, author and licence of an asset."""
        try:
            row = self.worker.models.index.row(uid)
        except AssetUnavailable:
            return uid
        return " · ".join(filter(None, (row["caption"], row["author"], row["license"])))


def _label(count: int) -> str:
    return f"Assets: {count} chosen" if count else "Assets: the nearest to the prompt"


def _box(count: int) -> dict:
    return gr.update(label=_label(count))
