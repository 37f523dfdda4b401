"""The loop: what its gradients do to a particle, and that a run can be stopped, saved and continued exactly."""

import itertools
import math
from itertools import pairwise
from unittest.mock import Mock

import pytest
import torch
from tiny_stack import TINY

from redream.distillation import loop
from redream.distillation.adaptation import CaptionedAsset
from redream.distillation.captured import plain_calls
from redream.distillation.checkpoint import CheckpointError
from redream.distillation.loop import LOSSES_EVERY, Distillation, DivergenceError
from redream.distillation.particle import RATE_FACTORS, Particle
from redream.distillation.prior import Prior
from redream.scene.assets import load
from redream.scene.cameras import Camera
from redream.scene.volume import OccupancyGrid
from redream.settings import METHODS


@pytest.fixture
def assets(tiny_stack):
    files = sorted((tiny_stack / "assets").glob("*.glb"))[:3]
    return [CaptionedAsset(load(file), "a red owl") for file in files]


def start(stack, settings, assets=()):
    return Distillation(Prior.load(stack / "prior"), settings, "a red owl", assets)


def tensors(distillation):
    return {f"{n}/{k}": v.clone() for n, m in distillation._modules().items() for k, v in m.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("stack", ["tiny_stack", "tiny_stack_v"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_to_its_end_in_both_prediction_types(request, stack, method, assets):
    distillation = start(request.getfixturevalue(stack), TINY.with_(method=method), assets)
    steps = list(distillation.steps())
    assert [s.iteration for s in steps] == [1, 2, 3, 4]
    assert [s.stage for s in steps] == (["warm-up"] * 2 if method == "redream" else ["distillation"] * 2) + [
        "distillation"
    ] * 2
    assert ("variational" in steps[-1].losses) == (method in {"redream", "vsd"})
    image = distillation.particles[0].render(Camera(0.0, 15.0, 1.6, 40.0), 16, torch.ones(3)).image
    assert torch.isfinite(image).all()


def test_all_of_the_adaptation_is_done_when_the_warm_up_ends(tiny_stack, assets):
    settings = TINY.with_(iterations=8, adaptation={"steps": 5})
    distillation = start(tiny_stack, settings, assets)
    done = [(distillation.adaptation.steps_done, bool(distillation.adapted_embeddings)) for _ in distillation.steps()]
    assert done == [(2, False), (3, False), (4, False), (5, True)] + [(5, True)] * 4


def test_the_adapter_is_scaled_in_the_score_and_trained_at_full_strength(tiny_stack, assets, monkeypatch):
    used, real = [], Prior.using

    def using(self, adapter, train=False, scale=1.0):
        used.append((adapter, train, scale))
        return real(self, adapter, train, scale)

    monkeypatch.setattr(Prior, "using", using)
    list(start(tiny_stack, TINY.with_(adaptation={"scale": 0.3}), assets).steps())
    assert {u for u in used if u[0] == "prior"} == {("prior", True, 1.0), ("prior", False, 0.3)}


def test_learning_rates_follow_the_score_after_the_warm_up_alone(tiny_stack, assets):
    distillation = start(tiny_stack, TINY.with_(distillation={"score_rms_reference": 1e6}), assets)
    factors = [float(distillation.particles[0].optimizer.factor) for _ in distillation.steps()]
    assert factors == pytest.approx([1, 1, *[RATE_FACTORS[0]] * 2])


def test_particles_take_turns_and_start_from_different_assets(tiny_stack, assets):
    distillation = start(tiny_stack, TINY.with_(particles=2, iterations=3), assets)
    assert [s.particle for s in distillation.steps()] == [0, 1] * 3
    views = [p.render(Camera(0.0, 15.0, 1.6, 40.0), 16, torch.ones(3)).image for p in distillation.particles]
    assert not torch.equal(*views)


def test_the_asset_velocity_alone_pulls_a_particle_onto_its_asset(tiny_stack, assets):
    settings = TINY.with_(
        iterations=20,
        initialisation={"warmup": 1.0, "asset_colour_until": 1.0, "asset_sigma": 0.005},
        adapt=False,
        distillation={"delta_every": 0, "guidance": 0.0},
    )
    settings = settings.with_(
        initialisation={"asset_steps": 12},
        distillation={"learning_rate_grid": 0.05, "learning_rate_network": 0.01, "learning_rate_end": 1.0},
    )
    settings = settings.with_(rendering={"resolutions": ((0.0, 24),)})
    settings = settings.with_(
        field={"features": 4, "max_resolution": 32, "hidden": 32},
        rendering={"occupancy_resolution": 16, "samples_per_ray": 24},
    )
    distillation = start(tiny_stack, settings, assets[:1])
    camera, white = Camera(30.0, 15.0, 1.6, 41.0), torch.ones(3)
    image, _ = assets[0].asset.render(camera, 24, white)

    def distance():
        return float((distillation.particles[0].render(camera, 24, white).image - image).square().mean())

    before = distance()
    for _ in distillation.steps():
        pass
    assert distance() < before / 10


def test_more_steps_of_the_asset_velocity_an_iteration_come_closer_to_the_asset(tiny_stack, assets):
    distances = []
    for count in (1, 4):
        settings = TINY.with_(
            iterations=40,
            initialisation={"warmup": 1.0, "asset_colour_until": 1.0, "asset_steps": count},
            adapt=False,
            distillation={"delta_every": 0, "guidance": 0.0},
        )
        settings = settings.with_(
            distillation={"learning_rate_grid": 0.05, "learning_rate_network": 0.01, "learning_rate_end": 1.0}
        )
        distillation = start(tiny_stack, settings, assets[:1])
        for _ in distillation.steps():
            pass
        camera, white = Camera(30.0, 15.0, 1.6, 41.0), torch.ones(3)
        image, _ = assets[0].asset.render(camera, 24, white)
        distances.append(float((distillation.particles[0].render(camera, 24, white).image - image).square().mean()))
    assert distances[1] < 0.7 * distances[0]


def test_the_further_steps_of_the_asset_velocity_are_taken_in_the_warm_up_alone(tiny_stack, assets, monkeypatch):
    taken = []
    monkeypatch.setattr(Particle, "optimizer_step", lambda self, loss: taken.append(loss))
    settings = TINY.with_(iterations=10, initialisation={"warmup": 0.3, "asset_steps": 4}, adapt=False)
    counts = []
    for _ in start(tiny_stack, settings, assets[:1]).steps():
        counts.append(len(taken))
        taken.clear()
    assert counts == [4] * 3 + [1] * 7


def test_the_occupancy_grid_is_updated_every_eight_steps_of_the_field(tiny_stack, assets, monkeypatch):
    settings = TINY.with_(iterations=24, initialisation={"asset_steps": 4, "warmup": 0.5}, adapt=False)
    distillation, updated = start(tiny_stack, settings, assets), []
    monkeypatch.setattr(OccupancyGrid, "update", lambda *_: updated.append(distillation.iteration + 1))
    for _ in distillation.steps():
        pass
    assert updated == [2, 4, 6, 8, 10, 12, 16, 24]  # four steps an iteration in the warm-up, then one


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tiny_stack, assets):
    runs = []
    for seed in (3, 3, 4):
        distillation = start(tiny_stack, TINY.with_(seed=seed), assets)
        losses = [s.losses for s in distillation.steps()]
        runs.append((losses, tensors(distillation)))
    assert runs[0][0] == runs[1][0] and equal(runs[0][1], runs[1][1])
    assert runs[0][0] != runs[2][0]


@pytest.mark.parametrize("method", ["redream", "sds"])
@pytest.mark.parametrize("stopped_after", [1, 3])
def test_a_run_that_was_stopped_and_loaded_ends_as_one_that_was_not(
    tiny_stack, assets, tmp_path, method, stopped_after
):
    settings = TINY.with_(method=method)
    whole = start(tiny_stack, settings, assets)
    for _ in whole.steps():
        pass
    first = start(tiny_stack, settings, assets)
    for step in first.steps():
        if step.iteration == stopped_after:
            break
    first.save(tmp_path / "checkpoint")
    second = start(tiny_stack, settings, assets)
    second.load(tmp_path / "checkpoint")
    assert [s.iteration for s in second.steps()] == list(range(stopped_after + 1, 5))
    assert equal(tensors(whole), tensors(second))


def test_a_stop_between_steps_of_the_adaptation_waits_for_no_further_one_and_loses_none(tiny_stack, assets, tmp_path):
    settings = TINY.with_(iterations=8, adaptation={"steps": 10})  # 3, 5, 8 and 10 steps are done after an iteration
    whole, first, second = (start(tiny_stack, settings, assets) for _ in range(3))
    list(whole.steps())
    done = list(first.steps(stop=lambda: first.adaptation.steps_done == 4))
    assert len(done) == first.iteration == 1 and first.adaptation.steps_done == 4
    first.save(tmp_path / "checkpoint")
    second.load(tmp_path / "checkpoint")
    assert [s.iteration for s in second.steps()] == list(range(2, 9))
    assert equal(tensors(whole), tensors(second))


def test_a_finished_run_continues_for_extra_iterations_at_the_end_of_its_schedule(tiny_stack):
    distillation = start(tiny_stack, TINY.with_(method="vsd"))
    assert len(list(distillation.steps())) == 4
    assert [(s.iteration, s.total) for s in distillation.steps(extra=2)] == [(5, 6), (6, 6)]


def test_a_checkpoint_of_other_settings_is_refused_in_a_sentence(tiny_stack, tmp_path):
    start(tiny_stack, TINY.with_(method="vsd")).save(tmp_path / "checkpoint")
    other = start(tiny_stack, TINY.with_(method="vsd", field={"hidden": 16}))
    with pytest.raises(CheckpointError, match="does not fit"):
        other.load(tmp_path / "checkpoint")


def test_a_checkpoint_that_was_cut_off_is_refused_in_a_sentence(tiny_stack, tmp_path):
    distillation = start(tiny_stack, TINY.with_(method="sds"))
    distillation.save(tmp_path)
    file = tmp_path / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="damaged"):
        distillation.load(tmp_path)


def test_a_checkpoint_that_is_json_of_another_kind_is_refused_in_a_sentence(tiny_stack, tmp_path):
    distillation = start(tiny_stack, TINY.with_(method="sds"))
    distillation.save(tmp_path)
    (tmp_path / "state.json").write_text("[]")
    with pytest.raises(CheckpointError, match="damaged"):
        distillation.load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["redream", "sds"])
