"""Generate objects of many prompts over the app's API: python -m examples.client_batch FILE --out DIR

    [--url http://127.0.0.1:7860] [--token TOKEN] [--method redream|vsd|sds] [--iterations N] [--seed S]

FILE is a list as `python -m redream evaluate` reads them, a prompt per line. Several requests are sent at once; the app
makes one object after the other and queues the rest. Finished objects are not made again, stopped ones are continued.
"""

import argparse
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from gradio_client import Client
from gradio_client.exceptions import AppError
from httpx import HTTPError

from redream.evaluation.scorer import EvaluationError
from redream.evaluation.trials import read_prompts
from redream.files import read_json, replacing

CONCURRENT_REQUESTS = 8  # fewer than the app's queue holds


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        prompts = read_prompts(options.file)
    except EvaluationError as error:
        print(error, file=sys.stderr)
        return 2
    client = Client(options.url, token=options.token, verbose=False, analytics_enabled=False)
    with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
        for sentence in pool.map(partial(generate, client, options), (prompt.text for prompt in prompts)):
            print(sentence, flush=True)
    return 0


def generate(client: Client, options: argparse.Namespace, prompt: str) -> str:
    """Make or continue a prompt's object and fetch its files; return the result as a sentence."""
    form = {"method": options.method, "iterations": options.iterations, "seed": options.seed}
    folder = options.out / name_of(options.url, prompt, form)
    earlier = read_json(folder / "result.json")
    if earlier and earlier["done"] == 1:
        return f"{prompt}: is there already."
    try:
        result = resume(client, earlier["run"]) if earlier else None
        state, turntables, meshes = result or client.predict(prompt, **form, api_name="/generate")
        while state["paused"]:  # on ZeroGPU a run is made in several calls
            state, turntables, meshes = client.predict(state["run"], api_name="/continue")
    except (AppError, OSError, HTTPError) as error:
        return f"{prompt}: {error}"
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*turntables, *meshes):
        shutil.copy(file, folder)
    with replacing(folder / "result.json") as file:  # complete or absent: with it the object counts as made
        file.write_text(json.dumps(state, indent=2))
    score = f"CLIP {state['scores'][0]['clip_a']:.3f}" if state["scores"] else "no scores"
    return f"{prompt}: {score}. {state['state']}"


def resume(client: Client, run: str) -> tuple | None:
    """Continue a stopped run and return its result; None if the app no longer has it."""
    try:
        return client.predict(run, api_name="/continue")
    except AppError:
        return None


def name_of(url: str, prompt: str, form: dict) -> str:
    """Return the folder's name of a prompt's object, different for another app or form."""
    slug = re.sub(r"\W+", "-", prompt.lower()).strip("-")[:50]
    return f"{slug}-{hashlib.sha256(json.dumps([url, prompt, *form.values()]).encode()).hexdigest()[:8]}"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:7860", help="of the app, or a Space's name")
    parser.add_argument("--token", help="of Hugging Face, for a Space; default: that of `hf auth login`")
    parser.add_argument("--method", choices=("redream", "vsd", "sds"), default="redream")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder with a folder for each prompt")
    return parser


if __name__ == "__main__":
    sys.exit(main())
