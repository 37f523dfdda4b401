"""The benchmark: FLOP against closed forms, times that add up, a loop that is left as it was."""

import dataclasses

import pytest
import torch
from tiny_stack import TINY
from torch import nn

from redream.distillation.loop import Distillation
from redream.scene import kernels
from redream.scene.assets import Asset
from redream.settings import DISTILLATION, PRESETS, WARM_UP
from redream.stack import benchmark
from redream.stack.architecture import on_meta, random_prior
from redream.stack.benchmark import Measurement, Part, projected_seconds, sample_distillation
from redream.stack.flops import flop_of, flop_of_parts
from redream.stack.models import Models
from redream.stack.probes import ORDER, Meter, launches_of, probed
from redream.stack.stack import Stack, StackError

SD21 = PRESETS["sd21"]["redream"]


def on_meta_tensors(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, device="meta", requires_grad=True)


def test_flop_are_those_of_the_closed_form_forward_and_backward():
    """A multiplication with its addition counts two; a layer's gradient costs one product for each of its two factors."""
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 5 * 5, 7))
    image = on_meta_tensors(2, 3, 5, 5)
    forward = 2 * 2 * (8 * 3 * 9 * 25 + 200 * 7)
    assert flop_of(lambda: net(image)) == forward
    assert flop_of(lambda: net(image).sum().backward()) == 3 * forward


def test_attention_is_counted_on_meta_tensors_forward_and_backward():
    """n queries and m keys of width d: two products of n · m · d each; the backward pass has four."""
    queries, keys, values = on_meta_tensors(2, 4, 16, 8), on_meta_tensors(2, 4, 6, 8), on_meta_tensors(2, 4, 6, 8)

    def attention():
        return nn.functional.scaled_dot_product_attention(queries, keys, values)

    products = 2 * (2 * 4 * 16 * 6 * 8)
    assert flop_of(attention) == 2 * products
    assert flop_of(lambda: attention().sum().backward()) == 6 * products


@pytest.mark.slow
def test_the_architecture_is_stable_diffusion_2_1_and_its_iteration_costs_what_its_parts_do():
    """The published numbers of parameters. Twice the latents are twice the arithmetic, ζ's step is a forward and about one
    backward pass of what its prediction is, and one pass of the encoder is about 1.1 TFLOP."""
    prior = random_prior(Stack.load("sd21", environ={}), "meta")
    sizes = {
        name: sum(p.numel() for p in getattr(prior, name).parameters()) for name in ("unet", "vae", "text_encoder")
    }
    assert sizes == {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840}
    assert prior.size == 512
    counted = benchmark.count(prior, SD21, 512)
    tflop = {part.part: part.tflop for part in counted.parts}
    assert tflop["prior"] == pytest.approx(2 * tflop["variational prediction"], rel=0.03)
    alone = tflop["variational prediction"] * 3 / 4  # of one latent; of two in one of three iterations
    assert 2 * alone < tflop["variational step"] < 2.3 * alone
    assert tflop["encode"] * 3 / 4 == pytest.approx(1.117, rel=0.01)
    assert 6.3 < counted.tflop_without_delta < 6.6 < counted.tflop < 7.9


@pytest.fixture(scope="module")
def measured(models) -> Measurement:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "FIT_STEPS", 8)
        return benchmark.measure(models.prior, TINY, 16, iterations=9)


def test_every_part_of_the_loop_is_timed_and_counted(measured):
    parts = {part.part: part for part in measured.parts}
    assert list(parts) == [*ORDER, "adaptation step"]
    assert all(part.ms > 0 for part in parts.values())
    counted = {name for name, part in parts.items() if part.tflop is not None}
    assert counted == set(parts) - {"asset", "occupancy"}
    assert all(part.launches > 0 and part.waits is None for name, part in parts.items() if name in ORDER)


def test_the_parts_are_no_more_than_the_whole(measured):
    parts = [part for part in measured.parts if part.part in ORDER]
    assert sum(part.launches for part in parts) < measured.launches
    assert sum(part.tflop or 0 for part in parts) == pytest.approx(measured.tflop)
    assert measured.tflop_without_delta < measured.tflop and set(measured.seconds) == {WARM_UP, DISTILLATION}
    assert 0 < measured.occupied <= 1 and measured.peak_gb > 0


def test_a_probed_loop_does_what_it_does_unprobed_and_is_left_as_it_was(models):
    def sample() -> Distillation:
        return benchmark.sample_distillation(models.prior, TINY, 16)

    def fields(distillation: Distillation) -> list[torch.Tensor]:
        benchmark._iterate(distillation, 3)
        return [p.detach().clone() for p in distillation.particles[0].field.parameters()]

    render, plain = Asset.render, fields(sample())
    distillation, meter = sample(), Meter(lambda: 0.0)
    with probed(distillation, meter.around):
        assert all(map(torch.equal, plain, fields(distillation)))
    assert {"render", "encode", "prior", "backward", "asset"} <= set(meter.totals)
    assert Asset.render is render and "encode" not in vars(models.prior)
    assert distillation.render_random_view.__func__ is Distillation.render_random_view


def test_a_part_within_another_one_counts_as_the_outer_one():
    clock = iter([0.0, 5.0])
    meter = Meter(lambda: next(clock))
    with meter.around("render"), meter.around("encode"):
        pass
    assert dict(meter.totals) == {"render": 5.0}


