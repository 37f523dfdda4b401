"""Time an iteration on this device, part by part, and project the presets; later estimates start from it."""

import argparse
import json
import sys
from dataclasses import asdict

from redream.cli.common import number_to, progress
from redream.errors import RedreamError
from redream.runs.eta import Benchmarked
from redream.runs.run import RunError
from redream.settings import PRESETS, presets_like
from redream.stack import environment
from redream.stack.models import Models
from redream.stack.stack import Stack

AFTER_INTERRUPT = "nothing was measured"
MAX_RESOLUTION = 1024  # pixels
MAX_TIMED = 1000  # iterations


class BenchmarkError(RedreamError):
    """Options that this computer cannot measure; the message says what to do."""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--stack", metavar="S", help="a name, or a folder with a stack.json; default: mini, with random weights sd21")
    add("--random-weights", action="store_true", help="the prior's architecture alone, without a download; needs CUDA")
    resolutions = {"type": number_to(MAX_RESOLUTION), "help": "of the render, in pixels; default: the preset's"}
    add("--resolution", nargs="+", metavar="R", **resolutions)
    timed = {"type": number_to(MAX_TIMED), "help": "timed at each resolution and stage; default: 24"}
    add("--iterations", default=24, metavar="N", **timed)
    add("--flop", action="store_true", help="only count the arithmetic, on any machine")
    add("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> None:
    stack = Stack.load(options.stack or ("sd21" if options.random_weights else "mini"))
    if options.random_weights and not options.flop and environment.device() == "cpu":
        raise BenchmarkError(
            "A prior of full size with random weights needs a CUDA GPU; add --flop to count its arithmetic only."
        )
    result = _measured(stack, options)
    print(json.dumps(result, indent=2) if options.json else "\n".join(_lines(result)))


def _measured(stack: Stack, options: argparse.Namespace) -> dict:
    """All figures, with their units in their names."""
    from redream.stack import benchmark
    from redream.stack.architecture import on_meta, random_prior

    device, preset = environment.device(), PRESETS[stack.preset]["redream"]
    progress("making the prior")
    if options.random_weights:
        prior = random_prior(stack, "meta" if options.flop else device)
    else:
        prior = Models.load(stack).prior
        prior = on_meta(prior) if options.flop else prior
    measurements = []
    for side in options.resolution or sorted({side for _, side in preset.rendering.resolutions}):
        if options.flop:
            progress(f"{side} px: counting")
            measurements.append(benchmark.count(prior, preset, side))
        else:
            measurements.append(benchmark.measure(prior, preset, side, options.iterations, progress))
    presets = {name: PRESETS[name]["redream"] for name in presets_like(stack.preset)}
    if not options.flop:
        try:
            Benchmarked.of(stack.name, environment.device_name(device), stack.preset, measurements).store()
        except RunError as error:
            print(f"These figures are not stored for later estimates. {error}", file=sys.stderr)
    seconds = {name: benchmark.projected_seconds(settings, measurements) for name, settings in presets.items()}
    return {
        "stack": stack.name,
        "random_weights": options.random_weights,
        "device": environment.device_name(device),
        "versions": environment.versions(),
        "preset": stack.preset,
        "fast_paths": [] if options.flop else [asdict(path) for path in benchmark.fast_paths(prior)],
        "resolutions": [_values(measurement) for measurement in measurements],
        "presets": [
            {"preset": name, "iterations": presets[name].iterations, "minutes": value and value / 60}
            for name, value in seconds.items()
        ],
    }


def _values(measurement) -> dict:
    """A measurement as JSON has it."""
    parts = [asdict(part) | {"tflop_per_s": part.tflop_per_s} for part in measurement.parts]
    stages = {stage.replace("-", "_"): 1000 * seconds for stage, seconds in measurement.seconds.items()}
    values = asdict(measurement) | {"parts": parts, "iteration_ms": stages}
    del values["seconds"]
    return values


def _lines(result: dict) -> list[str]:
    """The figures as a table for each resolution."""
    operations = "launches" if "CUDA" in result["device"] else "operations"
    weights = " with random weights" if result["random_weights"] else ""
    lines = [f"{result['stack']}{weights}, preset {result['preset']}, on {result['device']}"]
    for path in result["fast_paths"]:
        lines.append(f"{path['name']}: {'on' if path['on'] else 'off'} ({path['reason']})")
    for at in result["resolutions"]:
        header = f"{at['resolution']} px"
        lines += ["", f"{header:<24}{'ms':>12}{'TFLOP':>12}{'TFLOP/s':>12}{operations:>12}{'waits':>12}"]
        whole = {"part": "iteration", "ms": at["iteration_ms"].get("distillation"), "tflop_per_s": None}
        whole |= {name: at[name] for name in ("tflop", "launches", "waits")}
        lines += [_line(part) for part in (*at["parts"], whole)]
        lines.append(_line({"part": "iteration without delta", "tflop": at["tflop_without_delta"]}))
        if at["iteration_ms"]:
            lines.append(_line({"part": "iteration, warm-up", "ms": at["iteration_ms"]["warm_up"]}))
        if at["to_host_bytes"] is not None:
            lines.append(f"To the host: {at['to_host_bytes']:,.0f} bytes an iteration.")
        if at["peak_gb"] is not None:
            lines.append(f"Peak memory: {at['peak_gb']:.1f} GB.")
    lines.append("")
    for preset in result["presets"]:
        if preset["minutes"] is not None:
            lines.append(f"{preset['preset']}: {preset['iterations']:,} iterations, {preset['minutes']:.1f} minutes.")
    return lines


def _line(part: dict) -> str:
    numbers = (part.get(name) for name in ("ms", "tflop", "tflop_per_s", "launches", "waits"))
    texts = ("" if number is None else f"{number:,.3g}" if number < 1000 else f"{number:,.0f}" for number in numbers)
    return f"{part['part']:<24}{''.join(f'{text:>12}' for text in texts)}".rstrip()
