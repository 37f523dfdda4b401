"""The left column of Create: the prompt, the widgets of `GenerationForm`, and the runs that this browser made before."""

import random
import time
from dataclasses import astuple

import gradio as gr

from redream.app.asset_choice import AssetChoice
from redream.app.browser_runs import BrowserRuns, existing_runs, run_choices
from redream.app.components import script
from redream.app.form import (
    MAX_OBJECTS,
    METHOD_LABELS,
    TIMES,
    GenerationForm,
    estimate,
    max_iterations,
    preset_of,
    resolution_choices,
    timed_forms,
    vocabulary_help,
    with_estimate,
)
from redream.app.wiring import PRIVATE, RETRIGGER, UNQUEUED, error_box
from redream.errors import RedreamError
from redream.runs.queue import Worker
from redream.runs.run import Request
from redream.settings import PROMPT_LIMIT, Preset

EXAMPLES = ["a purple owl", "a blue cat", "a green dog", "a pink car", "a turquoise robot", "a yellow chair"]
SWITCHES = {  # label: plain explanation and the paper's term
    "Start from retrieved assets": "Gives the shape its geometry (initialisation).",
    "Adapt the model to their views": "Front, side and back stay different (adaptation).",
}
METHOD_HELP = "ReDream starts from assets. The other two are earlier methods that start from nothing, to compare with."
TIME_HELP = "Sets the iterations and the resolution below."
ITERATIONS_HELP = "More of them take longer and make finer details."
GUIDANCE_HELP = "How closely to follow the prompt (classifier-free guidance). 0 stands for the default: {defaults}."
DELTA_HELP = "Removes the part of the gradient that the 2D model has for the asset as well (appendix B)."
STOP = {"value": "Stop and keep", "interactive": True}
STOPPING = {"value": "Stopping, the results are being made", "interactive": False}
PATIENCE = 600  # looks for the first estimate, 0.2 s apart