def test_a_score_that_is_not_finite_counts_as_zero_and_harms_no_particle(tiny_stack, assets, method, value):
    runs = []
    for spoil in (lambda gradient: gradient.clone().index_fill_(-1, torch.tensor([0]), value), torch.zeros_like):
        # without rates that follow the score: they keep what they were, where zero would lower them
        distillation = start(tiny_stack, TINY.with_(method=method, distillation={"score_rms_reference": 0.0}), assets)

        def score(*arguments, run=distillation, spoil=spoil, real=distillation._score_gradient):
            gradient, loss = real(*arguments)
            return (spoil(gradient) if run.iteration == 1 else gradient), loss

        distillation._score_gradient = score
        steps = list(distillation.steps())
        runs.append(([(step.overflows, "score" in step.losses) for step in steps], tensors(distillation)))
    (read, spoilt), (_, zero) = runs
    assert read == [(0, True), (1, False), (0, False), (0, True)]
    assert all(torch.isfinite(value).all() for value in spoilt.values()) and equal(spoilt, zero)


def test_losses_are_means_since_the_last_reading(tiny_stack):
    distillation = start(tiny_stack, TINY.with_(method="vsd", iterations=LOSSES_EVERY + 2))
    scores, real = [], distillation._score_gradient

    def score(*arguments):
        gradients, loss = real(*arguments)
        scores.append(float(gradients.norm()))
        return gradients, loss

    distillation._score_gradient = score
    read = {step.iteration: step.losses for step in distillation.steps() if step.losses}
    ends = [0, 1, 2, 4, 8, LOSSES_EVERY, LOSSES_EVERY + 2]
    assert list(read) == ends[1:]
    means = [sum(scores[begin:end]) / (end - begin) for begin, end in pairwise(ends)]
    assert [losses["score"] for losses in read.values()] == pytest.approx(means)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shared", [False, True])
