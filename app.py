"""The web demo: the tabs of redream/app in one Gradio app, over one worker; on ZeroGPU its work is done in GPU calls."""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
MAX_EVENTS = 1000  # that may wait in Gradio's queue; its default on ZeroGPU, 1, refuses a second visitor's
AT_ONCE = lambda *_: os._exit(130)  # an interrupted import may raise anything
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, AT_ONCE)  # until the page is served
import gradio as gr
from starlette.middleware import Middleware

from redream import pipeline
from redream.app import api, zerogpu  # on ZeroGPU the latter imports `spaces`, before anything uses CUDA
from redream.app.about import about_tab
from redream.app.browser_runs import BrowserRuns
from redream.app.compare import CompareTab
from redream.app.components import STATIC, script
from redream.app.create import CreateTab
from redream.app.health import health_route
from redream.app.library import LibraryTab
from redream.app.limits import RequestLimits
from redream.app.prior import PriorTab
from redream.app.setup_panel import SetupJob, SetupPanel
from redream.app.theme import theme
from redream.app.wiring import error_sentence
from redream.cli.common import Parser, add_log_options, configure_log
from redream.errors import RedreamError
from redream.files import require_writable
from redream.processes import limit_arenas
from redream.runs.queue import Worker
from redream.runs.retention import days_kept
from redream.runs.run import runs_folder
from redream.stack import environment
from redream.stack.environment import Diagnosis
from redream.stack.inventory import NeededFile
from redream.stack.models import Models
from redream.stack.stack import Stack


def choose_stack() -> Diagnosis:
    """The stack to use, the reason for it, and what the stack for a GPU lacks."""
    if name := os.environ.get("REDREAM_STACK"):
        return Diagnosis(name, "REDREAM_STACK names it.", ())
    return environment.doctor()


def make_worker(stack: Stack) -> Worker:
    """The worker for this computer's device, or for ZeroGPU's."""
    if zerogpu.ENABLED:
        options = {"preset": zerogpu.preset_of(stack), "parallel": zerogpu.PARALLEL}
        return Worker(zerogpu.load(stack), zerogpu.generate, zerogpu.resume, days_kept(), **options)
    return Worker(Models.load(stack), pipeline.generate, pipeline.resume, days_kept())


def build(worker: Worker, reason: str, missing: Sequence[NeededFile] = ()) -> gr.Blocks:
    """The app over one worker; `reason` says why its stack is in use, `missing` what the stack for a GPU lacks."""
    prior_samples = (zerogpu if zerogpu.ENABLED else pipeline).prior_samples
    with gr.Blocks(title="Redream", delete_cache=(3600, 86400)) as demo:
        api.register(worker)  # first: an event of a tab that has an endpoint's name gets another one
        browser = BrowserRuns.create()
        gr.Markdown("# Redream\nA sentence becomes a 3D object.")
        if missing:
            SetupPanel(demo, SetupJob(Stack.load(environment.FOR_A_GPU), missing))
        with gr.Tabs() as tabs:
            with gr.Tab("Create", id="create"):
                create = CreateTab(demo, worker, browser)
            with gr.Tab("Compare", id="compare") as tab:
                CompareTab(worker, tab, browser).connect_create(tabs, create)
            with gr.Tab("Library", id="library") as tab:
                LibraryTab(worker, tab).connect_create(tabs, create)
            with gr.Tab("Prior", id="prior"):
                PriorTab(worker, prior_samples)
            with gr.Tab("About", id="about"):
                about_tab(worker.models.stack, reason)
    return demo.queue(max_size=MAX_EVENTS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Launch the app; what is not an option here is a variable of Gradio's (GRADIO_SERVER_PORT, GRADIO_ROOT_PATH …)."""
    limit_arenas()
    parser = Parser(prog="python app.py", description="The web demo.")
    add_log_options(parser, "info")
    configure_log(parser.parse_args(arguments))
    try:
        require_writable(runs_folder(), "set REDREAM_RUNS to a folder of yours")
        require_writable(Path(gr.utils.get_upload_folder()), "set GRADIO_TEMP_DIR to a folder of yours")
        diagnosis = choose_stack()
        worker = make_worker(Stack.load(diagnosis.stack))
        demo = build(worker, diagnosis.reason, diagnosis.missing)
    except RedreamError as error:
        sys.exit(error_sentence(error))
    if not zerogpu.ENABLED:  # whose models are all loaded
        threading.Thread(target=worker.prepare, name="redream-prepare", daemon=True).start()
    if signal.getsignal(signal.SIGINT) is AT_ONCE:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    demo.launch(
        theme=theme(),
        css_paths=STATIC / "page.css",
        js=script("page.js"),
        allowed_paths=[str(runs_folder().resolve())],
        max_file_size="100mb",
        app_kwargs={"middleware": [Middleware(RequestLimits)], "routes": [health_route(worker)]},
        enable_monitoring=False,  # which calls were made, for everyone to see
        max_threads=400,  # one for each page that follows a run
        state_session_capacity=300,  # Gradio keeps a megabyte of each visitor, also of those who left
        footer_links=["api"],
        run_history=False,
        mcp_server=True,
    )


if __name__ == "__main__":
    main()
