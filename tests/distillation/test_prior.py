"""The prior against diffusers' own pipeline, and its adapters."""

import warnings

import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline

from redream.distillation.prior import Prior, PriorError

PROMPT = "a red owl"


@pytest.fixture(params=["tiny_stack", "tiny_stack_v"])
def folder(request):
    return request.getfixturevalue(request.param) / "prior"


@pytest.fixture
def prior(folder) -> Prior:
    return Prior.load(folder)


@pytest.fixture
def pipeline(folder) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def case(prior, generator):
    """Noised latents, timesteps and features for two predictions."""
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    return latents, torch.tensor([700, 200]), prior.embed([PROMPT, "photo of a cat"])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lora_step(prior: Prior, name: str, parameters, case) -> None:
    """One large step of this adapter's parameters on any loss."""
    optimiser = torch.optim.SGD(parameters, lr=10.0)
    with prior.using(name, train=True):
        prior.predict_noise(*case).square().mean().backward()
    optimiser.step()


def predictions(prior: Prior, case, *names):
    predicted = []
    for name in names:
        with torch.no_grad(), prior.using(name):
            predicted.append(prior.predict_noise(*case))
    return predicted


# Against diffusers


@torch.no_grad()
def test_a_guided_step_is_the_pipelines_own(prior, pipeline, generator):
    start = torch.randn(1, 4, 8, 8, generator=generator)
    recorded = []

    def keep(pipe, step, t, values):
        recorded.append((t, values["latents"].clone()))
        return values

    pipeline(
        PROMPT,
        latents=start,
        num_inference_steps=3,
        guidance_scale=7.5,
        callback_on_step_end=keep,
        output_type="latent",
    )

    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type="epsilon")  # fed with our ε
    scheduler.set_timesteps(3)
    embedding, empty, latents = prior.embed([PROMPT]), prior.embed([""]), start
    for t, theirs in recorded:
        noise = prior.guided_noise(latents, t[None], embedding, empty, 7.5)
        latents = scheduler.step(noise, t, latents).prev_sample
        torch.testing.assert_close(latents, theirs, rtol=1e-3, atol=1e-3)
    assert len(recorded) == 3


@torch.no_grad()
def test_text_features_are_the_pipelines_own(prior, pipeline):
    theirs, empty = pipeline.encode_prompt(PROMPT, "cpu", 1, do_classifier_free_guidance=True)
    torch.testing.assert_close(prior.embed([PROMPT]), theirs)
    torch.testing.assert_close(prior.embed([""]), empty)


def test_noise_is_added_as_the_scheduler_adds_it(prior, pipeline, generator):
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=generator)
    t = torch.tensor([10, 900])
    torch.testing.assert_close(prior.add_noise(latents, t, noise), pipeline.scheduler.add_noise(latents, noise, t))
    alpha, sigma = prior.alpha_sigma(t)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones(2))


@torch.no_grad()
def test_samples_are_pictures_and_repeat_with_the_seed(prior):
    embedding = prior.embed([PROMPT, "a cat"])
    one, two, other = (prior.sample(embedding, torch.Generator().manual_seed(s), steps=3) for s in (1, 1, 2))
    assert one.shape == (2, 3, 64, 64) and 0 <= one.min() and one.max() <= 1
    assert torch.equal(one, two) and not torch.equal(one, other)


# The view prefix


@torch.no_grad()
def test_a_prefix_of_word_embeddings_is_the_same_as_the_words(prior):
    prefix = prior.token_embeddings("front view")
    written = prior.embed([f"front view {p}" for p in (PROMPT, "")])
    torch.testing.assert_close(prior.embed([PROMPT, ""], prefix), written)
    torch.testing.assert_close(prior.embed([PROMPT, ""], prefix.expand(2, -1, -1)), written)


