"""Settings say what a run is: they survive their file, and refuse what makes no sense."""

import json

import pytest

from redream.settings import PRESETS, Settings, SettingsError, presets_like


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
        {"distillation": {"guidance": -5.0}},
        {"adaptation": {"views": 0}},
        {"adaptation": {"steps": 0}},
        {"adaptation": {"batch": 0}},
        {"output": {"turntable_frames": 0}},
        {"retrieval": {"candidates": 2}},
        {"initialisation": {"warmup": 1.5}},
        {"distillation": {"t_min": 0.6}},
        {"distillation": {"t_max": (1.2, 0.5)}},
        {"initialisation": {"asset_sigma": 0.0}},
        {"output": {"preview_every": 0}},
        {"rendering": {"resolutions": ((0.5, 64),)}},
        {"rendering": {"resolutions": ()}},
        {"rendering": {"resolutions": ((0.0, 64), (0.2, 0))}},
        {"adaptation": {"rank": 0}},
        {"distillation": {"learning_rate_grid": -1.0}},
        {"output": {"turntable_rays": 0}},
        {"distillation": {"opaque": float("nan")}},
        {"cameras": {"distance": (0.0, 1.0)}},
        {"cameras": {"elevation_deg": (float("-inf"), 0.0)}},
    ],
)
def test_a_setting_out_of_its_range_is_named(change):
    (name, value), *_ = change.items()
    with pytest.raises(
        SettingsError, match=f"{name}.{next(iter(value))}|{name} do" if isinstance(value, dict) else name
    ):
        Settings(**change)


def test_unknown_settings_are_refused_by_name():
    for values in ({"colour_of_hope": 1}, {"field": {"colour_of_hope": 1}}):
        with pytest.raises(SettingsError, match="colour_of_hope"):
            Settings.from_json(json.dumps(json.loads(Settings().to_json()) | values))


def test_missing_settings_are_refused_by_name():
    values = json.loads(Settings().to_json())
    del values["field"]["levels"]
    with pytest.raises(SettingsError, match="field.levels is missing"):
        Settings.from_json(json.dumps(values))


def test_assets_are_used_by_redream_with_at_least_one_half_on_and_by_nothing_else():
    assert Settings(initialise=False).uses_assets and Settings(adapt=False).uses_assets
    assert not Settings(initialise=False, adapt=False).uses_assets
    assert not Settings(method="vsd").uses_assets


def test_each_method_has_its_own_guidance():
    assert [PRESETS["sd21"][method].distillation.guidance for method in ("redream", "vsd", "sds")] == [7.5, 7.5, 100.0]


def test_presets_are_alike_if_they_are_for_the_same_prior():
    assert presets_like("mini-fast") == ["mini", "mini-fast"]
    assert presets_like("sd21") == ["sd21", "sd21-fast", "sd21-zerogpu", "paper"]


@pytest.mark.parametrize("name", ["sd21-fast", "sd21-zerogpu"])
def test_a_short_preset_of_sd21_is_the_long_one_in_small(name):
    long, short = PRESETS["sd21"]["redream"], PRESETS[name]["redream"]
    assert short.adaptation.steps / short.iterations == long.adaptation.steps / long.iterations
    assert (short.distillation, short.initialisation) == (long.distillation, long.initialisation)
