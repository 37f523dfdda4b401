"""How long a run takes: parts add up, and what was seen here tells what comes."""

import numpy as np
import pytest
from tiny_stack import TINY

from redream.runs import eta
from redream.runs.eta import RuntimeEstimator, cost, finishing_cost, iteration_costs
from redream.runs.events import Started
from redream.runs.run import Request, Run
from redream.settings import PRESETS

MINI = PRESETS["mini"]["redream"]


def test_all_of_adaptation_lies_in_the_warm_up_and_is_paid_once_for_all_particles():
    without, with_it = (iteration_costs(MINI.with_(particles=2, adapt=adapt)) for adapt in (False, True))
    taught = with_it - without
    warming = 2 * 90  # 0.3 of 300 iterations, two particles
    assert taught[warming:] == pytest.approx(0.0, abs=1e-12) and taught[:warming] == pytest.approx(taught[0])
    assert taught.sum() == pytest.approx(400 * 8 * eta.TAUGHT)


def test_without_adaptation_two_objects_cost_twice_as_much_as_one():
    one, two = (cost(MINI.with_(particles=n, adapt=False)) - eta.START for n in (1, 2))
    assert two == pytest.approx(2 * one)


def test_a_warm_up_of_no_length_still_has_its_adaptation():
    costs = iteration_costs(MINI.with_(initialisation={"warmup": 0.0}))
    assert costs.sum() - iteration_costs(
        MINI.with_(initialisation={"warmup": 0.0}, adapt=False)
    ).sum() == pytest.approx(400 * 8 * eta.TAUGHT)


@pytest.mark.parametrize("method", ["sds", "vsd", "redream"])
def test_what_is_left_is_the_whole_without_what_was_done(method):
    settings = MINI.with_(method=method)
    done = iteration_costs(settings, extra=20)[:130].sum()
    assert cost(settings, extra=20, begin=130) == pytest.approx(cost(settings, extra=20) - done)
    assert len(iteration_costs(settings, extra=20)) == 320


def test_views_cost_by_their_pixels_and_only_from_where_they_are_asked_for():
    plain, large = (
        iteration_costs(MINI.with_(method="vsd", rendering={"resolutions": size}))
        for size in (((0.0, 64),), ((0.0, 64), (0.5, 128)))
    )
    assert np.array_equal(plain[:150], large[:150])
    assert large[150:] - plain[150:] == pytest.approx(3 * eta.VIEW)


def finished(tmp_path, name, seconds, settings=TINY, sessions=1, done=None, stack="tiny", device="here"):
    run = Run.create(Request("a", settings, stack, {}), tmp_path / name)
    for _ in range(sessions):
        run.log(Started(name, "a", settings, 0, 4))
    timings = {"distillation": seconds, "loading": 1000.0}
    done = run.request.total if done is None else done
    run.write_json("record.json", {"stack": stack, "device": device, "done": done, "seconds": timings})
    return run


def test_runs_made_here_tell_what_the_next_one_takes(tmp_path):
    known = RuntimeEstimator("tiny", "here")
    assert known.seconds(TINY) is None
    for number, ratio in enumerate((2.0, 50.0, 3.0)):  # the computer was busy with something else once
        known.learn(finished(tmp_path, str(number), ratio * cost(TINY)))
    assert known.seconds(MINI) == pytest.approx(3.0 * cost(MINI))
    assert known.seconds(MINI, begin=290) == pytest.approx(3.0 * cost(MINI, begin=290))


@pytest.mark.parametrize(
    "of", [{"sessions": 2}, {"done": 3}, {"stack": "another"}, {"device": "elsewhere"}], ids=lambda of: next(iter(of))
)
def test_runs_that_do_not_tell_are_not_learned_from(tmp_path, of):
    known = RuntimeEstimator("tiny", "here")
    known.learn(finished(tmp_path, "run", 5.0, **of))
    assert known.seconds(TINY) is None


def test_a_run_that_broke_off_or_is_damaged_is_not_learned_from(tmp_path):
    known, run = RuntimeEstimator("tiny", "here"), Run.create(Request("a", TINY, "tiny", {}), tmp_path / "run")
    known.learn(run)
    (run.folder / "record.json").write_text("[]")
    known.learn(run)
    assert known.seconds(TINY) is None


def test_a_few_pictures_count_until_a_run_is_known(tmp_path):
    class Prior:
        def embed(self, prompts):
            return None

        def sample(self, words, generator, steps):
            return None

    known = RuntimeEstimator("tiny", "here")
    known.measure(Prior())
    assert 0 < known.seconds(MINI) < 1  # pictures that take no time
    known.learn(finished(tmp_path, "run", 7 * cost(TINY)))
    assert known.seconds(TINY) == pytest.approx(7 * cost(TINY))


def test_only_films_meshes_and_scores_are_left_at_the_end():
    assert cost(MINI.with_(method="sds"), begin=300) == pytest.approx(finishing_cost(MINI))
