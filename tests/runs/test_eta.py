"""ETA: an estimator that has learned from a run predicts that run, and others in proportion to their work."""

from pathlib import Path

import pytest
from tiny_stack import TINY

from redream.runs import eta
from redream.runs.eta import Iterations, RuntimeEstimator, SessionClock, work_of_stages
from redream.runs.run import Request, Run
from redream.settings import PRESETS
from redream.stack import benchmark

MINI = PRESETS["mini"]["redream"]
STAGES = {"retrieval": 1.0, "orientation": 2.0, "turntables": 30.0, "meshes": 20.0, "scores": 5.0}


def finished(folder, settings=MINI, per_iteration=None, speed=1.0, stages=STAGES, **record) -> Run:
    """A run whose record has these times: seconds per iteration by part (default: 1, 2, …) and seconds by stage."""
    run = Run.create(Request("an owl", settings, "tiny", {}), folder)
    parts = Iterations(settings).counts()
    per_iteration = per_iteration or {part: 1.0 + number for number, part in enumerate(parts)}
    values = {"stack": "tiny", "device": "here", "done": run.request.total}
    values["seconds"] = {stage: seconds / speed for stage, seconds in stages.items()} | {"loading": 1000.0}
    values["seconds_per_iteration"] = {part: seconds / speed for part, seconds in per_iteration.items()}
    run.write_json("record.json", values | record)
    return run


def learned(*runs) -> RuntimeEstimator:
    estimator = RuntimeEstimator("tiny", "here")
    for run in runs:
        estimator.learn(run)
    return estimator


def test_iterations_are_counted_by_method_stage_and_resolution():
    settings = MINI.with_(particles=2, rendering={"resolutions": ((0.0, 64), (0.5, 128))})
    counts = {"redream/warm-up/64": 180, "redream/distillation/64": 120, "redream/distillation/128": 300}
    assert Iterations(settings).counts() == counts
    assert Iterations(settings, extra=10).counts() == counts | {"redream/distillation/128": 320}
    assert Iterations(settings).counts(begin=170) == counts | {"redream/warm-up/64": 10}
    assert Iterations(settings).part(180) == "redream/warm-up/64"
    assert Iterations(MINI.with_(method="vsd")).counts() == {"vsd/distillation/64": 300}


def test_all_of_the_adaptation_is_work_of_the_warm_up_once_for_all_particles():
    for settings in (MINI.with_(particles=2), MINI.with_(initialisation={"warmup": 0.0})):
        work, without = (
            sum(count * iterations.work[part] for part, count in iterations.counts().items())
            for iterations in (Iterations(settings), Iterations(settings.with_(adapt=False)))
        )
        assert work - without == pytest.approx(MINI.adaptation.steps * 8 * eta.ADAPTATION)


def test_a_learned_run_is_predicted_exactly(tmp_path):
    estimator = learned(finished(tmp_path / "a"))
    distillation, warm_up = 210, 90  # iterations; parts are sorted, so that they take 1 s and 2 s
    assert estimator.seconds(MINI) == pytest.approx(distillation * 1 + warm_up * 2 + sum(STAGES.values()))
    assert estimator.seconds(MINI, begin=100) == pytest.approx(200 * 1 + sum(STAGES.values()))


def test_time_is_linear_in_iterations(tmp_path):
    vsd = MINI.with_(method="vsd")
    estimator = learned(finished(tmp_path / "a", vsd, {"vsd/distillation/64": 0.5}))
    seconds = [estimator.seconds(vsd.with_(iterations=count)) for count in (100, 200, 400)]
    assert seconds[1] - seconds[0] == pytest.approx(50) and seconds[2] - seconds[1] == pytest.approx(100)
    assert estimator.seconds(vsd, extra=40) - estimator.seconds(vsd) == pytest.approx(20)


def test_a_device_twice_as_fast_needs_half_the_time(tmp_path):
    slow, fast = (learned(finished(tmp_path / str(speed), speed=speed)) for speed in (1.0, 2.0))
    for settings in (MINI, MINI.with_(method="sds"), MINI.with_(particles=3, rendering={"samples_per_ray": 96})):
        assert fast.seconds(settings) == pytest.approx(slow.seconds(settings) / 2)


def test_what_no_run_has_had_is_scaled_by_its_work(tmp_path):
    sds = MINI.with_(method="sds")
    rate = 0.03  # seconds per unit of work, equal for all parts
    stages = {stage: rate * work for stage, work in work_of_stages(sds).items()}
    per_iteration = {part: rate * work for part, work in Iterations(sds).work.items()}
    estimator = learned(finished(tmp_path / "a", sds, per_iteration, stages=stages))
    iterations = Iterations(MINI)
    work = sum(iterations.work[part] * count for part, count in iterations.counts().items())
    assert estimator.seconds(MINI) == pytest.approx(rate * (work + sum(work_of_stages(MINI).values())))


