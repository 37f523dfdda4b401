"""The settings of a run, in groups; presets are instances, one for each method; they are saved with every run.

Schedules are fractions of a particle's iterations, so a shorter run is the same run in small. Numbers come from
METHOD.md's table ("A": ReDream's appendix A; "PD": ProlificDreamer; "3S": threestudio) or are ours; docs/method.md gives
our reasons, docs/trials.md the measurements.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import pydantic
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from redream.errors import RedreamError

Method = Literal["redream", "vsd", "sds"]
METHODS: tuple[Method, ...] = get_args(Method)

PROMPT_LIMIT = 300  # characters
MAX_PARTICLES = 8
MAX_ITERATIONS = 50_000
MAX_ASSETS = 3
VIEWS = ("front", "side", "back")  # view names of cameras and prompts
WARM_UP, DISTILLATION = "warm-up", "distillation"  # the stages of iterations
MAX_WAITING = 20  # runs in the queue of one device

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveRange = tuple[PositiveFloat, PositiveFloat]  # (lowest, highest)


class SettingsError(RedreamError):
    """A setting out of its range; the message says which and what is allowed."""


def _settings(cls: type) -> type:
    """A frozen pydantic dataclass that raises `SettingsError` for a value out of its range."""
    config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
    cls = pydantic.dataclasses.dataclass(frozen=True, config=config)(cls)
    validate = cls.__init__

    @functools.wraps(validate)
    def __init__(self, *args, **values) -> None:
        try:
            validate(self, *args, **values)
        except ValidationError as error:
            raise SettingsError(_sentence(error)) from error

    cls.__init__ = __init__
    return cls


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(part for part in first["loc"] if isinstance(part, str)) or error.title
    if first["type"] == "unexpected_keyword_argument":
        return f"There is no setting {name}."
    if first["type"] == "missing":
        return f"The setting {name} is missing."
    if first["type"] == "value_error":
        return f"The settings of {name} do not fit together: {first['ctx']['error']}."
    return f"The setting {name} = {first['input']!r} is out of its range: {first['msg'].replace('Input', 'it', 1)}."


def setting_values(values: Mapping, group: str = "") -> dict[str, object]:
    """All values of grouped settings or changes by their names, "field.levels" and so on."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= setting_values(value, f"{name}.") if isinstance(value, Mapping) else {group + name: value}
    return flat


def setting_names(values: Mapping) -> set[str]:
    """The names of all values of grouped settings or changes."""
    return set(setting_values(values))


@_settings
class RetrievalSettings:
    """Which assets a run starts from (ReDream 4.5, B)."""

    assets: Annotated[int, Field(ge=1, le=MAX_ASSETS)] = 3  # N
    candidates: PositiveInt = 12  # N′ > N nearest captions, re-ranked by image

    @pydantic.model_validator(mode="after")
    def _enough_candidates(self) -> "RetrievalSettings":
        if self.candidates < self.assets:
            raise ValueError(f"{self.candidates} candidates are fewer than {self.assets} assets")
        return self


@_settings
class CameraSettings:
    """Training cameras ψ, uniform in each range: those of the prior's training pictures."""

    elevation_deg: tuple[float, float] = (-5.0, 35.0)
    distance: PositiveRange = (1.45, 1.8)  # world units
    fovy_deg: PositiveRange = (38.0, 44.0)


@_settings
class FieldSettings:
    """The NeRF θ: a multiresolution hash grid and a small network."""

    bound: PositiveFloat = 0.52  # the field's box is [−bound, bound]³
    levels: PositiveInt = 4
    features: PositiveInt = 4  # per level
    log2_table: PositiveInt = 17  # entries of each level's table
    base_resolution: PositiveInt = 16
    max_resolution: PositiveInt = 96
    hidden: PositiveInt = 32  # width of the one hidden layer
    density_scale: float = 10.0  # λ of the density at start, λ(1 − ‖μ‖/r) (PD 4.2)
    density_radius: PositiveFloat = 0.5  # r


@_settings
class RenderingSettings:
    """Volume rendering of the field while it is optimised."""

    occupancy_resolution: PositiveInt = 48  # cells along an edge of the occupancy grid
    samples_per_ray: PositiveInt = 48
    resolutions: tuple[tuple[Fraction, PositiveInt], ...] = ((0.0, 64),)  # (from this fraction of the run on, pixels)

    def resolution_at(self, progress: float) -> int:
        """The resolution in pixels after a fraction of the run."""
        return [pixels for start, pixels in self.resolutions if progress >= start][-1]

    @pydantic.field_validator("resolutions")
    @classmethod
    def _starts_at_zero(cls, steps: tuple) -> tuple:
        if not steps or steps[0][0] != 0.0:
            raise ValueError("the first of them must begin at 0.0")
        return steps


