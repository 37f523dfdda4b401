"""`HashGrid.forward` and its gradients in a launch each: one thread or a few of them a point, all levels in turn."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.autograd.function import once_differentiable

from redream.scene.kernels.launch import add, block_size, kernel, launch, next_power, tl

BLOCK = 128  # points of a program


def encode(
    points: Float[Tensor, "n 3"],
    tables: Sequence[Float[Tensor, "_ f"]],
    packed: Float[Tensor, "rows f"],
    layout: Int32[Tensor, "levels 6"],
    block: int | None = None,
) -> Float[Tensor, "n d"]:
    """Features of points at all levels, as `HashGrid.forward`, in float32; d = levels × f.

    `packed` has the rows of all `tables` in float16 or float32 and is what is read; `layout` is from `grid_layout`. Sums
    are in float32, also those of the gradients, which go to the tables and to the points.
    """
    return _Encode.apply(points, packed, layout, block_size(block, BLOCK, len(points), points.device), *tables)


def grid_layout(levels: Sequence[tuple[int, bool, tuple[int, int, int], int]]) -> Int32[Tensor, "levels 6"]:
    """What the kernels read of each level, from its (resolution, dense, strides, rows).

    Resolution, strides of y and z, dense, mask of a row's bits, first row. Strides are 32-bit integers.
    """
    layout, start = [], 0
    for resolution, dense, strides, rows in levels:
        layout.append([resolution, *strides[1:], int(dense), -1 if dense else rows - 1, start])
        start += rows
    return torch.tensor(layout, dtype=torch.int32)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, points, packed, layout, block, *tables):
        points = points.contiguous()
        ctx.save_for_backward(points, packed, layout)
        ctx.block, ctx.rows = block, [len(table) for table in tables]
        levels, features = len(layout), packed.shape[1]
        out = points.new_empty(levels * features, len(points))  # stored feature by feature: a block's are together
        launch(
            _encode_forward, len(points), block, points, packed, layout, out, len(points),
            LEVELS=levels, FEATURES=features, WIDTH=next_power(features), BLOCK=block,
        )  # fmt: skip
        return out.T

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        points, packed, layout = ctx.saved_tensors
        features = packed.shape[1]
        to_points, to_tables = ctx.needs_input_grad[0], any(ctx.needs_input_grad[4:])
        grad_points = torch.zeros_like(points) if to_points else None
        grad_table = points.new_zeros(packed.shape) if to_tables else None
        launch(
            _encode_backward, len(points), ctx.block, points, packed, layout, grad, grad_points, grad_table,
            *grad.stride(), len(points), LEVELS=len(layout), FEATURES=features, WIDTH=next_power(features),
            TO_POINTS=to_points, TO_TABLES=to_tables, BLOCK=ctx.block,
        )  # fmt: skip
        grad_tables = grad_table.split(ctx.rows) if to_tables else [None] * len(ctx.rows)
        return grad_points, None, None, None, *grad_tables


# n: points, f: features


@kernel
def _clamped(points, n, here, axis: tl.constexpr):
    """Coordinates of points along one axis, and the nearest ones in [0, 1]."""
    given = tl.load(points + n * 3 + axis, here, 0.0)
    return given, tl.minimum(tl.maximum(given, 0.0), 1.0)


@kernel
def _cell(point, resolution):
    """The cell of coordinates in [0, 1] along one axis, and the place in it."""
    scaled = point * resolution.to(tl.float32)
    low = tl.minimum(tl.floor(scaled), (resolution - 1).to(tl.float32))
    return low.to(tl.int32), scaled - low


@kernel
def _level(layout, level):
    """A row of `grid_layout`."""
    row = layout + level * 6
    return tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)


@kernel
def _row(x, y, z, stride_y, stride_z, dense, mask, start):
    """The table's row of a vertex, as in `Level.corners`; 32 bits suffice, as only the low ones count."""
    y, z = y * stride_y, z * stride_z
    return (tl.where(dense != 0, x + y + z, x ^ y ^ z) & mask) + start


