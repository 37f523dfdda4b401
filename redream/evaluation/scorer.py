"""One object's scores against ground truth: of a run's result, of the library's best asset, of the true object itself.

All are seen by the same cameras at the same size. What people look at is left in the object's folder on the way.
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
from redream.evaluation import gallery
from redream.files import read_json, write_json
from redream.runs import outputs, retrieved
from redream.runs.run import Run
from redream.scene import assets
from redream.scene.assets import Asset
from redream.scene.cameras import Camera, ring
from redream.scene.volume import OccupancyGrid, Rendering
from redream.scoring.metrics import SCORES_VERSION, silhouette_iou
from redream.scoring.scores import SCORES
from redream.settings import Settings
from redream.stack import environment
from redream.stack.models import Models
from redream.stack.stack import PERCEPTUALS, SCORING_ENTRIES, Stack
from redream.stack.vocabulary import ParsedPrompt

OUTLINES, OUTLINE_SIZE = 24, 64  # views and pixels that silhouettes are compared at


class EvaluationError(RedreamError):
    """Prompts, methods or a folder that cannot be evaluated; the message says why and what to do."""


class RenderableAsset:
    """An asset shown as a particle is: their pictures for scores are made by the same steps.

    Four rays a pixel, as the pictures have that a prior learned and a particle started from: with one, edges flicker
    from view to view, and A-LPIPS would count that as the object's own (an owl's .020 instead of .015, .0146 with nine).
    """

    def __init__(self, asset: Asset, settings: Settings) -> None:
        self.asset, self.field = asset, None
        self.grid = OccupancyGrid(settings.rendering.occupancy_resolution, settings.field.bound)

    def render(self, camera: Camera, size: int, background: Float[Tensor, "3"]) -> Rendering:
        image, opacity = self.asset.render(camera, size, background)
        return Rendering(image, opacity, torch.zeros_like(opacity))


@dataclass(frozen=True)
class Scorer:
    """Scores one prompt's objects, each of them in a folder to which pictures of it are added."""

    models: Models
    settings: Settings
    checked: ParsedPrompt
    truth: tuple[Asset, ...]  # its variants; none where nobody knows it

    def run(self, folder: Path) -> dict[str, float | None]:
        """What scores.json says and what is seen of the last checkpoint; the mean over particles.

        Scores of another version or by other judges, and those that a net was missing for which is here now, are made
        again. Raises as `objects_of`."""
        true, scored = self._true_outlines(), []
        nets = [name for name in PERCEPTUALS if self.models.perceptual(name) is not None]
        run = Run.open(folder)
        current = self._is_current(run)
        for particle, known in objects_of(run, self.models.device):
            same = current and known.get("version") == SCORES_VERSION
            whole = same and all(known.get(f"a_lpips_{n}") is not None for n in nets)
            own = _only_scores(known) if whole else self._alone(particle)
            scored.append(own | {"silhouette_iou": best_overlap(self.outlines(particle), true) if true else None})
        if pictures := gallery.frames(folder / "turntable-0.mp4"):
            gallery.save_sprites(pictures, folder / "sprite.jpg")
        return mean_of(scored)

    def retrieval(self, folder: Path) -> dict[str, float | None]:
        """Of the library's best asset, turned to the front that is found."""
        _ = self.models.index, self.models.clip("retrieval")  # loading does not count
        start = time.perf_counter()
        found, _ = retrieved.search(self.checked.prompt, self.models, self.settings.with_(retrieval={"assets": 1}))
        turned, _ = retrieved.oriented(found[0], self.models, self.settings)
        costs = {"seconds": {"retrieval": round(time.perf_counter() - start, 3)}, "sessions": 1}
        write_json(folder / "costs.json", costs | {"peak_memory_gb": environment.peak_memory_gb()})
        write_json(folder / "retrieved.json", {"prompt": self.checked.prompt, "assets": [found[0].entry]})
        outputs.save_strip(turned.asset, self.settings, folder / "asset-0-turned.png")
        still = self._still(turned.asset, folder)
        return self._alone(still) | {"silhouette_iou": best_overlap(self.outlines(still), self._true_outlines())}

    def true_object(self, folder: Path) -> dict[str, float | None]:
        """The mean over its variants, each of them compared with the others: about what could be reached at all."""
        scored = [self._alone(self._still(asset, folder)) for asset in self.truth]
        outlines, compared = self._true_outlines(), []
        for n, own in enumerate(scored):
            fit = {"silhouette_iou": best_overlap(outlines[n], outlines[:n] + outlines[n + 1 :])}
            compared.append(own | fit | beside_the_truth(own, mean_of(scored[:n] + scored[n + 1 :])))
        return mean_of(compared)

    def outlines(self, shown: outputs.Renderable) -> Float[Tensor, "b 1 s s"]:
        """Opacity from 24 azimuths."""
        cameras, white = _ring(OUTLINES, self.settings), torch.ones(3, device=shown.grid.density.device)
        return torch.cat([shown.render(camera, OUTLINE_SIZE, white).opacity for camera in cameras]).cpu()

    def _is_current(self, run: Run) -> bool:
        """Whether the run's own scores are by the models that judge now."""
        for name in ("a", "b"):  # only what is loaded says where it came from
            self.models.clip(name), self.models.perceptual(name)
        known, now = (read_json(run.folder / "record.json") or {}).get("models", {}), self.models.provenance()
        return all(known.get(name) == now.get(name) for name in SCORING_ENTRIES)

    def _alone(self, shown: outputs.Renderable) -> dict[str, float | None]:
        """What scores.json says, or would say, of it."""
        studio = outputs.CachedViews(shown, self.settings, self.models.score_size)
        return _only_scores(outputs.scores_of(studio, self.checked.prompt, self.models, self.checked.has_front))

    def _true_outlines(self) -> list[Float[Tensor, "b 1 s s"]]:
        return [self.outlines(RenderableAsset(asset, self.settings)) for asset in self.truth]

    def _still(self, asset: Asset, folder: Path) -> RenderableAsset:
        if not (folder / "sprite.jpg").is_file():
            cameras, white = _ring(gallery.FRAMES, self.settings), torch.ones(3)
            pictures = [outputs.as_bytes(asset.render(camera, gallery.SIDE, white)[0][0]) for camera in cameras]
            gallery.save_sprites(pictures, folder / "sprite.jpg")
        return RenderableAsset(asset, self.settings)


