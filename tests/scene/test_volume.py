"""Volume rendering against closed forms, against brute force, and against a ray-cast mesh."""

import math

import numpy as np
import pytest
import torch
import trimesh

from redream.scene import volume
from redream.scene.assets import Asset
from redream.scene.cameras import Camera
from redream.scene.field import Field
from redream.scene.volume import OccupancyGrid, VolumeError, render, volume_weights
from redream.settings import Settings

BOUND = 0.52
CAMERA = Camera(30.0, 20.0, 1.6, 40.0)
BLACK, WHITE = torch.zeros(3), torch.ones(3)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def box(points):
    """Constant density 3 and colour (0.2, 0.4, 0.6) everywhere."""
    return torch.tensor([0.2, 0.4, 0.6]).to(points).expand_as(points), points.new_full(points.shape[:1], 3.0)


def ball(radius: float, density: float = 300.0, centre=(0.0, 0.0, 0.0)):
    """A grey ball of constant density."""

    def field_fn(points):
        inside = (points - torch.tensor(centre).to(points)).norm(dim=-1) < radius
        return torch.full_like(points, 0.5), inside * points.new_tensor(density)

    return field_fn


def pruned(field_fn, resolution: int = 32, updates: int = 3) -> OccupancyGrid:
    grid, draws = OccupancyGrid(resolution, BOUND), generator()
    for _ in range(updates):
        grid.update(lambda points: field_fn(points)[1], draws)
    return grid


def chords(size: int, radius: float) -> torch.Tensor:
    """Length of each ray inside the ball of this radius around the origin."""
    origins, directions = CAMERA.rays(size)
    along = (origins * directions).sum(-1)
    return 2 * (along**2 - origins.square().sum(-1) + radius**2).clamp(min=0).sqrt()


# --- Weights


def test_weights_and_the_final_transmittance_sum_to_one():
    density, length = torch.rand(20, 16, generator=generator()) * 9, torch.rand(20, 1, generator=generator())
    weights, transmittance = volume_weights(density, length)
    left = torch.exp(-(density * length).sum(-1))
    assert torch.allclose(weights.sum(-1) + left, torch.ones(20), atol=1e-6)
    assert torch.equal(transmittance[:, 0], torch.ones(20))


def test_weights_equal_those_of_nerfacc():
    nerfacc = pytest.importorskip("nerfacc")
    density, length = torch.rand(20, 16, generator=generator()) * 9, torch.rand(20, 1, generator=generator())
    starts = torch.arange(16) * length
    theirs, transmittance, _ = nerfacc.render_weight_from_density(starts, starts + length, density)
    mine = volume_weights(density, length)
    assert torch.allclose(mine[0], theirs, atol=1e-6) and torch.allclose(mine[1], transmittance, atol=1e-6)


# --- Closed forms


def test_a_constant_box_absorbs_by_the_length_of_the_ray_inside_it():
    """Head-on, the middle ray crosses 2·bound of density 3: opacity = 1 − exp(−3 · 1.04), whatever the samples."""
    for samples in (1, 7):
        rendering = render(box, Camera(0.0, 0.0, 1.6, 40.0), 33, BLACK, OccupancyGrid(4, BOUND), samples)
        opacity = 1 - math.exp(-3 * 2 * BOUND)
        assert rendering.opacity[0, 0, 16, 16].item() == pytest.approx(opacity, abs=1e-5)
        assert rendering.image[0, :, 16, 16].tolist() == pytest.approx([opacity * c for c in (0.2, 0.4, 0.6)], abs=1e-5)


def test_a_constant_ball_converges_to_its_integral_at_first_order_in_the_samples():
    """opacity = 1 − exp(−σ · chord); the error is from two pieces cut by the surface, so it falls as 1/samples."""
    exact = 1 - torch.exp(-4 * chords(32, 0.4))
    errors = []
    for samples in (16, 64, 256):
        rendering = render(ball(0.4, 4.0), CAMERA, 32, BLACK, OccupancyGrid(4, BOUND), samples)
        errors.append((rendering.opacity.flatten() - exact).abs().mean().item())
    slope = np.polyfit(np.log([16, 64, 256]), np.log(errors), 1)[0]
    assert -1.2 < slope < -0.8 and errors[-1] < 0.005


