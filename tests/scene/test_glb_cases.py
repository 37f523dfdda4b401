"""Files of the kinds that people really have, each with the values that a correct unlit viewer shows (glb_cases/)."""

import json
from pathlib import Path

import numpy as np
import pytest

from redream.scene import assets
from redream.scene.assets import GLTF_TO_WORLD, Asset

CASES = Path(__file__).parent / "glb_cases"
EXPECTED = json.loads((CASES / "expected.json").read_text())


def bounds(asset: Asset) -> np.ndarray:
    """[[min], [max]] of what is drawn, in glTF's axes."""
    return asset.mesh.bounds @ GLTF_TO_WORLD[:3, :3]


def shown(asset: Asset, origin: list[float], direction: list[float]) -> np.ndarray:
    """RGBA (4,) along a ray in glTF's axes: colour as 0 to 255 over black, and opacity."""
    ray = (np.array([v], float) @ GLTF_TO_WORLD[:3, :3].T for v in (origin, direction))
    colour, opacity = asset.cast(*(r.astype(np.float32) for r in ray))
    return np.append(colour[0] * 255, opacity[0])


@pytest.mark.parametrize("case", EXPECTED, ids=[case["file"] for case in EXPECTED])
def test_a_file_is_drawn_as_its_author_sees_it(case):
    asset = assets.load(CASES / case["file"], normalise=False)
    if case["bounds"] is not None:
        assert np.allclose(bounds(asset), case["bounds"], atol=1e-3), case["wrong_if"]
    for probe in case["probes"]:
        *colour, opacity = shown(asset, probe["origin"], probe["direction"])
        if probe["colour"] is None:
            assert opacity == 0, probe["name"]
        else:
            assert opacity == 1, probe["name"]
            assert np.abs(np.subtract(colour, probe["colour"])).max() <= probe["tolerance"], probe["name"]
