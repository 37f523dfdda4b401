"""Codes of vectors: their error is what theory says, and it is small where queries look."""

import numpy as np
import pytest

from redream.retrieval import vectors
from redream.retrieval.vectors import MOST_BITS, TextCoder, TextCodes, TransformCoder

DIM, COUNT = 16, 4000


def normal(seed: int, scale: np.ndarray | float = 1.0, count: int = COUNT) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((count, DIM)) * scale).astype(np.float32)


def rotation(seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((DIM, DIM)))[0].astype(np.float32)


def error(coder: TransformCoder, x: np.ndarray, q: np.ndarray) -> float:
    """The root mean square of ⟨q, x − x̂⟩."""
    return float(np.sqrt(np.mean(((x - coder.decode(coder.encode(x))) @ q.T) ** 2)))


@pytest.mark.parametrize("bits", [6, 8, 10])
def test_the_error_of_a_normal_component_is_that_of_the_best_companded_levels(bits):
    coder = TransformCoder.train(normal(0), normal(1), float(bits))
    x = normal(2)
    squares = np.mean((x - coder.decode(coder.encode(x))) ** 2)
    best = 3**0.5 * np.pi / 2 / 4**bits  # Panter and Dite, for a variance of 1
    assert squares == pytest.approx(best, rel=0.25) and (coder.bits == bits).all() and coder.size == DIM * bits // 8


def test_a_further_bit_halves_the_error():
    errors = [
        error(TransformCoder.train(normal(0), normal(1), float(bits)), normal(2), normal(3)) for bits in (6, 7, 8)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15) and errors[1] / errors[2] == pytest.approx(2, rel=0.15)


def test_where_queries_and_vectors_vary_alike_the_error_falls_by_more_than_a_bit():
    scale = np.arange(1, DIM + 1) ** -1.0
    turn = rotation(0)
    x, q, other = (normal(seed, scale) @ turn for seed in (0, 1, 2))
    fitted = TransformCoder.train(x, q, 6.0)
    blind = TransformCoder.train(x, normal(3), 6.0)  # as if queries came from everywhere
    plain = TransformCoder.train(normal(4), normal(5), 6.0)  # levels of one size in every direction
    assert error(fitted, other, q) < 0.9 * error(blind, other, q) < 0.5 * error(plain, other, q)
    assert fitted.bits.sum() == blind.bits.sum() == plain.bits.sum() == 6 * DIM


def test_codes_do_not_depend_on_a_turn_of_all_vectors():
    scale, turn = np.arange(1, DIM + 1) ** -0.5, rotation(1)
    x, q = normal(0, scale), normal(1, scale)
    here, turned = TransformCoder.train(x, q, 7.0), TransformCoder.train(x @ turn, q @ turn, 7.0)
    assert error(here, x, q) == pytest.approx(error(turned, x @ turn, q @ turn), rel=0.1)
    assert sorted(here.bits) == sorted(turned.bits)


def test_far_vectors_are_coded_by_the_last_level_and_constant_components_by_none():
    sample = normal(0)
    sample[:, 3] = 0.25
    coder = TransformCoder.train(sample, normal(1), 4.0)
    far = coder.decode(coder.encode(sample[:1] + 1e4))
    assert np.isfinite(far).all() and coder.bits.min() == 0
    assert coder.decode(coder.encode(sample))[:, 3] == pytest.approx(0.25, abs=1e-3)


def test_a_component_has_sixteen_bits_at_most():
    coder = TransformCoder.train(normal(0), normal(1), 99.0)
    assert (coder.bits == MOST_BITS).all() and error(coder, normal(2), normal(3)) < 1e-3


def test_a_coder_is_restored_from_its_arrays():
    x = normal(0)
    coder, text = TransformCoder.train(x, normal(1), 7.0), TextCoder.train(x)
    assert (TransformCoder.of(coder.arrays("image"), "image").encode(x) == coder.encode(x)).all()
    restored = TextCoder.of(text.arrays).encode(x)
    assert all((one == other).all() for one, other in zip(restored, text.encode(x), strict=True))


def test_vectors_are_decoded_in_blocks_as_at_once(monkeypatch):
    coder = TransformCoder.train(normal(0), normal(1), 7.0)
    codes = coder.encode(normal(2))
    whole = coder.decode(codes)
    monkeypatch.setattr(vectors, "BLOCK", 999)
    assert coder.decode(codes) == pytest.approx(whole, abs=1e-6) and coder.decode(codes[:0]).shape == (0, DIM)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 1.0])
def test_of_allowed_captions_the_nearest_are_found_and_few_are_decoded(share, monkeypatch):
    x = normal(0, count=20_000)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    coder = TextCoder.train(x[:COUNT])
    codes, allowed, decoded = TextCodes(coder, *coder.encode(x)), np.random.default_rng(1).random(len(x)) < share, []
    take = TextCodes.take
    monkeypatch.setattr(TextCodes, "take", lambda self, places: decoded.append(len(places)) or take(self, places))
    _, places = codes.nearest(x[0], 5, allowed)
    wanted = np.flatnonzero(allowed)
    wanted = wanted[np.argsort(-x[wanted] @ x[0])][:5]
    assert len(places) == len(wanted) and len(set(places) & set(wanted)) >= 0.8 * len(wanted)
    assert decoded == [min(400, allowed.sum())]
