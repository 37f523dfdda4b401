"""Room for lists of samples on a GPU, without waiting for the device to count them."""

import math

import torch
from jaxtyping import Int64
from torch import Tensor

RENDERS = 16  # whose samples are remembered
MARGIN = 1.25  # of the room over the most samples that were found
ROUND = 2**12  # room comes in multiples of this


class SampleBudget:
    """How many samples a list is given room for: a margin over the most of the last renders, at first all.

    The numbers found are remembered as shares of all samples of a render's rays, so that they hold at any size. They stay
    on the device, and the largest is read as far as the device has got. Samples for which there is no room are left
    out of their render.
    """

    def __init__(self) -> None:
        self._shares: Tensor | None = None  # (RENDERS,) on the device
        self._largest = torch.ones(1)  # of the shares; in memory of the CPU that a GPU writes to
        self._renders = 0

    def room(self, most: int) -> int:
        """Room for a list in which there are at most so many samples."""
        share = self._largest.tolist()[0]
        return min(math.ceil(share * MARGIN * most / ROUND) * ROUND, most)

    @torch.no_grad()
    def record(self, found: Int64[Tensor, ""], most: int) -> None:
        """Remember how many samples of at most so many a render found, a number on the device."""
        if self._shares is None:
            self._shares = torch.ones(RENDERS, device=found.device)
            self._largest = torch.ones(1, pin_memory=found.is_cuda)
        self._shares[self._renders % RENDERS] = found / max(most, 1)
        self._largest.copy_(self._shares.max(), non_blocking=True)
        self._renders += 1
