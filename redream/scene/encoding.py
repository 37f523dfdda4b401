"""A multiresolution hash grid (Instant-NGP, Müller et al. 2022) in plain PyTorch; on a GPU by a fused kernel.

Every level is a grid of vertices over the unit cube, each with a few learned numbers; a point's features at a level
are the trilinear interpolation of its cell's eight corners. A level whose vertices all fit in the table has a row for
each (dense); a finer one shares the table's rows by a spatial hash (hashed).
"""

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from redream.errors import RedreamError
from redream.scene import kernels

PRIMES = (1, 2654435761, 805459861)  # of the spatial hash, one per axis (Instant-NGP, Eq. 4)
INITIAL = 1e-4  # features start uniform in ±INITIAL
FUSED_TYPE = torch.float16  # in which the fused kernel reads the tables; sums and gradients are float32


class EncodingError(RedreamError):
    """A hash grid that cannot be built; the message says which number is wrong."""


class HashGrid(nn.Module):
    """Points of the unit cube → features of all levels, coarse to fine. It is made on the generator's device.

    Level l has `base_resolution · b^l` cells a side (rounded), with b such that the last has `max_resolution`, and at
    most 2^`log2_table` rows. `EncodingError` if a number is not positive or the resolutions are in the wrong order.
    """

    def __init__(
        self,
        levels: int,
        features: int,
        log2_table: int,
        base_resolution: int,
        max_resolution: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if min(levels, features, log2_table, base_resolution) < 1:
            raise EncodingError("A hash grid's levels, features, table and resolutions must be at least 1.")
        if max_resolution < base_resolution:
            raise EncodingError(f"The finest resolution, {max_resolution}, is below the coarsest, {base_resolution}.")
        growth = (max_resolution / base_resolution) ** (1 / max(levels - 1, 1))  # b
        self.levels = nn.ModuleList(
            Level(round(base_resolution * growth**level), features, 2**log2_table, generator) for level in range(levels)
        )
        self.width = levels * features  # features of a point
        facts = [(level.resolution, level.dense, level.strides, len(level.table)) for level in self.levels]
        self.register_buffer("layout", kernels.grid_layout(facts), persistent=False)  # (levels, 6)
        self._packed: tuple[list, Tensor] | None = None  # what it was made of, and the tables in one

    def forward(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n d"]:
        """Features of points in [0, 1]³ (points outside count as the nearest inside), d = levels × features.

        Differentiable once, with respect to the tables and to the points.
        """
        tables = [level.table for level in self.levels]
        if points.dtype == tables[0].dtype == torch.float32 and not kernels.unavailable(points.device):
            return kernels.encode(points, tables, self._pack(tables), self.layout)
        points = points.clamp(0, 1)
        return torch.cat([level(points) for level in self.levels], dim=-1)

    @torch.no_grad()
    def _pack(self, tables: list[Tensor]) -> Tensor:
        """All tables in one, (rows, f), in `FUSED_TYPE`; made anew when one of them was changed in place."""
        made_of = [FUSED_TYPE, *((table.data_ptr(), table._version) for table in tables)]
        if self._packed is None or self._packed[0] != made_of:
            self._packed = made_of, torch.cat([table.to(FUSED_TYPE) for table in tables])
        return self._packed[1]


class Level(nn.Module):
    """One grid of (`resolution` + 1)³ vertices: dense if they fit into `most_rows` (a power of two), else hashed."""

    def __init__(self, resolution: int, features: int, most_rows: int, generator: torch.Generator) -> None:
        super().__init__()
        side = resolution + 1
        self.resolution = resolution
        self.dense = side**3 <= most_rows
        strides = (1, side, side**2) if self.dense else PRIMES
        self.strides = tuple((s + 2**31) % 2**32 - 2**31 for s in strides)  # only the low 32 bits of a product count
        rows = min(side**3, most_rows)
        table = torch.rand(rows, features, generator=generator, device=generator.device)  # (rows, f)
        self.table = nn.Parameter((table * 2 - 1) * INITIAL)
        corner = torch.cartesian_prod(*[torch.arange(2)] * 3).T  # (3, 8): 0 at a lower corner, 1 at an upper one
        for name, values in (("_corner", corner), ("_stride", torch.tensor(self.strides))):
            self.register_buffer(name, values.int().to(generator.device), persistent=False)

    def forward(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n f"]:
        """Features of points in [0, 1]³."""
        return _Interpolate.apply(self.table, *self.corners(points))

    def corners(self, points: Float[Tensor, "n 3"]) -> tuple[Int32[Tensor, "n 8"], Float[Tensor, "n 8"]]:
        """The table's row and the trilinear weight of the eight corners around each point.

        dense:  row = x + (r + 1) y + (r + 1)² z        hashed:  row = (x ⊕ π₂ y ⊕ π₃ z) mod rows
        """
        scaled = points * self.resolution  # (n, 3) in cells
        low = scaled.detach().floor().clamp(max=self.resolution - 1)  # (n, 3) the cell's lower corner
        place = (scaled - low).unsqueeze(-1)  # (n, 3, 1) in the cell
        lower, slope = (1 - self._corner).to(scaled), (2 * self._corner - 1).to(scaled)  # (3, 8) both
        x, y, z = (torch.addcmul(lower[axis], place[:, axis], slope[axis]) for axis in range(3))  # (n, 8) each
        weights = x * y * z

        near, far = (low.int() * self._stride).unsqueeze(-1), self._corner * self._stride[:, None]  # (n, 3, 1), (3, 8)
        x, y, z = (near[:, axis] + far[axis] for axis in range(3))  # (n, 8) each
        return (x + y + z if self.dense else (x ^ y ^ z) & (len(self.table) - 1)), weights


class _Interpolate(torch.autograd.Function):
    """Weighted sums of a table's rows: out_m = Σ_k weights_mk · table[rows_mk].

    The same as `embedding_bag` with per-sample weights, whose own backward is several times as slow on the CPU.
    """

    @staticmethod
    def forward(ctx, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(table, rows, weights)
        return functional.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")  # (m, f)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        table, rows, weights = ctx.saved_tensors
        grad_table = grad_weights = None
        if ctx.needs_input_grad[0]:
            shares = (grad.T.contiguous()[:, :, None] * weights).flatten(1)  # (f, m·8)
            grad_table = grad.new_zeros(table.shape[::-1])  # (f, rows): adding along rows of one feature is faster
            grad_table = grad_table.scatter_add_(1, rows.long().reshape(1, -1).expand_as(shares), shares).T.contiguous()
        if ctx.needs_input_grad[2]:
            grad_weights = torch.einsum("mkf,mf->mk", table[rows], grad)  # (m, 8)
        return grad_table, None, grad_weights
