"""The page: describe an object, watch it form, compare methods, look through the library. Widgets and their wiring."""

import functools
import os
import random
import sys
import threading
import time
from dataclasses import astuple
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
import gradio as gr

from redream.app import about, run_page
from redream.app import compare as compare_module
from redream.app.api import Endpoints
from redream.app.form import (
    HELP,
    MAX_OBJECTS,
    METHODS,
    GenerationForm,
    choices_of,
    duration,
    forming,
    known_words,
    max_iterations,
    page_of,
    pages,
    preset_of,
    resolutions,
    still_here,
)
from redream.app.library import library_tab
from redream.app.prior import prior_tab
from redream.app.theme import SCRIPT, SHOW_RESULTS, STYLE, theme
from redream.app.wiring import (
    PRIVATE,
    RETRIGGER,
    STREAMING,
    UNQUEUED,
    answering,
    delayed_updates,
    error_html,
    reports_errors,
    sentence,
    streaming,
)
from redream.errors import RedreamError
from redream.runs.queue import Worker, find
from redream.runs.run import days_kept, runs_folder
from redream.settings import PROMPT_LIMIT, VARIANTS
from redream.stack import environment
from redream.stack.models import Models
from redream.stack.stack import Stack

SAMPLES = sorted((Path(__file__).parent / "examples/samples").glob("*.mp4"))  # made by this program
EXAMPLES = ["a purple owl", "a blue cat", "a green dog", "a pink car", "a turquoise robot", "a yellow chair"]
SWITCHES = {"Start from retrieved assets": HELP["initialise"], "Teach the model their views": HELP["adapt"]}
MORE = 200  # iterations that a finished run goes on for
REMEMBERED = 30  # runs of a browser
NEW = ("none: a new prompt", "")
SIDE = 340  # pixels, of results
STOP = {"value": "Stop and keep", "interactive": True}
STOPPING = {"value": "Stopping, and making results of what there is", "interactive": False}


def choose() -> tuple[Stack, str]:
    """The stack to work with, and why it is this one."""
    if name := os.environ.get("REDREAM_STACK"):
        return Stack.load(name), "REDREAM_STACK names it."
    found = environment.doctor()
    return Stack.load(found.stack), found.reason


def switches_for(method: str, initialise: bool = True, adapt: bool = True) -> list[dict]:
    """How the two switches stand for a method: off, with the reason, where there are no assets."""
    if method == "redream":
        stand = zip((initialise, adapt), SWITCHES.values(), strict=True)
        return [gr.update(value=on, interactive=True, info=why) for on, why in stand]
    why = f"{METHODS[method]} works without assets."
    return [gr.update(value=False, interactive=False, info=why) for _ in SWITCHES]


def build(worker: Worker, reason: str) -> gr.Blocks:
    """The page over one worker; `reason` says why it works with its stack."""
    with gr.Blocks(title="Redream", delete_cache=(3600, 86400)) as demo:
        mine = gr.BrowserState([], storage_key="redream-runs", secret="redream")  # ids, the latest first
        current = gr.State(None)  # the run that is shown
        gr.Markdown("# Redream\nA sentence becomes a 3D object.")
        with gr.Tabs() as tabs:
            with gr.Tab("Create", id="create"):
                uid, more, compare_this = create_tab(demo, worker, mine, current)
            with gr.Tab("Compare", id="compare") as tab:
                compare_tab(worker, tab, tabs, mine, current, compare_this)
            with gr.Tab("Library", id="library") as tab:
                library_tab(worker, tab, tabs, uid, more)
            with gr.Tab("Prior", id="prior"):
                prior_tab(worker)
            with gr.Tab("About", id="about"):
                gr.HTML(about.page_html(worker.models.stack, reason))
        endpoints(worker)
    return demo


