"""Scores of one object against ground truth: of a run's result, of the best retrieved asset, of the true object itself.

All are rendered by the same cameras at the same size. The images that the gallery shows are written into the object's
folder.
"""

import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from redream import hub
from redream.distillation.checkpoint import load_particles
from redream.errors import RedreamError
from redream.files import read_json, write_json
from redream.runs import outputs, retrieved
from redream.runs.run import Run
from redream.scene.assets import Asset
from redream.scene.cameras import Camera, score_ring
from redream.scene.glb_reader import GlbReader
from redream.scene.volume import OccupancyGrid, Rendering
from redream.scoring.metrics import SCORES_VERSION, silhouette_iou
from redream.scoring.scores import MODELS, SCORES
from redream.settings import Settings
from redream.stack import environment
from redream.stack.models import Models
from redream.stack.stack import PERCEPTUALS, SCORING_ENTRIES, Stack
from redream.stack.vocabulary import ParsedPrompt

SILHOUETTE_VIEWS, SILHOUETTE_SIZE = 24, 64  # views, pixels

Scores = dict[str, float | None]  # by the names of `SCORES`; None: not available


class EvaluationError(RedreamError):
    """Prompts, methods or a folder that cannot be evaluated; the message says why and what to do."""


class RenderableAsset:
    """An asset as a `Renderable`, so that its images for scores are made in the steps of a particle's.

    Four rays a pixel, as in the images that a prior was trained on: with one, edges flicker from view to view, and A-LPIPS
    would count that as a change of the object (docs/trials.md).
    """

    def __init__(self, asset: Asset, settings: Settings) -> None:
        self.asset, self.field = asset, None
        self.grid = OccupancyGrid(settings.rendering.occupancy_resolution, settings.field.bound)

    def render(self, camera: Camera, size: int, background: Float[Tensor, "3"]) -> Rendering:
        image, opacity = self.asset.render(camera, size, background)
        return Rendering(image, opacity, torch.zeros_like(opacity))


@dataclass(frozen=True)
class Scorer:
    """Scores the objects of one prompt, each of them in a folder that the gallery's images are added to."""

    models: Models
    settings: Settings
    parsed: ParsedPrompt
    truth: tuple[Asset, ...]  # the true object's variants; none where it is unknown

    def score_run(self, folder: Path) -> Scores:
        """The mean over the particles of a finished run's last checkpoint.

        The scores in its scores.json are reused unless they are of another version or by other models, or lack a network
        that is available now. Raises as `objects_of`.
        """
        run, truth, scored = Run.open(folder), self._true_silhouettes(), []
        available = [name for name in PERCEPTUALS if self.models.perceptual(name) is not None]
        has_same_scorers = self._has_same_scorers(run)
        particles = objects_of(run, self.models.device)
        for particle, stored in particles:
            is_current = has_same_scorers and stored.get("version") == SCORES_VERSION
            is_complete = all(stored.get(f"a_lpips_{name}") is not None for name in available)
            scores = _only_scores(stored) if is_current and is_complete else self._score_views(particle)
            iou = best_overlap(self.silhouettes(particle), truth) if truth else None
            scored.append(scores | {"silhouette_iou": iou})
        if not (folder / "sprite.jpg").is_file():
            self._save_sprites(particles[0][0], folder)
        return mean_of(scored)

    def score_retrieval(self, folder: Path) -> Scores:
        """The scores of the best retrieved asset, turned so that its estimated front is at +x."""
        _ = self.models.index, self.models.clip("retrieval")  # loading does not count
        start = time.perf_counter()
        best, _ = retrieved.search(self.parsed.prompt, self.models, self.settings.with_(retrieval={"assets": 1}))
        oriented, _ = retrieved.oriented(best[0], self.models, self.settings)
        costs = {"seconds": {"retrieval": round(time.perf_counter() - start, 3)}, "sessions": 1}
        write_json(folder / "costs.json", costs | {"peak_memory_gb": environment.peak_memory_gb()})
        write_json(folder / "retrieved.json", {"prompt": self.parsed.prompt, "assets": [best[0].entry]})
        outputs.save_strip(oriented.asset, self.settings, folder / "asset-0-turned.png")
        asset = RenderableAsset(oriented.asset, self.settings)
        self._save_sprites(asset, folder)
        iou = best_overlap(self.silhouettes(asset), self._true_silhouettes())
        return self._score_views(asset) | {"silhouette_iou": iou}

    def score_truth(self, folder: Path) -> Scores:
        """The mean over the true object's variants, each of them compared with the others: about the best that could be
        reached."""
        variants = [RenderableAsset(asset, self.settings) for asset in self.truth]
        self._save_sprites(variants[0], folder)
        scored, silhouettes, compared = [self._score_views(v) for v in variants], self._true_silhouettes(), []
        for n, scores in enumerate(scored):
            iou = best_overlap(silhouettes[n], silhouettes[:n] + silhouettes[n + 1 :])
            differences = truth_differences(scores, mean_of(scored[:n] + scored[n + 1 :]))
            compared.append(scores | {"silhouette_iou": iou} | differences)
        return mean_of(compared)

    def silhouettes(self, renderable: outputs.Renderable) -> Float[Tensor, "b 1 s s"]:
        """Opacity from `SILHOUETTE_VIEWS` azimuths, on the CPU."""
        cameras = score_ring(SILHOUETTE_VIEWS, self.settings.output)
        white = torch.ones(3, device=renderable.grid.density.device)
        return torch.cat([renderable.render(camera, SILHOUETTE_SIZE, white).opacity for camera in cameras]).cpu()

    def _true_silhouettes(self) -> list[Float[Tensor, "b 1 s s"]]:
        return [self.silhouettes(RenderableAsset(asset, self.settings)) for asset in self.truth]

    def _has_same_scorers(self, run: Run) -> bool:
        """Whether the scores in the run's scores.json are by the present scoring models."""
        for name in MODELS:  # only models that are loaded have a provenance
            self.models.clip(name), self.models.perceptual(name)
        recorded = (read_json(run.folder / "record.json") or {}).get("models", {})
        present = self.models.provenance()
        return all(recorded.get(name) == present.get(name) for name in SCORING_ENTRIES)

    def _score_views(self, renderable: outputs.Renderable) -> Scores:
        """The scores that need no truth, those of scores.json."""
        views = outputs.CachedViews(renderable, self.settings, self.models.score_size)
        return _only_scores(outputs.scores_of(views, self.parsed.prompt, self.models, self.parsed.has_front))

    def _save_sprites(self, renderable: outputs.Renderable, folder: Path) -> None:
        """Write sprite.jpg, the views that the gallery turns."""
        cameras = score_ring(outputs.SPRITE_FRAMES, self.settings.output)
        white = torch.ones(3, device=renderable.grid.density.device)
        views = (renderable.render(camera, outputs.SPRITE_SIDE, white).image[0] for camera in cameras)
        outputs.save_sprites([outputs.as_bytes(view) for view in views], folder / "sprite.jpg")


