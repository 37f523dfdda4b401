"""An asset's views at poses stored once on a device: for sizes at which ray-casting would cost more than an iteration."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float
from torch import Tensor, nn

from redream.scene.assets import Asset
from redream.scene.cameras import Camera


class PosedAsset:
    """Views of one asset, `size` pixels square, in half precision: 8 size² bytes a pose on the device.

    They are cast by all cores when it is made.
    """

    def __init__(self, asset: Asset, cameras: Sequence[Camera], size: int, device: torch.device) -> None:
        black = torch.zeros(3)

        def cast(camera: Camera) -> Float[Tensor, "1 4 h w"]:
            return torch.cat(asset.render(camera, size, black, samples=1 if size >= 256 else 2), dim=1).half()

        with ThreadPoolExecutor() as pool:
            views = torch.cat(list(pool.map(cast, cameras)))
        self._rgba = views.to(device)  # (n, 4, h, w), colour premultiplied by opacity
        self._rows = {camera: row for row, camera in enumerate(cameras)}
        self.cameras = list(cameras)

    def sample(self, generator: torch.Generator) -> Camera:
        """One of the poses."""
        return self.cameras[int(torch.randint(len(self.cameras), (1,), generator=generator))]

    def render(
        self, camera: Camera, size: int, background: Float[Tensor, "3"]
    ) -> tuple[Float[Tensor, "1 3 h w"], Float[Tensor, "1 1 h w"]]:
        """RGB over `background` and opacity of a stored pose, both in [0, 1]; made smaller by averaging."""
        rgba = self._rgba[self._rows[camera]][None].float()
        if size != rgba.shape[-1]:
            rgba = nn.functional.interpolate(rgba, (size, size), mode="area")
        opacity = rgba[:, 3:]
        return rgba[:, :3] + (1 - opacity) * background[None, :, None, None], opacity