@_settings
class DistillationSettings:
    """Score distillation (Eq. 1, 2, 20) and the step of a particle."""

    guidance: Annotated[float, Field(ge=0, le=200)] = 15.0  # s of classifier-free guidance (PD: 7.5; SDS: 100)
    latent_weights: bool = True  # weigh the gradient's channels by `Prior.latent_weights` (ours)
    t_min: Fraction = 0.1  # of T (PD: 0.02)
    t_max: tuple[Fraction, Fraction] = (0.7, 0.5)  # before and after the anneal (PD: 0.98, 0.5)
    t_anneal: Fraction = 0.20  # the anneal's fraction of the run (PD: 5k of 25k)
    learning_rate_grid: NonNegativeFloat = 0.1  # (PD: 0.01)
    learning_rate_network: NonNegativeFloat = 0.01  # (3S: 0.001)
    learning_rate_end: PositiveFloat = 0.003  # share of both that is left at the end; exponential (ours; 1: constant)
    score_rms_reference: NonNegativeFloat = 0.031  # rates × (score RMS / this)² (ours; 0: off)
    epsilon: NonNegativeFloat = 0.1  # AdamW's ε over the RMS of √v of a group (ours; 0: PD's 1e-15)
    delta_weight: NonNegativeFloat = 0.3  # delta denoising (B)
    delta_every: NonNegativeInt = 3  # iterations; 0: never
    sparsity: NonNegativeFloat = 0.0  # weight of mean opacity (3S: 10)
    opaque: NonNegativeFloat = 500.0  # weight of the entropy of opacity after t_anneal (3S: 1000)

    @pydantic.model_validator(mode="after")
    def _timesteps_in_order(self) -> "DistillationSettings":
        if self.t_min >= min(self.t_max):
            raise ValueError(f"t_min = {self.t_min} is not below t_max = {self.t_max}")
        return self


@_settings
class InitialisationSettings:
    """The warm-up: the particle is pulled towards its asset (Eq. 3)."""

    warmup: Fraction = 0.3  # τ
    asset_steps: PositiveInt = 4  # steps of Eq. 3 an iteration, each from its own camera (ours; paper: 1)
    asset_sigma: PositiveFloat = 0.004  # σ
    asset_opacity_weight: NonNegativeFloat = 1.0  # of opacity's term beside colour's (ours)
    asset_colour_until: Fraction = 0.4  # share of the warm-up after which colour's weight falls (ours; 1: never)
    asset_colour_after: NonNegativeFloat = 0.02  # to this
    stored_poses: NonNegativeInt = 0  # ψ of steps 4 and 5 come from so many, stored on the device (ours; 0: cast anew)


@_settings
class VariationalSettings:
    """ζ, the LoRA that models noisy renders (Eq. 4)."""

    learning_rate: NonNegativeFloat = 0.0001
    rank: PositiveInt = 4
    shared_noise: bool = True  # ζ is trained on the t and ε of its prediction, in the same pass (ours)


@_settings
class AdaptationSettings:
    """Lightweight adaptation of the prior: ω and e_ψ (Eq. 5)."""

    views: PositiveInt = 100  # stored renders per asset (A)
    steps: PositiveInt = 120  # all of them before τ, interleaved with the warm-up
    batch: PositiveInt = 8
    rank: PositiveInt = 16
    learning_rate: NonNegativeFloat = 6e-3  # of ω; both rates fall linearly to zero (ours)
    prefix_learning_rate: NonNegativeFloat = 5e-2  # of e_ψ
    prefix_learned: bool = True  # False: the view prefixes stay the words they start from (fig. 14a)
    t_power: PositiveFloat = 3.0  # p of t = T u^(1/p) (ours; paper: 1, U(0, T))
    empty: Fraction = 0.1  # share of empty prompts
    scale: Fraction = 0.25  # share of ω in the score gradient (ours; paper: 1)


