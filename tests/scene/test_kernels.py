"""The fused kernels against the plain PyTorch code: by Triton's interpreter on the CPU, and on a GPU where there is one."""

from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from redream.scene import budget, encoding, kernels, volume
from redream.scene.budget import SampleBudget
from redream.scene.cameras import Camera
from redream.scene.encoding import HashGrid
from redream.scene.field import Field
from redream.scene.kernels import availability, compositing, hash_grid, marching
from redream.scene.volume import OccupancyGrid, render, volume_weights
from redream.settings import Settings

triton = pytest.importorskip("triton")

BOUND = 0.52
CAMERA = Camera(30.0, 20.0, 1.6, 40.0)
DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]
FIELD = Settings(field={"levels": 3, "log2_table": 10, "base_resolution": 4, "max_resolution": 32, "hidden": 8})

on_each_device = pytest.mark.parametrize("device", DEVICES, ids=str)


def generator(device="cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


@pytest.fixture
def fused(monkeypatch):
    """A switch: turns the fused kernels on or off, on the CPU too."""

    def switch(on: bool) -> None:
        monkeypatch.setattr(kernels, "unavailable", lambda device: "" if on else "The test takes the plain code.")

    return switch


# --- Availability


@pytest.mark.parametrize(
    "outcome, sentence",
    [
        (True, ""),
        (False, "Fused kernels give wrong results on this device."),
        (
            RuntimeError("Failed to find C compiler.\nA log follows."),
            "Fused kernels do not run here: Failed to find C compiler.",
        ),
        (KeyError(), "Fused kernels do not run here: KeyError"),
    ],
)
def test_a_small_kernel_is_tried_once_and_a_sentence_says_why_none_runs(monkeypatch, outcome, sentence):
    tried = Mock(side_effect=[outcome])
    monkeypatch.setattr(availability, "_is_right_on", tried)
    try:
        assert [availability.unavailable(torch.device("cuda", 77)) for _ in range(2)] == [sentence] * 2
    finally:
        availability.unavailable.cache_clear()


def test_without_cuda_or_triton_the_plain_code_runs(monkeypatch):
    monkeypatch.setattr(availability, "triton", None)
    try:
        assert kernels.unavailable(torch.device("cpu")) == "Fused kernels need a CUDA device."
        assert "need Triton" in kernels.unavailable(torch.device("cuda", 77))
    finally:
        availability.unavailable.cache_clear()


@pytest.mark.gpu
def test_fused_kernels_run_on_this_gpu():
    assert kernels.unavailable(torch.device("cuda")) == ""


# --- The hash grid


def random_grid(device) -> HashGrid:
    """Two dense levels (4³ and 8³ cells) and two hashed ones, with three features of order 1."""
    grid = HashGrid(4, 3, 10, 4, 32, generator())
    for level in grid.levels:
        torch.nn.init.uniform_(level.table, -1, 1, generator=generator())
    assert [level.dense for level in grid.levels] == [True, True, False, False]
    return grid.to(device)


def features_and_gradients(grid: HashGrid, points: Tensor) -> list[Tensor]:
    """Features, and the gradients of a weighted sum of them with respect to the points and the tables."""
    points = points.clone().requires_grad_()
    features = grid(points)
    upstream = torch.randn(features.shape, generator=generator()).to(points)
    wanted = [points, *grid.parameters()]
    return [features.detach(), *torch.autograd.grad((features * upstream).sum(), wanted)]


@on_each_device
@pytest.mark.parametrize(
    "count, dtype",
    [
        *((count, torch.float32) for count in (0, 1, 7, 1000, 100_000)),
        *((count, torch.float16) for count in (7, 1000)),
    ],
)
def test_encoding_equals_the_plain_code_with_its_gradients(fused, monkeypatch, device, count, dtype):
    """Points in the cube, on its faces and vertices, and outside it. In float16 the tables are rounded, no sum is."""
    monkeypatch.setattr(encoding, "FUSED_TYPE", dtype)
    grid = random_grid(device)
    points = torch.rand(count, 3, generator=generator()).to(device) * 1.2 - 0.1
    points[:2] = points[:2].round()
    fused(True)
    ours = features_and_gradients(grid, points)
    fused(False)
    if dtype == torch.float16:
        for level in grid.levels:
            level.table.data = level.table.data.half().float()
    theirs = features_and_gradients(grid, points)
    assert count < 1000 or 0 < (theirs[1] == 0).sum() < theirs[1].numel() / 2  # points outside have no gradient
    for one, other in zip(ours, theirs, strict=True):
        scale = other.abs().max().item() if other.numel() else 1.0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=3e-6 * scale)


