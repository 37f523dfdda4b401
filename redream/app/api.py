"""What scripts and MCP clients call: plain values in, plain values and files out. Docstrings are read by the callers' tools.

Errors are this package's own, each with a sentence; `app.py` gives the functions to Gradio.
"""

from collections.abc import Iterator
from dataclasses import asdict

from redream import pipeline
from redream.app.form import GenerationForm, pages, preset_of
from redream.runs.queue import QueueError, Worker, find

Answer = tuple[dict, list[str], list[str]]  # a state, turntables (MP4), models (GLB)


class Endpoints:
    """The calls, over one worker."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def retrieve(self, prompt: str, count: int = 3) -> list[dict]:
        """What the library has for a prompt, best first: uid, caption, author, license, similarity (a cosine, what it is
        ranked by), source and text_similarity of each asset.

        Args:
            prompt: an object in words, 1 to 300 characters
            count: how many assets, 1 to 100
        """
        hits = pipeline.retrieve(str(prompt), k=min(max(int(count), 1), 100), models=self.worker.models)
        return [asdict(hit) for hit in hits]

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
    ) -> Iterator[Answer]:
        """Make 3D objects of a prompt. Streams {run, state, done, ended, scores}; at the end there are the turntables (MP4)
        and the models (GLB), one per object. The run goes on if nobody listens; its id leads back to it.

        Args:
            prompt: an object in words, 1 to 300 characters
            method: redream, vsd (ProlificDreamer) or sds (DreamFusion); the latter two use no assets
            initialise: start from retrieved assets
            adapt: teach the model the views of retrieved assets
            particles: objects at once, 1 to 4
            iterations: for each object; none: as the preset has it
            seed: equal seeds give equal objects on the same machine; on a GPU nearly equal ones
            asset: a GLB to start from instead of retrieved assets
        """
        wish = GenerationForm(method, initialise, adapt, iterations or None, particles or 1, seed)
        given = {"assets": [(asset, "")]} if asset else {}
        yield from self._follow(self.worker.submit(prompt or "", wish.settings(preset_of(self.worker)), **given))

    def resume(self, run: str, iterations: int = 0) -> Iterator[Answer]:
        """Continue a run from its last checkpoint. Streams and ends as generate does.

        Args:
            run: its id
            iterations: so many more for each object than were planned; 0: to the end of the plan
        """
        more = int(iterations or 0) or None
        GenerationForm(iterations=more).settings(preset_of(self.worker))  # no more than for a new run
        yield from self._follow(self.worker.resume(str(run), more))

    def stop(self, run: str) -> dict:
        """Stop a run; its results are made of what there is. {stopping}: whether it was being made or waited.

        Args:
            run: its id
        """
        stopping = self.worker.ahead(str(run)) is not None
        self.worker.stop(str(run))
        return {"stopping": stopping}

    def scores(self, run: str) -> dict:
        """The scores of a run's objects, and what could not be scored and why.

        Args:
            run: its id
        """
        return find(str(run)).read_json("scores.json")

    def _follow(self, run: str) -> Iterator[Answer]:
        for shown in pages(self.worker, run):
            state = {
                "run": run,
                "state": shown.state,
                "done": shown.share,
                "ended": shown.ended,
                "scores": shown.scores,
            }
            files = sorted(shown.files.items())
            yield state, *([file for (kind, _), file in files if kind == own] for own in ("turntable", "mesh"))
        if not shown.files:
            raise QueueError(shown.state)
