"""Functions that Triton compiles for a GPU. Those that are given tensors of the CPU run in its interpreter, for tests."""

import functools
import inspect
import types
from collections.abc import Callable

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

    # What tl.sum and tl.cumsum add with. They themselves can be interpreted only if TRITON_INTERPRET was set before Triton
    # was imported, tl.reduce and tl.associative_scan with this function always.
    from triton.language.standard import _sum_combine as add
except ImportError:  # PyTorch for the CPU and for macOS comes without
    triton = add = None
    tl = types.SimpleNamespace(constexpr=None)  # for annotations

INTERPRETED_BLOCK = 2**15  # of a program in the interpreter, which spends its time per program


def kernel(function: Callable) -> Callable | None:
    """A function that Triton compiles; None where there is no Triton."""
    return triton and triton.jit(inspect.unwrap(function))  # a type checker may have wrapped it


def launch(compiled: Callable, count: int, each: int, first: Tensor, *arguments, **constants) -> None:
    """Run a kernel on `count` things, `each` a program, on the device of its first argument.

    Products and sums are not fused, so that they are rounded as in PyTorch.
    """
    if not count:
        return
    grid = ((count + each - 1) // each,)
    if first.device.type == "cpu":
        _interpreted(compiled)[grid](first, *arguments, **constants)
        return
    with torch.cuda.device(first.device):
        compiled[grid](first, *arguments, **constants, enable_fp_fusion=False)


def block_size(block: int | None, on_gpu: int, count: int, device: torch.device) -> int:
    """`block` if it is given, else `on_gpu`; on the CPU as many as there are, up to `INTERPRETED_BLOCK`."""
    return block or (min(next_power(count), INTERPRETED_BLOCK) if device.type == "cpu" else on_gpu)


def next_power(number: int) -> int:
    """The least power of two that is not smaller: Triton's blocks have such sides."""
    return 1 << max(number - 1, 0).bit_length()


@functools.cache
def _interpreted(compiled: Callable) -> Callable:
    """The kernel for Triton's interpreter, with the functions of its module that it calls."""
    from triton.runtime.interpreter import InterpretedFunction

    scope = dict(compiled.fn.__globals__)
    for name, value in compiled.fn.__globals__.items():
        if isinstance(value, triton.JITFunction) and value is not add:
            function = InterpretedFunction(types.FunctionType(value.fn.__code__, scope, name))
            scope[name] = function if value is compiled else function.rewrite()
    return scope[compiled.fn.__name__]
