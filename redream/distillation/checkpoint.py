"""Checkpoints: the state of modules, optimizers and the loop in `state.safetensors` and `state.json`."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as as_safetensors
from torch import Tensor, nn

from redream.distillation.particle import Particle
from redream.errors import RedreamError
from redream.files import replacing
from redream.settings import Settings

FORMAT = 2  # of state.json; 1 named the particles' score RMS "disagreements"

Modules = Mapping[str, nn.Module]  # by a name without a slash
Optimizers = Mapping[str, torch.optim.Optimizer]


class CheckpointError(RedreamError):
    """A checkpoint that cannot be loaded; the message says why."""


def save(
    folder: Path, modules: Modules, optimizers: Optimizers, tensors: Mapping[str, Tensor], state: Mapping[str, object]
) -> None:
    """Write everything into `folder`: further `tensors` by name, and `state` as JSON. Each file is complete or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(tensors)
    for name, module in modules.items():
        tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.optimizer/{index}/{key}": torch.as_tensor(v) for key, v in moments.items()}
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    with replacing(folder / "state.safetensors") as file:
        file.write_bytes(as_safetensors(tensors))  # safetensors' own writer hides why a disk refuses
    with replacing(folder / "state.json") as file:
        file.write_text(json.dumps({"format": FORMAT, **state}))


def load(folder: Path, modules: Modules, optimizers: Optimizers) -> tuple[dict[str, Tensor], dict]:
    """Load what `save` wrote into `modules` and `optimizers`; return all tensors and the state.

    Raises `CheckpointError` for other settings or damaged files: then another checkpoint has to be loaded, as half of
    this one may be in the modules.
    """
    try:
        tensors, state = load_file(folder / "state.safetensors"), json.loads((folder / "state.json").read_text())
        for name, module in modules.items():
            _load_module(module, tensors, f"{name}/")
        for name, optimizer in optimizers.items():
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"{name}.optimizer/"):
                    index, moment = key.rsplit("/", 2)[1:]
                    moments.setdefault(int(index), {})[moment] = value
            optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
        if state["format"] == 1:
            state["score_rms"] = state.pop("disagreements")
        elif state["format"] != FORMAT:
            raise ValueError(f"format {state['format']} is unknown")
        return tensors, state
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(
            "This checkpoint is damaged or does not fit the run's settings; start the run anew."
        ) from error


def load_particles(folder: Path, settings: Settings, device: str = "cpu") -> list[Particle]:
    """The particles of a checkpoint, for rendering: no prior is needed. Raises `CheckpointError` if it does not fit."""
    try:
        tensors = load_file(folder / "state.safetensors")
        particles = [Particle(settings, torch.Generator(), torch.device(device)) for _ in range(settings.particles)]
        for number, particle in enumerate(particles):
            _load_module(particle.field, tensors, f"particle-{number}/")
            _load_module(particle.grid, tensors, f"grid-{number}/")
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError("This checkpoint does not fit the run's settings; start the run anew.") from error
    return particles


def _load_module(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    module.load_state_dict({key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)})