def objects_of(run: Run, device: str = "cpu") -> list[tuple[outputs.Renderable, dict]]:
    """A finished run's particles, each with its object in scores.json, empty for a run without scores. Raises
    `EvaluationError` if they are damaged."""
    try:
        particles = load_particles(run.checkpoints()[-1], run.request.settings, device)
        unscored = not (run.folder / "scores.json").exists()
        known = [{} for _ in particles] if unscored else [dict(one) for one in run.read_json("scores.json")["objects"]]
        return list(zip(particles, known, strict=True))
    except (ValueError, IndexError, KeyError, TypeError, SafetensorError) as error:
        reason = "Its scores.json or its last checkpoint is missing or damaged"
        raise EvaluationError(f"The run {run.folder.name} cannot be used. {reason}; remove its folder.") from error


def true_objects(stack: Stack, checked: ParsedPrompt) -> tuple[tuple[Asset, ...], tuple[str, ...]]:
    """The variants of what a prompt asks for, front to +x, and their files' SHA-256; none where the stack has no truth,
    or not of this kind and colour. Raises `EvaluationError` for files that are not those of truth.csv."""
    if stack.truth is None or checked.kind is None:
        return (), ()
    folder = stack.folder(stack.truth)
    try:
        with (folder / "truth.csv").open(newline="", encoding="utf-8") as file:
            rows = [r for r in csv.DictReader(file) if (r["kind"], r["colour"]) == (checked.kind, checked.colour)]
        hub.verify(folder, {row["file"]: row["sha256"] for row in rows})
    except (OSError, KeyError, ValueError) as error:
        raise EvaluationError(f"The true objects of this stack cannot be read: {error}") from error
    found = tuple(assets.load(folder / row["file"], normalise=False) for row in rows)
    return found, tuple(row["sha256"] for row in rows)


def best_overlap(own: Float[Tensor, "b 1 h w"], others: Sequence[Float[Tensor, "b 1 h w"]]) -> float | None:
    """Intersection over union with the variant that fits best, in [0, 1]; None if there is none."""
    return max((silhouette_iou(own, other) for other in others), default=None)


def mean_of(scored: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean of each score over those that have it; None if none has it."""
    known = {key: [s[key] for s in scored if s.get(key) is not None] for key in SCORES if any(key in s for s in scored)}
    return {key: sum(values) / len(values) if values else None for key, values in known.items()}


def beside_the_truth(own: Mapping[str, float | None], true: Mapping[str, float | None]) -> dict[str, float | None]:
    """A-LPIPS minus the true object's own, with its sign and without: less change than it has is no better than more."""
    pairs = {net: (own.get(f"a_lpips_{net}"), true.get(f"a_lpips_{net}")) for net in ("a", "b")}
    minus = {net: None if None in pair else pair[0] - pair[1] for net, pair in pairs.items()}
    off = {f"a_lpips_error_{net}": None if value is None else abs(value) for net, value in minus.items()}
    return {f"a_lpips_difference_{net}": value for net, value in minus.items()} | off


def rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Scores as they are kept."""
    return {key: value if value is None else round(value, 6) + 0.0 for key, value in values.items()}  # no minus zero


def _only_scores(known: Mapping) -> dict[str, float | None]:
    return {key: known[key] for key in SCORES if key in known}


def _ring(count: int, settings: Settings) -> list[Camera]:
    return ring(
        count, settings.output.score_elevation_deg, settings.output.score_distance, settings.output.score_fovy_deg
    )
