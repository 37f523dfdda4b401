"""Schedules from a time: what is predicted fits, and nothing larger would."""

from itertools import pairwise

import pytest

from redream.runs.eta import Benchmarked, RuntimeEstimator
from redream.runs.schedule import ScheduleError, fewest_iterations, in_proportion, schedule
from redream.settings import MAX_ITERATIONS, PRESETS, Settings
from redream.stack.benchmark import Measurement, Part

SD21, MINI = PRESETS["sd21"]["redream"], PRESETS["mini"]["redream"]
GOAL = {64: 0.045, 128: 0.0462, 256: 0.0508, 512: 0.07}  # seconds of an iteration on an H200, as hoped for
LEAST = 500


def goal_seconds(settings: Settings) -> float:
    """What a run takes with the times of GOAL, 45 s for everything else, and 30 ms for an adaptation step."""
    edges = [start for start, _ in settings.rendering.resolutions] + [1.0]
    shares = [end - begin for begin, end in pairwise(edges)]
    mean = sum(share * GOAL[side] for share, (_, side) in zip(shares, settings.rendering.resolutions, strict=True))
    return settings.iterations * mean + 0.03 * settings.adaptation.steps + 45


@pytest.mark.parametrize("minutes", [1.25, 2.0, 3.0, 10.0, 20.0])
def test_the_run_fits_and_one_more_iteration_would_not(minutes):
    chosen = schedule(SD21, minutes, goal_seconds, LEAST)
    assert goal_seconds(chosen) <= 60 * minutes < goal_seconds(in_proportion(chosen, chosen.iterations + 20))
    assert goal_seconds(chosen) > 60 * minutes - 0.2


def test_more_minutes_give_a_higher_resolution_or_as_high_a_one_and_no_fewer_iterations():
    chosen = [schedule(SD21, minutes / 10, goal_seconds, LEAST) for minutes in range(12, 60, 3)]
    sizes = [(s.rendering.resolutions[-1][1], s.iterations) for s in chosen]
    assert sizes == sorted(sizes) and len({pixels for pixels, _ in sizes}) > 1


def test_a_schedule_is_the_same_run_in_small():
    """Fractions stay; adaptation has as many steps for each iteration, all of them before τ (its own rule)."""
    chosen = schedule(SD21, 5.0, goal_seconds, LEAST)
    assert chosen.adaptation.steps / chosen.iterations == pytest.approx(1000 / 20_000, rel=0.01)
    assert set(chosen.changes_from(SD21)) == {"iterations", "adaptation.steps"}


def test_where_time_is_short_the_last_steps_of_the_resolution_are_left_out():
    chosen = schedule(SD21, 1.2, goal_seconds, LEAST)
    assert chosen.rendering.resolutions == ((0.0, 64), (0.2, 128), (0.4, 256))


def test_a_run_that_takes_its_time_is_limited_by_the_settings_alone():
    assert schedule(MINI, 1e6, lambda s: s.iterations, 80).iterations == MAX_ITERATIONS
    assert schedule(MINI, 1e6, lambda s: s.iterations, 80, most=1500).iterations == 1500


def test_the_same_time_gives_back_the_same_settings():
    assert schedule(MINI, goal_seconds(MINI) / 60, goal_seconds, 80) == MINI


def test_too_short_a_time_is_refused_with_one_that_is_enough():
    with pytest.raises(ScheduleError, match="too short for a useful run; here one takes at least 1.2 minutes"):
        schedule(SD21, 1.0, goal_seconds, LEAST)
    assert schedule(SD21, 1.2, goal_seconds, LEAST).iterations >= LEAST


def test_half_of_the_shortest_preset_of_a_prior_is_the_least():
    assert fewest_iterations("mini") == fewest_iterations("mini-fast") == 80
    assert fewest_iterations("paper") == PRESETS["sd21-zerogpu"]["redream"].iterations // 2


def measured(side: int, seconds: float) -> Measurement:
    return Measurement(
        side, (Part("adaptation step", ms=100.0),), 0.0, 0.0, {"warm-up": 2 * seconds, "distillation": seconds}
    )


def test_a_stored_benchmark_is_what_estimates_start_from(tmp_path, monkeypatch):
    """Of its parts exactly; resolutions between the measured ones are linear in pixels."""
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path / "runs"))
    Benchmarked.of("sd21", "here", "sd21", [measured(64, 0.1), measured(512, 1.0)]).store()
    assert not RuntimeEstimator.of_latest_runs("sd21", "elsewhere").runs
    eta = RuntimeEstimator.of_latest_runs("sd21", "here")
    longer = eta.seconds(SD21.with_(method="vsd", iterations=20_100)) - eta.seconds(SD21.with_(method="vsd"))
    at = {side: 0.1 + 0.9 * (side**2 - 64**2) / (512**2 - 64**2) for side in (64, 128, 256, 512)}
    assert longer == pytest.approx(20 * (at[64] + at[128] + at[256]) + 40 * at[512])
    half = SD21.with_(iterations=10_000, adaptation={"steps": 500})
    assert eta.seconds(SD21) - eta.seconds(half) == pytest.approx(
        1000 * 0.2 + 1000 * at[64] + 2000 * (at[128] + at[256]) + 4000 * at[512] + 500 * 0.1
    )
    at_256 = SD21.with_(method="sds", iterations=1000, rendering={"resolutions": ((0.0, 256),)})
    per_iteration = (eta.seconds(at_256.with_(iterations=2000)) - eta.seconds(at_256)) / 1000
    assert per_iteration == pytest.approx(at[256])


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"stack": 1, "device": 2, "preset": "none"}'])
def test_a_malformed_benchmark_is_none(text, tmp_path, monkeypatch):
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path))
    (tmp_path / "benchmark-mini.json").write_text(text)
    assert Benchmarked.read("mini") is None
