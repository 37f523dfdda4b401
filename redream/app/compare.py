"""The tab Compare: the same prompt and seed by several methods, side by side and blind."""

import time
from collections.abc import Iterator

import gradio as gr

from redream.app import comparison
from redream.app.blind_test import BlindTest
from redream.app.browser_runs import BrowserRuns, existing_runs, remembered, run_choices
from redream.app.components import script
from redream.app.create import CreateTab
from redream.app.form import estimate, preset_of, with_estimate
from redream.app.wiring import (
    PRIVATE,
    RETRIGGER,
    STREAMING,
    UNQUEUED,
    chained_updates,
    error_box,
    error_html,
    reports_errors,
)
from redream.errors import RedreamError
from redream.runs.queue import Worker
from redream.runs.run import Run
from redream.settings import PROMPT_LIMIT, VARIANTS, Settings

NEW_PROMPT = ("none: a new prompt", "")
TICKED = ["redream", "redream-no-adapt", "vsd"]
REFRESH_SECONDS = 1.0


class CompareTab:
    """The widgets and their events. A form's `base` is the id of a finished run, or ""."""

    def __init__(self, worker: Worker, tab: gr.Tab, browser: BrowserRuns) -> None:
        self.worker, self.browser, self.preset = worker, browser, preset_of(worker)
        self.runs = gr.State({})  # ids of the compared runs by variant
        self.pause = gr.State(None)  # when one of them paused: a change asks for its next GPU call
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                self._form()
            with gr.Column(scale=3, min_width=300):
                self.grid = gr.HTML(comparison.EMPTY_GRID, js_on_load=script("sprite_clock.js"))
                self.progress = gr.HTML()
                with gr.Accordion("Blind test", open=False):
                    BlindTest(worker, tab, self.runs, self.grid)
        self._connect(tab)

    def _form(self) -> None:
        self.base = gr.Dropdown([NEW_PROMPT], value="", label="A finished run")
        self.prompt = gr.Textbox(label="Prompt", max_length=PROMPT_LIMIT)
        self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
        labels = [(VARIANTS[variant].label, variant) for variant in comparison.COMPARED]
        self.ticks = gr.CheckboxGroup(labels, value=TICKED, label="Compare")
        self.error_box = error_box()
        self.compare_button = gr.Button("Compare", variant="primary")
        self.stop_button = gr.Button("Stop these runs", size="sm")

    def _connect(self, tab: gr.Tab) -> None:
        values = [self.prompt, self.seed, self.base, self.ticks, self.browser.known]
        outputs = [self.error_box, self.runs, self.browser.known, self.grid, self.progress, self.pause]
        starts = [self.compare_button.click, self.prompt.submit]
        compare, next_calls = (reports_errors(self.error_box)(call) for call in (self.compare, self.next_calls))
        gr.on(starts, compare, values, outputs, **STREAMING, **PRIVATE)
        # In a request of its own, as in Create; the last one has not ended yet.
        at_once = {"trigger_mode": "multiple"} | STREAMING | PRIVATE
        self.pause.change(next_calls, self.runs, outputs, **at_once)
        self.stop_button.click(self.stop, self.runs, None, **UNQUEUED)
        changes = [widget.change for widget in (self.prompt, self.seed, self.base, self.ticks, self.runs)]
        gr.on([tab.select, *changes], self.button_label, values, self.compare_button, **RETRIGGER, **UNQUEUED)
        tab.select(self.base_choices, [self.browser.known, self.base], self.base, **UNQUEUED)
        self.base.input(_prompt_and_seed, self.base, [self.prompt, self.seed], **RETRIGGER, **UNQUEUED)

    def connect_create(self, tabs: gr.Tabs, create: CreateTab) -> None:
        """Create's button opens this tab with the run that is shown there."""
        inputs, outputs = [self.browser.known, self.browser.current], [tabs, self.base, self.prompt, self.seed]
        create.view.compare_button.click(self.open_with, inputs, outputs, **UNQUEUED)

    def compare(self, prompt: str, seed: int | None, base: str | None, ticks: list[str], known: list[str]) -> Iterator:
        """Find or submit the runs, then show them until all of them are over, or one is paused."""
        ids: dict[str, str] = {}
        try:
            wanted = self._wanted(base, seed, ticks)
            for ids in comparison.submit_missing(self.worker, prompt or "", wanted, self._known_runs(known, base)):
                ids_here = [
                    run for run in ids.values() if run != base or run in known
                ]  # the base may be another browser's
                yield {self.runs: ids, self.browser.known: remembered(ids_here, known)}
        except RedreamError as error:  # what was submitted before is followed nevertheless
            yield {self.error_box: error_html(error)}
        yield from self._follow(ids)

    def next_calls(self, ids: dict[str, str]) -> Iterator:
        """Ask for the next GPU call of the runs that are paused, and show all of them again."""
        comparison.continue_paused(self.worker, ids.values())
        yield from self._follow(ids)

    def _follow(self, ids: dict[str, str]) -> Iterator[dict]:
        pending, before = bool(ids), None
        while pending:
            pending = any(
                self.worker.queue_position(run) is not None for run in ids.values()
            )  # before the runs are read
            runs = comparison.compared_runs(self.worker, ids)
            finished = [one.variant for one in runs if not one.status]
            updates = {self.progress: comparison.progress_html(runs)}
            if finished != before:
                updates[self.grid] = gr.update(value=comparison.grid_html(runs), visible=True)
            yield updates
            if comparison.paused(self.worker, ids.values()):
                yield from chained_updates({self.pause: time.time()})
                return
            before = finished
            time.sleep(REFRESH_SECONDS)

    def button_label(self, prompt: str, seed: int | None, base: str | None, ticks: list[str], known: list[str]) -> str:
        """The button's label with an estimate for the runs that are missing."""
        try:
            wanted, runs = self._wanted(base, seed, ticks), self._known_runs(known, base)
            missing = comparison.missing_settings(self.worker, prompt or "", wanted, runs)
        except RedreamError:
            return "Compare"
        return with_estimate("Compare", estimate(self.worker, missing))

    def stop(self, ids: dict[str, str]) -> None:
        """Stop the compared runs."""
        for run in ids.values():
            self.worker.stop(run)

    def base_choices(self, known: list[str], base: str | None) -> dict:
        """An update of the dropdown of finished runs, with `base` selected."""
        finished = run_choices([run for run in self._known_runs(known, base) if run.finished])
        selected = base if base in dict(finished).values() else ""
        return gr.update(choices=[NEW_PROMPT, *finished], value=selected)

    def open_with(self, known: list[str], run: str | None) -> list:
        """Open the tab with a run as the base."""
        return [gr.Tabs(selected="compare"), self.base_choices(known, run), *_prompt_and_seed(run)]

    def _wanted(self, base: str | None, seed: int | None, ticks: list[str]) -> dict[str, Settings]:
        run = next(iter(existing_runs([base or ""])), None)
        return comparison.settings_by_variant(ticks, run, self.preset, int(seed or 0))

    def _known_runs(self, known: list[str], base: str | None) -> list[Run]:
        """The base, which may be another browser's, and this browser's runs."""
        return existing_runs([base or "", *known])


def _prompt_and_seed(base: str | None) -> tuple:
    """A run's prompt and seed for the form; nothing changes without a run."""
    for run in existing_runs([base or ""]):
        return run.request.prompt, run.request.settings.seed
    return gr.skip(), gr.skip()