def test_captured_passes_between_fixed_tensors_give_the_run_of_plain_ones(tiny_stack, assets, method, shared):
    """`plain_calls` is what CUDA graphs are replaced by: trial calls that must leave no trace, then copies in and out."""
    runs = []
    counted = Mock(side_effect=plain_calls)
    for capture in (None, counted):
        prior = Prior.load(tiny_stack / "prior")
        prior.capture = capture
        settings = TINY.with_(method=method, iterations=8, variational={"shared_noise": shared})
        distillation = Distillation(prior, settings, "a red owl", assets)
        losses = [step.losses for step in distillation.steps()]
        runs.append((losses, tensors(distillation)))
    assert runs[0][0] == runs[1][0] and equal(runs[0][1], runs[1][1])
    assert counted.call_count >= {"sds": 1, "vsd": 2, "redream": 4}[method]


def test_with_stored_poses_the_particle_is_compared_with_its_asset_at_these_alone(tiny_stack, assets):
    seen = []
    settings = TINY.with_(iterations=6, initialisation={"stored_poses": 5, "warmup": 0.5}, particles=2)
    distillation = start(tiny_stack, settings, assets)
    real = distillation.render_random_view

    def render(particle, size, compared_with=None):
        camera, background, rendering = real(particle, size, compared_with)
        seen.append((camera, compared_with))
        return camera, background, rendering

    distillation.render_random_view = render
    list(distillation.steps())
    compared = [(camera, target) for camera, target in seen if target is not None]
    assert len(compared) >= 6 and all(camera in target.cameras for camera, target in compared)
    assert {len(target.cameras) for _, target in compared} == {5} and len({id(t) for _, t in compared}) == 2


