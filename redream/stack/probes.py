"""What the parts of an iteration take: the loop's own calls, each with something around it, and launches by part."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from torch.utils._python_dispatch import TorchDispatchMode

from redream.distillation.loop import Distillation
from redream.scene.assets import Asset
from redream.scene.posed import PosedAsset

ORDER = ("render", "encode", "prior", "variational prediction", "backward", "variational step", "asset", "occupancy")
WHOLE, ADAPTATION = "iteration", "adaptation step"


def _calls(distillation: Distillation) -> Iterator[tuple[str, object, str]]:
    """The functions that the loop calls for each part: (part, what has it, its name)."""
    yield "render", distillation, "render_random_view"
    yield "encode", distillation.prior, "encode"
    yield "prior", distillation.prior, "guided_noise"
    if distillation.variational is not None:
        yield "variational prediction", distillation.variational, "predict"
        yield "variational step", distillation.variational, "step"
        yield "variational step", distillation.variational, "predict_and_step"
    yield "asset", Asset, "render"
    yield "asset", PosedAsset, "render"
    for particle in distillation.particles:
        yield "backward", particle, "optimizer_step"
        yield "occupancy", particle.grid, "update"


@contextmanager
def probed(distillation: Distillation, around: Callable[[str], AbstractContextManager]) -> Iterator[None]:
    """Within it the loop's calls of each part run within `around(part)`."""
    with ExitStack() as restoring:
        for part, owner, name in _calls(distillation):
            own, call = vars(owner).get(name), getattr(owner, name)  # own: a class has it, an instance inherits it

            def within(*arguments, part=part, call=call, **values):
                with around(part):
                    return call(*arguments, **values)

            setattr(owner, name, within)
            restoring.callback(*((setattr, owner, name, own) if own is not None else (delattr, owner, name)))
        yield


class Meter:
    """Adds up by part how far a reading (a clock, a counter) goes while its calls run; `around` is for `probed`."""

    def __init__(self, read: Callable[[], float]) -> None:
        self._read, self._inside = read, False
        self.totals: Counter[str] = Counter()

    @contextmanager
    def around(self, part: str) -> Iterator[None]:
        if self._inside:  # a part within another one is the other one's
            yield
            return
        self._inside, before = True, self._read()
        try:
            yield
        finally:
            self._inside = False
            self.totals[part] += self._read() - before


class OperationCounter(TorchDispatchMode):
    """Counts the operations that PyTorch dispatches within it, those of backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), values=None):
        self.count += 1
        return function(*arguments, **(values or {}))


def launches_of(events: Sequence[Mapping]) -> tuple[Counter[str], Counter[str], int]:
    """Launches and waits by part and as a `WHOLE`, and bytes copied to the host, of a profiler's trace events."""
    spans = [(e["ts"], e["ts"] + e["dur"], e["name"]) for e in events if e.get("cat") == "user_annotation"]
    spans = [span for span in spans if span[2] in ORDER]
    launches, waits = Counter(), Counter()
    for event in events:
        if event.get("cat") not in ("cuda_runtime", "cuda_driver"):
            continue
        counter = launches if "Launch" in event["name"] else waits if "Synchronize" in event["name"] else None
        if counter is not None:
            counter[WHOLE] += 1
            counter.update({name for begin, end, name in spans if begin <= event["ts"] < end})
    copies = (e for e in events if e.get("cat") == "gpu_memcpy" and "DtoH" in e["name"])
    return launches, waits, sum(copy["args"].get("bytes", 0) for copy in copies)
