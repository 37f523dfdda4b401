"""What happens on a ZeroGPU Space, tried out in a process of its own: python zerogpu_space.py STACK RUNS → JSON.

The package `spaces` is the real one; `device_api` stands in for what is behind it.
"""

import json
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import device_api
from device_api import asked, rules

device_api.serve()
os.environ["REDREAM_RUNS"] = sys.argv[2]

import app  # noqa: F401, I001 - first, as on a Space: it imports `spaces`
import spaces.zero
import torch
from gradio.context import LocalContext
from tiny_stack import TINY, make_outputs_small

from redream import pipeline
from redream.app import zerogpu
from redream.app.run_page import RunPage
from redream.runs import events
from redream.runs.queue import Worker, find_run
from redream.runs.session import Session
from redream.stack.stack import Stack

device_api.leave_out_the_gpu()
make_outputs_small()
LONG = TINY.with_(iterations=2000)  # iterations, of runs that do not end by themselves
PROMPT = "a red owl"
IN_CALLS = 2  # iterations of a call


@contextmanager
def changed(target, **values):
    """Attributes changed within the block."""
    before = {name: getattr(target, name) for name in values}
    for name, value in values.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


def calls_of(path: str) -> list[dict]:
    return [values for called, values in asked if called == path]


def follow(worker: Worker, run: str) -> list[str]:
    """The names of a run's events, in order, once it has ended."""
    return [type(event).__name__ for update in worker.follow(run) for event in update]


def last_state(run: str) -> dict:
    page = RunPage.of(run)
    return {"status": page.status, "paused": page.paused, "done": page.progress, "files": len(page.files)}


def chunked(worker: Worker) -> dict:
    """A run in three calls, each asked for by itself."""
    settings, begun = TINY.with_(iterations=3 * IN_CALLS), len(asked)
    with changed(Session, _time_is_over=device_api.over_after(IN_CALLS)):
        run = worker.submit(PROMPT, settings)
        follow(worker, run)
        states = [last_state(run)]
        while states[-1]["paused"]:
            worker.resume(run)
            names = follow(worker, run)
            states.append(last_state(run))
    pids = {values["pid"] for path, values in asked[begun:] if path == "/allow"}
    return {
        "states": states,
        "names": names,
        "processes": len(pids - {str(os.getpid())}),
        "tokens": [values.get("token") for values in calls_of("/schedule")],
        "durations": [int(values["durationSeconds"]) for values in calls_of("/schedule")],
        "released": len(calls_of("/release")),
        "folder": str(find_run(run).folder),
    }


def stopped(worker: Worker) -> dict:
    """Stop in the midst of a call."""
    run = worker.submit(PROMPT, LONG)
    for update in worker.follow(run):
        if any(isinstance(event, events.Progress) and event.iteration >= 2 for event in update):
            worker.stop(run)
            break
    follow(worker, run)
    marker = (find_run(run).folder / zerogpu.STOP).exists()
    return last_state(run) | {"stopped": find_run(run).read_json("record.json")["stopped"], "marker": marker}


def stopped_between(worker: Worker) -> dict:
    """Stop between two calls."""
    with changed(Session, _time_is_over=device_api.over_after(IN_CALLS)):
        run = worker.submit(PROMPT, LONG)
        follow(worker, run)
        paused = last_state(run)["paused"]
        worker.stop(run)
        worker.resume(run)
        follow(worker, run)
    return last_state(run) | {"was_paused": paused, "iterations": find_run(run).read_json("record.json")["done"]}


def refused(worker: Worker) -> dict:
    """Without enough quota; with a quota that is enough for a shorter call; and in a request of nobody."""
    with changed(rules, left=20):
        run = worker.submit(PROMPT, LONG)
        follow(worker, run)
        sentence = last_state(run)
    asked = len(calls_of("/schedule"))
    with changed(rules, left=40), changed(Session, _time_is_over=device_api.over_after(IN_CALLS)):
        worker.resume(run)
        follow(worker, run)
        durations = [int(values["durationSeconds"]) for values in calls_of("/schedule")[asked:]]
        shorter = last_state(run)
    request = LocalContext.request.get()
    LocalContext.request.set(None)
    with changed(rules, left=0):
        nobody = worker.submit(PROMPT, TINY)
        follow(worker, nobody)
    LocalContext.request.set(request)
    return {"sentence": sentence, "durations": durations, "shorter": shorter, "nobody": last_state(nobody)}