def create_tab(demo: gr.Blocks, worker: Worker, mine: gr.BrowserState, current: gr.State) -> tuple:
    """From a prompt to its object; returns the widgets that other tabs reach into."""
    preset = preset_of(worker)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            words = {"label": "Describe an object", "info": known_words(worker.models.stack)}
            prompt = gr.Textbox(**words, max_length=PROMPT_LIMIT, max_lines=3, autofocus=True)
            gr.Examples(EXAMPLES, prompt, label="For example", **PRIVATE)
            create_button = gr.Button("Create", variant="primary", size="lg")
            stop_button = gr.Button(**STOP, visible=False, size="lg")
            error_box = gr.HTML(elem_classes="trouble")
            switches = [gr.Checkbox(True, label=label, info=info) for label, info in SWITCHES.items()]
            method = gr.Radio(
                [(name, key) for key, name in METHODS.items()], value="redream", label="Method", info=HELP["method"]
            )
            with gr.Row():
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, min_width=120)
                dice = gr.Button("⚄ Random seed", size="sm", min_width=120, elem_classes="dice")
            with gr.Accordion("More", open=False) as more:
                most, planned = max_iterations(preset), preset["redream"].iterations
                iterations = gr.Slider(1, most, planned, step=1, label="Iterations", info=HELP["iterations"])
                particles = gr.Slider(1, MAX_OBJECTS, 1, step=1, label="Objects at once (particles)")
                usual = ", ".join(f"{METHODS[method]} {preset[method].distillation.guidance:g}" for method in METHODS)
                guidance = gr.Number(
                    0, label="Guidance", info=HELP["guidance"].format(usual=usual), minimum=0, maximum=200
                )
                delta = gr.Checkbox(True, label="Delta denoising", info=HELP["delta"])
                resolution = gr.Radio(resolutions(preset), value=0, label="Resolution while forming")
                file = gr.File(label="Start from your own GLB", file_types=[".glb"], height=160)
                own = {"placeholder": "its name there; the tab Library fills it in", "max_length": 200}
                uid = gr.Textbox(label="Start from this asset of the library", **own)
            earlier = gr.Dropdown(
                [], value=None, label="Your objects", info="Made in this browser: choose one to see it.", visible=False
            )
        with gr.Column(scale=3, min_width=300):
            gr.Markdown("### Found in the library", elem_id="results")
            assets = gr.HTML(run_page.NO_ASSETS)
            gr.Markdown("### Forming")
            state, preview = gr.HTML(run_page.NO_STATE), gr.HTML()
            with gr.Accordion("Curves", open=False):
                curves = gr.HTML(run_page.NO_CURVES)
            with gr.Column(visible=False) as outcome:
                gr.Markdown("### Result")
                number = gr.Radio([("1", 0)], value=0, label="Object", visible=False)
                with gr.Row():
                    video = gr.Video(label="Turntable", loop=True, autoplay=True, buttons=["download"], height=SIDE)
                    mesh = gr.Model3D(label="3D model", clear_color=(1, 1, 1, 1), height=SIDE)
                table = gr.HTML()
                with gr.Row(visible=False) as onward:
                    again = gr.Button("Continue", size="sm")
                    compare_this = gr.Button("Compare without …", size="sm")
                    record = gr.DownloadButton("Download the record", size="sm")
                command = gr.Textbox(
                    label="Command", buttons=["copy"], interactive=False, visible=False, elem_classes="command"
                )
                link = gr.Markdown()
            with gr.Column(visible=bool(SAMPLES)) as samples:
                gr.Markdown("### Made by this program")
                with gr.Row():
                    for made in SAMPLES:
                        with gr.Column(min_width=150):
                            gr.Video(made, loop=True, autoplay=True, buttons=[], height=170, show_label=False)
                            gr.Markdown(made.stem.replace("-", " "), elem_classes="caption")

    idle = {create_button: gr.update(visible=True), stop_button: gr.update(visible=False)}

    @reports_errors(error_box, clears=False)
    def take_on(known, followed, prompt, file, uid, *how):
        """Start what is asked for; while an object forms here it comes after that one."""
        wish = GenerationForm(*how)
        given = {"assets": [(file, "")]} if file else {"uids": uid.split()} if uid else {}
        try:
            settings = wish.settings(preset)
            if forming(worker, [followed or "", *known], prompt or "", settings, given):
                gr.Info("This one is forming already, or waits for its turn.")
                yield {error_box: ""}
                return
            run = worker.submit(prompt or "", settings, **given)
        except RedreamError as error:
            yield {error_box: error_html(error, "Nothing was started.")}
            return
        told = {mine: [run, *known][:REMEMBERED], seed: int(wish.seed or 0), error_box: ""}
        if worker.ahead(followed or "") is None:
            yield told | {current: run}
        else:
            gr.Info("Its turn comes after the one that is shown. You will find it under Your objects.")
            yield told

    @reports_errors(error_box)
    def go_on(run):
        """Continue from the last checkpoint, further than was planned if that is done."""
        worker.resume(run, MORE if find(run).finished else None)
        yield {error_box: ""}

    @reports_errors(error_box)
    def pick(run, of):
        """Another object of the run."""
        yield result(page_of(run), of)

    @reports_errors(error_box, idle, clears=False)
    def follow(run):
        """Show a run as it goes on; what did not change on the page is left alone."""
        off = dict.fromkeys((create_button, number, onward, command, samples), gr.update(visible=False))
        if worker.ahead(run) is None:  # all at once: what is hidden and shown again in a moment may stay hidden
            shown = page_of(run)
            over = {outcome: gr.update(visible=True), samples: gr.update(visible=False)}
            yield from delayed_updates(everything(shown) | over | ended(run, shown), mesh)
            return
        stand = off | {stop_button: gr.update(visible=True), outcome: gr.update(visible=True)}
        stop = STOPPING if worker.stopping(run) else STOP
        yield stand | {stop_button: gr.update(**stop, visible=True), link: ""}
        before = {}
        for shown in pages(worker, run):
            now = everything(shown)
            changed = {w: value for w, value in now.items() if w not in before or before[w] != value}
            yield stand | changed  # in any case something, so that a page that was closed is noticed
            before = now
        yield ended(run, shown)

    def everything(shown):
        now = {assets: shown.assets_html(), state: shown.state_html(), preview: shown.preview_html()}
        return now | {curves: shown.curves_html()} | result(shown, 0)

    def result(shown, of):
        files = {video: shown.files.get(("turntable", of)), mesh: shown.files.get(("mesh", of))}
        return files | {table: shown.scores_html(of, worker.models.stack.true_scores)}

    def ended(run, shown):
        """What can be done with a run that is over."""
        kept, objects = find(run).folder / "record.json", range(shown.objects)
        return idle | {
            number: gr.update(choices=[(str(n + 1), n) for n in objects], value=0, visible=len(objects) > 1),
            onward: gr.update(visible=True),
            again: f"Continue for {MORE} more" if shown.complete else "Continue",
            record: gr.update(value=str(kept) if kept.is_file() else None, interactive=kept.is_file()),
            command: gr.update(value=find(run).request.command, visible=True),
            link: f"[Link to this run](?run={run}): whoever has it sees the run and can continue it.",
        }

    @reports_errors(error_box, clears=False)
    def come_back(known, followed, request: gr.Request):
        """Choose the run that the address names, or that this browser saw last, with what was asked for."""
        for run in still_here([request.query_params.get("run", ""), *known])[: 0 if followed else 1]:
            asked, answers = run.request, GenerationForm.of(run.request.settings, preset)
            stand = switches_for(answers.method, answers.initialise, answers.adapt)
            values = [answers.method, *stand, *astuple(answers)[3:]]
            form = {prompt: asked.prompt, uid: " ".join(asked.uids)} | dict(zip(how, values, strict=True))
            yield form | {current: run.folder.name}

    def estimate(*answers):
        """The button's words."""
        try:
            return f"Create{duration(worker, [GenerationForm(*answers).settings(preset)])}"
        except RedreamError:
            return "Create"

    def measured():
        """Wait until it is known how fast this machine is: the first visitor may be earlier."""
        for _ in range(600):
            if duration(worker, [preset["redream"]]):
                return
            time.sleep(0.2)

    def choices_again(known):
        return gr.update(choices=choices_of(still_here(known)), visible=bool(known))

    def end(run):
        worker.stop(run or "")
        return gr.update(**STOPPING)

    how = [method, *switches, iterations, particles, seed, guidance, delta, resolution]  # a Wish's fields
    shown = [error_box, create_button, stop_button, assets, state, preview, curves, number, video, mesh]
    shown += [table, onward, again, record, command, link, outcome, samples]
    asked = [mine, current, prompt, file, uid, *how]
    coming_back = demo.load(come_back, [mine, current], [prompt, uid, *how, current, error_box], **STREAMING, **PRIVATE)
    wanted = [create_button.click, prompt.submit]
    taken = [current, mine, seed, error_box]
    gr.on(wanted, take_on, asked, taken, cancels=coming_back, **RETRIGGER, **STREAMING, **PRIVATE)
    going_on = again.click(go_on, current, error_box, **STREAMING, **PRIVATE)
    again_shown = going_on.then(follow, current, shown, **STREAMING, **PRIVATE)
    current.change(follow, current, shown, cancels=again_shown, **RETRIGGER, **STREAMING, **PRIVATE)
    mine.change(None, None, None, js=SHOW_RESULTS)
    stop_button.click(end, current, stop_button, **UNQUEUED)
    number.input(pick, [current, number], [error_box, video, mesh, table], **RETRIGGER, **STREAMING, **PRIVATE)
    method.input(switches_for, method, switches, **RETRIGGER, **UNQUEUED)
    demo.load(choices_again, mine, earlier, **UNQUEUED)  # by itself: together they would scroll a phone to the results
    mine.change(choices_again, mine, earlier, **UNQUEUED)
    earlier.input(None, earlier, js="run => {location.search = '?run=' + run}")  # as its link does
    prompt.input(None, None, error_box, js="() => ''")  # it is about what was asked for before
    dice.click(lambda: random.randrange(2**31), None, seed, **UNQUEUED)
    changes = [widget.change for widget in (method, *switches, iterations, particles, delta, resolution)]
    demo.load(measured, **UNQUEUED).then(estimate, how, create_button, **UNQUEUED)
    gr.on([command.change, *changes], estimate, how, create_button, **RETRIGGER, **UNQUEUED)
    return uid, more, compare_this


