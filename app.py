"""The page: describe an object, see what the library has, watch it form, take it away. Widgets and their wiring."""

import logging
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
import gradio as gr

from redream import machine, page, pipeline, runs
from redream.jobs import Worker, find
from redream.models import Models
from redream.page import Page
from redream.settings import MAX_ITERATIONS, PRESETS, PROMPT_LIMIT
from redream.stack import Stack

EXAMPLES = ["a purple owl", "a blue cat", "a green dog", "a pink car", "a turquoise robot", "a yellow chair"]
METHODS = {"redream": "ReDream", "vsd": "ProlificDreamer (VSD)", "sds": "DreamFusion (SDS)"}
SWITCHES = {
    "Start from retrieved assets": "Gives the shape its geometry (initialisation).",
    "Teach the model their views": "Front, side and back stay different (adaptation).",
}
SIDE = 340  # pixels, of results
STOP = {"value": "Stop and keep", "interactive": True}
STOPPING = {"value": "Stopping, and making results of what there is", "interactive": False}

FOLLOWS = {"concurrency_limit": None, "show_progress": "hidden"}  # one worker makes the runs, any number may look on
PRIVATE = {"api_visibility": "private"}
QUICK = {"queue": False, "show_progress": "hidden"} | PRIVATE


def choose() -> tuple[Stack, str]:
    """The stack to work with, and why it is this one."""
    if name := os.environ.get("REDREAM_STACK"):
        return Stack.load(name), "REDREAM_STACK names it."
    found = machine.doctor()
    return Stack.load(found.stack), found.reason


def as_error(error: Exception) -> gr.Error:
    """An error as a sentence; one that was not foreseen goes to the log."""
    if pipeline.is_named(error):
        return gr.Error(str(error), print_exception=False)
    logging.getLogger(__name__).error("A wish failed", exc_info=error)
    return gr.Error("Something in this program went wrong. Try again; if it stays, its log says more.")


def pages(worker: Worker, run: str) -> Iterator[Page]:
    """The page of a run again and again, as it goes on."""
    shown = Page(find(run).folder)
    for news in worker.follow(run):
        for event in news:
            shown.tell(event)
        yield shown
    if not shown.ended:
        shown.state = page.INTERRUPTED
        yield shown


def switches_for(method: str, initialise: bool = True, adapt: bool = True) -> list[dict]:
    """How the two switches stand for a method: off, with the reason, where there are no assets."""
    if method == "redream":
        return [
            gr.update(value=on, interactive=True, info=why) for on, why in zip((initialise, adapt), SWITCHES.values())
        ]
    why = f"{METHODS[method]} works without assets."
    return [gr.update(value=False, interactive=False, info=why) for _ in SWITCHES]


