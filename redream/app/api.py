"""Endpoints and MCP tools: plain values in, plain values and files out. Their docstrings are shown by clients' tools."""

from collections.abc import Iterator
from dataclasses import asdict

import gradio as gr

from redream import pipeline
from redream.app.form import METHOD_LABELS, GenerationForm, fitting, preset_of
from redream.app.limits import accepting_addresses, remove_uploads
from redream.app.run_page import RunPage
from redream.app.wiring import EXPORTING, STREAMING, raises_gradio_errors
from redream.errors import RedreamError
from redream.runs.queue import QueueError, Worker, find_run
from redream.scene import export

MAX_HITS = 100
Answer = tuple[dict, list[str], list[str]]  # a state, turntables (MP4), models (GLB)


class Endpoints:
    """The calls, over one worker."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def retrieve(self, prompt: str, count: int = 3, commercial_use: bool = False) -> list[dict]:
        """The library's assets for a prompt, best first: uid, caption, author, license, similarity (a cosine, by which
        they are ranked), source and text_similarity of each asset.

        Args:
            prompt: an object in words, 1 to 300 characters
            count: how many assets, 1 to 100
            commercial_use: only those whose licence is known to allow it
        """
        count, allowed = min(max(int(count), 1), MAX_HITS), {"commercial_use": bool(commercial_use)}
        return [asdict(hit) for hit in pipeline.retrieve(str(prompt), k=count, **allowed, models=self.worker.models)]

    def generate(
        self,
        prompt: str,
        method: str = "redream",
        initialise: bool = True,
        adapt: bool = True,
        particles: int = 1,
        iterations: int | None = None,
        seed: int = 0,
        asset: str | None = None,
        minutes: float | None = None,
        uids: str = "",
        commercial_use: bool = False,
    ) -> Iterator[Answer]:
        """Make 3D objects of a prompt. Streams {run, state, done, ended, paused, scores}; at the end there are the turntables
        (MP4) and the models (GLB), one per object. The run goes on if the client leaves; its id leads back to it. On ZeroGPU
        a run may end paused, with a part of its iterations done: continue it until it is not.

        Args:
            prompt: an object in words, 1 to 300 characters
            method: redream, vsd (ProlificDreamer) or sds (DreamFusion); the latter two use no assets
            initialise: start from retrieved assets
            adapt: adapt the model to the views of retrieved assets
            particles: objects at once, 1 to 4
            iterations: for each object; none: as the preset has it
            seed: equal seeds give equal objects on the same machine; on a GPU nearly equal ones
            asset: a GLB, or its public address, to start from instead of retrieved assets
            minutes: make the run as large as fits into this time, instead of naming iterations
            uids: assets of the library to start from instead, with spaces between; they come before asset
            commercial_use: retrieve only assets whose licence is known to allow it
        """
        form = GenerationForm(method, initialise, adapt, iterations or None, particles or 1, seed)
        start = {"assets": [(asset, "")]} if asset else {}
        start |= {"uids": (uids or "").split(), "commercial_use": bool(commercial_use)}
        try:
            settings = form.settings(preset_of(self.worker))
            if minutes:
                settings = fitting(settings, float(minutes), self.worker)
            run = self.worker.submit(prompt or "", settings, **start)
        except RedreamError:
            remove_uploads([asset] if asset else [])
            raise
        yield from self._follow(run)

    def resume(self, run: str, iterations: int = 0) -> Iterator[Answer]:
        """Continue a run from its last checkpoint, also one that is paused. Streams and ends as generate does. One that was
        stopped while it was paused gets its results, and no further iterations.

        Args:
            run: its id
            iterations: so many more for each object than were planned; 0: to the end of the plan
        """
        more = int(iterations or 0) or None
        GenerationForm(iterations=more).settings(preset_of(self.worker))  # the limits of a new run
        yield from self._follow(self.worker.resume(str(run), more))

    def stop(self, run: str) -> dict:
        """Stop a run; its results are made of what there is. {stopping}: whether it will end, as it was being made, waited, or
        is paused. Those of a paused run are made by continue.

        Args:
            run: its id
        """
        stopping = self.worker.queue_position(str(run)) is not None
        self.worker.stop(str(run))
        return {"stopping": stopping or self.worker.stopping(str(run))}

    def scores(self, run: str) -> dict:
        """The scores of a run's objects, and the reasons for scores that are not available.

        Args:
            run: its id
        """
        return find_run(str(run)).scores()

    def export(self, run: str, format: str, height_mm: float = 100.0, number: int = 0) -> tuple[str, str]:
        """A model of a run in another format, and a sentence on it. OBJ comes with its texture as ZIP; OBJ and USDZ are y up
        and in metres, STL is z up and in millimetres, and its sentence says whether it is watertight.

        Args:
            run: its id
            format: obj, usdz or stl
            height_mm: of the STL, 1 to 10,000 millimetres
            number: of the object, from 0
        """
        file, sentence = export.export(
            find_run(str(run)).mesh(int(number or 0)), format, height_mm=float(height_mm or 0)
        )
        return str(file), sentence

    def _follow(self, run: str) -> Iterator[Answer]:
        """The run's state after every change. Raises `QueueError` if it ends without files, and is not paused."""
        for page in RunPage.follow(self.worker, run):
            state = {
                "run": run,
                "state": page.status,
                "done": page.progress,
                "ended": page.ended,
                "paused": page.paused,
            }
            files = sorted(page.files.items())
            turntables, meshes = ([file for (kind, _), file in files if kind == k] for k in ("turntable", "mesh"))
            yield state | {"scores": page.scores}, turntables, meshes
        if not page.files and not page.paused:
            raise QueueError(page.status)


def register(worker: Worker) -> None:
    """Give the calls to Gradio, within a `gr.Blocks`; the streaming ones are events of hidden widgets."""
    calls = Endpoints(worker)
    with gr.Row(visible=False):
        request = [gr.Textbox(label="prompt"), gr.Radio(list(METHOD_LABELS), value="redream", label="method")]
        request += [gr.Checkbox(True, label="initialise"), gr.Checkbox(True, label="adapt")]
        request += [gr.Number(1, label="particles", precision=0), gr.Number(None, label="iterations", precision=0)]
        request += [
            gr.Number(0, label="seed", precision=0),
            accepting_addresses(gr.File(label="asset", file_types=[".glb"])),
        ]
        request += [gr.Number(None, label="minutes"), gr.Textbox("", label="uids")]
        request += [gr.Checkbox(False, label="commercial_use")]
        continuation = [gr.Textbox(label="run"), gr.Number(0, label="iterations", precision=0)]
        answer = [gr.JSON(label="state"), gr.File(label="turntables", file_count="multiple")]
        answer += [gr.File(label="models", file_count="multiple")]
        generate, resume = raises_gradio_errors(calls.generate), raises_gradio_errors(calls.resume)
        resume.__name__ = "continue"  # its MCP tool's name
        gr.Button().click(generate, request, answer, api_name="generate", **STREAMING)
        gr.Button().click(resume, continuation, answer, api_name="continue", **STREAMING)
        request = [gr.Textbox(label="run"), gr.Radio(list(export.FORMATS), label="format")]
        request += [gr.Number(100, label="height_mm"), gr.Number(0, label="number", precision=0)]
        answer = [gr.File(label="file"), gr.Textbox(label="sentence")]
        gr.Button().click(raises_gradio_errors(calls.export), request, answer, api_name="export", **EXPORTING)
    for call in (calls.retrieve, calls.stop, calls.scores):
        gr.api(raises_gradio_errors(call), api_name=call.__name__, queue=False)
