"""Redream: a sentence becomes a 3D object. What the package offers, imported when it is first asked for."""

import importlib
import os

# OpenMP's threads wait for each other in a busy loop. Beside another program on two cores an iteration of VSD then takes
# 10 s, and .9 s if they sleep after so many rounds; on idle cores .4 and .5 s. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "4000")

__version__ = "0.1.0"

_HOME = {
    "generate": "pipeline",
    "resume": "pipeline",
    "retrieve": "pipeline",
    "sample": "pipeline",
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
