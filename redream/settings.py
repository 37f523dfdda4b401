"""Every number of a run in one frozen dataclass; presets are its instances, one for each method; it is saved with every run.

Schedules are fractions of a particle's iterations, so a shorter run is the same run in small.
Sources of the numbers: METHOD.md ("A": ReDream appendix A; "PD": ProlificDreamer; "3S": threestudio; "ours": measured).
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Method = Literal["redream", "vsd", "sds"]

PROMPT_LIMIT = 300  # characters
MAX_PARTICLES = 8
MAX_ITERATIONS = 50_000
MAX_ASSETS = 3
MAX_WAITING = 20  # runs that may wait for their turn on one device

SIGNED = ("elevation_deg", "score_elevation_deg", "density_scale")  # may be below 0
# These may not be 0 either.
POSITIVE = """
    iterations particles assets asset_views asset_steps asset_sigma bound distance fovy_deg levels features log2_table
    base_resolution max_resolution hidden density_radius occupancy_resolution samples_per_ray learning_rate_end
    variational_rank adaptation_steps adaptation_batch adaptation_rank adaptation_t_power score_fovy_deg score_distance
    turntable_frames turntable_size turntable_rays mesh_resolution mesh_faces preview_every checkpoint_every
""".split()  # noqa: SIM905


class SettingsError(ValueError):
    """A setting out of its range; the message says which and what is allowed."""


@dataclass(frozen=True)
class Settings:
    """One run. Degrees for angles, world units for lengths, fractions of a particle's iterations for schedules."""

    # What is made
    method: Method = "redream"
    initialise: bool = True  # start from the retrieved assets (Eq. 3)
    adapt: bool = True  # teach the prior their views (Eq. 5)
    particles: int = 1  # objects at once, 1 to 8
    iterations: int = 300  # per particle
    seed: int = 0
    prefix_learned: bool = True  # False: the view prefixes stay the words they start from (fig. 14a)

    # Retrieval and assets
    assets: int = 3  # N
    candidates: int = 12  # N′ > N, nearest captions before re-ranking by image
    asset_views: int = 100  # stored renders per asset (A)

    # Cameras: those the prior's training pictures had
    elevation_deg: tuple[float, float] = (-5.0, 35.0)
    distance: tuple[float, float] = (1.45, 1.8)
    fovy_deg: tuple[float, float] = (38.0, 44.0)

    # Field and rendering
    bound: float = 0.52  # the field's box is [−bound, bound]³
    levels: int = 4
    features: int = 4
    log2_table: int = 17
    base_resolution: int = 16
    max_resolution: int = 96
    hidden: int = 32
    density_scale: float = 10.0  # λ of λ(1 − ‖μ‖/r) (PD 4.2)
    density_radius: float = 0.5  # r
    occupancy_resolution: int = 48
    samples_per_ray: int = 48
    render_size: tuple[tuple[float, int], ...] = ((0.0, 64),)  # (from this fraction on, pixels)

    # Distillation
    guidance: float = 15.0  # s of classifier-free guidance for VSD and ReDream (PD: 7.5; ours, see asset_steps)
    guidance_sds: float = 100.0  # and for SDS
    latent_weights: bool = True  # weigh the score gradient's channels by `Prior.latent_weights` (ours)
    t_min: float = 0.1  # ours: chosen together with learning_rate_end, not isolated yet; PD: 0.02
    t_max: tuple[float, float] = (0.7, 0.5)  # before and after the anneal; PD: 0.98 and 0.5 (as for t_min)
    t_anneal: float = 0.20  # the anneal's fraction (PD: 5k of 25k)
    learning_rate_grid: float = 0.1  # ours: 27.6 dB to the asset after 80 warm-up steps, against 18.6 with PD's 0.01
    learning_rate_network: float = 0.01
    learning_rate_end: float = 0.003  # what is left of both at the end; exponential (ours)
    # Painting's rates are multiplied by (d / this)², d = (RMS of the score gradient) / s in the mean over the latest
    # views (ours; 0: not). From the same starts, half of them of other colours, CLIP a of eight prompts .784 instead of
    # .778, CLIP b .833 .833.
    score_rms_reference: float = 0.031
    epsilon: float = 0.1  # AdamW's ε over the RMS of √v in each table (ours); 0: PD's 1e-15, with floaters and speckles
    learning_rate_variational: float = 0.0001
    variational_rank: int = 4
    warmup: float = 0.3  # τ
    # Ours: with 4 steps instead of one over 4 views a frog is 32.7 dB from its asset after τ instead of 25.0, and on five
    # prompts A-LPIPS a is .0034 off the truth's instead of .0077, CLIP a .766 instead of .779, CLIP b .802 instead of
    # .801; then with guidance 15 for 7.5, learning_rate_end .003 for .01 and latent_weights .0035, .777 and .811.
    asset_steps: int = 4  # steps of Eq. 3 an iteration, each from a camera of its own, the first together with v_2D
    asset_sigma: float = 0.004  # σ of Eq. 3
    asset_opacity_weight: float = 1.0  # ours: matches opacity besides colour
    # From this share of the warm-up on, Eq. 3's colours have the second number as their weight (ours; 1: to the end). Of
    # four prompts, three of other colours than their assets, CLIP a .784 to the end, .789 until .6, .792 until .4.
    asset_colour_until: float = 0.4
    asset_colour_after: float = 0.02
    delta_weight: float = 0.3  # delta denoising (B)
    delta_every: int = 3  # 0: never
    sparsity: float = 0.0  # weight of mean opacity (3S)
    opaque: float = 500.0  # weight of the entropy of opacity (3S: 1000), after t_anneal

    # Adaptation (Eq. 5). Both rates fall linearly to zero. Ours, chosen together on five prompts by the views obeyed
    # (side .68 after 280 steps at 1e-2 and p = 4, .82 after 400 at 6e-3 and p = 3).
    adaptation_steps: int = 400  # all of them before τ, interleaved with the warm-up
    adaptation_batch: int = 8
    adaptation_rank: int = 16
    adaptation_learning_rate: float = 6e-3
    prefix_learning_rate: float = 5e-2
    adaptation_t_power: float = 3.0  # p of t = T u^(1/p); 1: the paper's U(0, T)
    adaptation_empty: float = 0.1  # share of empty prompts
    # Share of ω in the score gradient (ours; the paper: 1). What ω learns of views an initialised particle has already,
    # but it repeats its assets' colours: CLIP a of ten prompts .768 with 1, .780 with 0.25 (the true objects: .777).
    adaptation_scale: float = 0.25

    # What comes out
    score_elevation_deg: float = 15.0
    score_fovy_deg: float = 40.0
    score_distance: float = 1.6
    turntable_frames: int = 120
    turntable_size: int = 256  # pixels
    turntable_rays: int = 128  # rays along a side; the picture is enlarged to its size where there are fewer
    mesh_resolution: int = 96
    mesh_faces: int = 20_000
    preview_every: int = 10  # iterations; before the first of them also the powers of two
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        checks = {name: all(map(math.isfinite, _numbers(value))) for name, value in vars(self).items()}
        checks |= {name: checks[name] and min(_numbers(getattr(self, name))) > 0 for name in POSITIVE}
        for name in set(checks).difference(SIGNED, POSITIVE):
            checks[name] = checks[name] and min(_numbers(getattr(self, name)), default=0) >= 0
        checks["render_size"] = checks["render_size"] and all(pixels > 0 for _, pixels in self.render_size)
        ranges = {
            "method": self.method in ("redream", "vsd", "sds"),
            "particles": self.particles <= MAX_PARTICLES,
            "iterations": self.iterations <= MAX_ITERATIONS,
            "assets": self.assets <= MAX_ASSETS,
            "candidates": self.candidates >= self.assets,
            "seed": self.seed < 2**31,
            "guidance": self.guidance <= 200,
            "guidance_sds": self.guidance_sds <= 200,
            "warmup": self.warmup <= 1,
            "t_min": self.t_min < min(self.t_max),
            "t_max": max(self.t_max) <= 1,
            "t_anneal": self.t_anneal <= 1,
            "asset_colour_until": self.asset_colour_until <= 1,
            "adaptation_scale": self.adaptation_scale <= 1,
            "adaptation_empty": self.adaptation_empty <= 1,
            "render_size": bool(self.render_size) and self.render_size[0][0] == 0.0,
        }
        for name, right in checks.items():
            if not (right and ranges.get(name, True)):
                raise SettingsError(f"The setting {name} = {getattr(self, name)!r} is out of its range.")

    @property
    def uses_assets(self) -> bool:
        """Whether anything is retrieved: only ReDream with at least one of its two halves on."""
        return self.method == "redream" and (self.initialise or self.adapt)

    @property
    def guidance_scale(self) -> float:
        """s of the method in use."""
        return self.guidance_sds if self.method == "sds" else self.guidance

    def with_(self, **changes) -> "Settings":
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @staticmethod
    def from_json(text: str) -> "Settings":
        """Read what `to_json` wrote; unknown or missing names raise `SettingsError`."""
        values = json.loads(text)
        names = {f.name for f in dataclasses.fields(Settings)}
        if set(values) != names:
            raise SettingsError(f"These settings are of another version: {sorted(set(values) ^ names)} do not match.")
        return Settings(**{k: _tuples(v) for k, v in values.items()})


