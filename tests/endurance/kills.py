"""Kill runs with SIGKILL at random moments of every stage, resume them, and compare them with unbroken runs of their seeds.

Everything in a run's folder has to be equal, byte for byte, except the seconds in record.json and events.jsonl, which lists
all sessions: of it the scores and the losses of every reading are compared, those of the last session that did it.
Meanwhile a reader opens all files that stand under their final names, and reports any that is not whole.
"""

import argparse
import collections
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from files_check import fault_of

from redream.distillation import checkpoint
from redream.distillation.loop import is_read
from redream.runs import events
from redream.runs.locks import LOCK
from redream.runs.run import Run
from redream.settings import DISTILLATION, PRESETS, WARM_UP, Settings

PROMPT = "a purple owl"
STAGES = ("retrieval", "orientation", "loading", "adaptation", WARM_UP, DISTILLATION, "filming", "meshing", "scoring")
REQUIRED = tuple(stage for stage in STAGES if stage not in ("orientation", "loading"))  # at least `LEAST` kills each
LEAST = 5
TINY_SEEDS = 5  # kinds of tiny runs; each has one unbroken run
TRIES = 8  # for a kill that comes before the run has ended
UNEQUAL_KEYS = ("seconds", "seconds_per_iteration")  # of record.json
READ_EVERY = 0.01  # seconds
CONTEXT = multiprocessing.get_context("forkserver")
LIBRARIES = ("redream.runs.session", "redream.distillation.loop", "redream.distillation.prior", "redream.scene.mesh")
LIBRARIES += ("redream.retrieval.index", "redream.scoring.perceptual", "open_clip", "diffusers", "peft", "tiny_stack")


def tiny_settings(seed: int) -> Settings:
    """Seconds of a run with several checkpoints, on the tests' tiny stack."""
    from tiny_stack import TINY

    changes = {"preview_every": 4, "checkpoint_every": 2, "turntable_frames": 24}
    return TINY.with_(seed=seed, iterations=12, adaptation={"steps": 8}, output=changes)


def mini_settings(seed: int) -> Settings:
    """A minute of a run on the miniature: mini-fast with few iterations and outputs at full size but of fewer frames."""
    changes = {"preview_every": 4, "checkpoint_every": 4, "turntable_frames": 36}
    adaptation = {"steps": 12, "views": 16}
    return PRESETS["mini-fast"]["redream"].with_(seed=seed, iterations=20, adaptation=adaptation, output=changes)


# ---------------------------------------------------------------- the process that is killed


def work(folder: Path, stack: str, seed: int, resumes: bool, log: Path, stages: Connection) -> None:
    """Make or resume a run, and send each stage as it begins."""
    from redream import pipeline
    from redream.distillation.adaptation import Adaptation

    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    settings = (mini_settings if stack == "mini" else tiny_settings)(seed)
    if stack != "mini":
        from tiny_stack import make_outputs_small

        make_outputs_small()
    adapt = Adaptation.step
    stage = ""

    def begin(name: str) -> None:
        nonlocal stage
        if name != stage:
            stage = name
            stages.send(name)

    def adapting(self):
        before = stage if stage in (WARM_UP, DISTILLATION) else WARM_UP
        begin("adaptation")
        loss = adapt(self)
        begin(before)
        return loss

    Adaptation.step = adapting
    if resumes:
        run_events = pipeline.resume(folder)
    else:
        run_events = pipeline.generate(PROMPT, stack=stack, settings=settings, out=folder)
    for event in run_events:
        match event:
            case events.Started():
                begin("retrieval")
            case events.Retrieved():
                begin("orientation")
            case events.Progress(stage=at, iteration=done, total=total) if at in (WARM_UP, DISTILLATION):
                begin(WARM_UP if done / total < settings.initialisation.warmup else DISTILLATION)  # of the next one
            case events.Progress(stage=at):
                begin(at)
            case events.Scored():
                begin("record")


@dataclass(frozen=True)
class Plan:
    """A kind of run: its stack, its seed, and its unbroken run with the times at which its stages began."""

    stack: str
    seed: int
    reference: Path
    begun: tuple[tuple[float, str], ...]  # (seconds, stage), the end last

    def moments(self, stage: str) -> list[tuple[int, float]]:
        """(occurrence, its seconds) of every interval that belongs to a stage."""
        ends = [at for at, _ in self.begun[1:]]
        spans = [end - at for (at, name), end in zip(self.begun, ends, strict=False) if name == stage]
        return list(enumerate(spans))


