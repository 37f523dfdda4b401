"""The papers' other experiments, each one command, each with a picture.

    python -m examples.experiments NAME --out DIR [--stack mini] [--preset P] [--seed 0]

away       ReDream fig. 7: one asset, prompts that move away from it
assets     ReDream fig. 8: one prompt, each time another asset
particles  ReDream E.7, PD D.3: particles of one run against as many runs, from one asset and from others
particles-no-init  particles against runs, where all of them start from nothing; one prompt
progress   ReDream fig. 10: renders while it forms, for three methods
views      ReDream fig. 4 and 14: 2D samples from back to front, before and after adaptation
overfit    ReDream fig. 15: 2D samples of changing prompts, before and after adaptation to one asset
distil2d   PD fig. 3, table 6: SDS and VSD where the picture itself is optimised
beside     what an evaluation's methods make of ten prompts, beside the best asset and the true object (--runs DIR)
views3d    PD table 4: views of an evaluation's objects against samples of the prior (--runs DIR)
blind      twenty objects of each method of an evaluation, mixed, to be named without their prompts (--runs DIR)

DIR/NAME.png is the picture, DIR/NAME.json has the figures, which are printed too. Whole runs, those of away, assets and
of both particles, are kept in DIR/runs and used again by the next call. The preset is the stack's; the miniature's is
mini-fast. The usual prompts are those of examples/prompts_mini.txt that settings are chosen with, so that none of it is
a result to report; where the papers want what no asset shows, such as a purple owl, a held-out pair
of them stands: a yellow owl. "CLIP-feature distance" is the Fréchet distance between image embeddings of the stack's
first scoring CLIP: it stands where the papers have an FID and is never compared with one.
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
from examples.experiments.lab import ExperimentError, Lab, Outcome
from examples.experiments.objects import evaluated
from examples.experiments.sheet import sheet
from redream.errors import RedreamError
from redream.files import replacing
from redream.settings import PRESETS
from redream.stack.models import Models


@dataclass(frozen=True)
class Experiment:
    """A way to find something out, and what it is asked with unless the command line says otherwise."""

    find_out: Callable[[Lab], Outcome]
    prompts: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()
    iterations: int | None = None  # None: the preset's


# All of them are dev prompts of prompts_mini.txt.
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


def perform(name: str, lab: Lab) -> Iterator[str]:
    """Run an experiment, write its picture and its figures, and tell these one by one."""
    try:
        lab.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExperimentError(f"The folder {lab.out.name} cannot be made; name another one.") from error
    start = time.perf_counter()
    outcome = EXPERIMENTS[name].find_out(lab)
    used = evaluated(lab.runs)["settings"] if lab.runs else asdict(lab.settings)  # those of what is seen
    found = {"experiment": name, "stack": lab.models.stack.name, "assets": lab.assets}
    found |= {"prompts": outcome.prompts or lab.prompts, "folders": outcome.folders}
    found |= {"figures": {key: round(value, 6) for key, value in outcome.figures.items()}}
    found |= {"samples": lab.samples, "settings": used}
    found |= {"seconds": round(time.perf_counter() - start, 1)}
    with replacing(lab.out / f"{name}.png") as file:
        sheet(outcome.rows, outcome.heads).save(file, "PNG")
    with replacing(lab.out / f"{name}.json") as file:
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    yield from (f"{key}: {value:g}" for key, value in found["figures"].items())
    yield f"seconds: {found['seconds']:g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--stack", default="mini")
    parser.add_argument("--preset", choices=PRESETS, help="default: mini-fast, or the stack's other than mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for picture, figures and runs")
    parser.add_argument("--iterations", type=int, help="other than the preset's; of distil2d: steps, 600")
    parser.add_argument("--prompts", nargs="+", help="other ones; in quotes")
    parser.add_argument("--assets", nargs="+", help="other ones, in words the library is searched with")
    parser.add_argument("--samples", type=int, default=64, help="of the prior per prompt, for feature distances")
    parser.add_argument("--runs", type=Path, help="beside, views3d, blind: a folder made by redream evaluate --out")
    options = parser.parse_args(arguments)
    usual = EXPERIMENTS[options.name]
    try:
        changes = {"seed": options.seed}
        iterations = usual.iterations if options.iterations is None else options.iterations
        changes |= {} if iterations is None else {"iterations": iterations}
        if options.samples < 1:
            raise ExperimentError(f"{options.samples} samples are too few; give 1 or more.")
        models = Models.load(options.stack)
        known = "mini-fast" if models.stack.preset == "mini" else models.stack.preset
        preset = {m: settings.with_(**changes) for m, settings in PRESETS[options.preset or known].items()}
        prompts, known = tuple(options.prompts or usual.prompts), tuple(options.assets or usual.assets)
        lab = Lab(models, preset, options.out, prompts, known, options.samples, options.runs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of libraries are nobody's business here
            for line in perform(options.name, lab):
                print(line, flush=True)
    except RedreamError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