@torch.no_grad()
def test_a_long_prompt_makes_room_for_the_prefix(prior):
    long = " ".join(["owl"] * 40)
    prefix = prior.token_embeddings("front view")
    torch.testing.assert_close(prior.embed([long], prefix), prior.embed([f"front view {long}"]))


def test_a_prefix_gets_the_gradient_and_leaves_nothing_behind(prior):
    before = prior.embed([PROMPT])
    prefix = prior.token_embeddings("front view").double().float().requires_grad_()
    prior.embed([PROMPT, "a cat"], prefix).square().sum().backward()
    assert prefix.grad.abs().sum(dim=1).min() > 0
    assert all(p.grad is None for p in prior.text_encoder.parameters())
    assert torch.equal(prior.embed([PROMPT]), before)


# Pictures


def test_gradients_flow_through_encoding(folder, generator):
    prior = Prior.load(folder)
    prior.vae.double()
    image = torch.rand(1, 3, 24, 24, generator=generator, dtype=torch.float64).requires_grad_()  # is resized to 64
    direction = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    weights = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)

    def value(x):
        return (prior.encode(x) * weights).sum()

    (gradient,) = torch.autograd.grad(value(image), image)
    h = 1e-5
    with torch.no_grad():
        slope = (value(image + h * direction) - value(image - h * direction)) / (2 * h)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-5)


@torch.no_grad()
def moved(prior: Prior, gradient: torch.Tensor) -> torch.Tensor:
    """J Jᵀ g: how far a step of a grey picture along Jᵀ g moves its latents, J taken there."""
    grey = torch.full((1, 3, prior.size, prior.size), 0.5)
    _, step = torch.autograd.functional.vjp(prior.encode, grey, gradient)
    return torch.autograd.functional.jvp(prior.encode, grey, step)[1]


