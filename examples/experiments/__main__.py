"""The papers' other experiments, each one command, each with a picture.

    python -m examples.experiments NAME --out DIR [--stack mini] [--preset P] [--seed 0]

away       ReDream fig. 7: one asset, prompts ever further from it
assets     ReDream fig. 8: one prompt, each time another asset
particles  ReDream E.7, PD D.3: particles of one run against as many runs, from one asset and from others
particles-no-init  particles against runs, where all of them start from nothing; one prompt
progress   ReDream fig. 10: renders during distillation, for three methods
views      ReDream fig. 4 and 14: 2D samples from back to front, before and after adaptation
overfit    ReDream fig. 15: 2D samples of other prompts, before and after adaptation to one asset
distil2d   PD fig. 3, table 6: SDS and VSD where the image itself is optimised
beside     an evaluation's methods on ten prompts, beside the best asset and the true object (--runs DIR)
views3d    PD table 4: views of an evaluation's objects against samples of the prior (--runs DIR)
blind      twenty objects of each method of an evaluation, shuffled, to be named without their prompts (--runs DIR)

DIR/NAME.png is the picture, DIR/NAME.json has the metrics, which are printed too. Whole runs, those of away, assets and
of both particles, are kept in DIR/runs and reused by the next call. The preset is the stack's; the miniature's is
mini-fast. The default prompts are validation prompts of examples/prompts_mini.txt, so that none of it is a result to
report; where the papers use what no asset shows, such as a purple owl, a held-out validation prompt stands: a yellow
owl. "CLIP-feature distance" is the Fréchet distance between image embeddings of the stack's first scoring CLIP: it
stands where the papers have an FID and is never compared with one.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from examples.experiments import in_2d, in_3d
from examples.experiments.context import Context, ExperimentError, Outcome
from examples.experiments.objects import read_table
from examples.experiments.sheet import sheet
from redream.errors import RedreamError
from redream.files import replacing
from redream.settings import PRESETS
from redream.stack.models import Models


@dataclass(frozen=True)
class Experiment:
    """A function of a context, and its default options."""

    run: Callable[[Context], Outcome]
    prompts: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()
    iterations: int | None = None  # None: the preset's


# All of them are validation prompts of prompts_mini.txt.
HELD_OUT = ("a yellow owl", "a cute orange puppy", "my old brown car")  # the prior knows them, the library does not
FURTHER = ("a yellow owl", "white penguin, highly detailed", "brown teddy bear", "a 3D model of a black robot")
FURTHER += ("a red house",)  # from an owl, each more than the one before
EXPERIMENTS = {
    "away": Experiment(in_3d.away, FURTHER, ("an orange owl",)),
    "assets": Experiment(
        in_3d.assets, HELD_OUT[:1], ("a red owl", "a green owl", "a white owl", "a red cat", "a red robot")
    ),
    "particles": Experiment(in_3d.particles, HELD_OUT),
    "particles-no-init": Experiment(partial(in_3d.particles, initialise=False), HELD_OUT[:1]),
    "progress": Experiment(in_3d.progress, HELD_OUT[:1]),
    "views": Experiment(in_2d.views, HELD_OUT),
    "overfit": Experiment(in_2d.overfit, FURTHER, ("an orange owl", "a green owl", "a red robot")),
    "distil2d": Experiment(in_2d.distil2d, HELD_OUT, iterations=600),  # PD G: 6,000; ours: enough for 16 × 16 latents
    "views3d": Experiment(in_3d.views3d),
    "beside": Experiment(in_3d.beside),
    "blind": Experiment(in_3d.blind),
}


def run_experiment(name: str, context: Context) -> Iterator[str]:
    """Run an experiment, write its picture and its JSON file, and yield a line for each metric."""
    try:
        context.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExperimentError(f"The folder {context.out.name} cannot be made; name another one.") from error
    start = time.perf_counter()
    outcome = EXPERIMENTS[name].run(context)
    settings = read_table(context.sweep)["settings"] if context.sweep else asdict(context.settings)
    result = {
        "experiment": name,
        "stack": context.models.stack.name,
        "assets": context.assets,
        "prompts": outcome.prompts or context.prompts,
        "folders": outcome.folders,
        "metrics": {key: round(value, 6) for key, value in outcome.metrics.items()},
        "samples": context.samples,
        "settings": settings,
        "seconds": round(time.perf_counter() - start, 1),
    }
    with replacing(context.out / f"{name}.png") as file:
        sheet(outcome.rows, outcome.heads).save(file, "PNG")
    with replacing(context.out / f"{name}.json") as file:
        file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    yield from (f"{key}: {value:g}" for key, value in result["metrics"].items())
    yield f"seconds: {result['seconds']:g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line's experiment and return the exit status."""
    options = parser().parse_args(arguments)
    try:
        context = context_of(options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of libraries
            for line in run_experiment(options.name, context):
                print(line, flush=True)
    except RedreamError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        "python -m examples.experiments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("name", choices=EXPERIMENTS)
    add("--stack", default="mini", help="a name, or a folder with a stack.json")
    add("--preset", choices=PRESETS, help="default: mini-fast for the miniature, else the stack's")
    add("--seed", type=int, default=0)
    add("--out", type=Path, required=True, help="folder for picture, metrics and runs")
    add("--iterations", type=int, help="default: the preset's; of distil2d: steps, 600")
    add("--prompts", nargs="+", help="instead of the default ones; in quotes")
    add("--assets", nargs="+", help="instead of the default ones: queries for assets of the library")
    add("--samples", type=int, default=64, help="of the prior per prompt, for feature distances")
    add("--runs", type=Path, help="of beside, views3d, blind: a folder made by redream evaluate --out")
    return parser


def context_of(options: argparse.Namespace) -> Context:
    """Load the models and return the context of the parsed options. Raises a `RedreamError`."""
    experiment = EXPERIMENTS[options.name]
    changes = {"seed": options.seed}
    iterations = experiment.iterations if options.iterations is None else options.iterations
    changes |= {} if iterations is None else {"iterations": iterations}
    if options.samples < 1:
        raise ExperimentError(f"{options.samples} samples are too few; give 1 or more.")
    models = Models.load(options.stack)
    default = "mini-fast" if models.stack.preset == "mini" else models.stack.preset
    preset = {method: settings.with_(**changes) for method, settings in PRESETS[options.preset or default].items()}
    prompts, assets = tuple(options.prompts or experiment.prompts), tuple(options.assets or experiment.assets)
    return Context(models, preset, options.out, prompts, assets, options.samples, options.runs)


if __name__ == "__main__":
    sys.exit(main())
