"""`/health`: what a monitor or a load balancer asks, as JSON."""

import shutil

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from redream.runs.queue import Worker
from redream.runs.run import runs_folder


def health(worker: Worker) -> dict[str, bool | str | int]:
    """{ready: whether a run would wait for no model, stack, queue: runs that wait or are made, disk_left: bytes}."""
    folder = runs_folder().absolute()
    there = next(path for path in (folder, *folder.parents) if path.is_dir())  # the next run makes what was removed
    return {
        "ready": worker.ready,
        "stack": worker.models.stack.name,
        "queue": worker.queue_length,
        "disk_left": shutil.disk_usage(there).free,
    }


def health_route(worker: Worker) -> Route:
    """The route of `/health`: status 200, or 503 until the worker is ready."""

    def answer(request: Request) -> JSONResponse:
        values = health(worker)
        return JSONResponse(values, 200 if values["ready"] else 503)

    return Route("/health", answer)
