"""The tab Create: from a prompt to its object. The left column asks, the right one shows the run."""

from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from redream.app.browser_runs import BrowserRuns, existing_runs, is_pending, remembered
from redream.app.components import script
from redream.app.form import GenerationForm
from redream.app.form_widgets import STOPPING, FormColumn
from redream.app.limits import remove_uploads
from redream.app.run_view import MORE, RunView
from redream.app.wiring import PRIVATE, RETRIGGER, STREAMING, UNQUEUED, chained_updates, error_html, reports_errors
from redream.errors import RedreamError
from redream.pipeline import UploadError
from redream.runs.queue import Worker, find_run

PENDING = "This object is being made already, or waits for its turn."
QUEUED = "Its turn comes after the run that is shown. You will find it under Your objects."


class CreateTab:
    """Both columns, and the events between them."""

    def __init__(self, demo: gr.Blocks, worker: Worker, browser: BrowserRuns) -> None:
        self.worker, self.browser = worker, browser
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self.form = FormColumn(worker)
            with gr.Column(scale=3, min_width=300):
                self.view = RunView(worker, self.form)
        # In this order: if the form's own events came first, Gradio would take the loading of the browser's storage for a
        # change of it, and a phone would scroll to the results.
        self._connect(demo)
        self.view.connect(browser.current)
        self.form.connect(demo, browser, self.view.command)

    def _connect(self, demo: gr.Blocks) -> None:
        form, view, known, current = self.form, self.view, self.browser.known, self.browser.current
        submit, restore, follow = (
            reports_errors(form.error_box, clears=False)(self.submit),
            reports_errors(form.error_box, clears=False)(self.restore),
            reports_errors(form.error_box, form.idle, clears=False)(view.follow),
        )
        filled = [form.prompt, *form.assets.values, *form.values, current, form.error_box]
        restoring = demo.load(restore, [known, current], filled, **STREAMING, **PRIVATE)
        inputs = [known, current, form.prompt, form.assets.files, *form.assets.values, *form.values]
        outputs = [current, known, form.seed, form.assets.files, form.error_box]
        starts = [form.create_button.click, form.prompt.submit]
        gr.on(starts, submit, inputs, outputs, cancels=restoring, **RETRIGGER, **STREAMING, **PRIVATE)

        resume, next_call = (reports_errors(form.error_box, form.idle)(call) for call in (self.resume, self.next_call))
        resuming = view.continue_button.click(resume, current, view.outputs, **STREAMING, **PRIVATE)
        # In a request of its own, as what ZeroGPU allows a visitor's request is for one call; the last one has not ended yet.
        at_once = {"trigger_mode": "multiple"} | STREAMING | PRIVATE
        calling = view.pause.change(next_call, current, view.outputs, **at_once)
        following = {"cancels": [resuming, calling]} | RETRIGGER | STREAMING | PRIVATE
        current.change(follow, current, view.outputs, **following)
        known.change(None, None, None, js=script("show_results.js"))
        form.stop_button.click(self.stop, current, form.stop_button, **UNQUEUED)

    def submit(
        self,
        known: list[str],
        current: str | None,
        prompt: str,
        files: list[str] | None,
        uids: list[str],
        commercial_use: bool,
        *values,
    ) -> Iterator:
        """Submit a run of the form's values; while the run that is shown goes on, the new one comes after it."""
        form = GenerationForm(*values)
        start = {"assets": [(file, "") for file in files]} if files else {}
        start |= {"uids": uids, "commercial_use": commercial_use}
        try:
            settings = form.settings(self.form.preset)
            if is_pending(self.worker, [current or "", *known], prompt or "", settings, start):
                gr.Info(PENDING)
                yield {self.form.error_box: ""}
                return
            run = self.worker.submit(prompt or "", settings, **start)
        except RedreamError as error:
            updates = {self.form.error_box: error_html(error, "Nothing was started.")}
            if isinstance(error, UploadError):
                remove_uploads([error.file])
                updates[self.form.assets.files] = [file for file in files if Path(file) != error.file] or None
            yield updates
            return
        updates = {self.browser.known: remembered([run], known), self.form.seed: int(form.seed or 0)}
        updates |= {self.form.error_box: ""}
        if self.worker.queue_position(current or "") is None or self.worker.is_elsewhere(current or ""):
            yield from chained_updates(updates | {self.browser.current: run})
        else:
            gr.Info(QUEUED)
            yield updates

    def resume(self, run: str) -> Iterator:
        """Continue from the last checkpoint, beyond the plan if that is done, and show the run."""
        self.worker.resume(run, MORE if find_run(run).finished else None)
        yield from self.view.follow(run)

    def next_call(self, run: str | None) -> Iterator:
        """Continue a paused run, unless another page has done so, and show it."""
        if not run:
            return
        if self.worker.queue_position(run) is None:
            self.worker.resume(run)
        yield from self.view.follow(run)

    def restore(self, known: list[str], current: str | None, request: gr.Request) -> Iterator:
        """Show the run that the address names, or this browser's latest one, and fill the form with its request."""
        if current:
            return
        for run in existing_runs([request.query_params.get("run", ""), *known])[:1]:
            yield from chained_updates(self.form.restored(run.request) | {self.browser.current: run.folder.name})

    def stop(self, run: str | None) -> dict:
        """Stop the run that is shown; its results are made of what there is."""
        self.worker.stop(run or "")
        return gr.update(**STOPPING)