@kernel
def _encode_forward(
    points,
    table,
    layout,
    out,
    count,
    LEVELS: tl.constexpr,
    FEATURES: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    f = tl.arange(0, WIDTH)
    here = n < count
    both = here[:, None] & (f < FEATURES)[None, :]
    _, px = _clamped(points, n, here, 0)
    _, py = _clamped(points, n, here, 1)
    _, pz = _clamped(points, n, here, 2)
    for level in range(LEVELS):
        resolution, stride_y, stride_z, dense, mask, start = _level(layout, level)
        x, ax = _cell(px, resolution)
        y, ay = _cell(py, resolution)
        z, az = _cell(pz, resolution)
        total = tl.full((BLOCK, WIDTH), 0.0, tl.float32)
        for corner in tl.static_range(8):
            wx = ax if corner // 4 else 1 - ax
            wy = ay if corner // 2 % 2 else 1 - ay
            wz = az if corner % 2 else 1 - az
            row = _row(x + corner // 4, y + corner // 2 % 2, z + corner % 2, stride_y, stride_z, dense, mask, start)
            values = tl.load(table + row[:, None] * FEATURES + f[None, :], both, 0.0).to(tl.float32)
            total += (wx * wy * wz)[:, None] * values
        column = (level * FEATURES + f).to(tl.int64)
        tl.store(out + column[None, :] * count + n[:, None], total, both)


@kernel
def _encode_backward(
    points,
    table,
    layout,
    grad,
    grad_points,
    grad_table,
    grad_row,
    grad_column,
    count,
    LEVELS: tl.constexpr,
    FEATURES: tl.constexpr,
    WIDTH: tl.constexpr,
    TO_POINTS: tl.constexpr,
    TO_TABLES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    f = tl.arange(0, WIDTH)
    here = n < count
    both = here[:, None] & (f < FEATURES)[None, :]
    qx, px = _clamped(points, n, here, 0)
    qy, py = _clamped(points, n, here, 1)
    qz, pz = _clamped(points, n, here, 2)
    gx = tl.full((BLOCK,), 0.0, tl.float32)
    gy = tl.full((BLOCK,), 0.0, tl.float32)
    gz = tl.full((BLOCK,), 0.0, tl.float32)
    for level in range(LEVELS):
        resolution, stride_y, stride_z, dense, mask, start = _level(layout, level)
        x, ax = _cell(px, resolution)
        y, ay = _cell(py, resolution)
        z, az = _cell(pz, resolution)
        column = (level * FEATURES + f).to(tl.int64)
        g = tl.load(grad + n[:, None] * grad_row + column[None, :] * grad_column, both, 0.0)
        for corner in tl.static_range(8):
            wx = ax if corner // 4 else 1 - ax
            wy = ay if corner // 2 % 2 else 1 - ay
            wz = az if corner % 2 else 1 - az
            row = _row(x + corner // 4, y + corner // 2 % 2, z + corner % 2, stride_y, stride_z, dense, mask, start)
            places = row[:, None] * FEATURES + f[None, :]
            if TO_TABLES:
                share = (wx * wy * wz)[:, None] * g
                # The room that is left in a list of samples has no gradient: it must not queue up for its one cell.
                tl.atomic_add(grad_table + places, share, both & (share != 0), sem="relaxed")
            if TO_POINTS:
                values = tl.load(table + places, both, 0.0).to(tl.float32)
                along = tl.reduce(values * g, 1, add) * resolution.to(tl.float32)
                gx += along * wy * wz * (2 * (corner // 4) - 1)
                gy += along * wx * wz * (2 * (corner // 2 % 2) - 1)
                gz += along * wx * wy * (2 * (corner % 2) - 1)
    if TO_POINTS:  # a point outside the cube does not move its nearest one inside
        tl.store(grad_points + n * 3, tl.where(qx == px, gx, 0.0), here)
        tl.store(grad_points + n * 3 + 1, tl.where(qy == py, gy, 0.0), here)
        tl.store(grad_points + n * 3 + 2, tl.where(qz == pz, gz, 0.0), here)
