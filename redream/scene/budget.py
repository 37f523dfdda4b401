"""Room for lists of samples on a GPU, without waiting for the device to count them."""

import math

import torch
from jaxtyping import Int64
from torch import Tensor

RENDERS = 16  # whose samples are remembered
MARGIN = 1.25  # of the room over the most samples that are expected
ROUND = 2**12  # room comes in multiples of this


class SampleBudget:
    """How many samples a list is given room for: a margin over the most of the last renders, at first all.

    The numbers found are remembered relative to the samples for each unit of area that the camera sees, so that they
    hold at any resolution and any distance. They stay on the device, and the largest is read as far as the device has got.
    Samples for which there is no room are left out of their render.
    """

    def __init__(self) -> None:
        self._areas: Tensor | None = None  # (RENDERS,) that samples covered (square world units), on the device
        self._largest = torch.full((1,), math.inf)  # of them; in memory of the CPU that a GPU writes to
        self._renders = 0

    def room(self, most: int, area: float) -> int:
        """Room for a list of at most `most` samples, which are spread over this area (square world units)."""
        wanted = min(MARGIN * self._largest.tolist()[0] * most / area, most)
        return min(math.ceil(wanted / ROUND) * ROUND, most)

    @torch.no_grad()
    def record(self, found: Int64[Tensor, ""], most: int, area: float) -> None:
        """Remember how many of at most `most` samples a render found, a number on the device."""
        if self._areas is None:
            self._areas = torch.full((RENDERS,), math.inf, device=found.device)
            self._largest = torch.full((1,), math.inf, pin_memory=found.is_cuda)
        self._areas[self._renders % RENDERS] = found * (area / max(most, 1))
        self._largest.copy_(self._areas.max(), non_blocking=True)
        self._renders += 1