def test_weighted_gradients_move_the_latents_of_an_encoder_with_orthogonal_rows_as_they_say(prior, generator):
    rows = torch.linalg.qr(torch.randn(48, 4, generator=generator)).Q.T * torch.tensor([1.0, 2.0, 3.0, 5.0])[:, None]
    prior.encode = lambda image: torch.nn.functional.conv2d(image, rows.view(4, 3, 4, 4), stride=4)
    weights = prior.latent_weights()
    assert torch.allclose(weights[0] / weights, torch.tensor([1.0, 4.0, 9.0, 25.0]))
    assert float(weights.mean()) == pytest.approx(1)
    gradient = torch.randn(1, 4, prior.size // 4, prior.size // 4, generator=generator)
    factor = moved(prior, weights[:, None, None] * gradient) / gradient
    assert torch.allclose(factor, factor.mean().expand_as(factor), rtol=1e-3)


def test_weighted_gradients_move_the_latents_of_the_miniature_as_they_say(mini, generator):
    prior = Prior.load(mini.folder(mini.prior))
    gradient = torch.randn(1, 10, prior.latent_size, prior.latent_size, generator=generator)
    weights = prior.latent_weights()[:, None, None]

    def cosine(moved):
        return float(torch.cosine_similarity(moved.flatten(), gradient.flatten(), dim=0))

    assert cosine(moved(prior, weights * gradient)) > 0.999 and cosine(moved(prior, gradient)) < 0.9


def test_latents_are_the_autoencoders_times_its_scaling_factor(prior, pipeline, generator):
    image = torch.rand(2, 3, 64, 64, generator=generator)
    theirs = pipeline.vae.encode(image * 2 - 1).latent_dist.mean * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(prior.encode(image), theirs)
    decoded = pipeline.vae.decode(theirs / pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(prior.decode(theirs), (decoded / 2 + 0.5).clamp(0, 1))


@torch.no_grad()
def test_an_autoencoder_without_a_distribution_will_do(pipeline, generator):
    pipeline.vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(0, 0, 0),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=4,
    )
    prior = Prior(pipeline)
    image = torch.rand(1, 3, 32, 32, generator=generator)
    assert prior.size == 32  # 8 × 8 latents, four pixels each
    torch.testing.assert_close(prior.encode(image), prior.vae.encode(image * 2 - 1).latents)
    assert prior.decode(prior.encode(image)).shape == image.shape


@pytest.mark.parametrize("spoilt", [False, True])
def test_the_encoder_is_used_in_half_precision_only_where_its_latents_and_gradients_stay(folder, generator, spoilt):
    prior, image = Prior.load(folder), torch.rand(1, 3, 64, 64, generator=generator)
    exact = prior.encode(image)
    if spoilt:  # a network whose values bfloat16 cannot tell apart
        prior.vae.encoder.register_forward_hook(lambda m, i, out: 1e4 * (out + 1000) - 1e7)
        exact = prior.encode(image)
    assert prior.use_half_encoder() != spoilt
    assert next(prior.vae.encoder.parameters()).dtype == (torch.float32 if spoilt else torch.bfloat16)
    torch.testing.assert_close(
        prior.encode(image), exact, rtol=0, atol=1e-5 if spoilt else 0.05 * float(exact.abs().max())
    )
    assert prior.decode(exact if not spoilt else exact / 1e4).dtype == torch.float32


# Adapters


def test_a_fresh_adapter_changes_nothing(prior, case):
    (base,) = predictions(prior, case, None)
    prior.add_adapter("prior", 2, seeded(0))
    for predicted in predictions(prior, case, "prior", None):
        assert torch.equal(predicted, base)


def test_training_one_adapter_changes_neither_the_other_nor_the_base(prior, case):
    parameters = {name: prior.add_adapter(name, 2, seeded(0)) for name in ("prior", "variational")}
    base, omega, zeta = predictions(prior, case, None, "prior", "variational")
    lora_step(prior, "prior", parameters["prior"], case)
    base_after, omega_after, zeta_after = predictions(prior, case, None, "prior", "variational")
    assert torch.equal(base, base_after) and torch.equal(zeta, zeta_after)
    assert (omega - omega_after).abs().max() > 1e-4
    assert all(p.grad is None for p in parameters["variational"])


def test_adapters_are_restored_after_an_error_and_when_nested(prior, case):
    for name in ("prior", "variational"):
        lora_step(prior, name, prior.add_adapter(name, 2, seeded(1)), case)
    base, omega, zeta = predictions(prior, case, None, "prior", "variational")
    with pytest.raises(ZeroDivisionError), prior.using("prior"):
        raise ZeroDivisionError
    with torch.no_grad():
        assert torch.equal(prior.predict_noise(*case), base)
        with prior.using("prior"):
            with prior.using("variational"):
                assert torch.equal(prior.predict_noise(*case), zeta)
                with prior.using(None):
                    assert torch.equal(prior.predict_noise(*case), base)
            assert torch.equal(prior.predict_noise(*case), omega)


def test_the_scale_of_an_adapter_multiplies_what_it_adds_to_the_weights(prior, case):
    parameters = prior.add_adapter("prior", 2, seeded(1))
    lora_step(prior, "prior", parameters, case)
    base, omega = predictions(prior, case, None, "prior")
    with torch.no_grad():
        with prior.using("prior", scale=0.0):
            torch.testing.assert_close(prior.predict_noise(*case), base)
        with prior.using("prior", scale=0.25):
            part = prior.predict_noise(*case)
            with prior.using("prior"):
                assert torch.equal(prior.predict_noise(*case), omega)
            assert torch.equal(prior.predict_noise(*case), part)  # restored with its scale
        up = parameters[1::2]
        for matrix in up:
            matrix *= 0.25
    torch.testing.assert_close(predictions(prior, case, "prior")[0], part)
    assert (part - base).abs().max() > 1e-5 and (part - omega).abs().max() > 1e-5


def test_only_an_adapter_in_training_has_gradients(prior, case):
    prior.add_adapter("prior", 2, seeded(0))
    mine = set(map(id, prior.add_adapter("variational", 2, seeded(0))))

    def trained():
        return {id(p) for p in prior.unet.parameters() if p.requires_grad}

    with prior.using("variational", train=True):
        assert trained() == mine
        with prior.using("prior"):
            assert not prior.predict_noise(*case).requires_grad
        assert trained() == mine
    assert not trained()
    with prior.using("variational"):
        assert not prior.predict_noise(*case).requires_grad


def test_the_same_seed_gives_the_same_adapter_and_leaves_torchs_own_generator(prior):
    state = torch.random.get_rng_state()
    one = [p.detach().clone() for p in prior.add_adapter("prior", 2, seeded(3))]
    same, other = prior.add_adapter("variational", 2, seeded(3)), prior.add_adapter("other", 2, seeded(4))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_new_adapter_of_the_same_name_starts_anew_and_a_removed_one_is_gone(prior, case):
    (base,) = predictions(prior, case, None)
    lora_step(prior, "prior", prior.add_adapter("prior", 2, seeded(0)), case)
    anew = prior.add_adapter("prior", 2, seeded(0))
    assert torch.equal(predictions(prior, case, "prior")[0], base)
    with prior.using("prior", train=True):
        assert {id(p) for p in prior.unet.parameters() if p.requires_grad} == set(map(id, anew))
    prior.remove_adapter("prior")
    assert torch.equal(predictions(prior, case, None)[0], base)
    with pytest.raises(PriorError, match="no adapter named 'prior'"), prior.using("prior"):
        pass


def test_a_camera_is_added_to_the_timesteps_embedding_for_one_call(prior, case):
    width = prior.unet.time_embedding.linear_2.out_features
    with torch.no_grad():
        plain, zero = prior.predict_noise(*case), prior.predict_noise(*case, camera=torch.zeros(2, width))
        moved = prior.predict_noise(*case, camera=torch.ones(2, width))
        assert torch.equal(plain, zero) and (moved - plain).abs().max() > 1e-4
        assert torch.equal(prior.predict_noise(*case), plain)


@pytest.mark.parametrize("folder", ["tiny_stack"], indirect=True)
def test_a_compiled_unet_predicts_what_a_plain_one_does_and_is_compiled_once(prior, case):
    camera, compiled = torch.ones(2, prior.unet.time_embedding.linear_2.out_features), []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    def predicted():
        with torch.no_grad():
            return prior.predict_noise(*case, camera=camera)

    lora_step(prior, "prior", prior.add_adapter("prior", 2, seeded(1)), case)
    with prior.using("prior"):
        plain = predicted()
        torch.compiler.reset()
        prior.compile(backend)
        torch.testing.assert_close(predicted(), plain)
        passes = len(compiled)
        predicted()
    assert passes > 0 and len(compiled) == passes and prior.is_compiled
    lora_step(prior, "prior", prior.add_adapter("prior", 2, seeded(1)), case)  # with gradients, by the plain one
    with prior.using("prior"):
        torch.testing.assert_close(predicted(), plain)
    assert len(compiled) == passes


@pytest.mark.parametrize("folder", ["tiny_stack"], indirect=True)
def test_a_unet_that_cannot_be_compiled_is_used_as_it_is_and_this_said_once(prior, case):
    (plain,) = predictions(prior, case, None)

    def no_compiler(graph, inputs):
        raise RuntimeError("there is no C++ compiler")

    torch.compiler.reset()
    prior.compile(no_compiler)
    with pytest.warns(UserWarning, match="U-Net could not be compiled; it is used as it is. .*no C\\+\\+ compiler"):
        assert torch.equal(predictions(prior, case, None)[0], plain)
    assert not prior.is_compiled and "no C++ compiler" in prior.compile_error
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(predictions(prior, case, None)[0], plain)


def test_a_folder_that_is_no_pipeline_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(PriorError, match="it is not a diffusers pipeline"):
        Prior.load(tmp_path)
