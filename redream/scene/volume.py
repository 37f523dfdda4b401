"""Volume rendering of a field from a camera, with an occupancy grid that skips empty space.

The field is any function of points to colour and density: the renderer imports no network. Where the fused kernels run,
they list and add up the samples (`_render_rays_fused`), with the same results.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from redream.errors import RedreamError
from redream.scene import kernels
from redream.scene.budget import SampleBudget
from redream.scene.cameras import Camera

# points (n, 3) in world units → RGB (n, 3) in [0, 1], density (n,) ≥ 0 per world unit
FieldFunction = Callable[[Tensor], tuple[Tensor, Tensor]]
DensityFunction = Callable[[Tensor], Tensor]

EARLY_STOP_EPS = 1e-3  # samples of less transmittance than this need no gradient
PRUNE_MIN_SAMPLES = 2**18  # from so many samples on it pays to find the hidden ones first
SLAB = 24  # samples of a ray that are evaluated at once without gradients
LARGE = 64**3  # occupancy grids with more cells than this are updated by halves
POINTS_PER_CHUNK = 2**18  # where only densities are evaluated, without gradients
FUSED_CHUNK = 2**20  # samples whose activations are kept at once where kernels are fused


class VolumeError(RedreamError):
    """Numbers that make no rendering; the message says what to change."""


@dataclass(frozen=True)
class Rendering:
    """A view of a field, differentiable with respect to the field."""

    image: Float[Tensor, "1 3 h w"]  # over the background, in [0, 1]
    opacity: Float[Tensor, "1 1 h w"]  # in [0, 1]
    depth: Float[Tensor, "1 1 h w"]  # mean distance from the camera, weighted by opacity; 0 where nothing is opaque


class OccupancyGrid(nn.Module):
    """Which cells of the box [−bound, bound]³ are occupied. All are at the start.

    Each cell keeps a decaying maximum of the densities sampled in it (Instant-NGP, appendix C). It is occupied
    if a step of one cell at that density absorbs enough, or if a neighbour does: at least one layer of empty
    cells around the object stays rendered, so that its surface can grow.
    """

    def __init__(self, resolution: int, bound: float) -> None:
        super().__init__()
        if resolution < 1 or bound <= 0:
            raise VolumeError("An occupancy grid needs a resolution of at least 1 and a positive bound.")
        self.resolution, self.bound = resolution, bound
        self.register_buffer(
            "density", torch.full((resolution,) * 3, -1.0)
        )  # (r, r, r) by x, y, z; −1: not sampled yet
        self.register_buffer("mask", torch.ones((resolution,) * 3, dtype=torch.bool))
        self.occupied_budget, self.visible_budget = SampleBudget(), SampleBudget()  # of fused rendering

    @torch.no_grad()
    def update(
        self,
        density_fn: DensityFunction,
        generator: torch.Generator,
        *,
        decay: float = 0.9,
        threshold: float = 0.01,
    ) -> None:
        """Sample one random point of each cell (of a random half of a large grid's cells); call it every few iterations.

            d ← max(decay · d, density(point)),    occupied: d · edge > min(threshold, mean of d · edge)

        `edge` is a cell's, in world units. The mean keeps a faint field from vanishing altogether. `decay` is lower
        than Instant-NGP's 0.95, as our runs are hundreds of steps rather than tens of thousands.
        """
        count, device = self.mask.numel(), self.density.device
        cells = torch.arange(count, device=device)  # (m,)
        if count > LARGE:
            cells = torch.randperm(count, generator=generator, device=generator.device)[: count // 2].to(device)
        side = self.resolution
        corners = torch.stack([cells // side**2, cells // side % side, cells % side], dim=-1)  # (m, 3) x, y, z
        jitter = torch.rand(len(cells), 3, generator=generator, device=generator.device).to(self.density)
        points = ((corners + jitter) / self.resolution * 2 - 1) * self.bound  # (m, 3)
        sampled = _densities(density_fn, points)  # (m,)

        density = self.density.view(-1)
        density[cells] = torch.maximum(density[cells] * decay, sampled)
        absorbed = self.density * (2 * self.bound / self.resolution)  # (r, r, r), negative: not sampled yet
        solid = (absorbed > absorbed.clamp(min=0).mean().clamp(max=threshold)) | (absorbed < 0)
        self.mask = nn.functional.max_pool3d(solid[None].float(), 3, stride=1, padding=1)[0] > 0

    def box(self) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
        """Lower and upper corner (world units) of the smallest box that holds all occupied cells."""
        edge = 2 * self.bound / self.resolution
        ends = []
        for axes in ((1, 2), (0, 2), (0, 1)):
            filled = self.mask.any(dim=axes[1]).any(dim=axes[0]).nonzero()[:, 0]
            ends.append((filled[0], filled[-1] + 1) if len(filled) else (0, 0))
        low, high = (self.density.new_tensor([float(e[i]) for e in ends]) * edge - self.bound for i in range(2))
        return low, high

    def occupied(self, points: Float[Tensor, "n 3"]) -> Bool[Tensor, "n"]:
        """Whether each point (world units) is in an occupied cell; outside the box nothing is."""
        cell = (points + self.bound) * (self.resolution / (2 * self.bound))  # (n, 3), in cells
        inside = ((cell >= 0) & (cell <= self.resolution)).all(dim=-1)  # (n,)
        x, y, z = cell.long().clamp_(0, self.resolution - 1).unbind(-1)
        return self.mask[x, y, z] & inside


def render(
    field_fn: FieldFunction,
    camera: Camera,
    size: int,
    background: Float[Tensor, "3"],
    grid: OccupancyGrid,
    samples_per_ray: int,
    generator: torch.Generator | None = None,
    rays_per_chunk: int | None = None,
) -> Rendering:
    """The field from a camera, `size` × `size` pixels, one ray a pixel, on the grid's device and in its precision.

    Each ray is cut into `samples_per_ray` equal pieces between where it enters and leaves the grid's box, and the
    field asked once in each piece that lies in an occupied cell: in its middle, or at random with a generator.
    `rays_per_chunk` bounds the memory of large images. `VolumeError` if a number is not positive.
    """
    if min(size, samples_per_ray, 1 if rays_per_chunk is None else rays_per_chunk) < 1:
        raise VolumeError("The image size, the samples per ray and the rays per chunk must be at least 1.")
    origins, directions = (rays.to(grid.density) for rays in camera.rays(size, device=grid.density.device))  # (n, 3)
    chunk = rays_per_chunk or len(origins)
    fused = grid.density.dtype == torch.float32 and not kernels.unavailable(grid.density.device)
    render_rays = functools.partial(_render_rays_fused, area=camera.visible_area) if fused else _render_rays
    bound, chunks = origins.new_full((3,), grid.bound), []
    for o, d in zip(origins.split(chunk), directions.split(chunk), strict=True):
        rays = kernels.Rays(o, d, *_ray_intervals(o, d, -bound, bound, samples_per_ray), samples_per_ray)
        chunks.append(render_rays(field_fn, rays, _jitter(rays, generator), grid))
    pixels = torch.cat(chunks)  # (n, 5)
    rgb, opacity, distance = pixels.T.reshape(1, 5, size, size).split([3, 1, 1], dim=1)
    depth = distance / opacity.clamp(min=1e-6)
    return Rendering(rgb + (1 - opacity) * background.to(rgb, non_blocking=True)[None, :, None, None], opacity, depth)


def volume_weights(
    density: Float[Tensor, "n s"], length: Float[Tensor, "n 1"]
) -> tuple[Float[Tensor, "n s"], Float[Tensor, "n s"]]:
    """Each sample's weight in its ray's colour, and the transmittance in front of it (Max 1995; NeRF, Eq. 3).

        T_i = exp(−Σ_{j<i} σ_j δ),    w_i = T_i (1 − exp(−σ_i δ))

    δ = `length` is that of a ray's pieces, in world units. Returns (w, T), both in [0, 1].
    """
    optical = density * length  # (n, s) σδ
    transmittance = torch.exp(optical - optical.cumsum(dim=-1))  # (n, s) T
    return transmittance * -torch.expm1(-optical), transmittance


def _render_rays(
    field_fn: FieldFunction, rays: kernels.Rays, shift: Float[Tensor, "#n #s"], grid: OccupancyGrid
) -> Float[Tensor, "n 5"]:
    """RGB on black, opacity, and distance times opacity of rays; `shift`: where in its piece each sample lies, in [0, 1).

    Without gradients samples are taken slab by slab, front to back, and a ray stops early where its transmittance ends;
    with gradients all at once, because a sample behind the surface may have to learn that it is in the way.
    """
    origins, directions, near, length, samples = rays.origins, rays.directions, rays.near, rays.length, rays.pieces
    place = near + (torch.arange(samples, device=near.device) + shift) * length  # (n, s) distances along the rays
    low, high = grid.box()
    alive = (_ray_intervals(origins, directions, low, high, 1)[1] > 0).flatten().nonzero()[:, 0]  # (a,) rays that go on
    transmittance = torch.ones_like(near)  # (n, 1) T
    pixels = near.new_zeros(len(near), 5)
    slab = samples if torch.is_grad_enabled() else SLAB
    for distance in place.split(slab, dim=1):  # (n, slab)
        slab_pixels = _render_slab(
            field_fn, origins[alive], directions[alive], distance[alive], length[alive], grid
        )  # (a, 5)
        pixels = pixels.index_add(0, alive, transmittance[alive] * slab_pixels)
        if slab < samples:
            transmittance = transmittance.index_copy(0, alive, transmittance[alive] * (1 - slab_pixels[:, 3:4]))
            alive = alive[transmittance[alive, 0] > EARLY_STOP_EPS]
            if not len(alive):
                break
    return pixels


def _render_slab(
    field_fn: FieldFunction, origins: Tensor, directions: Tensor, distance: Tensor, length: Tensor, grid: OccupancyGrid
) -> Float[Tensor, "n 5"]:
    """RGB on black, opacity, and distance times opacity, of samples (n, s) with full transmittance in front of them.

    Only samples in occupied cells are evaluated, packed in a list.
    """
    samples = distance.shape[1]
    points = (origins[:, None] + distance[:, :, None] * directions[:, None]).reshape(-1, 3)  # (n · s, 3)
    kept = grid.occupied(points).nonzero()[:, 0]  # (k,)
    if torch.is_grad_enabled() and len(kept) > PRUNE_MIN_SAMPLES:
        # A first pass spares the graph what is hidden: the gradient of its colour and density is at most
        # EARLY_STOP_EPS of what it would be unhidden. (A visible sample that absorbs nothing stays: its gradient makes it
        # grow.) For fewer samples a second look at the field costs as much time as it saves.
        with torch.no_grad():
            density = _densities(lambda p: field_fn(p)[1], points[kept])
            transmittance = volume_weights(_unpacked(density, kept, distance), length)[1]  # (n, s)
        kept = kept[transmittance.flatten()[kept] > EARLY_STOP_EPS]

    rgb, density = field_fn(points[kept])  # (k, 3), (k,)
    weights = volume_weights(_unpacked(density, kept, distance), length)[0]  # (n, s)
    colour = weights.flatten()[kept, None] * rgb  # (k, 3)
    colour = colour.new_zeros(len(origins), 3).index_add(0, kept // samples, colour)  # (n, 3)
    opacity = weights.sum(dim=-1, keepdim=True)  # (n, 1)
    return torch.cat([colour, opacity, (weights * distance).sum(dim=-1, keepdim=True)], dim=-1)


def _unpacked(packed: Float[Tensor, "k"], kept: Tensor, like: Float[Tensor, "n s"]) -> Float[Tensor, "n s"]:
    """The values of the samples that were kept, by their places among all; 0 elsewhere."""
    return packed.new_zeros(like.numel()).scatter(0, kept, packed).view_as(like)


def _render_rays_fused(
    field_fn: FieldFunction, rays: kernels.Rays, shift: Float[Tensor, "#n #s"], grid: OccupancyGrid, area: float
) -> Float[Tensor, "n 5"]:
    """What `_render_rays` returns, by the fused kernels; `area`: a camera's `visible_area`.

    With gradients nothing waits for the device. Without them the samples are counted, which waits, and all of them are
    evaluated: to stop early would be to wait after every slab.

    Memory, besides the field's: 20 bytes for each sample that there is room for, 48 for each visible one, about 1.2 KB
    for each of a chunk (of `sd21`'s field), and 4 for each number of jitter.
    """
    march = functools.partial(kernels.march, rays, shift, grid.mask, grid.bound)
    if torch.is_grad_enabled():
        listed = _differentiable_samples(field_fn, grid, march, len(rays.near) * rays.pieces, area)
    else:
        listed = march()
    rgb, density = _evaluate(field_fn, listed.points)  # (k, 3), (k,)
    return kernels.composite(rgb, density, listed)


def _differentiable_samples(
    field_fn: FieldFunction, grid: OccupancyGrid, march: Callable[..., kernels.Samples], most: int, area: float
) -> kernels.Samples:
    """The samples that a gradient goes to, of at most `most`: hidden ones are left out as in `_render_slab`."""
    room = grid.occupied_budget.room(most, area)
    occupied = march(room)
    grid.occupied_budget.record(occupied.found, most, area)
    if room <= PRUNE_MIN_SAMPLES:
        return occupied
    with torch.no_grad():
        (density,) = _evaluate(lambda points: field_fn(points)[1:], occupied.points)
    seen = kernels.visible(density, occupied, EARLY_STOP_EPS)  # (n,)
    visible = march(min(grid.visible_budget.room(most, area), room), seen)
    grid.visible_budget.record(visible.found, most, area)
    return visible


def _evaluate(function: Callable[[Tensor], tuple[Tensor, ...]], points: Float[Tensor, "n 3"]) -> list[Tensor]:
    """A function of many points, a chunk at a time, in the points' precision.

    With gradients the activations of one chunk at a time are kept: the backward pass computes them again.
    """
    chunks = points.split(FUSED_CHUNK)
    if torch.is_grad_enabled() and len(chunks) > 1:
        function = functools.partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
    return [torch.cat(parts).to(points) for parts in zip(*map(function, chunks), strict=True)]


def _densities(density_fn: DensityFunction, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
    """Densities of many points, a chunk at a time: to be called without gradients."""
    return torch.cat([density_fn(chunk) for chunk in points.split(POINTS_PER_CHUNK)]).to(points)


def _ray_intervals(
    origins: Tensor, directions: Tensor, low: Tensor, high: Tensor, samples: int
) -> tuple[Tensor, Tensor]:
    """Distance at which rays enter the box from `low` to `high`, and the length of one piece inside: 0 for a miss."""
    ends = torch.stack([(low - origins) / directions, (high - origins) / directions])  # (2, n, 3)
    near = ends.amin(dim=0).amax(dim=-1, keepdim=True).clamp(min=0)  # (n, 1)
    far = ends.amax(dim=0).amin(dim=-1, keepdim=True)  # (n, 1)
    return near, (far - near).clamp(min=0) / samples


def _jitter(rays: kernels.Rays, generator: torch.Generator | None) -> Float[Tensor, "#n #s"]:
    """Where in its piece each sample lies, in [0, 1): drawn, or the middle."""
    if generator is None:
        return rays.near.new_full((1, 1), 0.5)
    return torch.rand(len(rays.near), rays.pieces, generator=generator, device=generator.device).to(rays.near)
