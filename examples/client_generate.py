"""Generate one object over the app's API and follow its progress: python -m examples.client_generate "a purple owl" --out my-owl

    [--url http://127.0.0.1:7860] [--token TOKEN] [--method redream|vsd|sds] [--iterations N] [--seed S]
    [--asset FILE.glb] [--resume RUN]

Ctrl-C stops the run and fetches what there is. A Space on ZeroGPU makes a run in several calls: it is continued until it is
finished, on the quota of the account that the token belongs to. If that is spent, --resume goes on with the run later.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

POLL_SECONDS = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    client = Client(options.url, token=options.token, verbose=False, analytics_enabled=False)
    job = client.submit(options.resume, api_name="/continue") if options.resume else begin(client, options)
    while True:
        if not follow(client, job):
            return 130
        try:
            state, turntables, meshes = job.result()
        except AppError as error:
            run = options.resume or next((output[0]["run"] for output in job.outputs()), None)
            print(error, *([f"Go on with --resume {run}"] if run else []), file=sys.stderr)
            return 2
        if not state["paused"]:
            break
        options.resume = state["run"]
        job = client.submit(options.resume, api_name="/continue")
    options.out.mkdir(parents=True, exist_ok=True)
    for file in (*turntables, *meshes):
        shutil.copy(file, options.out)
    (options.out / "result.json").write_text(json.dumps(state, indent=2))
    print(f"{state['state']} {len(turntables) + len(meshes)} files are in {options.out}; the run is {state['run']}.")
    return 0


def begin(client: Client, options: argparse.Namespace):
    """Send the request for a new run and return its job."""
    return client.submit(
        options.prompt,
        options.method,
        iterations=options.iterations,
        seed=options.seed,
        asset=handle_file(options.asset) if options.asset else None,
        api_name="/generate",
    )


def follow(client: Client, job) -> bool:
    """Print a job's states to stderr until it ends; False if it is interrupted before it begins."""
    printed = None
    while not job.done():
        try:
            state = job.outputs()[-1][0]["state"] if job.outputs() else "Sent"
            if state != printed:
                printed = state
                print(printed, file=sys.stderr, flush=True)
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            if not job.outputs():
                return False
            client.predict(job.outputs()[-1][0]["run"], api_name="/stop")
    return True


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--url", default="http://127.0.0.1:7860", help="of the app, or a Space's name")
    parser.add_argument("--token", help="of Hugging Face, for a Space; default: that of `hf auth login`")
    parser.add_argument("--method", choices=("redream", "vsd", "sds"), default="redream")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--asset", type=Path, help="a GLB to start from")
    parser.add_argument("--resume", metavar="RUN", help="continue this run instead of making a new one")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    return parser


if __name__ == "__main__":
    sys.exit(main())
