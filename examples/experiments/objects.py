"""The objects that experiments look at: runs', an evaluation's, and assets of the library."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from examples.experiments.lab import SIDE, ExperimentError, Figures, Lab, say
from redream import pipeline
from redream.distillation.adaptation import CaptionedAsset, sample_background
from redream.evaluation import trials
from redream.evaluation.scorer import RenderableAsset, objects_of
from redream.evaluation.tables import FORMAT
from redream.files import read_json
from redream.runs import retrieved
from redream.runs.outputs import Renderable
from redream.runs.run import Run
from redream.scene.assets import Asset
from redream.scene.cameras import ring
from redream.scoring.metrics import SCORES_VERSION
from redream.settings import VARIANTS, Settings

AROUND = 8  # views that show an object
TEN, ELEVATION_DEG = 10, 30.0  # PD K


@dataclass(frozen=True)
class BeforeAfter:
    """Something from eight sides over white, the front first."""

    images: Float[Tensor, "8 3 s s"]
    opacity: Float[Tensor, "8 1 s s"]


@dataclass(frozen=True)
class Made:
    """One particle of a finished run."""

    seen: BeforeAfter
    scores: Figures


@dataclass(frozen=True)
class Known:
    """An asset of the library, its front at +x."""

    path: Path
    caption: str
    asset: Asset
    seen: BeforeAfter

    @property
    def reference(self) -> CaptionedAsset:
        return CaptionedAsset(self.asset, self.caption)


def generate(lab: Lab, prompt: str, asset: Known | None = None, uids: Sequence[str] = (), **changes) -> list[Made]:
    """The particles of a run; a run made before is used again or goes on.

    From this asset, or from these of the library, or from retrieved ones; `changes` are those of the settings.
    """
    settings = lab.settings.with_(**changes)
    given = [(asset.path, asset.caption)] if asset else []
    asked = [prompt, asdict(settings), [caption for _, caption in given], list(uids), asdict(lab.weights)]
    asked += [[path.name for path, _ in given], trials.METHODS_VERSION, SCORES_VERSION]
    folder = lab.out / "runs" / f"{trials.slug(prompt)}-{trials.digest(asked)}"
    say(f"{prompt}, {settings.particles} × {settings.iterations} iterations, {folder.name}")
    if (folder / "settings.json").is_file():
        told = pipeline.resume(folder, models=lab.models)
    else:
        told = pipeline.generate(prompt, settings=settings, assets=given, uids=uids, out=folder, models=lab.models)
    for _ in told:
        pass
    return [
        Made(around(particle, settings), {f"CLIP {name}": scores[f"clip_{name}"] for name in ("a", "b")})
        for particle, scores in objects_of(Run.open(folder))
    ]


def from_library(lab: Lab, words: str) -> Known:
    """The library's best asset for these words, turned to its front."""
    found, _ = retrieved.search(lab.understood(words), lab.models, lab.settings.with_(retrieval={"assets": 1}))
    turned, _ = retrieved.oriented(found[0], lab.models, lab.settings)
    seen = around(RenderableAsset(turned.asset, lab.settings), lab.settings)
    return Known(lab.models.index.asset_path(turned.entry["uid"]), turned.entry["caption"], turned.asset, seen)


def found_for(lab: Lab, prompt: str) -> list[CaptionedAsset]:
    """What a run retrieves for a prompt."""
    found, _ = retrieved.search(lab.understood(prompt), lab.models, lab.settings)
    return [retrieved.as_reference(retrieved.oriented(f, lab.models, lab.settings)[0]) for f in found]


def uids_for(lab: Lab, prompt: str) -> list[str]:
    """What a run retrieves for a prompt, by name."""
    found, _ = retrieved.search(lab.understood(prompt), lab.models, lab.settings)
    return [f.entry["uid"] for f in found]


def around(shown: Renderable, settings: Settings) -> BeforeAfter:
    """Eight views of an asset or a particle."""
    white = torch.ones(3, device=shown.grid.density.device)
    cameras = ring(
        AROUND, settings.output.score_elevation_deg, settings.output.score_distance, settings.output.score_fovy_deg
    )
    seen = [shown.render(camera, SIDE, white) for camera in cameras]
    return BeforeAfter(torch.cat([s.image for s in seen]).cpu(), torch.cat([s.opacity for s in seen]).cpu())


def evaluated(out: Path | None) -> dict:
    """What an evaluation's table.json says. Raises `ExperimentError`."""
    if out is None:
        raise ExperimentError("Name the folder of an evaluation: --runs DIR.")
    table = read_json(out / "table.json") or {}
    if table.get("format") != FORMAT:
        raise ExperimentError(f"The folder {out.name} has no table.json of this version; evaluate into it first.")
    return table


def finished_runs(lab: Lab, table: dict, seed: int) -> dict[str, dict[str, Run]]:
    """The finished runs of an evaluation's table with a seed: method → prompt → run."""
    runs = {}
    for (method, changes), entry in itertools.product(table["changes"].items(), table["prompts"]):
        if method in VARIANTS:
            settings = Settings.from_json(json.dumps(table["settings"] | changes))
            prompt = trials.Prompt(entry["prompt"], entry["split"])
            trial = trials.plan(lab.runs, prompt, method, seed, settings, lab.weights)
            own = runs.setdefault(method, {})
            if trial.folder.is_dir() and (run := Run.open(trial.folder)).finished:
                own[prompt.text] = run
    return runs


def ten_views(run: Run, seed: int) -> Float[Tensor, "10 3 s s"]:
    """The first particle of a finished run, over backgrounds as the prior's pictures have them."""
    settings, generator = run.request.settings, torch.Generator().manual_seed(seed)
    particle, _ = objects_of(run)[0]
    cameras = ring(TEN, ELEVATION_DEG, settings.output.score_distance, settings.output.score_fovy_deg)
    backgrounds = sample_background(generator, TEN)  # (10, 3)
    return torch.cat([particle.render(c, SIDE, b).image for c, b in zip(cameras, backgrounds, strict=True)])