@_settings
class OutputSettings:
    """What comes out of a run: turntable, mesh, the cameras of scores, previews and checkpoints."""

    score_elevation_deg: float = 15.0
    score_fovy_deg: PositiveFloat = 40.0
    score_distance: PositiveFloat = 1.6  # world units
    turntable_frames: PositiveInt = 120
    turntable_size: PositiveInt = 256  # pixels
    turntable_rays: PositiveInt = 128  # along a side; the picture is enlarged where these are fewer than its pixels
    mesh_resolution: PositiveInt = 96  # density samples along an edge of the box
    mesh_faces: PositiveInt = 20_000
    preview_every: PositiveInt = 10  # iterations; before the first of them also the powers of two
    checkpoint_every: PositiveInt = 100  # iterations


@_settings
class Settings:
    """One run. Degrees for angles, world units for lengths, fractions of a particle's iterations for schedules."""

    method: Method = "redream"
    initialise: bool = True  # start from the retrieved assets (Eq. 3)
    adapt: bool = True  # adapt the prior to their views (Eq. 5)
    particles: Annotated[int, Field(ge=1, le=MAX_PARTICLES)] = 1  # objects at once
    iterations: Annotated[int, Field(ge=1, le=MAX_ITERATIONS)] = 300  # per particle
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    retrieval: RetrievalSettings = RetrievalSettings()
    cameras: CameraSettings = CameraSettings()
    field: FieldSettings = FieldSettings()
    rendering: RenderingSettings = RenderingSettings()
    distillation: DistillationSettings = DistillationSettings()
    initialisation: InitialisationSettings = InitialisationSettings()
    variational: VariationalSettings = VariationalSettings()
    adaptation: AdaptationSettings = AdaptationSettings()
    output: OutputSettings = OutputSettings()

    @property
    def uses_assets(self) -> bool:
        """Whether anything is retrieved: only by ReDream with at least one of its two halves on."""
        return self.method == "redream" and (self.initialise or self.adapt)

    @property
    def is_variational(self) -> bool:
        """Whether the method models its renders by a second LoRA ζ (Eq. 4)."""
        return self.method in ("redream", "vsd")

    def with_(self, **changes) -> "Settings":
        """A copy with some values changed, checked again; a group's changes are a mapping:

            settings.with_(iterations=60, field={"levels": 2})

        Raises `SettingsError`.
        """
        grouped = {
            name: dataclasses.asdict(getattr(self, name)) | value if isinstance(value, Mapping) else value
            for name, value in changes.items()
        }
        return dataclasses.replace(self, **grouped)

    def changes_from(self, other: "Settings") -> dict[str, object]:
        """The values that differ from other settings, by name: {"field.levels": 2}."""
        mine, theirs = (setting_values(dataclasses.asdict(settings)) for settings in (self, other))
        return {name: value for name, value in mine.items() if value != theirs[name]}

    def to_json(self) -> str:
        """All values as JSON, groups as objects."""
        return TypeAdapter(Settings).dump_json(self, indent=2).decode()

    @staticmethod
    def from_json(text: str) -> "Settings":
        """Read what `to_json` wrote. Raises `SettingsError` for unknown or missing names and for values out of their
        range."""
        try:
            settings = TypeAdapter(Settings).validate_json(text)
        except ValidationError as error:
            raise SettingsError(_sentence(error)) from error
        if missing := setting_names(dataclasses.asdict(settings)) - setting_names(json.loads(text)):
            raise SettingsError(f"The setting {min(missing)} is missing.")  # its default may be another one by now
        return settings


_SD21 = Settings(
    iterations=20_000,
    cameras={"elevation_deg": (-10.0, 45.0), "distance": (1.0, 1.5), "fovy_deg": (40.0, 70.0)},
    field={"bound": 0.55, "levels": 16, "features": 2, "log2_table": 19, "max_resolution": 4096, "hidden": 64},
    rendering={
        "occupancy_resolution": 128,
        "samples_per_ray": 256,
        "resolutions": ((0.0, 64), (0.2, 128), (0.4, 256), (0.6, 512)),  # (3S: 512 from 0.2 on)
    },
    distillation={
        "guidance": 7.5,
        "latent_weights": False,
        "t_min": 0.02,
        "t_max": (0.98, 0.50),
        "learning_rate_grid": 0.01,
        "learning_rate_network": 0.001,
        "learning_rate_end": 1.0,
        "score_rms_reference": 0.0,
        "epsilon": 0.0,
        "opaque": 0.0,
    },
    initialisation={"warmup": 0.1, "asset_steps": 1, "asset_sigma": 0.01, "asset_colour_until": 1.0},
    variational={"shared_noise": False},
    adaptation={
        "steps": 1000,
        "batch": 4,
        "learning_rate": 1e-4,
        "prefix_learning_rate": 1e-3,
        "t_power": 1.0,
        "scale": 1.0,
    },
    output={
        "turntable_size": 512,
        "turntable_rays": 512,
        "mesh_resolution": 256,
        "preview_every": 50,
        "checkpoint_every": 1000,
    },
)