def objects_of(run: Run, device: str = "cpu") -> list[tuple[outputs.Renderable, dict]]:
    """Return a finished run's particles, each with its object in scores.json, empty if there is no scores.json.

    Raises `EvaluationError` if the files are malformed.
    """
    try:
        particles = load_particles(run.checkpoints()[-1], run.request.settings, device)
        if not (run.folder / "scores.json").exists():
            return [(particle, {}) for particle in particles]
        stored = [dict(scores) for scores in run.read_json("scores.json")["objects"]]
        return list(zip(particles, stored, strict=True))
    except (ValueError, IndexError, KeyError, TypeError, SafetensorError) as error:
        reason = "Its scores.json or its last checkpoint is missing or damaged"
        raise EvaluationError(f"The run {run.folder.name} cannot be used. {reason}; remove its folder.") from error


def true_objects(stack: Stack, parsed: ParsedPrompt) -> tuple[tuple[Asset, ...], tuple[str, ...]]:
    """Return the variants of a prompt's true object, front to +x, and their files' SHA-256.

    Both are empty where the stack has no truth, or not of this kind and colour. Raises `EvaluationError` for files that are
    not those of truth.csv.
    """
    if stack.truth is None or parsed.kind is None:
        return (), ()
    folder = stack.folder(stack.truth)
    try:
        with (folder / "truth.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if (row["kind"], row["colour"]) == (parsed.kind, parsed.colour)]
        hub.verify(folder, {row["file"]: row["sha256"] for row in rows})
    except (OSError, KeyError, ValueError) as error:
        raise EvaluationError(f"The true objects of this stack cannot be read: {error}") from error
    with GlbReader() as reader:
        variants = tuple(reader.load(folder / row["file"], normalise=False) for row in rows)
    return variants, tuple(row["sha256"] for row in rows)


def best_overlap(silhouettes: Float[Tensor, "b 1 h w"], variants: Sequence[Float[Tensor, "b 1 h w"]]) -> float | None:
    """Intersection over union with the variant that fits best, in [0, 1]; None if there is none."""
    return max((silhouette_iou(silhouettes, variant) for variant in variants), default=None)


def mean_of(scored: Sequence[Mapping[str, float | None]]) -> Scores:
    """The mean of each score over the objects that have it; None if none has it."""
    keys = [key for key in SCORES if any(key in scores for scores in scored)]
    known = {key: [scores[key] for scores in scored if scores.get(key) is not None] for key in keys}
    return {key: sum(values) / len(values) if values else None for key, values in known.items()}


def truth_differences(scores: Mapping[str, float | None], true: Mapping[str, float | None]) -> Scores:
    """A-LPIPS minus the true object's (`a_lpips_difference`) and its magnitude (`a_lpips_error`).

    Less change between views than the true object has is no better than more.
    """
    pairs = {model: (scores.get(f"a_lpips_{model}"), true.get(f"a_lpips_{model}")) for model in MODELS}
    differences = {model: None if None in pair else pair[0] - pair[1] for model, pair in pairs.items()}
    return {f"a_lpips_difference_{model}": value for model, value in differences.items()} | {
        f"a_lpips_error_{model}": None if value is None else abs(value) for model, value in differences.items()
    }


def rounded(values: Mapping[str, float | None]) -> Scores:
    """Scores as they are stored."""
    return {key: value if value is None else round(value, 6) + 0.0 for key, value in values.items()}  # no minus zero


def _only_scores(stored: Mapping) -> Scores:
    return {key: stored[key] for key in SCORES if key in stored}
