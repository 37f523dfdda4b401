"""The right column of Create: a run's assets, optimisation and results, as the run goes on."""

import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from redream.app import run_page
from redream.app.downloads import Downloads
from redream.app.form_widgets import STOP, STOPPING, FormColumn
from redream.app.run_page import RunPage
from redream.app.wiring import PRIVATE, RETRIGGER, STREAMING, chained_updates, delayed_updates, reports_errors
from redream.retrieval.licences import attribution
from redream.runs.queue import Worker, find_run

SAMPLES = sorted((Path(__file__).parents[2] / "examples/samples").glob("*.mp4"))  # made by this program
MORE = 200  # iterations that a finished run is continued for
ATTRIBUTION_HELP = "The authors of the assets that shaped this object, to paste where you show it."
SIDE = 340  # of a result, in pixels


class RunView:
    """The widgets, and the events that fill them."""

    def __init__(self, worker: Worker, form: FormColumn) -> None:
        self.worker, self.form = worker, form
        self.pause = gr.State(None)  # when the run that is followed paused: a change asks for its next GPU call
        gr.Markdown("### Retrieved assets", elem_id="results")
        self.assets = gr.HTML(run_page.NO_ASSETS)
        gr.Markdown("### Optimisation")
        self.state, self.preview = gr.HTML(run_page.NO_RUN), gr.HTML()
        with gr.Accordion("Loss curves", open=False):
            self.curves = gr.HTML(run_page.NO_CURVES)
        with gr.Column(visible=False) as self.result:
            self._result()
        with gr.Column(visible=bool(SAMPLES)) as self.samples:
            _samples()

    def _result(self) -> None:
        gr.Markdown("### Result")
        self.number = gr.Radio([("1", 0)], value=0, label="Object", visible=False)
        with gr.Row():
            self.video = gr.Video(label="Turntable", loop=True, autoplay=True, buttons=["download"], height=SIDE)
            self.mesh = gr.Model3D(label="3D model", clear_color=(1, 1, 1, 1), height=SIDE)
        self.downloads = Downloads()
        self.scores = gr.HTML()
        with gr.Row(visible=False) as self.actions:
            self.continue_button = gr.Button("Continue", size="sm")
            self.compare_button = gr.Button("Compare without …", size="sm")
            self.record = gr.DownloadButton("Download the record", size="sm")
        show = {"buttons": ["copy"], "interactive": False, "visible": False}
        self.command = gr.Textbox(label="Command", elem_classes="command", **show)
        self.attribution = gr.Textbox(
            label="Attribution", info=ATTRIBUTION_HELP, lines=4, elem_classes="attribution", **show
        )
        self.link = gr.Markdown()

    @property
    def outputs(self) -> list[gr.blocks.Block]:
        """Everything that `follow` updates."""
        form = [self.form.error_box, self.form.create_button, self.form.stop_button]
        running = [self.assets, self.state, self.preview, self.curves]
        result = [self.result, self.number, self.video, self.mesh, self.scores]
        return [
            *form,
            *running,
            *result,
            *self.downloads.outputs,
            self.actions,
            *self._action_widgets,
            self.samples,
            self.pause,
        ]

    @property
    def _action_widgets(self) -> list[gr.blocks.Block]:
        return [self.continue_button, self.record, self.command, self.attribution, self.link]

    def connect(self, current: gr.State) -> None:
        """Wire what happens within the column."""
        show = reports_errors(self.form.error_box)(self.show_object)
        results = [self.form.error_box, self.video, self.mesh, self.scores, *self.downloads.outputs]
        self.number.input(show, [current, self.number], results, **RETRIGGER, **STREAMING, **PRIVATE)
        self.downloads.connect(current, self.number, self.form.error_box)

    def follow(self, run: str) -> Iterator[dict]:
        """Updates that show a run until it ends; what did not change on the page is left out."""
        if (
            self.worker.queue_position(run) is None
        ):  # all at once: what is hidden and shown again in a moment may stay hidden
            page = RunPage.of(run)
            visible = {self.result: gr.update(visible=True), self.samples: gr.update(visible=False)}
            yield from delayed_updates(self._contents(page) | visible | self._ended(run, page), self.mesh)
            return
        running = self._running()
        stop = STOPPING if self.worker.stopping(run) else STOP
        yield running | {self.form.stop_button: gr.update(**stop, visible=True), self.link: ""}
        before = {}
        for page in RunPage.follow(self.worker, run):
            contents = self._contents(page)
            changed = {w: value for w, value in contents.items() if w not in before or before[w] != value}
            yield running | changed  # in any case something, so that a closed page is noticed
            before = contents
        if page.paused:
            yield from chained_updates({self.pause: time.time()})
        else:
            yield self._ended(run, page)

    def show_object(self, run: str, number: int) -> Iterator[dict]:
        """Updates that show another object of a run."""
        yield self._object(RunPage.of(run), number)

    def _running(self) -> dict:
        hidden = (self.form.create_button, self.number, self.actions, self.command, self.attribution, self.samples)
        shown = (self.form.stop_button, self.result)
        return dict.fromkeys(hidden, gr.update(visible=False)) | dict.fromkeys(shown, gr.update(visible=True))

    def _contents(self, page: RunPage) -> dict:
        running = {self.assets: page.assets_html(), self.state: page.state_html(), self.preview: page.preview_html()}
        return running | {self.curves: page.curves_html()} | self._object(page, 0)

    def _object(self, page: RunPage, number: int) -> dict:
        files = {self.video: page.files.get(("turntable", number)), self.mesh: page.files.get(("mesh", number))}
        files |= self.downloads.offered(files[self.mesh])
        return files | {self.scores: page.scores_html(number, self.worker.models.stack.true_scores)}

    def _ended(self, run: str, page: RunPage) -> dict:
        """Updates for a run that has ended: its objects to choose from, and what can be done with it."""
        record, objects = find_run(run).folder / "record.json", range(page.object_count)
        choices = [(str(number + 1), number) for number in objects]
        return self.form.idle | {
            self.number: gr.update(choices=choices, value=0, visible=len(objects) > 1),
            self.actions: gr.update(visible=True),
            self.continue_button: f"Continue for {MORE} more" if page.complete else "Continue",
            self.record: gr.update(value=str(record) if record.is_file() else None, interactive=record.is_file()),
            self.command: gr.update(value=find_run(run).request.command, visible=True),
            self.attribution: gr.update(value=attribution(page.assets), visible=bool(page.assets)),
            self.link: f"[Link to this run](?run={run}): whoever has it sees the run and can continue it.",
        }


def _samples() -> None:
    gr.Markdown("### Made by this program")
    with gr.Row():
        for file in SAMPLES:
            with gr.Column(min_width=150):
                gr.Video(file, loop=True, autoplay=True, buttons=[], height=170, show_label=False)
                gr.Markdown(file.stem.replace("-", " "), elem_classes="caption")
