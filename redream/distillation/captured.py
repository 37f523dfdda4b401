"""Functions of tensors captured once as CUDA graphs: a replay costs its arithmetic, and none of thousands of launches."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UPS = 3  # calls before a capture, on a stream of their own, as PyTorch asks for

Call = Callable[[], Sequence[Tensor]]
# Captures a call: returns what replays it, and the tensors that every replay writes its results to.
Capture = Callable[[Call], tuple[Callable[[], None], Sequence[Tensor]]]


def capture_for(device: torch.device) -> Capture | None:
    """How functions are captured on this device; None where they are called as they are."""
    return CudaGraphs() if device.type == "cuda" else None


class CudaGraphs:
    """Captures CUDA graphs that share one pool of memory: they are replayed one after the other."""

    def __init__(self) -> None:
        self.pool = None

    def __call__(self, call: Call) -> tuple[Callable[[], None], Sequence[Tensor]]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            results = call()
        return graph.replay, results


def plain_calls(call: Call) -> tuple[Callable[[], None], Sequence[Tensor]]:
    """A stand-in for `CudaGraphs` on any device: trial calls, then a call a replay, between the same fixed tensors."""
    for _ in range(WARM_UPS):
        call()
    results = [result.clone() for result in call()]

    def replay() -> None:
        for result, value in zip(results, call(), strict=True):
            result.copy_(value)

    return replay, results


class Captured:
    """A function of tensors that is captured at its first call and replayed by every further one.

    The tensors must keep the shapes and types of the first call. What else the function changes are the parameters and
    moments of `optimizer`, which a capture's trial calls leave as they were. With `capture` None, and after a capture that
    failed (a warning says why), it is called as it is.
    """

    def __init__(
        self,
        function: Callable[..., Tensor | tuple[Tensor, ...]],
        capture: Capture | None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.function, self.optimizer = function, optimizer
        self._capture = capture
        self._replay: Callable[[], None] | None = None

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        if self._capture is None:
            return self.function(*inputs)
        if self._replay is None:
            self._inputs = [value.detach().clone() for value in inputs]
            try:
                self._record()
            except RuntimeError as error:
                self._capture = None
                _warn(error)
                return self.function(*inputs)
        for fixed, value in zip(self._inputs, inputs, strict=True):
            fixed.copy_(value, non_blocking=True)
        self._replay()
        results = tuple(result.clone() for result in self._results)
        return results[0] if self._is_single else results

    def _record(self) -> None:
        def call() -> tuple[Tensor, ...]:
            results = self.function(*self._inputs)
            self._is_single = isinstance(results, Tensor)
            return (results,) if self._is_single else results

        before = [(tensor, tensor.detach().clone()) for tensor in self._changed()]
        known = {id(tensor) for tensor, _ in before}
        try:
            self._replay, self._results = self._capture(call)
        finally:
            with torch.no_grad():
                for tensor, value in before:
                    tensor.copy_(value)
                for tensor in self._changed():
                    if id(tensor) not in known:  # moments that the trial calls made
                        tensor.zero_()

    def _changed(self) -> list[Tensor]:
        if self.optimizer is None:
            return []
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = [v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        return parameters + moments


def captured_gradient(
    function: Callable[[Tensor], Tensor], example: Tensor, capture: Capture
) -> Callable[[Tensor], Tensor]:
    """A function of one tensor whose forward and backward passes are CUDA graphs, for tensors like the example.

    Without CUDA, and after a capture that failed, it is the function itself.
    """
    if not isinstance(capture, CudaGraphs):
        return function
    try:
        graphed = torch.cuda.make_graphed_callables(function, (example.detach().clone().requires_grad_(),))
    except RuntimeError as error:
        _warn(error)
        return function
    return lambda value: graphed(value).clone()  # the next call writes to the same result


def _warn(error: RuntimeError) -> None:
    warnings.warn(f"A CUDA graph could not be captured; this pass stays slow. {error}", stacklevel=3)
