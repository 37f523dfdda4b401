"""The command line: python -m redream generate | resume | retrieve | sample | evaluate | doctor.

This is the only place that parses and prints.

Exit status: 0, or 2 for input that cannot be used, with one sentence on stderr. Ctrl-C once: stop and keep what is
there; twice: end at once (130).
"""

import argparse
import json
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from redream import pipeline
from redream.runs import events, locks
from redream.runs.run import Run
from redream.settings import PRESETS, Settings
from redream.stack.models import Models
from redream.stack.stack import Stack

VIEWS = ("front", "side", "back")
PROMPTS = Path(__file__).parent.parent / "examples"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    options.words = arguments
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")  # those of libraries are nobody's business here
            options.command(options)
    except ValueError as error:
        if not pipeline.is_named(error):
            raise
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        onward = "a run goes on from its last checkpoint with: resume"
        if options.command is evaluate:
            onward = "the same command goes on from there"
        print(f"Stopped at once; {onward}.", file=sys.stderr)
        return 130
    return 0


def generate(options: argparse.Namespace) -> None:
    stack = Stack.load(options.stack)
    settings = PRESETS[options.preset or stack.preset][options.method].with_(
        initialise=options.initialise, adapt=options.adapt, seed=options.seed
    )
    if options.particles is not None:
        settings = settings.with_(particles=options.particles)
    if options.iterations is not None:
        settings = settings.with_(iterations=options.iterations)
    captions = options.asset_caption
    if len(captions) not in (0, 1, len(options.asset)):
        raise pipeline.PipelineError("Give one --asset-caption for all assets, or one for each of them.")
    captions = captions if len(captions) == len(options.asset) else (captions or [""]) * len(options.asset)
    assets = list(zip(options.asset, captions, strict=True))
    with _stop_on_interrupt() as stop:
        _follow(
            pipeline.generate(
                options.prompt,
                stack=stack,
                settings=settings,
                assets=assets,
                uids=options.uid,
                out=options.out,
                stop=stop,
            )
        )


def resume(options: argparse.Namespace) -> None:
    with _stop_on_interrupt() as stop:
        if not _follow(pipeline.resume(options.run, options.iterations, stop=stop)):
            print(f"This run is finished; its results are in {Run.open(options.run).folder}.")


def retrieve(options: argparse.Namespace) -> None:
    hits = pipeline.retrieve(options.prompt, options.stack, options.k)
    if options.json:
        from redream.retrieval.index import retrieved

        print(json.dumps(retrieved(options.prompt, hits), indent=2, ensure_ascii=False))
        return
    for number, hit in enumerate(hits, 1):
        origin = ", ".join(filter(None, (hit.author, hit.license, hit.source)))
        print(f"{number}. {hit.caption} ({hit.uid}): similarity {hit.similarity:.3f}; {origin}")


def sample(options: argparse.Namespace) -> None:
    if options.out.suffix.lower() != ".png" or not options.out.resolve().parent.is_dir():
        raise pipeline.PipelineError("The picture's name must end in .png and its folder must exist.")
    with tqdm(desc="Teaching the views", disable=not (options.adapt and sys.stderr.isatty())) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        images = pipeline.sample(
            options.prompt, options.view, options.adapt, options.count, stack=options.stack, progress=progress
        )
    from redream.runs import outputs

    outputs.save_png(outputs.grid(images), options.out)
    print(f"{len(images)} pictures are in {options.out}.")


def evaluate(options: argparse.Namespace) -> None:
    from redream.evaluation import sweep as evaluation
    from redream.evaluation import trials

    if options.helper:
        threading.Thread(target=locks.end_with_input, daemon=True).start()
    models = Models.load(options.stack)
    asked: dict[str, dict] = {}  # method, "" for all → name → value
    for method, name, value in options.set:
        asked.setdefault(method, {})[name] = value
    preset, common = PRESETS[options.preset or models.stack.preset], asked.pop("", {})
    settings = {method: own.with_(**common) for method, own in preset.items()}
    file = options.prompts or PROMPTS / ("prompts_mini.txt" if models.stack.vocabulary else "prompts.txt")
    prompts = trials.read_prompts(file, options.part, options.limit)
    methods, missing = options.methods or list(trials.METHODS), 0
    sweep = evaluation.evaluate(
        options.out, prompts, methods, options.seeds, models=models, settings=settings, tuned=asked
    )
    if options.processes > 1 and not locks.possible(options.out / evaluation.CLAIMS):
        raise evaluation.EvaluationError("Here programs cannot share an evaluation; leave --processes out.")
    form = "{desc} {percentage:3.0f}%|{bar}|{postfix}"
    with (
        locks.worker_processes([*options.words, "--processes", "1", "--helper"], options.processes) as helpers,
        tqdm(unit="run", disable=not sys.stderr.isatty(), bar_format=form) as bar,
    ):
        for now in sweep:
            minutes = None if now.seconds_left is None else now.seconds_left / options.processes / 60
            left = "" if minutes is None else f", about {minutes:.0f} min left"
            bar.total, bar.n = now.total, now.done
            bar.set_description_str(f"{now.trial.method}: {now.trial.prompt.text}", refresh=False)
            bar.set_postfix_str(f"{int(now.done)} of {now.total} runs{left}")
            if now.failure:
                missing += 1
                tqdm.write(f"{now.trial.method}, “{now.trial.prompt.text}”: {now.failure}", file=sys.stderr)
            if now.ended and bar.disable:
                print(f"{int(now.done)} of {now.total}: {bar.desc}{left}", file=sys.stderr)
            if options.helper and now.ended and now.done == now.total:
                return  # the tables are for the program that was called to write
    if any(helper.returncode for helper in helpers):
        print("A helping program ended early; the others did its share.", file=sys.stderr)
    print(f"Tables and gallery are in {options.out}: table.md, table.json, results.parquet, gallery.html.")
    if missing:
        print(
            f"{missing} of {now.total} runs are missing; table.md lists them. The same command tries again to make them."
        )


