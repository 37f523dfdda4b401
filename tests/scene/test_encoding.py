"""The hash grid against a per-point reference in Python, and against functions that it must reproduce exactly."""

import itertools
import math

import pytest
import torch

from redream.scene.encoding import PRIMES, EncodingError, HashGrid, Level


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def small_grid() -> HashGrid:
    """Two dense levels (4³ and 8³ cells) and two hashed ones, in double precision, with features of order 1."""
    grid = HashGrid(4, 3, 10, 4, 32, generator()).double()
    for level in grid.levels:
        level.table.data.uniform_(-1, 1, generator=generator())
    return grid


def reference(level: Level, point: torch.Tensor) -> torch.Tensor:
    """One point at one level, corner by corner, with 32-bit wrap-around as in Instant-NGP's CUDA code."""
    scaled = [c * level.resolution for c in point.tolist()]
    low = [min(math.floor(c), level.resolution - 1) for c in scaled]
    side, total = level.resolution + 1, torch.zeros(level.table.shape[1], dtype=torch.float64)
    for offset in itertools.product((0, 1), repeat=3):
        x, y, z = (a + b for a, b in zip(low, offset, strict=True))
        hashed = (x * PRIMES[0] % 2**32) ^ (y * PRIMES[1] % 2**32) ^ (z * PRIMES[2] % 2**32)
        row = x + side * y + side**2 * z if side**3 <= 1024 else hashed % 1024
        near = [1 - abs(c - a - b) for c, a, b in zip(scaled, low, offset, strict=True)]
        total = total + math.prod(near) * level.table[row]
    return total


def vertices(level: Level) -> torch.Tensor:
    """All vertices of a level as (n, 3) integers, x fastest: the order of a dense level's rows."""
    side = torch.arange(level.resolution + 1)
    z, y, x = torch.meshgrid(side, side, side, indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3)


def test_features_and_table_gradients_equal_those_of_the_reference():
    grid = small_grid()
    assert [level.dense for level in grid.levels] == [True, True, False, False]
    points = torch.rand(40, 3, generator=generator(), dtype=torch.float64)
    expected = torch.stack([torch.cat([reference(level, p) for level in grid.levels]) for p in points])
    actual = grid(points)
    assert torch.allclose(actual, expected)

    upstream = torch.randn(actual.shape, generator=generator(), dtype=torch.float64)
    tables = list(grid.parameters())
    for mine, theirs in zip(
        torch.autograd.grad((actual * upstream).sum(), tables),
        torch.autograd.grad((expected * upstream).sum(), tables),
        strict=True,
    ):
        assert torch.allclose(mine, theirs)


def test_gradients_with_respect_to_points_and_tables_equal_finite_differences():
    grid = small_grid()
    points = torch.rand(5, 3, generator=generator(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, *_: grid(p), (points, *grid.parameters()), fast_mode=True)


def test_dense_levels_reproduce_linear_functions_exactly_up_to_the_border():
    level = small_grid().levels[1]
    slope, offset = torch.randn(3, 3, generator=generator(), dtype=torch.float64), 0.3
    level.table.data = vertices(level).double() / level.resolution @ slope + offset
    points = torch.rand(200, 3, generator=generator(), dtype=torch.float64)
    points[:2] = torch.tensor([[0.0], [1.0]])
    assert torch.allclose(level(points), points @ slope + offset)


def test_dense_levels_equal_grid_sample():
    level = small_grid().levels[0]
    points = torch.rand(100, 3, generator=generator(), dtype=torch.float64)
    volume = level.table.T.reshape(1, 3, *[level.resolution + 1] * 3)  # z, y, x
    sampled = torch.nn.functional.grid_sample(volume, points[None, None, None] * 2 - 1, align_corners=True)
    assert torch.allclose(level(points), sampled[0, :, 0, 0].T)


def test_a_hashed_level_equals_a_dense_one_where_hashes_do_not_collide():
    dense, hashed = (Level(11, 2, rows, generator()) for rows in (2**11, 2**10))
    assert dense.dense and not hashed.dense
    x, y, z = vertices(hashed).T
    rows = (x ^ (y * PRIMES[1]) ^ (z * PRIMES[2])) & 1023
    hashed.table.data[rows] = dense.table.data  # of colliding vertices, one wins
    alone = (torch.bincount(rows, minlength=1024)[rows] == 1).reshape(12, 12, 12)  # z, y, x

    corners = itertools.product((slice(None, -1), slice(1, None)), repeat=3)
    clean = torch.stack([alone[corner] for corner in corners]).all(dim=0)  # (11, 11, 11) cells without a collision
    cells = clean.nonzero().flip(-1)  # x, y, z
    assert len(cells)
    points = (cells + torch.rand(cells.shape, generator=generator())) / 11
    assert torch.allclose(hashed(points), dense(points), atol=1e-9)


def test_resolutions_grow_geometrically_from_the_first_to_the_last():
    grid = HashGrid(16, 2, 12, 16, 4096, generator())
    resolutions = [level.resolution for level in grid.levels]
    assert (resolutions[0], resolutions[-1]) == (16, 4096)
    growth = 256 ** (1 / 15)
    assert all(abs(b / a / growth - 1) < 0.06 for a, b in itertools.pairwise(resolutions))
    assert max(len(level.table) for level in grid.levels) == 2**12


def test_features_start_small_and_the_same_for_the_same_seed():
    first, second = (HashGrid(3, 2, 10, 4, 16, generator()) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b) and 0.9e-4 < a.abs().max() <= 1e-4


def test_no_points_give_no_features():
    assert small_grid()(torch.empty(0, 3, dtype=torch.float64)).shape == (0, 12)


@pytest.mark.parametrize("levels, base, last", [(0, 4, 8), (2, 0, 8), (2, 8, 4)])
def test_impossible_grids_are_refused(levels, base, last):
    with pytest.raises(EncodingError):
        HashGrid(levels, 2, 10, base, last, generator())
