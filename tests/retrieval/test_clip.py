"""open_clip behind two functions."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from tiny_models import make_tiny_clip

from redream.retrieval.clip import Clip, ClipError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder):
    return Clip.load(folder)


def smooth_images(count: int, size: int) -> torch.Tensor:
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


def test_embeddings_are_unit_vectors_of_one_space(clip):
    texts, images = clip.embed_texts(["a purple owl", "a car"]), clip.embed_images(smooth_images(3, 40))
    assert texts.shape == (2, 16) and images.shape == (3, 16)
    assert torch.allclose(texts.norm(dim=1), torch.ones(2)) and torch.allclose(images.norm(dim=1), torch.ones(3))


def test_half_precision_weights_are_computed_with_in_single_precision(clip):
    assert {p.dtype for p in clip.model.parameters()} == {torch.float32}
    assert clip.embed_texts(["a cat"]).dtype == torch.float32


def test_a_text_is_embedded_alike_alone_and_among_many(clip):
    texts = [f"a {colour} {kind}" for colour in ("red", "blue") for kind in ("owl", "cat", "dog", "car")] * 10
    together = clip.embed_texts(texts)  # more than one chunk
    assert torch.allclose(together[7], clip.embed_texts([texts[7]])[0], atol=1e-5)
    assert torch.allclose(together[:8], together[-8:], atol=1e-5)


def test_an_unknown_word_and_another_known_one_change_the_embedding(clip):
    known, other, unknown = clip.embed_texts(["a red owl", "a blue owl", "a xyzzy owl"])
    assert known @ other < 0.9999 and known @ unknown < 0.9999


def test_images_are_prepared_as_open_clip_prepares_them(clip, folder):
    """The anti-aliased bicubic resize of a tensor is the one of Pillow, up to its rounding to 8 bits."""
    image = smooth_images(1, 100)
    _, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    pixels = (image[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    reference = prepare(Image.fromarray(np.asarray(pixels)))
    assert torch.allclose(clip._ready(image)[0], reference, atol=3 / 255 / 0.25)


def test_embedding_twice_gives_the_same_bits_and_no_graph(clip):
    images = smooth_images(2, 32).requires_grad_()
    first, second = clip.embed_images(images), clip.embed_images(images)
    assert torch.equal(first, second) and not first.requires_grad


def test_embeddings_may_be_used_where_gradients_are_taken(clip):
    """Tensors made in inference mode could not be saved for a backward pass."""
    weights = torch.ones(16, requires_grad=True)
    (clip.embed_texts(["a cat"]) * weights).sum().backward()
    assert weights.grad.abs().sum() > 0


def test_the_checksum_names_the_weights(clip, tmp_path):
    assert Clip.load(make_tiny_clip(tmp_path / "same", seed=0)).sha256 == clip.sha256
    assert Clip.load(make_tiny_clip(tmp_path / "other", seed=1)).sha256 != clip.sha256


def test_pickled_weights_are_not_read(tmp_path):
    folder = make_tiny_clip(tmp_path / "clip")
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ClipError, match="needs open_clip_config.json and open_clip_model.safetensors"):
        Clip.load(folder)


def test_weights_of_another_model_are_refused_in_a_sentence(tmp_path):
    folder = make_tiny_clip(tmp_path / "clip")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["layers"] = 3
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ClipError, match="do not belong together"):
        Clip.load(folder)