def test_rounded_tables_give_features_within_half_precision(fused):
    grid, points = random_grid("cpu"), torch.rand(1000, 3, generator=generator())
    fused(True)
    rounded = grid(points)
    fused(False)
    error = (rounded - grid(points)).abs().max()
    assert 0 < error < 2**-11  # half a unit in the last place of numbers below 1


def test_tables_that_an_optimizer_changes_are_read_anew(fused):
    fused(True)
    grid, points = random_grid("cpu"), torch.rand(5, 3, generator=generator())
    before = grid(points)
    with torch.no_grad():
        torch._foreach_mul_(list(grid.parameters()), 2.0)
    torch.testing.assert_close(grid(points), 2 * before)
    grid.load_state_dict(random_grid("cpu").state_dict())
    assert torch.equal(grid(points), before)


@pytest.mark.parametrize("block", [32, 64])
def test_the_block_size_does_not_change_an_encoding(block):
    grid, points = random_grid("cpu"), torch.rand(70, 3, generator=generator())
    tables = [level.table for level in grid.levels]
    whole, parts = (kernels.encode(points, tables, grid._pack(tables), grid.layout, b) for b in (None, block))
    assert torch.equal(whole, parts)
    gradients = [torch.autograd.grad(features.square().sum(), tables) for features in (whole, parts)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


# --- Marching


def rays_of(size: int, pieces: int, device="cpu") -> kernels.Rays:
    """Rays of a camera so near that some of them miss the box and some start inside it."""
    origins, directions = Camera(30.0, 20.0, 0.7, 100.0).rays(size, device=device)
    bound = origins.new_full((3,), BOUND)
    near, length = volume._ray_intervals(origins, directions, -bound, bound, pieces)
    assert 0 < (length == 0).sum() < len(length)
    return kernels.Rays(origins, directions, near, length, pieces)


def occupancy(kind: str, device="cpu") -> OccupancyGrid:
    grid = OccupancyGrid(9, BOUND)
    filled = {"empty": 0.0, "random": 0.3, "full": 1.0}[kind]
    grid.mask = torch.rand(grid.mask.shape, generator=generator()) < filled
    return grid.to(device)


def shifts(jittered: bool, rays: kernels.Rays) -> Tensor:
    return volume._jitter(rays, generator() if jittered else None)


def reference_samples(rays: kernels.Rays, shift: Tensor, grid: OccupancyGrid) -> list[Tensor]:
    """Points, distances and counts of the samples of `grid.occupied`."""
    pieces = torch.arange(rays.pieces, device=shift.device)
    distance = rays.near + (pieces + shift) * rays.length  # (n, s)
    points = rays.origins[:, None] + distance[:, :, None] * rays.directions[:, None]  # (n, s, 3)
    occupied = grid.occupied(points.flatten(0, 1)).view_as(distance) & (rays.length > 0)
    return [points[occupied], distance[occupied], occupied.sum(dim=1)]


@on_each_device
@pytest.mark.parametrize("jittered", [False, True], ids=["middles", "jittered"])
@pytest.mark.parametrize("kind", ["empty", "random", "full"])
def test_marching_lists_the_samples_that_the_occupancy_grid_says_are_occupied(device, kind, jittered):
    rays, grid = rays_of(12, 20, device), occupancy(kind, device)
    shift = shifts(jittered, rays)
    points, distance, counts = reference_samples(rays, shift, grid)
    samples = kernels.march(rays, shift, grid.mask, BOUND)
    assert torch.equal(samples.counts, counts) and samples.found == len(points)
    assert torch.equal(samples.first, counts.cumsum(0) - counts)
    assert torch.equal(samples.points, points) and torch.equal(samples.distance, distance)


@pytest.mark.parametrize("tile", [1, 64, 512])
def test_the_tile_does_not_change_the_list_and_room_that_is_left_is_empty(tile):
    rays, grid = rays_of(6, 20), occupancy("random")
    shift = shifts(True, rays)
    points, distance, counts = reference_samples(rays, shift, grid)
    samples = kernels.march(rays, shift, grid.mask, BOUND, room=len(points) + 50, tile=tile)
    assert torch.equal(samples.points[:-50], points) and torch.equal(samples.distance[:-50], distance)
    assert torch.equal(samples.counts, counts) and not samples.points[-50:].any()


@pytest.mark.parametrize("room", [0, 1, 100])
def test_with_too_little_room_the_last_rays_lack_samples_and_the_number_found_is_still_known(room):
    rays, grid = rays_of(12, 20), occupancy("random")
    shift = shifts(False, rays)
    points, distance, counts = reference_samples(rays, shift, grid)
    samples = kernels.march(rays, shift, grid.mask, BOUND, room=room)
    assert samples.found == len(points) > room
    assert torch.equal(samples.points, points[:room]) and torch.equal(samples.distance, distance[:room])
    assert samples.counts.sum() == room and (samples.counts <= counts).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_samples_outside_the_box_are_not_listed(axis):
    """Rays along an axis, from far in front of the box to far behind it, and beside it."""
    grid = occupancy("full")
    origins = torch.tensor([[-2.0, 0.1, 0.2], [-2.0, 0.9, 0.1], [-2.0, 0.1, -0.9]]).roll(axis, dims=1)
    directions = torch.eye(3)[axis].expand(3, 3)
    rays = kernels.Rays(origins, directions, torch.zeros(3, 1), torch.full((3, 1), 0.1), 40)
    points, distance, counts = reference_samples(rays, shifts(False, rays), grid)
    samples = kernels.march(rays, shifts(False, rays), grid.mask, BOUND)
    assert counts.tolist() == samples.counts.tolist() == [10, 0, 0]
    assert torch.equal(samples.points, points) and torch.equal(samples.distance, distance)


def test_of_each_ray_no_more_than_the_first_samples_are_listed():
    rays, grid = rays_of(12, 20), occupancy("random")
    shift = shifts(True, rays)
    points, _, counts = reference_samples(rays, shift, grid)
    most = torch.arange(len(counts)) % 4
    kept = [ray[:limit] for ray, limit in zip(points.split(counts.tolist()), most.tolist(), strict=True)]
    expected = torch.cat(kept)
    samples = kernels.march(rays, shift, grid.mask, BOUND, room=len(expected) + 50, most=most)
    assert torch.equal(samples.points[:-50], expected) and samples.found == len(expected)
    assert not samples.points[-50:].any()  # nor does the last ray write any more


# --- Compositing


def listed(device, size: int, pieces: int, kind: str = "random") -> tuple[kernels.Samples, Tensor, Tensor]:
    """Samples, with random colours and densities from transparent to opaque, some of them 0."""
    rays, grid = rays_of(size, pieces, device), occupancy(kind, device)
    samples = kernels.march(rays, shifts(False, rays), grid.mask, BOUND)
    rgb = torch.rand(len(samples.points), 3, generator=generator())
    density = (10 ** (torch.rand(len(rgb), generator=generator()) * 6 - 4)) * (rgb[:, 0] > 0.1)
    return samples, rgb.to(device).requires_grad_(), density.to(device).requires_grad_()


def reference_pixels(rgb: Tensor, density: Tensor, samples: kernels.Samples) -> Tensor:
    """RGB, opacity and distance times opacity by `volume_weights`, in double precision."""
    ray = torch.repeat_interleave(torch.arange(len(samples.counts), device=rgb.device), samples.counts)  # (k,)
    place = torch.arange(len(ray), device=rgb.device) - samples.first[ray]  # (k,)
    dense = rgb.new_zeros(len(samples.counts), samples.rays.pieces, dtype=torch.float64)
    weights, _ = volume_weights(dense.index_put((ray, place), density.double()), samples.rays.length.double())
    values = torch.cat([rgb.double(), torch.ones_like(rgb[:, :1]), samples.distance[:, None]], dim=1)  # (k, 5)
    return dense.new_zeros(len(dense), 5).index_add(0, ray, weights[ray, place, None] * values)


@on_each_device
@pytest.mark.parametrize(
    "size, pieces, kind", [(12, 20, "random"), (12, 8, "empty"), (12, 1, "full"), (40, 64, "full")]
)
def test_compositing_equals_the_sum_of_weighted_samples_with_its_gradients(device, size, pieces, kind):
    samples, rgb, density = listed(device, size, pieces, kind)
    ours, theirs = kernels.composite(rgb, density, samples), reference_pixels(rgb, density, samples)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(ours.shape, generator=generator()).to(device)
    for one, other in zip(
        torch.autograd.grad((ours * upstream).sum(), (rgb, density)),
        torch.autograd.grad((theirs * upstream).sum(), (rgb, density)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_thin_samples_absorb_to_all_digits():
    """1 − exp(−x) for x from 1e-8 to 20; 1 − exp(−1e-8) computed in single precision would be 0."""
    x = torch.logspace(-8, 1.3, 100)
    ones = torch.ones(100, 1)
    rays = kernels.Rays(torch.zeros(100, 3), torch.zeros(100, 3), torch.zeros(100, 1), ones, 1)
    samples = kernels.Samples(
        torch.zeros(100, 3), torch.zeros(100), torch.arange(100), ones[:, 0].long(), torch.tensor(100), rays
    )
    pixels = kernels.composite(torch.ones(100, 3), x, samples)
    torch.testing.assert_close(pixels[:, 3].double(), -torch.expm1(-x.double()), rtol=5e-7, atol=0)


@pytest.mark.parametrize("tile", [1, 64])
def test_the_tile_does_not_change_pixels_or_gradients(tile):
    samples, rgb, density = listed("cpu", 6, 20)
    whole, parts = (kernels.composite(rgb, density, samples, t) for t in (None, tile))
    assert torch.equal(whole, parts)
    gradients = [torch.autograd.grad(pixels.square().sum(), (rgb, density)) for pixels in (whole, parts)]
    assert all(map(torch.equal, *gradients))


@on_each_device
def test_visible_samples_are_those_with_enough_transmittance_in_front_of_them(device):
    samples, rgb, density = listed(device, 12, 20, "full")
    ray = torch.repeat_interleave(torch.arange(len(samples.counts), device=device), samples.counts)
    place = torch.arange(len(ray), device=device) - samples.first[ray]
    dense = density.detach().new_zeros(len(samples.counts), 20).index_put((ray, place), density.detach())
    transmittance = volume_weights(dense, samples.rays.length)[1][ray, place]
    assert ((transmittance - 1e-3).abs() > 1e-6).all()  # none of them is on the edge
    expected = torch.zeros_like(samples.counts).index_add(0, ray, (transmittance > 1e-3).long())
    assert 0 < expected.sum() < len(rgb)
    assert torch.equal(kernels.visible(density.detach(), samples, 1e-3), expected)


# --- Whole renders


def render_with_gradients(device, kind: str, jittered: bool) -> list[Tensor]:
    """Image, opacity and depth of a field, and the gradients to its parameters and to a shift of all points."""
    field, grid = Field(FIELD, generator()), occupancy(kind, device)
    for level in field.grid.levels:
        torch.nn.init.uniform_(level.table, -1, 1, generator=generator())
        level.table.data = level.table.data.half().float()  # as the kernels round them
    field = field.to(device)
    moved = torch.zeros(3, device=device, requires_grad=True)
    draws = generator(device) if jittered else None
    background = torch.tensor([0.2, 0.5, 0.8])
    rendering = render(lambda points: field(points + moved), CAMERA, 16, background, grid, 24, draws)
    images = [rendering.image, rendering.opacity, rendering.depth]
    upstream = [torch.randn(image.shape, generator=generator()).to(device) for image in images]
    loss = sum((image * weight).sum() for image, weight in zip(images, upstream, strict=True))
    wanted = [moved, *field.parameters()]
    gradients = torch.autograd.grad(loss, wanted, materialize_grads=True)
    return [image.detach() for image in images] + list(gradients)


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * max(1.0, other.abs().max().item()))


@on_each_device
@pytest.mark.parametrize(
    "kind, jittered, prune",
    [("empty", True, 0), ("random", True, 0), ("full", True, 0), ("random", True, 2**18), ("random", False, 2**18)],
)
def test_a_render_equals_that_of_the_plain_code_with_its_gradients(fused, monkeypatch, device, kind, jittered, prune):
    monkeypatch.setattr(volume, "PRUNE_MIN_SAMPLES", prune)
    monkeypatch.setattr(volume, "EARLY_STOP_EPS", 0.05 if prune == 0 else 1e-3)  # prunes a good part of a faint field
    fused(True)
    ours = render_with_gradients(device, kind, jittered)
    fused(False)
    theirs = render_with_gradients(device, kind, jittered)
    assert kind == "empty" or all(other.any() for other in theirs)
    assert_same(ours, theirs)


def test_activations_that_are_computed_again_give_the_same_gradients(fused, monkeypatch):
    monkeypatch.setattr(volume, "PRUNE_MIN_SAMPLES", 0)
    fused(True)
    whole = render_with_gradients("cpu", "random", True)
    monkeypatch.setattr(volume, "FUSED_CHUNK", 4000)  # two chunks, the second one smaller
    assert_same(render_with_gradients("cpu", "random", True), whole)


@on_each_device
def test_a_render_without_gradients_equals_that_of_the_plain_code(fused, device):
    field, grid = Field(FIELD, generator()).to(device), occupancy("random", device)
    images = []
    for on in (True, False):
        fused(on)
        with torch.no_grad():
            rendering = render(field, CAMERA, 16, torch.ones(3), grid, 24, None, 100)
        images.append(torch.cat([rendering.image, rendering.opacity, rendering.depth], dim=1))
    torch.testing.assert_close(*images, rtol=1e-3, atol=2e-3)  # an opacity below EARLY_STOP_EPS is left out of one


# --- Room for samples


def test_room_is_a_margin_over_the_most_of_the_last_renders_and_at_first_all():
    room, most, area = SampleBudget(), 100_000, 4.0
    for number in range(budget.RENDERS):
        assert room.room(most, area) == most  # as long as there are not enough renders to go by
        room.record(torch.tensor(30_000 if number == 3 else 10_000), most, area)
    assert 37_500 <= room.room(most, area) < 37_500 + budget.ROUND
    for _ in range(budget.RENDERS):
        room.record(torch.tensor(10_000), most, area)
    assert 12_500 <= room.room(most, area) < 12_500 + budget.ROUND


def test_room_holds_at_any_resolution_distance_and_field_of_view():
    """A small grid of occupied cells, seen by cameras that differ: there is enough room, and not twice what is found."""
    grid, draws, shares = OccupancyGrid(16, BOUND), generator(), []
    grid.mask[:] = False
    grid.mask[5:11, 6:10, 5:11] = True
    room, size, pieces = SampleBudget(), 16, 32
    for number in range(2 * budget.RENDERS):
        azimuth, distance, fovy = (torch.rand(3, generator=draws) * torch.tensor([360.0, 1.0, 30.0])).tolist()
        camera = Camera(azimuth, 10.0, 1.2 + distance, 40.0 + fovy)
        origins, directions = camera.rays(size * (1 + number % 2))
        bound = origins.new_full((3,), BOUND)
        near, length = volume._ray_intervals(origins, directions, -bound, bound, pieces)
        rays = kernels.Rays(origins, directions, near, length, pieces)
        found, most = reference_samples(rays, shifts(False, rays), grid)[2].sum(), len(origins) * pieces
        if number >= budget.RENDERS:
            shares.append(room.room(most * 1000, camera.visible_area) / (1000 * found.item()))  # without rounding
        room.record(found, most, camera.visible_area)
    assert 1 <= min(shares) and sum(shares) / len(shares) < 2


def test_less_room_gives_the_same_render_as_long_as_it_is_enough(fused, monkeypatch):
    """With a share known, fewer points are evaluated; when the grid fills up, the next render but one has room again."""
    monkeypatch.setattr(budget, "ROUND", 1)
    monkeypatch.setattr(budget, "RENDERS", 1)
    fused(True)
    grid, evaluated = occupancy("random"), []

    def field_fn(points):
        evaluated.append(len(points))
        return torch.full_like(points, 0.5), points[:, 0] + 2.0

    def image():
        return render(field_fn, CAMERA, 16, torch.zeros(3), grid, 24).image

    first, second = image(), image()
    assert torch.equal(first, second) and evaluated[1] < 0.6 * evaluated[0] == 0.6 * 16 * 16 * 24
    grid.mask.fill_(True)
    short, enough = image(), image()
    assert not torch.equal(short, enough)
    assert torch.equal(short[..., :2, :], enough[..., :2, :])  # the first rays have all of their samples


class NoValues(TorchDispatchMode):
    """Refuses operations for whose results the CPU has to wait for a device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "bincount")

    def __torch_dispatch__(self, function, types, arguments=(), values=None):
        name = function.overloadpacket.__name__
        assert not any(waiting in name for waiting in self.WAITING), name
        masks = name.startswith(("index", "_index_put")) and isinstance(arguments[1], list | tuple)
        assert not masks or not any(i is not None and i.dtype == torch.bool for i in arguments[1]), name
        return function(*arguments, **(values or {}))


def test_a_differentiable_render_asks_for_no_value_of_the_device(fused, monkeypatch):
    """The plain code asks which samples are occupied."""
    monkeypatch.setattr(volume, "PRUNE_MIN_SAMPLES", 0)
    fused(True)
    with NoValues():
        render_with_gradients("cpu", "random", True)
    fused(False)
    with pytest.raises(AssertionError, match="nonzero"), NoValues():
        render_with_gradients("cpu", "random", True)


# --- Compiling


TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8"}


def compiling(capability: int, compiled: dict):
    """A stand-in for `launch` that compiles for a GPU, with the types and constants that a launch there has."""

    def launch(kernel, count, each, *arguments, **constants):
        signature, attributes = {name: "constexpr" for name in constants}, {}
        for place, (name, value) in enumerate(zip(kernel.arg_names, arguments)):
            if value is None or (isinstance(value, int) and value == 1):
                signature[name], constants[name] = "constexpr", value
            else:
                signature[name] = {int: "i32", float: "fp32"}.get(type(value)) or TYPES[value.dtype]
            if isinstance(value, Tensor):
                attributes[place,] = [["tt.divisibility", 16]]
        signature = {name: signature[name] for name in kernel.arg_names}
        source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
        target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
        compiled[kernel.fn.__name__] = triton.compile(source, target, {"enable_fp_fusion": False}).asm

    return launch


@pytest.mark.parametrize("capability", [90, pytest.param(120, marks=pytest.mark.slow)])
def test_every_kernel_compiles_for_a_gpu(monkeypatch, tmp_path, capability):
    """As it is launched: with and without gradients to points and tables, by Triton and NVIDIA's assembler."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = {}
    for module in (hash_grid, marching, compositing):
        monkeypatch.setattr(module, "launch", compiling(capability, compiled))
    for features, points in ((2, torch.rand(8, 3)), (3, torch.rand(8, 3, requires_grad=True))):
        grid = HashGrid(16, features, 10, 4, 32, generator())
        tables = [level.table for level in grid.levels]
        kernels.encode(points, tables, grid._pack(tables), grid.layout, hash_grid.BLOCK).sum().backward()
    samples = kernels.march(
        rays_of(6, 256), torch.rand(36, 256), occupancy("random").mask, BOUND, 100, tile=marching.TILE
    )
    rgb, density = torch.rand(100, 3, requires_grad=True), torch.rand(100)
    kernels.visible(density, samples, 1e-3, marching.TILE)
    kernels.composite(rgb, density, samples, marching.TILE).sum().backward()
    functions = [f for module in (hash_grid, marching, compositing) for f in vars(module).values()]
    launched = {f.fn.__name__ for f in functions if isinstance(f, triton.JITFunction) and "count" in f.arg_names}
    assert set(compiled) == launched and all(asm["cubin"] for asm in compiled.values())