def start(folder: Path, stack: str, seed: int, resumes: bool, log: Path) -> tuple[BaseProcess, Connection]:
    """A fresh process, forked from one that has imported the libraries and nothing else; and the stages it sends."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=work, args=(folder, stack, seed, resumes, log, sender))
    process.start()
    sender.close()
    return process, receiver


def received(stages: Connection) -> Iterator[tuple[float, str]]:
    """(seconds, stage) of each stage, until the process ends."""
    with suppress(EOFError):
        while True:
            name = stages.recv()
            yield time.perf_counter(), name


def run_whole(folder: Path, stack: str, seed: int, resumes: bool, log: Path) -> list[tuple[float, str]]:
    """Run to the end; when its stages began, and at last the end."""
    process, stages = start(folder, stack, seed, resumes, log)
    begun = list(received(stages))
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{folder.name} ended with {process.exitcode}; see {log}")
    return [*begun, (time.perf_counter(), "end")]


def run_killed(folder: Path, plan: Plan, stage: str, chance: random.Random, log: Path) -> tuple[str, float] | None:
    """Kill a new run in a stage; the stage it was in, and the seconds since that began. None if it ended before."""
    occurrence, seconds = chance.choices(plan.moments(stage), [span for _, span in plan.moments(stage)])[0]
    delay = chance.uniform(0, seconds)
    process, stages = start(folder, plan.stack, plan.seed, False, log)
    at, name, seen = 0.0, "", -1
    for at, name in received(stages):
        seen += name == stage
        if seen == occurrence:
            time.sleep(delay)
            process.kill()  # SIGKILL, for this process alone: its video encoder is left behind, as in life
            break
    killed = time.perf_counter()
    for at, name in received(stages):  # sent before it was killed
        pass
    process.join()
    return (name, max(killed - at, 0.0)) if process.exitcode == -signal.SIGKILL else None


# ---------------------------------------------------------------- the reader


class Reader(threading.Thread):
    """Opens every file of a folder that stands under its final name, again whenever it changes, until it is stopped."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.opened, self.faults = folder, 0, []
        self._stopped, self._known = threading.Event(), {}

    def run(self) -> None:
        while not self._stopped.wait(READ_EVERY):
            with suppress(FileNotFoundError):  # a folder that was removed in this moment
                self.read()

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        self.read()

    def read(self) -> None:
        for path in self.folder.rglob("*"):
            if any(part.startswith(".") for part in path.relative_to(self.folder).parts) or path.is_dir():
                continue
            try:
                with path.open("rb") as file:
                    info = path.stat()
                    version = (info.st_ino, info.st_size, info.st_mtime_ns)
                    if self._known.get(path) == version:
                        continue
                    self._known[path], data = version, file.read()
            except FileNotFoundError:  # replaced or removed in this moment
                continue
            self.opened += 1
            if fault := fault_of(path.name, data):
                self.faults.append(f"{path.relative_to(self.folder)}: {fault}")
        for folder in self.folder.glob("checkpoint/[0-9]*"):
            names = {path.name for path in folder.glob("*")}
            if names != {"state.json", "state.safetensors"} and folder.is_dir():
                self.faults.append(f"checkpoint/{folder.name} holds {sorted(names) or 'nothing'}")


# ---------------------------------------------------------------- the comparison


def contents(folder: Path) -> Iterator[Path]:
    """The relative names of a run's files, also of those that should not be left."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != LOCK:
            yield path.relative_to(folder)


def differences(folder: Path, reference: Path) -> list[str]:
    """What differs between two runs' folders; [] if they are equal."""
    mine, theirs = set(contents(folder)), set(contents(reference))
    found = [f"{name} is in one of the folders only" for name in sorted(mine ^ theirs)]
    for name in sorted(mine & theirs):
        if name.name == "events.jsonl":
            equal = same_losses(last_losses(folder), last_losses(reference))
            found += [] if equal else ["the iterations' losses differ"]
        elif name.name == "record.json":
            records = [json.loads((run / name).read_text()) for run in (folder, reference)]
            keys = {key for r in records for key in r} - set(UNEQUAL_KEYS)
            found += [f"record.json: {key}" for key in sorted(keys) if records[0].get(key) != records[1].get(key)]
        elif (folder / name).read_bytes() != (reference / name).read_bytes():
            found.append(f"{name} differs")
    return found


def last_losses(folder: Path) -> dict:
    """The losses of each reading, of the session that did it last; and the scores.

    Losses are means since the reading before: None for a resumed session's first one if that came before its begin.
    """
    found: dict = {}
    partial = False
    for event in Run.open(folder).events():
        if isinstance(event, events.Started):
            partial = event.iteration > 0 and not is_read(event.iteration, event.total)
        elif isinstance(event, events.Progress) and event.losses:
            found[event.iteration] = None if partial else event.losses
            partial = False
        elif isinstance(event, events.Scored):
            found["scores"] = event.scores
    return found


def same_losses(mine: dict, theirs: dict) -> bool:
    return mine.keys() == theirs.keys() and all(mine[at] in (None, theirs[at]) for at in mine)