def compare_tab(worker, tab, tabs, mine, current, compare_this) -> None:
    """The same prompt and seed by several methods, side by side and blind."""
    preset, chosen = preset_of(worker), gr.State({})  # variant → run
    pair, tally = gr.State(None), gr.BrowserState({}, storage_key="redream-tally", secret="redream")
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            base = gr.Dropdown([NEW], value="", label="A finished run")
            prompt = gr.Textbox(label="Prompt", max_length=PROMPT_LIMIT)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
            names = [(VARIANTS[key].label, key) for key in compare_module.COMPARED]
            ticks = gr.CheckboxGroup(names, value=["redream", "redream-no-adapt", "vsd"], label="Compare")
            error_box = gr.HTML(elem_classes="trouble")
            button = gr.Button("Compare", variant="primary")
            halt = gr.Button("Stop what is being made", size="sm")
        with gr.Column(scale=3, min_width=300):
            grid, progress = gr.HTML(compare_module.NOTHING, js_on_load=compare_module.CLOCK), gr.HTML()
            with gr.Accordion("Blind test", open=False):
                two = gr.HTML(compare_module.NOTHING_BLIND, js_on_load=compare_module.CLOCK)
                with gr.Row():
                    begin = gr.Button("Show two", size="sm")
                    votes = [gr.Button(words, size="sm", interactive=False) for words in ("A", "B", "the same")]
                counts = gr.HTML(compare_module.tally_html({}))

    def asked(base, seed, ticks):
        """The settings of each of them."""
        return compare_module.wanted(ticks, next(iter(still_here([base])), None), preset, int(seed or 0))

    def here(known, run):
        """Runs of this browser, and the one that is chosen: it may be another's."""
        return still_here(list(dict.fromkeys([run or "", *known])))

    @reports_errors(error_box)
    def compare(prompt, seed, base, ticks, known):
        made, forming, before = {}, True, None
        try:
            for made in compare_module.runs_for(worker, prompt or "", asked(base, seed, ticks), here(known, base)):
                own = [run for run in made.values() if run != base or run in known]  # not another browser's
                yield {chosen: made, mine: list(dict.fromkeys([*own, *known]))[:REMEMBERED]}
        except RedreamError as error:  # those that were taken on are followed nevertheless
            yield {error_box: error_html(error)}
        while made and forming:
            forming = any(worker.ahead(run) is not None for run in made.values())  # asked before it is looked at
            now = compare_module.look(worker, made)
            shown = [one.variant for one in now if not one.sentence]
            told = {progress: compare_module.progress_html(now)}
            yield told | (
                {grid: gr.update(value=compare_module.grid_html(now), visible=True)} if shown != before else {}
            )
            before = shown
            time.sleep(1)

    def estimate(prompt, seed, base, ticks, known):
        try:
            left = compare_module.missing(worker, prompt or "", asked(base, seed, ticks), here(known, base))
        except RedreamError:
            return "Compare"
        return f"Compare{duration(worker, left)}"

    def end(made):
        for run in made.values():
            worker.stop(run)

    def choices(known, run):
        finished = choices_of([one for one in here(known, run) if one.finished])
        return gr.update(choices=[NEW, *finished], value=run if run in dict(finished).values() else "")

    def adopt(run):
        """A run's prompt and seed."""
        for one in still_here([run]):
            return one.request.prompt, one.request.settings.seed
        return gr.skip(), gr.skip()

    def jump(known, run):
        return [gr.Tabs(selected="compare"), choices(known, run), *adopt(run)]

    def show_two(made):
        """Two of them without names; until the choice is made, those with names are hidden."""
        if found := compare_module.next_pair(compare_module.look(worker, made), random.Random()):
            first, second, question = found
            shown = [(first.variant, second.variant), compare_module.pair_html(first, second, question)]
            return [*shown, gr.update(visible=False), *[gr.update(interactive=True)] * 3]
        return [None, compare_module.NOTHING_BLIND, gr.skip(), *[gr.update(interactive=False)] * 3]

    def vote(choice, pair, tally):
        tally = compare_module.counted(tally, pair, choice)
        told = [
            tally,
            compare_module.tally_html(tally),
            compare_module.answer_html(pair, choice),
            gr.update(visible=True),
        ]
        return [*told, *[gr.update(interactive=False)] * 3]

    wish = [prompt, seed, base, ticks, mine]
    gr.on(
        [button.click, prompt.submit], compare, wish, [error_box, chosen, mine, grid, progress], **STREAMING, **PRIVATE
    )
    halt.click(end, chosen, None, **UNQUEUED)
    changes = [widget.change for widget in (prompt, seed, base, ticks, chosen)]
    gr.on([tab.select, *changes], estimate, wish, button, **RETRIGGER, **UNQUEUED)
    tab.select(choices, [mine, base], base, **UNQUEUED)
    tab.select(compare_module.tally_html, tally, counts, **UNQUEUED)
    base.input(adopt, base, [prompt, seed], **RETRIGGER, **UNQUEUED)
    compare_this.click(jump, [mine, current], [tabs, base, prompt, seed], **UNQUEUED)
    begin.click(show_two, chosen, [pair, two, grid, *votes], **UNQUEUED)
    for button, choice in zip(votes, ("A", "B", "same"), strict=True):
        chose = functools.partial(vote, choice)
        button.click(chose, [pair, tally], [tally, counts, two, grid, *votes], **UNQUEUED)