def test_depth_of_a_solid_ball_is_the_distance_to_its_surface():
    rendering = render(ball(0.4), CAMERA, 33, BLACK, OccupancyGrid(8, BOUND), 256)
    assert rendering.depth[0, 0, 16, 16].item() == pytest.approx(1.6 - 0.4, abs=0.01)
    assert rendering.depth[0, 0, 0, 0] == 0


def test_jittered_images_average_to_the_exact_one():
    """With one uniform sample in each piece, the expected optical depth is the exact one."""
    draws, grid = generator(), OccupancyGrid(4, BOUND)
    field_fn = ball(0.4, 0.1)  # so thin that opacity is linear in optical depth
    mean = sum(render(field_fn, CAMERA, 16, BLACK, grid, 8, generator=draws).opacity for _ in range(200)) / 200
    exact = 1 - torch.exp(-0.1 * chords(16, 0.4))
    assert (mean.flatten() - exact).abs().mean() < 3e-4


def test_empty_space_shows_the_background_and_solid_objects_hide_it():
    background = torch.tensor([0.1, 0.5, 0.9])
    empty = render(ball(0.0), CAMERA, 8, background, OccupancyGrid(4, BOUND), 16)
    assert torch.allclose(empty.image, background[None, :, None, None].expand(1, 3, 8, 8)) and not empty.opacity.any()
    on_white, on_black = (render(ball(0.4), CAMERA, 17, b, OccupancyGrid(4, BOUND), 64) for b in (WHITE, BLACK))
    assert torch.allclose(on_white.image[..., 8, 8], on_black.image[..., 8, 8], atol=1e-5)


# --- Gradients


def test_gradients_with_respect_to_colour_and_density_equal_finite_differences():
    """A field of eight trilinear knots in double precision; densities around 2, so that nothing is hidden."""
    grid = OccupancyGrid(2, BOUND).double()
    knots = torch.rand(1, 4, 2, 2, 2, generator=generator(), dtype=torch.float64, requires_grad=True)

    def picture(knots):
        def field_fn(points):
            values = torch.nn.functional.grid_sample(knots, points[None, None, None] / BOUND, align_corners=True)
            return values[0, :3, 0, 0].T, values[0, 3, 0, 0] * 4

        rendering = render(field_fn, CAMERA, 3, WHITE, grid, 6)
        return rendering.image, rendering.opacity, rendering.depth

    assert torch.autograd.gradcheck(picture, (knots,))


def test_leaving_out_hidden_samples_changes_neither_image_nor_gradient(monkeypatch):
    """A dense ball hides its inside; one number scales all densities and colours."""
    monkeypatch.setattr(volume, "PRUNE_MIN_SAMPLES", 0)
    grid, scale = OccupancyGrid(8, BOUND), torch.ones((), requires_grad=True)
    counts = []

    def field_fn(points):
        counts.append(len(points))
        density = ball(0.45, 60.0)(points)[1]
        return (points + 0.5).clamp(0, 1) * scale, density * scale

    with torch.no_grad():
        whole = render(field_fn, CAMERA, 24, WHITE, grid, 64)
    counts.clear()
    rendering = render(field_fn, CAMERA, 24, WHITE, grid, 64)
    assert counts[1] < 0.8 * counts[0]  # the pass that is differentiated is smaller
    assert torch.allclose(rendering.image, whole.image, atol=2e-3)

    step = 1e-2
    slope = torch.autograd.grad(rendering.image.mean(), scale)[0].item()
    with torch.no_grad():
        scale += step
        above = render(field_fn, CAMERA, 24, WHITE, grid, 64).image.mean()
        scale -= 2 * step
        below = render(field_fn, CAMERA, 24, WHITE, grid, 64).image.mean()
    assert slope == pytest.approx(((above - below) / (2 * step)).item(), rel=1e-2)


def test_a_transparent_sample_in_front_still_has_a_gradient(monkeypatch):
    """Zero density has zero weight but can grow: the red fog in front of nothing must get a gradient towards red."""
    monkeypatch.setattr(volume, "PRUNE_MIN_SAMPLES", 0)
    fog = torch.zeros((), requires_grad=True)
    red = torch.tensor([1.0, 0.0, 0.0])
    rendering = render(lambda p: (red.expand_as(p), fog.expand(len(p))), CAMERA, 8, BLACK, OccupancyGrid(4, BOUND), 8)
    (gradient,) = torch.autograd.grad(rendering.image.sum(), fog)
    assert gradient > 0


# --- Packing, pruning, chunks


