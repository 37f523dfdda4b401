"""Redream: text to 3D by retrieval-augmented score distillation. The public names, imported when they are first used."""

import importlib
import os

# OpenMP's threads wait for each other in a busy loop; beside another program that makes iterations ten times slower. They
# sleep after so many rounds. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "4000")

__version__ = "0.1.0"

_HOME = {
    "generate": "pipeline",
    "resume": "pipeline",
    "retrieve": "pipeline",
    "sample": "pipeline",
    "prior_samples": "pipeline",
    "Models": "stack.models",
    "Settings": "settings",
    "PRESETS": "settings",
    "Stack": "stack.stack",
    "Run": "runs.run",
    "Camera": "scene.cameras",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'redream' has no attribute {name!r}")
    return getattr(importlib.import_module(f"redream.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
