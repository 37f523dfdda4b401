"""The objects of the experiments: particles of runs, of an evaluation's runs, and assets of the library."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from examples.experiments.context import PICTURE_SIZE, Context, ExperimentError, Metrics, log
from redream import pipeline
from redream.distillation.adaptation import CaptionedAsset, sample_background
from redream.evaluation import trials
from redream.evaluation.scorer import RenderableAsset, objects_of
from redream.evaluation.tables import FORMAT
from redream.files import digest, read_json
from redream.runs import retrieved
from redream.runs.outputs import Renderable
from redream.runs.run import Run
from redream.scene.assets import Asset
from redream.scene.cameras import Camera, ring
from redream.scoring.metrics import SCORES_VERSION
from redream.settings import VARIANTS, Settings

RING_VIEWS = 8  # azimuths of `RingViews`
TEN_VIEWS, TEN_VIEWS_ELEVATION_DEG = 10, 30.0  # PD K


@dataclass(frozen=True)
class RingViews:
    """An object over white from eight equally spaced azimuths, the front first."""

    images: Float[Tensor, "8 3 s s"]
    opacity: Float[Tensor, "8 1 s s"]


@dataclass(frozen=True)
class GeneratedObject:
    """One particle of a finished run."""

    views: RingViews
    scores: Metrics


@dataclass(frozen=True)
class LibraryAsset:
    """An asset of the library, its front at +x."""

    path: Path
    caption: str
    asset: Asset
    views: RingViews

    @property
    def captioned(self) -> CaptionedAsset:
        """The asset as distillation takes it."""
        return CaptionedAsset(self.asset, self.caption)


def generate(
    context: Context, prompt: str, asset: LibraryAsset | None = None, uids: Sequence[str] = (), **changes
) -> list[GeneratedObject]:
    """Return the particles of a run; a run with equal inputs is reused if finished and continued if not.

    It starts from `asset`, from the library's assets `uids`, or else from retrieved assets. `changes`: of the settings.
    """
    settings = context.settings.with_(**changes)
    uploads = [(asset.path, asset.caption)] if asset else []
    key = [prompt, asdict(settings), [caption for _, caption in uploads], list(uids), asdict(context.digests)]
    key += [[path.name for path, _ in uploads], trials.METHODS_VERSION, SCORES_VERSION]
    folder = context.out / "runs" / f"{trials.slug(prompt)}-{digest(key)}"
    log(f"{prompt}, {settings.particles} × {settings.iterations} iterations, {folder.name}")
    if (folder / "settings.json").is_file():
        events = pipeline.resume(folder, models=context.models)
    else:
        events = pipeline.generate(
            prompt, settings=settings, assets=uploads, uids=uids, out=folder, models=context.models
        )
    for _ in events:
        pass
    return [
        GeneratedObject(
            render_ring(particle, settings), {f"CLIP {name}": scores[f"clip_{name}"] for name in ("a", "b")}
        )
        for particle, scores in objects_of(Run.open(folder))
    ]


def best_asset(context: Context, query: str) -> LibraryAsset:
    """Return the library's best asset for a query, oriented."""
    settings = context.settings.with_(retrieval={"assets": 1})
    assets, _ = retrieved.search(context.parsed(query), context.models, settings)
    oriented, _ = retrieved.oriented(assets[0], context.models, context.settings)
    views = render_ring(RenderableAsset(oriented.asset, context.settings), context.settings)
    path = context.models.index.asset_path(oriented.entry["uid"])
    return LibraryAsset(path, oriented.entry["caption"], oriented.asset, views)


def retrieve_oriented(context: Context, prompt: str) -> list[CaptionedAsset]:
    """Return the assets that a run retrieves for a prompt, oriented."""
    assets, _ = retrieved.search(context.parsed(prompt), context.models, context.settings)
    return [retrieved.oriented(asset, context.models, context.settings)[0].captioned for asset in assets]


def retrieved_uids(context: Context, prompt: str) -> list[str]:
    """Return the uids of the assets that a run retrieves for a prompt, best first."""
    assets, _ = retrieved.search(context.parsed(prompt), context.models, context.settings)
    return [asset.entry["uid"] for asset in assets]


def render_ring(renderable: Renderable, settings: Settings) -> RingViews:
    """Render an asset or a particle from eight azimuths."""
    white = torch.ones(3, device=renderable.grid.density.device)
    cameras = _ring(RING_VIEWS, settings, settings.output.score_elevation_deg)
    renderings = [renderable.render(camera, PICTURE_SIZE, white) for camera in cameras]
    return RingViews(
        torch.cat([r.image for r in renderings]).cpu(),  # (8, 3, s, s)
        torch.cat([r.opacity for r in renderings]).cpu(),  # (8, 1, s, s)
    )


def render_ten_views(run: Run, seed: int) -> Float[Tensor, "10 3 s s"]:
    """Render a finished run's first particle at 30° elevation, over random backgrounds like those of training."""
    settings, generator = run.request.settings, torch.Generator().manual_seed(seed)
    particle, _ = objects_of(run)[0]
    cameras = _ring(TEN_VIEWS, settings, TEN_VIEWS_ELEVATION_DEG)
    backgrounds = sample_background(generator, TEN_VIEWS)  # (10, 3)
    pairs = zip(cameras, backgrounds, strict=True)
    return torch.cat([particle.render(camera, PICTURE_SIZE, background).image for camera, background in pairs])


def _ring(count: int, settings: Settings, elevation_deg: float) -> list[Camera]:
    return ring(count, elevation_deg, settings.output.score_distance, settings.output.score_fovy_deg)


def read_table(sweep: Path | None) -> dict:
    """Return the table.json of an evaluation's folder. Raises `ExperimentError`."""
    if sweep is None:
        raise ExperimentError("Name the folder of an evaluation: --runs DIR.")
    table = read_json(sweep / "table.json") or {}
    if table.get("format") != FORMAT:
        raise ExperimentError(f"The folder {sweep.name} has no table.json of this version; evaluate into it first.")
    return table


def finished_runs(context: Context, table: dict, seed: int) -> dict[str, dict[str, Run]]:
    """Return the finished runs of an evaluation's table with a seed: method → prompt → run."""
    common = Settings.from_json(json.dumps(table["settings"]))
    runs = {}
    for (method, changes), entry in itertools.product(table["changes"].items(), table["prompts"]):
        if method not in VARIANTS:
            continue
        prompt = trials.Prompt(entry["prompt"], entry["split"])
        trial = trials.plan(context.sweep, prompt, method, seed, common.with_(**changes), context.digests)
        by_prompt = runs.setdefault(method, {})
        if trial.folder.is_dir() and (run := Run.open(trial.folder)).finished:
            by_prompt[prompt.text] = run
    return runs