def test_packed_rendering_equals_brute_force_over_all_samples():
    field, size, samples = Field(Settings(field={"hidden": 8, "log2_table": 12}), generator()), 12, 20
    origins, directions = CAMERA.rays(size)
    ends = torch.stack([(-BOUND - origins) / directions, (BOUND - origins) / directions])
    near, far = ends.amin(0).amax(-1), ends.amax(0).amin(-1)
    expected = torch.ones(3, size * size)
    for i in range(size * size):
        if near[i] >= far[i]:
            continue
        length = (far[i] - near[i]) / samples
        at = near[i] + (torch.arange(samples) + 0.5) * length
        rgb, density = field(origins[i] + at[:, None] * directions[i])
        transmittance, colour = 1.0, torch.zeros(3)
        for c, d in zip(rgb.detach(), density.detach().tolist(), strict=True):
            alpha = 1 - math.exp(-d * length)
            colour, transmittance = colour + transmittance * alpha * c, transmittance * (1 - alpha)
        expected[:, i] = colour + transmittance
    with torch.no_grad():
        rendering = render(field, CAMERA, size, WHITE, OccupancyGrid(16, BOUND), samples)
    assert torch.allclose(rendering.image, expected.view(1, 3, size, size), atol=1e-5)


def test_the_occupancy_grid_changes_only_the_number_of_points_queried():
    field_fn, counts = ball(0.25, 30.0, (0.1, -0.1, 0.05)), []

    def counted(points):
        counts.append(len(points))
        return field_fn(points)

    whole = render(counted, CAMERA, 32, WHITE, OccupancyGrid(32, BOUND), 48)
    queried, grid = counts[0], pruned(field_fn)
    counts.clear()
    rendering = render(counted, CAMERA, 32, WHITE, grid, 48)
    assert torch.equal(rendering.image, whole.image) and counts[0] < 0.2 * queried


def test_chunks_of_any_size_give_the_same_image():
    whole, parts = (render(ball(0.4, 5.0), CAMERA, 15, WHITE, OccupancyGrid(4, BOUND), 16, None, n) for n in (None, 37))
    for name in ("image", "opacity", "depth"):
        assert torch.allclose(getattr(whole, name), getattr(parts, name), atol=1e-6)


def test_a_grid_with_nothing_in_it_renders_the_background_and_can_be_differentiated():
    grid = OccupancyGrid(4, BOUND)
    grid.mask.fill_(False)
    scale = torch.ones((), requires_grad=True)
    rendering = render(lambda p: (p * scale, p[:, 0] * scale), CAMERA, 8, WHITE, grid, 8)
    assert torch.equal(rendering.image, torch.ones(1, 3, 8, 8))
    rendering.image.sum().backward()


# --- Geometry


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_turning_camera_and_object_together_changes_nothing(turn):
    radians, here = math.radians(turn), torch.tensor([0.2, 0.1, 0.05])
    there = (
        here[0] * math.cos(radians) - here[1] * math.sin(radians),
        here[0] * math.sin(radians) + here[1] * math.cos(radians),
        here[2],
    )
    grid = OccupancyGrid(4, BOUND)
    before = render(ball(0.2, 10.0, tuple(here.tolist())), Camera(15.0, 20.0, 1.6, 40.0), 24, WHITE, grid, 32)
    after = render(
        ball(0.2, 10.0, tuple(float(c) for c in there)), Camera(15.0 + turn, 20.0, 1.6, 40.0), 24, WHITE, grid, 32
    )
    assert (before.image - after.image).abs().mean() < 2e-3


def test_an_object_on_the_cameras_left_appears_on_the_left_and_one_above_on_top():
    """From azimuth 0 (on +x) the picture's right is +y."""
    grid, camera = OccupancyGrid(4, BOUND), Camera(0.0, 0.0, 1.6, 40.0)
    left = render(ball(0.1, 100.0, (0.0, -0.3, 0.0)), camera, 20, BLACK, grid, 32).opacity[0, 0]
    top = render(ball(0.1, 100.0, (0.0, 0.0, 0.3)), camera, 20, BLACK, grid, 32).opacity[0, 0]
    assert left[:, :10].sum() > 0 and left[:, 10:].sum() == 0
    assert top[:10].sum() > 0 and top[10:].sum() == 0