Preset = Mapping[Method, Settings]


def by_method(settings: Settings, **changes: Mapping) -> Preset:
    """The same settings for each method, changed by what is better for it: `by_method(settings, sds={...})`."""
    return {method: settings.with_(method=method, **changes.get(method, {})) for method in METHODS}


# What the other methods, which begin with noise, need on the miniature; by trials like ReDream's (docs/trials.md).
_FROM_NOISE = {"learning_rate_end": 0.1, "latent_weights": False, "score_rms_reference": 0.0, "opaque": 200.0}
_MINI_OTHERS = {
    "vsd": {
        "distillation": _FROM_NOISE | {"guidance": 7.5},
        "variational": {"learning_rate": 0.0003, "shared_noise": False},
    },
    "sds": {"distillation": _FROM_NOISE | {"guidance": 15.0}},
}
_SDS_GUIDANCE = {"sds": {"distillation": {"guidance": 100.0}}}  # DreamFusion's own
_FAST = Settings(iterations=160, adaptation={"steps": 80}, output={"turntable_rays": 96})
# Goals, not measured: 45 ms an iteration at 64 px and 70 at 512 on an H200. So 2,400 of them take 135 s, and three minutes
# leave 45 s for everything else; 1,000 at the lower resolutions take 46 s of a ZeroGPU call of 75 s. A call that ends
# before its run does goes on in the next one, from a checkpoint that is seconds old. Views are cast within such a call,
# 40 of each asset instead of the paper's 100: 50 steps of adaptation draw 200 views in all.
_SD21_FAST = _SD21.with_(
    iterations=2400,
    variational={"shared_noise": True},
    adaptation={"steps": 120},
    output={"preview_every": 25, "checkpoint_every": 400},
)
_ZEROGPU = _SD21.with_(
    iterations=1000,
    variational={"shared_noise": True},
    adaptation={"steps": 50, "views": 40},
    rendering={"resolutions": ((0.0, 64), (0.5, 128))},
    output={"turntable_rays": 256, "mesh_resolution": 160, "preview_every": 25, "checkpoint_every": 100},
)

PRESETS: dict[str, Preset] = {
    "mini": by_method(Settings(), **_MINI_OTHERS),
    "mini-fast": by_method(_FAST, **_MINI_OTHERS),
    "sd21": by_method(_SD21, **_SDS_GUIDANCE),
    "sd21-fast": by_method(_SD21_FAST, **_SDS_GUIDANCE),
    "sd21-zerogpu": by_method(_ZEROGPU, **_SDS_GUIDANCE),
    "paper": by_method(_SD21.with_(rendering={"resolutions": ((0.0, 512),)}), **_SDS_GUIDANCE),
}


def presets_like(name: str) -> list[str]:
    """The presets for the same prior: with the same training cameras, which are those of its training pictures."""
    cameras = PRESETS[name]["redream"].cameras
    return [other for other, by_method in PRESETS.items() if by_method["redream"].cameras == cameras]


@dataclass(frozen=True)
class Variant:
    """A method or an ablation as people compare them: a preset's settings with some changes."""

    label: str
    changes: Mapping  # as `Settings.with_` takes them

    @property
    def method(self) -> Method:
        return self.changes.get("method", "redream")


VARIANTS: dict[str, Variant] = {
    "redream": Variant("ReDream", {}),
    "vsd": Variant("ProlificDreamer (VSD)", {"method": "vsd"}),
    "sds": Variant("DreamFusion (SDS)", {"method": "sds"}),
    "sds-100": Variant("SDS, guidance 100", {"method": "sds", **_SDS_GUIDANCE["sds"]}),
    "redream-no-init": Variant("without initialisation", {"initialise": False}),
    "redream-no-adapt": Variant("without adaptation", {"adapt": False}),
    "redream-no-prefix": Variant("without learned prefixes", {"adaptation": {"prefix_learned": False}}),
    "redream-no-delta": Variant("without delta denoising", {"distillation": {"delta_every": 0}}),
}