def _numbers(value) -> list[float | int]:
    """The numbers in a setting: one, none, or those of its tuples."""
    if isinstance(value, tuple):
        return [number for one in value for number in _numbers(one)]
    return [value] if isinstance(value, int | float) else []


def _tuples(value):
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


_SD21 = Settings(
    iterations=20_000,
    elevation_deg=(-10.0, 45.0),
    distance=(1.0, 1.5),
    fovy_deg=(40.0, 70.0),
    bound=0.55,
    levels=16,
    features=2,
    log2_table=19,
    base_resolution=16,
    max_resolution=4096,
    hidden=64,
    occupancy_resolution=128,
    samples_per_ray=256,
    guidance=7.5,
    t_min=0.02,
    t_max=(0.98, 0.50),
    learning_rate_grid=0.01,
    learning_rate_network=0.001,
    learning_rate_end=1.0,
    render_size=((0.0, 64), (0.2, 512)),
    sparsity=0.0,
    warmup=0.1,
    score_rms_reference=0.0,
    epsilon=0.0,
    latent_weights=False,
    asset_steps=1,
    asset_sigma=0.01,
    asset_colour_until=1.0,
    opaque=0.0,
    adaptation_steps=1000,
    adaptation_batch=4,
    adaptation_learning_rate=1e-4,
    adaptation_t_power=1.0,
    adaptation_scale=1.0,
    prefix_learning_rate=1e-3,
    turntable_size=512,
    turntable_rays=512,
    mesh_resolution=256,
    preview_every=50,
    checkpoint_every=1000,
)