def spoil_the_loss(monkeypatch, iterations):
    """Make the loss of these iterations (0, 1, …) not a number."""
    real, asked = loop.regularisers, itertools.count()
    monkeypatch.setattr(
        loop, "regularisers", lambda *values: real(*values) * (math.nan if next(asked) in iterations else 1.0)
    )


def test_steps_that_are_no_numbers_are_skipped_and_counted_and_the_run_goes_on(tiny_stack, monkeypatch):
    distillation = start(tiny_stack, TINY.with_(method="sds", iterations=12, distillation={"opaque": 1.0}))
    spoil_the_loss(monkeypatch, {3, 4, 9})
    assert sum(step.skipped for step in distillation.steps()) == 3
    assert all(p.isfinite().all() for p in distillation.particles[0].field.parameters())


def test_a_run_whose_numbers_stay_not_finite_ends_with_what_to_change(tiny_stack, monkeypatch):
    settings = TINY.with_(method="sds", iterations=100, distillation={"opaque": 1.0, "guidance": 30.0})
    distillation = start(tiny_stack, settings)
    spoil_the_loss(monkeypatch, range(15, 100))
    sentence = r"last 20 iterations .*\(distillation.guidance, now 30\) .*\(distillation.learning_rate_grid, now 0.1\)"
    with pytest.raises(DivergenceError, match=sentence):
        list(distillation.steps())
    assert distillation.iteration == 40  # it is read every ten iterations
    assert all(p.isfinite().all() for p in distillation.particles[0].field.parameters())
