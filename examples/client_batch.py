"""Make objects of many prompts over the app's API, as many at once as it takes: python -m examples.client_batch FILE --out DIR

    [--url http://127.0.0.1:7860] [--method redream|vsd|sds] [--iterations N] [--seed S]

FILE is a list as `python -m redream evaluate` reads them, a prompt per line. The app makes one object after the other and
lets the others wait. What is there already is not made again, and what somebody stopped is continued.
"""

import argparse
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gradio_client import Client
from gradio_client.exceptions import AppError
from httpx import HTTPError

from redream.evaluation.scorer import EvaluationError
from redream.evaluation.trials import read_prompts
from redream.files import read_json, replacing

AT_ONCE = 8  # requests; the app says no when too many wait


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:7860", help="of the app, or a Space's name")
    parser.add_argument("--method", choices=("redream", "vsd", "sds"), default="redream")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder with a folder for each prompt")
    asked = parser.parse_args(arguments)
    client = Client(asked.url, verbose=False, analytics_enabled=False)

    def make(prompt: str) -> str:
        """A prompt's object; what became of it, in a sentence."""
        wish = {"method": asked.method, "iterations": asked.iterations, "seed": asked.seed}
        folder = asked.out / name_of(asked.url, prompt, wish)
        before = read_json(folder / "result.json")
        if before and before["done"] == 1:
            return f"{prompt}: is there already."
        try:
            state, turntables, models = continued(client, before) or client.predict(
                prompt, **wish, api_name="/generate"
            )
        except (AppError, OSError, HTTPError) as error:
            return f"{prompt}: {error}"
        folder.mkdir(parents=True, exist_ok=True)
        for file in (*turntables, *models):
            shutil.copy(file, folder)
        with replacing(folder / "result.json") as file:  # whole or not there: it says that this object is made
            file.write_text(json.dumps(state, indent=2))
        score = f"CLIP {state['scores'][0]['clip_a']:.3f}" if state["scores"] else "no scores"
        return f"{prompt}: {score}. {state['state']}"

    try:
        prompts = read_prompts(asked.file)
    except EvaluationError as error:
        print(error, file=sys.stderr)
        return 2
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for sentence in pool.map(make, (prompt.text for prompt in prompts)):
            print(sentence, flush=True)
    return 0


def continued(client: Client, before: dict | None) -> tuple | None:
    """What becomes of a run that was stopped; None if there was none, or if the app has it no more."""
    try:
        return client.predict(before["run"], api_name="/continue") if before else None
    except AppError:
        return None


def name_of(url: str, prompt: str, wish: dict) -> str:
    """The folder of a prompt's object, another one for another app or wish."""
    words = re.sub(r"\W+", "-", prompt.lower()).strip("-")[:50]
    return f"{words}-{hashlib.sha256(json.dumps([url, prompt, *wish.values()]).encode()).hexdigest()[:8]}"


if __name__ == "__main__":
    sys.exit(main())