def test_the_meta_prior_of_a_loaded_one_has_its_shapes_and_no_adapters(models):
    meta = on_meta(models.prior)
    assert meta.device.type == "meta" and meta.size == models.prior.size
    shapes = [p.shape for n, p in models.prior.unet.named_parameters() if ".down." not in n and ".up." not in n]
    assert [p.shape for p in meta.unet.parameters()] == shapes


def test_with_shared_noise_an_iteration_costs_a_prediction_less_and_with_delta_denoising_a_larger_step(models):
    meta, flop = on_meta(models.prior), []
    for shared in (False, True):
        distillation = sample_distillation(meta, TINY.with_(variational={"shared_noise": shared}), 16)
        flop.append(flop_of_parts(distillation, 16, 1.0))
    (plain, delta), (shared, shared_delta) = flop
    saved = plain.pop("variational prediction")
    assert saved > 0 and shared == plain
    assert "variational prediction" not in shared_delta
    # Of two latents instead of one, with one pose for both.
    step = delta.pop("variational step")
    assert 1.99 * step < shared_delta.pop("variational step") < 2 * step
    assert shared_delta == {part: count for part, count in delta.items() if part != "variational prediction"}


def test_a_stack_without_an_architecture_has_no_random_weights(tiny_stack):
    with pytest.raises(StackError, match="states no architecture"):
        random_prior(Stack.load(tiny_stack, environ={}), "meta")


def test_launches_waits_and_copies_are_read_from_a_trace():
    def event(cat, name, ts, dur=1, **args):
        return {"cat": cat, "name": name, "ts": ts, "dur": dur, "args": args}

    trace = [
        {"name": "process_name", "ph": "M"},
        event("user_annotation", "render", 10, 10),
        event("user_annotation", "ProfilerStep#1", 0, 100),
        event("cuda_runtime", "cudaLaunchKernel", 11),
        event("cuda_driver", "cuLaunchKernelEx", 19),
        event("cuda_runtime", "cudaGraphLaunch", 20),
        event("cuda_runtime", "cudaStreamSynchronize", 15),
        event("cuda_runtime", "cudaMemcpyAsync", 16),
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 17, bytes=12),
        event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 18, bytes=99),
        event("kernel", "LaunchedKernel", 12),
    ]
    launches, waits, to_host = launches_of(trace)
    assert dict(launches) == {"iteration": 3, "render": 2} and dict(waits) == {"iteration": 1, "render": 1}
    assert to_host == 12


@pytest.mark.parametrize("reason", ["", "Fused kernels do not run here: no C compiler."])
def test_fused_kernels_are_on_or_a_sentence_says_why_not(models, monkeypatch, reason):
    (here,) = (path for path in benchmark.fast_paths(models.prior) if path.name == "fused kernels")
    assert (here.on, here.reason) == (False, "Fused kernels need a CUDA device.")
    monkeypatch.setattr(kernels, "unavailable", lambda device: reason)
    (there,) = (path for path in benchmark.fast_paths(models.prior) if path.name == "fused kernels")
    assert there.on == (not reason) and there.reason == (reason or "the hash grid and rendering, by Triton")


def timed(resolution: int, warm_up: float, distillation: float) -> Measurement:
    seconds = {WARM_UP: warm_up, DISTILLATION: distillation}
    return Measurement(resolution, (Part("adaptation step", ms=500.0),), 0.0, 0.0, seconds)


def test_projected_seconds_are_iterations_times_their_seconds():
    settings = SD21.with_(iterations=1000, rendering={"resolutions": ((0.0, 64), (0.5, 512))}, adaptation={"steps": 10})
    at = [timed(512, 3.0, 2.0), timed(64, 0.2, 0.1)]
    assert projected_seconds(settings, at) == pytest.approx(100 * 0.2 + 400 * 0.1 + 500 * 2.0 + 10 * 0.5)
    assert projected_seconds(settings.with_(adapt=False), at) == pytest.approx(20 + 40 + 1000)
    assert projected_seconds(settings.with_(method="vsd", particles=2), at) == pytest.approx(2 * (50 + 1000))


def test_between_measured_resolutions_seconds_are_linear_in_pixels_and_beyond_them_unknown():
    settings = SD21.with_(method="vsd", iterations=100, rendering={"resolutions": ((0.0, 128),)})
    at = [timed(64, 0.0, 1.0), timed(256, 0.0, 6.0)]
    assert projected_seconds(settings, at) == pytest.approx(100 * 2.0)  # 128² is a fifth of the way from 64² to 256²
    assert projected_seconds(settings.with_(rendering={"resolutions": ((0.0, 512),)}), at) is None
    untimed = dataclasses.replace(at[0], seconds={})
    assert projected_seconds(settings, [untimed]) is None


@pytest.mark.gpu
def test_on_a_gpu_launches_waits_and_memory_are_counted(tiny_stack):
    prior = Models.load(Stack.load(tiny_stack, environ={})).prior
    at = benchmark.measure(prior, TINY, 16, iterations=6)
    assert all(part.launches > 0 and part.waits is not None for part in at.parts if part.part == "prior")
    assert at.to_host_bytes is not None and 0 < at.peak_gb < 10