def build(worker: Worker, reason: str) -> gr.Blocks:
    """The page over one worker; `reason` says why it works with its stack."""
    stack = worker.models.stack
    preset = PRESETS[stack.preset]

    def submit(prompt: str, method: str, initialise: bool, adapt: bool, iterations: float, seed: float | None) -> str:
        """A new run's id. Raises `gr.Error`."""
        own = method == "redream"
        wish = {"method": method, "initialise": initialise and own, "adapt": adapt and own}
        try:
            return worker.submit(prompt or "", preset.with_(**wish, iterations=int(iterations), seed=int(seed or 0)))
        except Exception as error:
            raise as_error(error) from error

    def retrieve(prompt: str, count: int = 3) -> list[dict]:
        """What the library has for a prompt: the `count` (1 to 100) closest assets, best first, each with its uid, caption,
        author, license, similarity (a cosine, what it is ranked by), source and text_similarity."""
        try:
            hits = pipeline.retrieve(str(prompt), k=min(max(int(count), 1), 100), models=worker.models)
        except Exception as error:
            raise as_error(error) from error
        return [asdict(hit) for hit in hits]

    def generate(prompt, method="redream", initialise=True, adapt=True, iterations=preset.iterations, seed=0):
        """Make a 3D object of a prompt (1 to 300 characters): state (a sentence), turntable (MP4), model (GLB), scores.
        Streams the state; files and scores are there at the end. method: redream, vsd or sds (the latter two use no
        assets); initialise: start from retrieved assets; adapt: teach the model their views."""
        for shown in pages(worker, submit(prompt, method, initialise, adapt, iterations, seed)):
            yield shown.state, shown.files.get("turntable"), shown.files.get("mesh"), shown.scores
        if not shown.files:
            raise gr.Error(shown.state, print_exception=False)

    def create(*wishes):
        """Start a run and show it; or say why not."""
        try:
            run = submit(*wishes)
        except gr.Error as error:
            yield {problem: gr.update(value=page.problem_html(error.message), visible=True)}
        else:
            yield from show(run)

    def show(run: str):
        """Follow a run; what did not change on the page is left alone."""
        running = {create_button: gr.update(visible=False), stop_button: gr.update(**STOP, visible=True)}
        yield {current: run, problem: gr.update(visible=False)} | running
        before = {}
        for shown in pages(worker, run):
            now = {
                assets: shown.assets_html(),
                state: shown.state_html(),
                preview: shown.preview_html(),
                video: shown.files.get("turntable"),
                mesh: shown.files.get("mesh"),
                table: shown.scores_html(),
            }
            yield {widget: value for widget, value in now.items() if widget not in before or before[widget] != value}
            before = now
        yield {create_button: gr.update(visible=True), stop_button: gr.update(visible=False)}

    def come_back(run: str | None):
        """Show the run that this browser saw last, with what was asked for; who has none sees an empty page."""
        try:
            request = find(run).request if run else None
        except ValueError:
            request = None
        if request is None:
            yield {current: None}
            return
        s = request.settings
        stand = dict(zip(switches, switches_for(s.method, s.initialise, s.adapt), strict=True))
        yield {prompt: request.prompt, method: s.method, iterations: s.iterations, seed: s.seed} | stand
        yield from show(run)

    def stop(run: str | None) -> dict:
        worker.stop(run or "")
        return gr.update(**STOPPING)

    with gr.Blocks(title="Redream", delete_cache=(3600, 86400)) as demo:
        current = gr.BrowserState(None, storage_key="redream-run", secret="redream")
        gr.Markdown(f"# Redream\nA sentence becomes a 3D object. The models are *{stack.name}*: {reason}")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                prompt = gr.Textbox(label="Describe an object", max_length=PROMPT_LIMIT, max_lines=3, autofocus=True)
                gr.Examples(EXAMPLES, prompt, label="For example", **PRIVATE)
                problem = gr.HTML(visible=False)
                method = gr.Radio([(name, key) for key, name in METHODS.items()], value="redream", label="Method")
                switches = [gr.Checkbox(True, label=label, info=info) for label, info in SWITCHES.items()]
                most = min(MAX_ITERATIONS, 5 * preset.iterations)
                iterations = gr.Slider(10, most, preset.iterations, step=10, label="Iterations")
                with gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, min_width=120)
                    dice = gr.Button("⚄ Random seed", size="sm", min_width=120, elem_classes="dice")
                create_button = gr.Button("Create", variant="primary", size="lg")
                stop_button = gr.Button(**STOP, visible=False, size="lg")
            with gr.Column(scale=3, min_width=300):
                gr.Markdown("### Found in the library")
                assets = gr.HTML(page.NO_ASSETS)
                gr.Markdown("### Forming")
                state, preview = gr.HTML(page.NO_STATE), gr.HTML()
                gr.Markdown("### Result")
                with gr.Row():
                    video = gr.Video(label="Turntable", loop=True, autoplay=True, buttons=["download"], height=SIDE)
                    mesh = gr.Model3D(label="3D model", clear_color=(1, 1, 1, 1), height=SIDE)
                table = gr.HTML()

        wishes = [prompt, method, *switches, iterations, seed]
        shown = [current, problem, create_button, stop_button, assets, state, preview, video, mesh, table]
        coming_back = demo.load(come_back, current, [*shown, *wishes], **FOLLOWS, **PRIVATE)
        wanted = [create_button.click, prompt.submit]
        gr.on(wanted, create, wishes, shown, cancels=coming_back, **FOLLOWS, **PRIVATE)
        stop_button.click(stop, current, stop_button, **QUICK)
        method.input(switches_for, method, switches, **QUICK)
        dice.click(lambda: random.randrange(2**31), None, seed, **QUICK)

        told = [gr.Textbox(label="State", visible=False), video, mesh, gr.JSON(label="Scores", visible=False)]
        gr.Button(visible=False).click(generate, wishes, told, api_name="generate", **FOLLOWS)
        gr.api(retrieve, api_name="retrieve")
    return demo


def theme() -> gr.themes.Base:
    """Quiet labels, and only fonts that every computer has."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    plain = {"background_fill": "none", "text_color": "*body_text_color", "padding": "0"}
    labels = {f"block_title_{key}": value for key, value in plain.items()}
    return gr.themes.Soft(primary_hue="violet", neutral_hue="slate", **fonts).set(
        background_fill_primary="*neutral_50", **labels
    )


def main() -> None:
    try:
        stack, reason = choose()
    except ValueError as error:
        sys.exit(str(error))
    runs.root().mkdir(parents=True, exist_ok=True)
    build(Worker(Models.load(stack)), reason).launch(
        theme=theme(),
        css_paths=Path(page.__file__).with_suffix(".css"),
        allowed_paths=[str(runs.root().resolve())],
        footer_links=["api"],
        run_history=False,
    )


if __name__ == "__main__":
    main()