@pytest.mark.parametrize("azimuth, elevation", [(0.0, 0.0), (125.0, 30.0), (-60.0, -5.0)])
def test_a_mesh_and_a_field_of_the_same_shape_agree_in_silhouette(azimuth, elevation):
    """An off-centre ball, as a mesh and as a field, through one camera."""
    centre, camera = (0.1, 0.15, -0.1), Camera(azimuth, elevation, 1.6, 40.0)
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=0.3)
    mesh.apply_translation(centre)
    asset = Asset(mesh, np.full((len(mesh.vertices), 3), 0.5, np.float32))
    theirs = asset.render(camera, 64, WHITE)[1] > 0.5
    mine = render(ball(0.3, 300.0, centre), camera, 64, WHITE, OccupancyGrid(16, BOUND), 128).opacity > 0.5
    assert (mine & theirs).sum() / (mine | theirs).sum() > 0.97


# --- The occupancy grid


def test_everything_in_the_box_is_occupied_at_the_start_and_nothing_outside():
    grid = OccupancyGrid(8, BOUND)
    assert grid.occupied((torch.rand(100, 3, generator=generator()) * 2 - 1) * BOUND).all()
    assert not grid.occupied(torch.tensor([[0.6, 0, 0], [0, -0.6, 0], [0, 0, 0.53]])).any()


def test_a_known_solid_is_never_pruned_and_distant_empty_space_is():
    field_fn = ball(0.3, 20.0, (0.1, 0.0, -0.1))
    grid = pruned(field_fn, updates=40)
    points = (torch.rand(20_000, 3, generator=generator()) * 2 - 1) * BOUND
    solid = field_fn(points)[1] > 0
    assert grid.occupied(points[solid]).all()
    distant = (points - torch.tensor([0.1, 0.0, -0.1])).norm(dim=-1) > 0.3 + 4 * 2 * BOUND / 32
    assert not grid.occupied(points[distant]).any()


def test_a_layer_of_empty_cells_around_the_object_stays_occupied():
    """Density 20 in the middle cell of 9³ only: its 27 neighbours and itself remain."""
    grid = pruned(lambda p: (p, 20.0 * (p.abs().amax(-1) < BOUND / 9)), resolution=9)
    assert grid.mask.sum() == 27 and grid.mask[3:6, 3:6, 3:6].all()


def test_emptied_cells_are_pruned_after_some_updates_and_filled_ones_return_at_once():
    grid, draws = OccupancyGrid(16, BOUND), generator()
    here, gone = ball(0.15, 20.0, (0.3, 0, 0)), ball(0.15, 20.0, (-0.3, 0, 0))
    at_here, at_gone = torch.tensor([[0.3, 0, 0]]), torch.tensor([[-0.3, 0, 0]])
    for _ in range(2):
        grid.update(lambda p: here(p)[1] + gone(p)[1], draws)
    assert grid.occupied(torch.cat([at_here, at_gone])).all()
    for _ in range(60):
        grid.update(lambda p: here(p)[1], draws)
    assert grid.occupied(at_here) and not grid.occupied(at_gone)
    grid.update(lambda p: gone(p)[1], draws)
    assert grid.occupied(at_gone)


def test_a_faint_field_is_not_pruned_altogether():
    """Density 1e-3 everywhere is far below the threshold, but it is all there is."""
    grid = pruned(lambda p: (p, 1e-3 * (1 + p[:, 0])), updates=2)
    assert 0.2 < grid.mask.float().mean()


def test_large_grids_keep_cells_that_were_not_sampled():
    grid, queried = OccupancyGrid(65, BOUND), []

    def empty(points):
        queried.append(len(points))
        return torch.zeros(len(points))

    grid.update(empty, generator())
    assert sum(queried) == 65**3 // 2
    assert (grid.density < 0).sum() == 65**3 - 65**3 // 2 and grid.mask[grid.density < 0].all()


def test_a_saved_grid_is_restored():
    grid, other = pruned(ball(0.2)), OccupancyGrid(32, BOUND)
    other.load_state_dict(grid.state_dict())
    assert torch.equal(grid.mask, other.mask) and not other.mask.all()


def test_impossible_numbers_are_refused():
    for arguments in ((0, 8), (8, 0), (8, 8, None, 0)):
        size, *rest = arguments
        with pytest.raises(VolumeError):
            render(box, CAMERA, size, WHITE, OccupancyGrid(4, BOUND), *rest)
    with pytest.raises(VolumeError):
        OccupancyGrid(0, BOUND)