def doctor(options: argparse.Namespace) -> None:
    from redream.stack import environment

    found = environment.doctor()
    print(f"Stack: {found.stack}. {found.reason}")
    for name, value in found.facts:
        print(f"{name}: {value}")


def _follow(updates: Iterator[events.Event]) -> bool:
    """Show a run's events: a bar on a terminal, else lines; where everything is goes to stdout. Whether there were any."""
    started = None
    with tqdm(disable=not sys.stderr.isatty(), unit="it") as bar:
        written = None  # stage and tenth of the run in the last line
        for event in updates:
            match event:
                case events.Started():
                    started = event
                    bar.total, bar.initial, bar.n = event.total, event.iteration, event.iteration
                    tqdm.write(f"The run's folder is {event.run}.", file=sys.stderr)
                case events.Warned(sentence):
                    tqdm.write(sentence, file=sys.stderr)
                case events.Retrieved(assets):
                    captions = "; ".join(asset["caption"] for asset in assets)
                    tqdm.write(f"Found in the library: {captions}.", file=sys.stderr)
                case events.Progress(stage, iteration, total, seconds_left):
                    bar.set_description_str(stage.capitalize(), refresh=False)
                    bar.update(iteration - bar.n)
                    now = (stage, iteration * 10 // total)
                    if bar.disable and now != written:
                        left = "" if seconds_left is None else f", {seconds_left:.0f} s left"
                        print(f"{stage.capitalize()}, iteration {iteration} of {total}{left}", file=sys.stderr)
                        written = now
                case events.Artefact(kind, particle, file):
                    print(f"{kind.capitalize()} {particle}: {Path(started.run) / file}")
                case events.Scored(scores):
                    print(*scores_in_words(scores), sep="\n")
                case events.Finished(stopped):
                    if stopped:
                        print(f"Stopped before its end; go on with: python -m redream resume {started.run}")
                    print(f"Everything is in {started.run}.")
    return started is not None


def scores_in_words(scores: dict) -> list[str]:
    """One sentence for each object of scores.json."""
    sentences = []
    for number, score in enumerate(scores["objects"]):
        both = {
            key: [score.get(f"{key}_{name}") for name in ("a", "b")] for key in ("clip", "a_lpips", "view_accuracy")
        }
        parts = [f"likeness to the prompt (CLIP, higher is better) {_numbers(both['clip'])}"]
        parts.append(f"change from view to view (A-LPIPS, lower is better) {_numbers(both['a_lpips'])}")
        if both["view_accuracy"] != [None, None]:
            parts.append(f"views that are what they should be {_numbers(both['view_accuracy'], '{:.0%}')}")
        sentences.append(f"Object {number}: {'; '.join(parts)}.")
    return sentences


def _numbers(values: Sequence[float | None], form: str = "{:.3f}") -> str:
    return " and ".join("not available" if value is None else form.format(value) for value in values)


@contextmanager
def _stop_on_interrupt():
    """A function that tells whether Ctrl-C was pressed; pressed again, it interrupts as usual."""
    pressed = []

    def press(number, frame) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)
        print("Stopping; making results of what there is. Ctrl-C again ends at once.", file=sys.stderr)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _listed(kind: type) -> Callable[[str], list]:
    """A parser of lists with commas."""
    return lambda text: [kind(word.strip()) for word in text.split(",") if word.strip()]