def test_the_median_of_the_latest_runs_counts(tmp_path):
    runs = [finished(tmp_path / str(number), speed=speed) for number, speed in enumerate((0.5, 0.02, 1.0))]
    assert learned(*runs).seconds(MINI) == pytest.approx(2 * learned(runs[2]).seconds(MINI))
    old = [finished(tmp_path / f"old-{number}", speed=9.0) for number in range(9)]
    latest = [finished(tmp_path / f"new-{number}") for number in range(eta.HISTORY_RUNS)]
    assert learned(*old, *latest).seconds(MINI) == pytest.approx(learned(latest[0]).seconds(MINI))


@pytest.mark.parametrize(
    "record", [{"stack": "another"}, {"device": "elsewhere"}, {"seconds_per_iteration": None}, {"seconds": 3}]
)
def test_runs_made_elsewhere_or_without_times_are_ignored(tmp_path, record):
    assert learned(finished(tmp_path / "a", **record)).seconds(MINI) is None


def test_a_run_that_broke_off_or_has_a_malformed_record_is_ignored(tmp_path):
    run = Run.create(Request("an owl", TINY, "tiny", {}), tmp_path / "run")
    assert learned(run).seconds(TINY) is None
    (run.folder / "record.json").write_text("[]")
    assert learned(run).seconds(TINY) is None


def test_the_latest_runs_of_the_folder_are_learned_from(tmp_path, monkeypatch):
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path))
    assert RuntimeEstimator.of_latest_runs("tiny", "here").seconds(MINI) is None
    run = finished(None)
    (tmp_path / "run-foreign012345678").mkdir()
    (tmp_path / "run-foreign012345678" / "record.json").write_text("{}")
    estimator = RuntimeEstimator.of_latest_runs("tiny", "here")
    assert estimator.seconds(MINI) == pytest.approx(learned(run).seconds(MINI))


def test_a_run_that_is_removed_while_the_latest_ones_are_looked_for_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path))
    run, glob = finished(None), Path.glob
    removed = tmp_path / "run-removed012345678" / "record.json"
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: [removed, *glob(folder, pattern)])
    assert RuntimeEstimator.of_latest_runs("tiny", "here").seconds(MINI) == learned(run).seconds(MINI)


def test_a_device_is_measured_also_where_that_cannot_be_stored(tmp_path, monkeypatch, models):
    (tmp_path / "runs").touch()
    monkeypatch.setenv("REDREAM_RUNS", str(tmp_path / "runs"))
    parts = (benchmark.Part("adaptation step", ms=100.0),)
    monkeypatch.setattr(
        benchmark,
        "measure",
        lambda prior, settings, side, *_: benchmark.Measurement(
            side, parts, 0.0, 0.0, {"warm-up": 2.0, "distillation": 1.0}
        ),
    )
    assert RuntimeEstimator.of_device(models, print).seconds(MINI) > 300 * 1.0


def test_samples_of_the_prior_count_until_a_run_is_known(tmp_path, monkeypatch):
    class Prior:
        def embed(self, prompts):
            return None

        def sample(self, embedding, generator, steps):
            moments.append(moments[-1] + 0.2)

    moments = [0.0]
    monkeypatch.setattr(eta.time, "perf_counter", lambda: moments[-1])
    estimator = RuntimeEstimator("tiny", "here")
    estimator.measure(Prior())
    assert estimator.rate("scores") == pytest.approx(0.2 / eta.SAMPLE)
    run = finished(tmp_path / "a")
    estimator.learn(run)
    assert estimator.seconds(MINI) == pytest.approx(learned(run).seconds(MINI))


def test_the_time_left_comes_from_recent_iterations_and_learned_stages(tmp_path):
    clock = SessionClock(MINI, 0, learned(finished(tmp_path / "a")))
    finishing = STAGES["turntables"] + STAGES["meshes"] + STAGES["scores"]
    for iteration in range(1, 91):
        clock.add(iteration, 100.0 if iteration <= 60 else 4.0)  # only the latest ones count
    assert clock.seconds_left(80) == pytest.approx(10 * 4.0 + 210 * 1.0 + finishing)
    clock.add(91, 3.0)
    assert clock.seconds_left(91) == pytest.approx(209 * 3.0 + finishing)
    assert clock.seconds_left(300) == pytest.approx(finishing)
    assert clock.seconds_per_iteration == {
        "redream/warm-up/64": pytest.approx((60 * 100 + 30 * 4) / 90),
        "redream/distillation/64": 3.0,
    }


def test_without_earlier_runs_the_time_left_is_scaled_from_the_session_and_at_its_start_unknown():
    clock = SessionClock(MINI, 0, RuntimeEstimator("tiny", "here"))
    assert clock.seconds_left(0) is None and clock.finishing("meshes") is None
    clock.add(1, 2.0)
    rate = 2.0 / Iterations(MINI).work["redream/warm-up/64"]
    assert clock.finishing("meshes") == pytest.approx(rate * work_of_stages(MINI)["meshes"])
    assert clock.seconds_left(1) > 89 * 2.0
