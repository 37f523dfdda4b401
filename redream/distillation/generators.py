"""The two sources of a run's randomness (METHOD.md, "Conventions")."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Generators:
    """`host`, on the CPU, for what is decided once an iteration (cameras, backgrounds, timesteps); `device`, where the
    models are, for tensors (noise, jitter): no random number crosses to the device.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.host = torch.Generator().manual_seed(seed)
        where = "cpu" if torch.device(device).type == "meta" else device  # meta tensors have no numbers
        self.device = torch.Generator(where).manual_seed(seed ^ 0x5DEECE66D)  # not the numbers of `host` again

    def noise(self, like: Tensor) -> Tensor:
        """ε ~ N(0, I) of a tensor's shape, type and device."""
        return torch.randn(like.shape, generator=self.device, device=like.device, dtype=like.dtype)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"generator": self.host.get_state(), f"generator-{self.device.device.type}": self.device.get_state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`. One of another kind of device, or of an older format, has no numbers for this device: its
        generator stays as it is. Raises `KeyError` or `RuntimeError` for a state that is no generator's."""
        self.host.set_state(state["generator"])
        if (own := state.get(f"generator-{self.device.device.type}")) is not None:
            self.device.set_state(own)