def endpoints(worker: Worker) -> None:
    """What scripts and MCP clients call."""
    calls = Endpoints(worker)
    with gr.Row(visible=False):
        asked = [gr.Textbox(label="prompt"), gr.Radio(list(METHODS), value="redream", label="method")]
        asked += [gr.Checkbox(True, label="initialise"), gr.Checkbox(True, label="adapt")]
        asked += [gr.Number(1, label="particles", precision=0), gr.Number(None, label="iterations", precision=0)]
        asked += [gr.Number(0, label="seed", precision=0), gr.File(label="asset", file_types=[".glb"])]
        further = [gr.Textbox(label="run"), gr.Number(0, label="iterations", precision=0)]
        told = [gr.JSON(label="state"), gr.File(label="turntables", file_count="multiple")]
        told += [gr.File(label="models", file_count="multiple")]
        gr.Button().click(streaming(calls.generate), asked, told, api_name="generate", **STREAMING)
        resume = streaming(calls.resume)
        resume.__name__ = "continue"  # as its MCP tool is called
        gr.Button().click(resume, further, told, api_name="continue", **STREAMING)
    for function in (calls.retrieve, calls.stop, calls.scores):
        gr.api(answering(function), api_name=function.__name__, queue=False)


def main() -> None:
    try:
        stack, reason = choose()
        runs_folder().mkdir(parents=True, exist_ok=True)
        worker = Worker(Models.load(stack), keep_days=days_kept())
        demo = build(worker, reason)
    except RedreamError as error:
        sys.exit(sentence(error))
    threading.Thread(target=worker.prepare, name="redream-prepare", daemon=True).start()
    demo.launch(
        theme=theme(),
        css_paths=STYLE,
        js=SCRIPT,
        allowed_paths=[str(runs_folder().resolve())],
        max_file_size="100mb",
        max_threads=400,  # one for each page that follows a run
        footer_links=["api"],
        run_history=False,
        mcp_server=True,
    )


if __name__ == "__main__":
    main()
