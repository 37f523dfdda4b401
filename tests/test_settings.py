"""Settings say what a run is: they survive their file, and refuse what makes no sense."""

import json

import pytest

from redream.settings import PRESETS, Settings, SettingsError


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_its_own_file(name):
    for method, settings in PRESETS[name].items():
        assert settings.method == method and Settings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(
    "change",
    [
        {"particles": 0},
        {"particles": 9},
        {"iterations": 0},
        {"seed": -1},
        {"guidance_sds": -5.0},
        {"asset_views": 0},
        {"adaptation_steps": 0},
        {"adaptation_batch": 0},
        {"turntable_frames": 0},
        {"candidates": 2},
        {"warmup": 1.5},
        {"t_min": 0.6},
        {"t_max": (1.2, 0.5)},
        {"asset_sigma": 0.0},
        {"preview_every": 0},
        {"render_size": ((0.5, 64),)},
        {"render_size": ()},
        {"render_size": ((0.0, 64), (0.2, 0))},
        {"adaptation_rank": 0},
        {"learning_rate_grid": -1.0},
        {"turntable_rays": 0},
        {"opaque": float("nan")},
        {"distance": (0.0, 1.0)},
        {"elevation_deg": (float("-inf"), 0.0)},
    ],
)
def test_a_number_out_of_its_range_is_named(change):
    with pytest.raises(SettingsError, match=next(iter(change))):
        Settings(**change)


def test_settings_of_another_version_are_refused_by_name():
    values = json.loads(Settings().to_json()) | {"colour_of_hope": 1}
    del values["guidance"]
    with pytest.raises(SettingsError, match="colour_of_hope.*guidance"):
        Settings.from_json(json.dumps(values))


def test_assets_are_used_by_redream_with_at_least_one_half_on_and_by_nothing_else():
    assert Settings(initialise=False).uses_assets and Settings(adapt=False).uses_assets
    assert not Settings(initialise=False, adapt=False).uses_assets
    assert not Settings(method="vsd").uses_assets


def test_each_method_has_its_own_guidance():
    settings = Settings(guidance=7.5, guidance_sds=100.0)
    assert settings.guidance_scale == 7.5 and settings.with_(method="sds").guidance_scale == 100.0
