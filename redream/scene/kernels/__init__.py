"""Fused Triton kernels for the hash grid and for volume rendering, with the results of their PyTorch code.

`encode` is `encoding.HashGrid` in one launch; `march` lists the samples of rays that lie in occupied cells, `composite`
adds them up along the rays: `volume._render_slab` without the samples that are not there. They run where `unavailable` is
"", and nothing in them waits for the device.
"""

from redream.scene.kernels.availability import unavailable  # noqa: F401
from redream.scene.kernels.compositing import composite, visible  # noqa: F401
from redream.scene.kernels.hash_grid import encode, grid_layout  # noqa: F401
from redream.scene.kernels.marching import Rays, Samples, march  # noqa: F401