def torn_state(folder: Path, plan: Plan) -> str:
    """Names of the arrays that differ in the last checkpoint, for the report."""
    states = [Run.open(run).checkpoints()[-1] / "state.safetensors" for run in (folder, plan.reference)]
    mine, theirs = (checkpoint.load_file(state) for state in states)
    return ", ".join(sorted(key for key in mine if key not in theirs or not mine[key].equal(theirs[key])))


# ---------------------------------------------------------------- all of it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the runs and the log")
    parser.add_argument("--tiny", type=int, default=45, help="runs of the tests' tiny stack (default: %(default)s)")
    parser.add_argument("--mini", type=int, default=5, help="runs of the miniature (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments, and of the runs (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the folders of runs that are equal")
    return prove(parser.parse_args())


def prove(options: argparse.Namespace) -> int:
    """Kill, resume and compare all runs; 0 if every one was equal and no file was seen half-written."""
    from tiny_stack import make_tiny_stack

    out, chance = options.out.resolve(), random.Random(options.seed)
    out.mkdir(parents=True)
    os.chdir(out)
    CONTEXT.set_forkserver_preload(list(LIBRARIES))
    log = (out / "kills.log").open("a", buffering=1)

    def say(line: str) -> None:
        print(line, flush=True)
        log.write(line + "\n")

    tiny = str(make_tiny_stack(out / "stack")) if options.tiny else ""
    seeds = [options.seed + number for number in range(min(TINY_SEEDS, options.tiny))]
    kinds = [(tiny, seed) for seed in seeds] + [("mini", options.seed)] * bool(options.mini)
    plans = {}
    for stack, seed in kinds:
        reference = out / f"unbroken-{Path(stack).name}-{seed}"
        begun = run_whole(reference, stack, seed, False, out / "processes.log")
        plans[stack, seed] = Plan(stack, seed, reference, tuple(begun))
        spent = " ".join(f"{s} {sum(span for _, span in plans[stack, seed].moments(s)):.2f}" for s in STAGES)
        say(f"{reference.name}: seconds by stage: {spent}")

    jobs = [((tiny, seeds[n % len(seeds)]), STAGES[n % len(STAGES)]) for n in range(options.tiny)]
    jobs += [(("mini", options.seed), REQUIRED[(1 + n) % len(REQUIRED)]) for n in range(options.mini)]
    hits, equal, half_written, opened, done = collections.Counter(), 0, [], 0, 0
    while jobs:
        kind, stage = jobs.pop(0)
        plan, folder = plans[kind], out / f"run-{done:03d}"
        reader = Reader(folder)
        reader.start()
        for _ in range(TRIES):
            killed = run_killed(folder, plan, stage, chance, out / "processes.log")
            if killed:
                break
            shutil.rmtree(folder, ignore_errors=True)
        else:
            reader.stop()
            say(f"{folder.name}: {stage}: the run ended before it could be killed {TRIES} times")
            done += 1
            continue
        at, after = killed
        checkpoints = [path.name for path in Run.open(folder).checkpoints()]
        try:
            run_whole(folder, plan.stack, plan.seed, True, out / "processes.log")
            found = differences(folder, plan.reference)
            if any("state.safetensors differs" in line for line in found):
                found.append(f"arrays: {torn_state(folder, plan)}")
        except RuntimeError as error:
            found = [str(error)]
        reader.stop()
        hits[at] += 1
        equal, done, opened = equal + (not found), done + 1, opened + reader.opened
        half_written += [f"{folder.name}/{fault}" for fault in reader.faults]
        verdict = "equal" if not found else "DIFFERENT: " + "; ".join(found)
        from_ = checkpoints[-1] if checkpoints else "the beginning"
        say(
            f"{folder.name}: {Path(plan.stack).name} seed {plan.seed}: killed in {at} {1000 * after:.0f} ms after its begin, "
            f"resumed from {from_}: {verdict}; {reader.opened} files read, {len(reader.faults)} not whole"
        )
        for fault in reader.faults:
            say(f"    not whole: {fault}")
        if not found and not options.keep:
            shutil.rmtree(folder)
        if not jobs and done < 3 * (options.tiny + options.mini):  # the stages that were missed by a moment
            lacking = (
                [stage for stage in REQUIRED if hits[stage] < LEAST] if options.tiny >= len(STAGES) * LEAST else []
            )
            jobs += [((tiny, seeds[0]), stage) for stage in lacking]

    say(f"Killed by stage: {', '.join(f'{stage} {hits[stage]}' for stage in (*STAGES, 'record') if hits[stage])}.")
    say(f"{equal} of {done} resumed runs equal the unbroken ones, except {', '.join(UNEQUAL_KEYS)} of record.json and")
    say(f"the times in events.jsonl. {opened} files were read meanwhile, {len(half_written)} were not whole.")
    return 0 if equal == done and not half_written else 1


if __name__ == "__main__":
    sys.exit(main())