class FormColumn:
    """The widgets, and the events among them."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.preset = worker, preset_of(worker)
        self._prompt()
        self.create_button = gr.Button("Create", variant="primary", size="lg")
        self.stop_button = gr.Button(**STOP, visible=False, size="lg")
        self.error_box = error_box()
        self._method()
        self.assets = AssetChoice(worker)
        with gr.Accordion("Advanced settings", open=False):
            self._advanced_settings(self.preset)
        info = "Made in this browser: choose one to see it."
        self.earlier = gr.Dropdown([], value=None, label="Your objects", info=info, visible=False)

    def _prompt(self) -> None:
        info = vocabulary_help(self.worker.models.stack)
        limits = {"max_length": PROMPT_LIMIT, "max_lines": 3}
        self.prompt = gr.Textbox(label="Describe an object", info=info, autofocus=True, **limits)
        gr.Examples(EXAMPLES, self.prompt, label="For example", **PRIVATE)

    def _method(self) -> None:
        self.switches = [gr.Checkbox(True, label=label, info=info) for label, info in SWITCHES.items()]
        methods = [(label, name) for name, label in METHOD_LABELS.items()]
        self.method = gr.Radio(methods, value="redream", label="Method", info=METHOD_HELP)
        with gr.Row():
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, min_width=120)
            self.dice = gr.Button("⚄ Random seed", size="sm", min_width=120, elem_classes="dice")
        self.time = gr.Radio(list(TIMES), value="Normal", label="Time", info=TIME_HELP)

    def _advanced_settings(self, preset: Preset) -> None:
        limit, default = max_iterations(preset), preset["redream"].iterations
        self.iterations = gr.Slider(1, limit, default, step=1, label="Iterations", info=ITERATIONS_HELP)
        self.particles = gr.Slider(1, MAX_OBJECTS, 1, step=1, label="Objects at once (particles)")
        defaults = ", ".join(f"{label} {preset[name].distillation.guidance:g}" for name, label in METHOD_LABELS.items())
        info = GUIDANCE_HELP.format(defaults=defaults)
        self.guidance = gr.Number(0, label="Guidance", info=info, minimum=0, maximum=200)
        self.delta = gr.Checkbox(True, label="Delta denoising", info=DELTA_HELP)
        self.resolution = gr.Radio(resolution_choices(preset), value=0, label="Render resolution")

    @property
    def values(self) -> list[gr.blocks.Block]:
        """The widgets of `GenerationForm`'s fields, in their order."""
        how = [self.method, *self.switches, self.iterations, self.particles]
        return [*how, self.seed, self.guidance, self.delta, self.resolution]

    @property
    def idle(self) -> dict:
        """Updates while no run is followed: Create instead of Stop."""
        return {self.create_button: gr.update(visible=True), self.stop_button: gr.update(visible=False)}

    def connect(self, demo: gr.Blocks, browser: BrowserRuns, command: gr.Textbox) -> None:
        """Wire the column; `command` changes whenever a run has ended."""
        self.method.input(switch_updates, self.method, self.switches, **RETRIGGER, **UNQUEUED)
        self.dice.click(lambda: random.randrange(2**31), None, self.seed, **UNQUEUED)
        self.prompt.input(None, None, self.error_box, js=script("empty.js"))  # an error is about the prompt before
        # An event of its own, not a part of restoring a run: that would scroll a phone to the results as well.
        demo.load(_earlier_choices, browser.known, self.earlier, **UNQUEUED)
        browser.known.change(_earlier_choices, browser.known, self.earlier, **UNQUEUED)
        self.earlier.input(None, self.earlier, js=script("open_run.js"))
        self.assets.connect(self.prompt, self.error_box)
        changed = [widget.change for widget in self.values if widget not in (self.seed, self.guidance)]
        estimates = [self.create_button, self.time]
        demo.load(self._wait_for_estimate, **UNQUEUED).then(self._estimates, self.values, estimates, **UNQUEUED)
        gr.on([command.change, *changed], self._estimates, self.values, estimates, **RETRIGGER, **UNQUEUED)
        set_by_time = [self.iterations, self.resolution]
        self.time.input(self._choose_time, [self.time, *self.values], set_by_time, **RETRIGGER, **UNQUEUED)

    def restored(self, request: Request) -> dict:
        """Updates that fill the form with a run's request."""
        form = GenerationForm.of(request.settings, self.preset)
        switches = switch_updates(form.method, form.initialise, form.adapt)
        values = [form.method, *switches, *astuple(form)[3:]]
        fields = dict(zip(self.values, values, strict=True))
        return {self.prompt: request.prompt} | self.assets.restored(request) | fields

    def _estimates(self, *values) -> tuple[str, dict]:
        """The label of Create with the estimate for the form's values, and `TIMES` with theirs, the form's own chosen."""
        form = GenerationForm(*values)
        try:
            own = estimate(self.worker, [form.settings(self.preset)])
            forms = timed_forms(form, self.worker)
            times = {name: estimate(self.worker, [timed.settings(self.preset)]) for name, timed in forms.items()}
        except RedreamError:
            return "Create", gr.update()
        choices = [(f"{name}, {time}" if time else name, name) for name, time in times.items()]
        chosen = next((name for name, timed in forms.items() if timed == form), None)
        return with_estimate("Create", own), gr.update(choices=choices, value=chosen)

    def _choose_time(self, name: str, *values) -> tuple[int, int]:
        """The iterations and the resolution of one of `TIMES`."""
        form = timed_forms(GenerationForm(*values), self.worker)[name]
        return form.iterations, form.resolution

    def _wait_for_estimate(self) -> None:
        """Wait until this machine's speed is measured: the first visitor may come earlier."""
        for _ in range(PATIENCE):
            if estimate(self.worker, [self.preset["redream"]]):
                return
            time.sleep(0.2)


def switch_updates(method: str, initialise: bool = True, adapt: bool = True) -> list[dict]:
    """Updates of the two switches for a method: off and locked, with the reason, where it uses no assets."""
    if method == "redream":
        states = zip((initialise, adapt), SWITCHES.values(), strict=True)
        return [gr.update(value=value, interactive=True, info=info) for value, info in states]
    info = f"{METHOD_LABELS[method]} works without assets."
    return [gr.update(value=False, interactive=False, info=info) for _ in SWITCHES]


def _earlier_choices(known: list[str]) -> dict:
    return gr.update(choices=run_choices(existing_runs(known)), visible=bool(known))
