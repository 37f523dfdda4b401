"""Show what the library has for a prompt."""

import argparse
import json

from redream import pipeline
from redream.cli.common import add_stack, number_to, print_warnings
from redream.stack.models import Models

AFTER_INTERRUPT = "nothing was changed"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT")
    add_stack(parser)
    parser.add_argument("-k", type=number_to(100), default=3, metavar="1..100", help="how many")
    parser.add_argument("--json", action="store_true", help="as in a run's retrieved.json")


def run(options: argparse.Namespace) -> None:
    models = Models.load(options.stack)
    print_warnings(models.parse(options.prompt))
    hits = pipeline.retrieve(options.prompt, options.stack, options.k, models=models)
    if options.json:
        from redream.retrieval.index import retrieved_json

        print(json.dumps(retrieved_json(options.prompt, hits), indent=2, ensure_ascii=False))
        return
    for number, hit in enumerate(hits, 1):
        origin = ", ".join(filter(None, (hit.author, hit.license, hit.source)))
        similarity = "no picture yet" if hit.similarity is None else f"similarity {hit.similarity:.3f}"
        print(f"{number}. {hit.caption} ({hit.uid}): {similarity}; {origin}")
