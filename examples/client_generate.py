"""Make one object over the app's API, watching it form: python -m examples.client_generate "a purple owl" --out my-owl

    [--url http://127.0.0.1:7860] [--method redream|vsd|sds] [--iterations N] [--seed S] [--asset FILE.glb]

Ctrl-C stops the run and fetches what there is.
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--url", default="http://127.0.0.1:7860", help="of the app, or a Space's name")
    parser.add_argument("--method", choices=("redream", "vsd", "sds"), default="redream")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--asset", type=Path, help="a GLB to start from")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    asked = parser.parse_args(arguments)

    client = Client(asked.url, verbose=False, analytics_enabled=False)
    job = client.submit(
        asked.prompt,
        asked.method,
        iterations=asked.iterations,
        seed=asked.seed,
        asset=handle_file(asked.asset) if asked.asset else None,
        api_name="/generate",
    )
    said = None
    while not job.done():
        try:
            state = job.outputs()[-1][0] if job.outputs() else {"state": "Sent"}
            if state["state"] != said:
                said = state["state"]
                print(said, file=sys.stderr, flush=True)
            time.sleep(0.5)
        except KeyboardInterrupt:
            if not job.outputs():  # nobody has begun
                return 130
            client.predict(job.outputs()[-1][0]["run"], api_name="/stop")
    try:
        state, turntables, models = job.result()
    except AppError as error:
        print(error, file=sys.stderr)
        return 2

    asked.out.mkdir(parents=True, exist_ok=True)
    for file in (*turntables, *models):
        shutil.copy(file, asked.out)
    (asked.out / "result.json").write_text(json.dumps(state, indent=2))
    print(f"{state['state']} {len(turntables) + len(models)} files are in {asked.out}; the run is {state['run']}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