def _setting(text: str) -> tuple[str, str, object]:
    """NAME=VALUE or METHOD.NAME=VALUE as (METHOD or "", a field of `Settings`, VALUE in JSON or plain); none of those
    that methods or seeds differ by."""
    from redream.evaluation.trials import METHODS, VARIED

    name, _, value = text.partition("=")
    method, _, name = name.rpartition(".")
    if method and METHODS.get(method) is None:
        raise argparse.ArgumentTypeError(f"there is no method {method} that has settings")
    if name not in vars(Settings()) or name in VARIED:
        raise argparse.ArgumentTypeError(f"there is no setting {name} to change")
    try:
        value = json.loads(value)
    except json.JSONDecodeError:
        pass
    try:
        return method, name, _as(getattr(Settings(), name), value)
    except TypeError as error:
        raise argparse.ArgumentTypeError(f"{name} is not like {json.dumps(getattr(Settings(), name))}") from error


def _as(example, value):
    """A JSON value in the type and length of `example`; `TypeError` if it has another one. Tuples of tuples have any."""
    if isinstance(example, tuple) and isinstance(value, list):
        examples = example[:1] * len(value) if isinstance(example[0], tuple) else example
        if len(examples) != len(value):
            raise TypeError
        return tuple(map(_as, examples, value))
    if isinstance(example, float) and type(value) is int:
        return float(value)
    if type(value) is not type(example):
        raise TypeError
    return value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"{message[:1].upper()}{message[1:]}; see {self.prog} --help.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m redream", description="A sentence becomes a 3D object.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(command, summary: str, stack: bool = True) -> argparse.ArgumentParser:
        one = commands.add_parser(command.__name__, help=summary, description=summary)
        one.set_defaults(command=command)
        if stack:
            one.add_argument("--stack", default="mini", metavar="S", help="a name, or a folder with a stack.json")
        return one

    one = add(generate, "Make a 3D object of a prompt.")
    one.add_argument("prompt", metavar="PROMPT")
    one.add_argument("--preset", choices=PRESETS, help="default: the stack's")
    one.add_argument("--method", choices=("redream", "vsd", "sds"), default="redream")
    one.add_argument("--no-init", dest="initialise", action="store_false", help="do not start from retrieved assets")
    one.add_argument("--no-adapt", dest="adapt", action="store_false", help="do not teach the prior their views")
    one.add_argument("--particles", type=int, metavar="K", help="objects at once")
    one.add_argument("--iterations", type=int, metavar="N", help="per object")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument(
        "--asset", nargs="+", action="extend", default=[], metavar="FILE.glb", help="start from these instead"
    )
    one.add_argument(
        "--asset-caption", action="append", default=[], metavar="TEXT", help="what they show; default: the prompt"
    )
    one.add_argument(
        "--uid", action="append", default=[], help="start from this asset of the library instead; again for more"
    )
    one.add_argument("--out", type=Path, metavar="DIR", help="a new or empty folder; default: a new one in runs")

    one = add(resume, "Continue a run from its last checkpoint.", stack=False)
    one.add_argument("run", metavar="RUN", help="its folder or its id")
    one.add_argument("--iterations", type=int, metavar="N", help="so many more per object than were planned")

    one = add(retrieve, "Show what the library has for a prompt.")
    one.add_argument("prompt", metavar="PROMPT")
    one.add_argument("-k", type=int, default=3, choices=range(1, 101), metavar="1..100", help="how many")
    one.add_argument("--json", action="store_true", help="as in a run's retrieved.json")

    one = add(sample, "Show what the 2D prior sees in a prompt.")
    one.add_argument("prompt", metavar="PROMPT")
    one.add_argument("--view", choices=VIEWS)
    one.add_argument("--adapt", action="store_true", help="teach the prior the views of retrieved assets first")
    one.add_argument("-n", dest="count", type=int, default=8, choices=range(1, 65), metavar="1..64", help="how many")
    one.add_argument("--out", type=Path, required=True, metavar="IMAGE.png")

    one = add(evaluate, "Make many runs and compare methods; called again, it goes on where it was.")
    one.add_argument("--preset", choices=PRESETS, help="default: the stack's")
    one.add_argument("--prompts", type=Path, metavar="FILE", help="one per line; default: those in examples")
    one.add_argument("--part", choices=("dev", "judge"), help="only the prompts that are marked so")
    one.add_argument("--methods", type=_listed(str), metavar="A,B,...", help="default: all")
    one.add_argument("--seeds", type=_listed(int), default=[0], metavar="0,1,...")
    one.add_argument("--limit", type=int, metavar="N", help="only the first prompts")
    set_help = "a setting, for every method or, as METHOD.NAME=VALUE, for one of them"
    one.add_argument("--set", type=_setting, action="append", default=[], metavar="NAME=VALUE", help=set_help)
    processes_help = "programs at once, which share the cores"
    one.add_argument("--processes", type=int, default=1, choices=range(1, 65), metavar="N", help=processes_help)
    one.add_argument("--helper", action="store_true", help=argparse.SUPPRESS)  # started by another one
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="may hold earlier runs, which are reused")

    add(doctor, "Say which stack this computer can run, and why.", stack=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
