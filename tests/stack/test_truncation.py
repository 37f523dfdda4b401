"""Prompts within the text encoders' context: those that fit stay as they are; longer ones keep their subject and views."""

import csv
import json
import random
from pathlib import Path

import pytest

from redream.evaluation.trials import read_prompts
from redream.pipeline import PipelineError, generate
from redream.retrieval.clip import text_check
from redream.scene.cameras import VIEWS, view_prompt
from redream.stack.models import Models
from redream.stack.truncation import truncated
from redream.stack.vocabulary import ParsedPrompt, parse_prompt

EXAMPLES = Path(__file__).parents[2] / "examples"
LONG = "a highly detailed high quality studio photo of a small cute toy model of a big painted purple owl"


@pytest.fixture(scope="module")
def mini_models(mini):
    return Models.load(mini, "cpu")


@pytest.fixture(scope="module")
def fits_77(tmp_path_factory):
    """Whether CLIP's own text encoder, of 77 tokens, takes a prompt with the name of a view."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 8, "text_cfg": {}}}))
    fits = text_check(folder)
    return lambda text: all(fits(view_prompt(text, view)) for view in VIEWS)


def sample_prompts() -> list[str]:
    prompts = [prompt.text for file in EXAMPLES.glob("prompts_mini*.txt") for prompt in read_prompts(file)]
    with (EXAMPLES / "retrieval_prompts.csv").open() as file:
        return prompts + [row["prompt"] for row in csv.DictReader(file)]


def test_prompts_that_fit_are_the_models_texts_as_they_are(mini_models, fits_77):
    prompts = sample_prompts()
    assert len(prompts) > 150
    for prompt in prompts:
        assert mini_models.parse(prompt) == parse_prompt(prompt, mini_models.stack.vocabulary)
    for prompt in read_prompts(EXAMPLES / "prompts.txt"):
        assert truncated(parse_prompt(prompt.text), fits_77).prompt == prompt.text


def test_of_a_long_prompt_generic_phrases_are_left_out_and_named_with_the_text_that_the_models_get(mini_models):
    parsed = mini_models.parse(LONG)
    assert parsed.prompt == "a studio photo of a small cute toy model of a big painted purple owl"
    (warning,) = parsed.warnings
    assert "longer than the models can read, so they do not get “highly detailed high quality”." in warning
    assert f"Retrieval, 2D model and scores get “{parsed.prompt}”." in warning


def test_the_views_of_a_long_prompt_are_different_texts_for_every_model(mini_models):
    """Without the room for them their tokens were equal, and so was what the scoring CLIPs made of them."""
    texts = [view_prompt(mini_models.parse(LONG).prompt, view) for view in VIEWS]
    assert len({tuple(ids) for ids in mini_models.prior.tokens(texts).tolist()}) == 3
    for name in ("retrieval", "a", "b"):
        similarities = mini_models.clip(name).embed_texts(texts) @ mini_models.clip(name).embed_texts(texts).T
        assert similarities.fill_diagonal_(0).max() < 0.99
        untruncated = mini_models.clip(name).embed_texts([view_prompt(LONG, view) for view in VIEWS])
        assert (untruncated[0] == untruncated[1]).all()


@pytest.mark.parametrize("count", range(0, 44, 3))
def test_known_words_of_any_number_keep_their_kind_and_colour(mini_models, count):
    random.seed(count)
    words = [*mini_models.stack.vocabulary.words, "red", "car"]
    before, after = random.choices(words[:-2], k=count // 2), random.choices(words, k=count - count // 2)
    prompt = " ".join([*before, "purple", "owl", *after])
    checked = parse_prompt(prompt, mini_models.stack.vocabulary)
    parsed = mini_models.parse(prompt)
    assert parsed.kind == "owl" and {"purple", "owl"} <= set(parsed.prompt.split())
    words_of_prompt = iter(checked.prompt.split())
    assert all(word in words_of_prompt for word in parsed.prompt.split())  # in their order
    assert mini_models.truncated(parsed) == parsed  # it fits
    assert (parsed.warnings == checked.warnings) == (parsed.prompt == checked.prompt)


WORDS = ("a corgi in a red scarf, 8k, photorealistic, ", "extraordinarily ", "梟のおもちゃ", "🦉", "x")


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("length", [1, 60, 150, 300])
def test_any_prompt_fits_and_begins_as_it_was_written(fits_77, word, length):
    prompt = (word * 300)[:length]
    parsed = truncated(parse_prompt(prompt), fits_77)
    assert parsed.prompt and fits_77(parsed.prompt)
    assert parsed.prompt.split()[0].startswith(prompt[0])
    assert (parsed.prompt == prompt.strip()) == (parsed.warnings == ())


def test_a_caption_that_is_too_long_is_refused(tiny_stack, tmp_path):
    with pytest.raises(PipelineError, match="longer than the models can read; shorten it, perhaps to “an owl"):
        asset = tiny_stack / "assets/owl.glb"
        generate("an owl", stack=tiny_stack, assets=[(asset, "an owl " * 30)], out=tmp_path / "run")


def test_without_a_subject_to_keep_words_are_left_out_from_the_end():
    fits = lambda text: len(text.split()) <= 4
    parsed = truncated(ParsedPrompt("a photo of a fox cub in a wicker basket, highly detailed"), fits)
    assert parsed.prompt == "a fox cub"
    assert "“a photo of” and “in a wicker basket, highly detailed”" in parsed.warnings[0]
