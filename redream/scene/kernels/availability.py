"""Whether the fused kernels run on a device."""

import functools

import torch

from redream.scene.kernels.hash_grid import encode, grid_layout
from redream.scene.kernels.launch import triton


@functools.cache
def unavailable(device: torch.device) -> str:
    """Why the fused kernels do not run on this device, in a sentence; "" if they do. A small one is tried, once."""
    if device.type != "cuda":
        return "Fused kernels need a CUDA device."
    if triton is None:
        return "Fused kernels need Triton 3, which this PyTorch came without."
    try:
        return "" if _is_right_on(device) else "Fused kernels give wrong results on this device."
    except Exception as error:  # noqa: BLE001 - no C compiler, an old driver, an unknown GPU: Triton has many errors
        reason = str(error).strip().partition("\n")[0]
        return f"Fused kernels do not run here: {reason or type(error).__name__}"


def _is_right_on(device: torch.device) -> bool:
    """Encode the middle of one cell whose features are all 1."""
    table = torch.ones(8, 2, device=device)
    layout = grid_layout([(1, True, (1, 2, 4), 8)]).to(device)
    features = encode(torch.full((1, 3), 0.5, device=device), [table], table.half(), layout)  # (1, 2)
    return bool((features == 1).all())
