"""The samples of rays that lie in occupied cells, in one list."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from redream.scene.kernels.launch import add, block_size, kernel, launch, next_power, tl

TILE = 1024  # samples, occupied or not, of a program


@dataclass(frozen=True)
class Rays:
    """Rays through the box of an occupancy grid, each cut into as many equal pieces, with a sample in each piece."""

    origins: Float[Tensor, "n 3"]  # world units
    directions: Float[Tensor, "n 3"]  # unit length
    near: Float[Tensor, "n 1"]  # distance at which the box is entered
    length: Float[Tensor, "n 1"]  # of a piece; 0: the ray misses the box
    pieces: int  # of a ray


@dataclass(frozen=True)
class Samples:
    """Samples of n rays in a list with room for k: ray by ray, front to back.

    Room that is left, at the end, has the point (0, 0, 0) and belongs to no ray.
    """

    points: Float[Tensor, "k 3"]  # world units
    distance: Float[Tensor, "k"]  # from the camera, in world units
    first: Int64[Tensor, "n"]  # a ray's first sample in the list
    counts: Int64[Tensor, "n"]  # and how many it has there
    found: Int64[Tensor, ""]  # samples that there are; if more than there is room for, the last rays lack theirs
    rays: Rays


def march(
    rays: Rays,
    shift: Float[Tensor, "#n #s"],
    mask: Bool[Tensor, "r r r"],
    bound: float,
    room: int | None = None,
    most: Int64[Tensor, "n"] | None = None,
    tile: int | None = None,
) -> Samples:
    """The samples of rays that lie in occupied cells, as `OccupancyGrid.occupied` says it.

    shift: where in its piece a sample lies, in [0, 1)
    mask: the occupied cells of the box [−bound, bound]³
    room: for how many samples; None: for all that there are, which waits for the device to count them
    most: how many samples each ray may have; those behind them are left out
    """
    origins, directions = rays.origins.contiguous(), rays.directions.contiguous()
    count, sides = len(origins), tiles(rays, tile)
    strides = [stride if size > 1 else 0 for stride, size in zip(shift.stride(), shift.shape, strict=True)]
    places = (origins, directions, rays.near, rays.length, shift, *strides)
    cells = (mask.contiguous().view(torch.uint8), len(mask), bound, len(mask) / (2 * bound), rays.pieces)

    counts = torch.empty(count, dtype=torch.int64, device=origins.device)
    launch(_count_samples, count, sides["RAYS"], *places, *cells, counts, count, **sides)
    if most is not None:
        counts = torch.minimum(counts, most)
    first, found = counts.cumsum(0) - counts, counts.sum()
    room = int(found) if room is None else room
    counts = torch.minimum(counts, (room - first).clamp(min=0))
    points, distance = origins.new_zeros(room, 3), origins.new_zeros(room)
    launch(_list_samples, count, sides["RAYS"], *places, *cells, counts, first, points, distance, count, **sides)
    return Samples(points, distance, first, counts, found, rays)


def tiles(rays: Rays, tile: int | None) -> dict[str, int]:
    """The sides of the tile of samples that a program works on."""
    width = next_power(rays.pieces)
    size = block_size(tile, TILE, len(rays.near) * width, rays.near.device)
    return {"RAYS": max(next_power(size) // width, 1), "SAMPLES": width}


# n: rays, i: their samples; a tile is (n, i)


@kernel
def _index(place, resolution, bound, scale):
    """The cell along one axis, and whether there is one."""
    cell = (place + bound) * scale
    inside = (cell >= 0) & (cell <= resolution)
    return tl.minimum(tl.where(inside, cell, 0.0).to(tl.int32), resolution - 1), inside


@kernel
def _sample(
    n,
    i,
    here,
    origins,
    directions,
    near,
    length,
    shift,
    shift_ray,
    shift_sample,
    mask,
    resolution,
    bound,
    scale,
    pieces,
):
    """The distance and the point of each sample, and 1 where it is in an occupied cell, else 0."""
    start, piece = tl.load(near + n, here, 0.0), tl.load(length + n, here, 0.0)
    valid = (here & (piece > 0))[:, None] & (i < pieces)[None, :]
    place = tl.load(shift + n[:, None] * shift_ray + i[None, :] * shift_sample, valid, 0.0)
    at = start[:, None] + (i.to(tl.float32)[None, :] + place) * piece[:, None]
    x = tl.load(origins + n * 3, here, 0.0)[:, None] + at * tl.load(directions + n * 3, here, 0.0)[:, None]
    y = tl.load(origins + n * 3 + 1, here, 0.0)[:, None] + at * tl.load(directions + n * 3 + 1, here, 0.0)[:, None]
    z = tl.load(origins + n * 3 + 2, here, 0.0)[:, None] + at * tl.load(directions + n * 3 + 2, here, 0.0)[:, None]
    ix, in_x = _index(x, resolution, bound, scale)
    iy, in_y = _index(y, resolution, bound, scale)
    iz, in_z = _index(z, resolution, bound, scale)
    valid = valid & in_x & in_y & in_z
    occupied = tl.load(mask + (ix * resolution + iy) * resolution + iz, valid, 0).to(tl.int32)
    return at, x, y, z, occupied


@kernel
def _count_samples(
    origins,
    directions,
    near,
    length,
    shift,
    shift_ray,
    shift_sample,
    mask,
    resolution,
    bound,
    scale,
    pieces,
    counts,
    count,
    RAYS: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    i, here = tl.arange(0, SAMPLES), n < count
    _, _, _, _, occupied = _sample(
        n, i, here, origins, directions, near, length, shift, shift_ray, shift_sample,
        mask, resolution, bound, scale, pieces,
    )  # fmt: skip
    tl.store(counts + n, tl.reduce(occupied, 1, add).to(tl.int64), here)


@kernel
def _list_samples(
    origins,
    directions,
    near,
    length,
    shift,
    shift_ray,
    shift_sample,
    mask,
    resolution,
    bound,
    scale,
    pieces,
    counts,
    first,
    points,
    distance,
    count,
    RAYS: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    i, here = tl.arange(0, SAMPLES), n < count
    at, x, y, z, occupied = _sample(
        n, i, here, origins, directions, near, length, shift, shift_ray, shift_sample,
        mask, resolution, bound, scale, pieces,
    )  # fmt: skip
    before = tl.associative_scan(occupied, 1, add) - occupied  # samples in front of it, of the same ray
    listed = (occupied != 0) & (before < tl.load(counts + n, here, 0)[:, None])
    slot = tl.load(first + n, here, 0)[:, None] + before
    tl.store(points + slot * 3, x, listed)
    tl.store(points + slot * 3 + 1, y, listed)
    tl.store(points + slot * 3 + 2, z, listed)
    tl.store(distance + slot, at, listed)