Preset = Mapping[Method, Settings]


def by_method(settings: Settings, vsd: Mapping = {}, sds: Mapping = {}) -> Preset:
    """ReDream's settings, and the same for the other methods with what is better for these."""
    return {"redream": settings, "vsd": settings.with_(method="vsd", **vsd), "sds": settings.with_(method="sds", **sds)}


# What the other methods, which begin with noise, need on the miniature; by trials like ReDream's (examples/report/TRIALS.md).
_FROM_NOISE = {"learning_rate_end": 0.1, "latent_weights": False, "score_rms_reference": 0.0, "opaque": 200.0}
_VSD = _FROM_NOISE | {"guidance": 7.5, "learning_rate_variational": 0.0003}
_SDS = _FROM_NOISE | {"guidance_sds": 15.0}
_FAST = {"iterations": 160, "adaptation_steps": 240, "turntable_rays": 96}

PRESETS: dict[str, Preset] = {
    "mini": by_method(Settings(), _VSD, _SDS),
    "mini-fast": by_method(Settings(**_FAST), _VSD, _SDS),
    "sd21": by_method(_SD21),
    "sd21-zerogpu": by_method(_SD21.with_(iterations=1200, adaptation_steps=120, render_size=((0.0, 64), (0.5, 128)))),
    "paper": by_method(_SD21.with_(iterations=20_000, render_size=((0.0, 512),))),
}