def overrun(worker: Worker) -> dict:
    """A process that is killed after its last checkpoint, one before its first, and a run that goes on afterwards."""
    with changed(zerogpu, RESERVED_SECONDS=-1000):  # calls do not end by themselves
        with changed(rules, limit=2.0):
            run = worker.submit(PROMPT, LONG)
            follow(worker, run)
        killed, reached = last_state(run), int(find_run(run).checkpoints()[-1].name)
        with changed(rules, limit=0.05):
            other = worker.submit(PROMPT, LONG)
            follow(worker, other)
    with changed(Session, _time_is_over=device_api.over_after(IN_CALLS)):
        worker.resume(run)
        begun = [event.iteration for u in worker.follow(run) for event in u if isinstance(event, events.Started)][-1]
    at = int(find_run(run).checkpoints()[-1].name)
    return {"killed": killed, "reached": reached, "begun": begun, "after": at, "unsaved": last_state(other)}


def deadline(worker: Worker) -> dict:
    """A call that ends by its own clock, before it would be killed."""
    with changed(zerogpu, MAX_SECONDS=4, RESERVED_SECONDS=2.5), changed(rules, limit=4.0):
        run = worker.submit(PROMPT, LONG)
        follow(worker, run)
    return last_state(run) | {"left": Path(find_run(run).folder, "record.json").is_file()}


def faulty(worker: Worker) -> dict:
    """Processes that do not come as far as the run, a device API that does not answer, and a fault within the run."""

    def fail(*_, **__):
        raise ConnectionError("no answer")

    outcome = {}
    faults = {"start": spaces.zero.torch, "api": spaces.zero.client, "run": Session}
    names = {"start": "init", "api": "schedule", "run": "_distil"}
    for fault, target in faults.items():
        with changed(target, **{names[fault]: fail}):
            run = worker.submit(PROMPT, TINY)
            follow(worker, run)
        outcome[fault] = last_state(run) | {
            "failures": sum(isinstance(e, events.Failed) for e in find_run(run).events())
        }
    return outcome


def samples(worker: Worker) -> dict:
    """The tab Prior's samples."""
    with changed(pipeline, VIEW_STEPS=pipeline.VIEW_STEPS[:1]):
        made = zerogpu.prior_samples(PROMPT, 1, settings=TINY, models=worker.models)
        *updates, last = worker.run_exclusive(lambda stop: made)
    shapes = [list(image.shape) for image in (*last.before, *last.after)]
    return {"updates": len(updates), "shapes": shapes, "tensors": isinstance(last.before[0], torch.Tensor)}


def moved(stack: Stack) -> dict:
    """Models that are moved to "cuda" while there is no GPU yet."""
    models = zerogpu.load(stack)
    prior = models.prior
    devices = {name: str(next(part.parameters()).device) for name, part in (("unet", prior.unet), ("vae", prior.vae))}
    retrieval = models.clip("retrieval").embed_texts(["an owl"])
    return {"devices": devices, "retrieval": str(retrieval.device), "prior": prior.device.type}


def main() -> None:
    stack = Stack.load(sys.argv[1], environ={})
    spaces.zero.startup()  # what `launch` does first
    outcome = {"tasks": len(spaces.zero.decorator.decorated_cache), "reported": len(calls_of("/startup-report"))}
    LocalContext.request.set(SimpleNamespace(headers=Headers({"x-ip-token": "a.b.c"})))
    with changed(zerogpu, ENABLED=True):
        worker = Worker(zerogpu.load(stack, "cpu"), zerogpu.generate, zerogpu.resume, parallel=zerogpu.PARALLEL)
    for scenario in (chunked, stopped, stopped_between, refused, overrun, deadline, faulty, samples):
        began = time.perf_counter()
        outcome[scenario.__name__] = scenario(worker)
        print(scenario.__name__, time.perf_counter() - began)
    outcome["moved"] = moved(stack)
    outcome["preset"] = zerogpu.preset_of(Stack.load("sd21", environ={}))
    print("OUTCOME", json.dumps(outcome))


class Headers(dict):
    """A request's headers, with attributes as Gradio's have."""


if __name__ == "__main__":
    main()
