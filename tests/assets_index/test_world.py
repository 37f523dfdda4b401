"""The miniature world keeps what it promises, and its recipes do what their docstrings say."""

import numpy as np
import pytest
import torch

from assets_index import world
from assets_index.recipes import autoencoder
from assets_index.recipes.clips import _from_captions, captions_of_the_world
from assets_index.recipes.renders import Renders, backgrounds, spoil
from assets_index.recipes.tokenizer import make_tokenizer
from assets_index.world import shapes
from redream.scene.assets import RADIUS


def test_at_least_15_percent_of_the_pairs_are_held_out_and_the_purple_owl_is_among_them():
    pairs = world.held_out()
    assert len(set(pairs)) == len(pairs) >= 0.15 * len(world.KINDS) * len(world.COLOURS)
    assert ("owl", "purple") in pairs


def test_the_index_has_250_to_400_things_none_of_a_held_out_pair_and_none_that_trains_or_tests_a_model():
    things = world.index_things()
    assert 250 <= len(things) <= 400 and len({thing.uid for thing in things}) == len(things)
    assert not {(thing.kind, thing.colour) for thing in things} & set(world.held_out())
    assert not set(things) & set(world.training_things() + world.test_things())


@pytest.mark.parametrize("kind", world.KINDS)
def test_every_kind_fits_the_unit_sphere_is_small_and_mostly_of_its_colour(kind):
    asset = world.Thing(kind, "purple", 0).asset()
    assert np.linalg.norm(asset.mesh.vertices, axis=1).max() <= RADIUS
    assert len(asset.mesh.vertices) <= 1000
    red, green, blue = asset.colours.T
    areas = np.bincount(asset.mesh.faces.ravel(), np.repeat(asset.mesh.area_faces, 3), len(asset.mesh.vertices))
    assert areas[(blue > green) & (red > green)].sum() > 0.4 * areas.sum()


def test_a_finished_shape_is_centred_within_the_sphere_and_lit_as_documented():
    """colour × 1.05 (0.66 + 0.34 (n_z + 1) / 2 + 0.05 n_x) (0.86 + 0.14 h) for a ball and a box, off the origin."""
    parts = [shapes.ball((3, 1, 2), 1.0, (0.9, 0.5, 0.2)), shapes.box((3, 2.5, 0.5), (1, 1, 3), (0.2, 0.4, 0.9))]
    made = shapes.finish(parts)
    assert np.abs(made.bounds.sum(axis=0)).max() < 1e-9
    assert np.linalg.norm(made.vertices, axis=1).max() == pytest.approx(0.4995)
    expected = []
    for part in parts:
        n, z = part.mesh.vertex_normals, part.mesh.vertices[:, 2]
        height = (z + 1) / 4  # the box reaches from −1 to 2, the ball to 3
        light = 1.05 * (0.66 + 0.34 * (n[:, 2] + 1) / 2 + 0.05 * n[:, 0]) * (0.86 + 0.14 * height)
        expected.append(np.clip(light[:, None] * part.colour, 0, 1))
    colours = made.visual.vertex_colors[:, :3] / 255
    assert np.abs(colours - np.concatenate(expected)).max() <= 0.5 / 255 + 1e-9


def test_parts_have_the_measures_that_their_makers_document():
    tapered, widened = (shapes.box((0, 0, 0), (2, 2, 2), shapes.METAL, top=top).mesh.vertices for top in (0.5, 1.25))
    for vertices, top in ((tapered, 0.5), (widened, 1.25)):
        assert np.abs(vertices[vertices[:, 2] > 0, :2]).max() == pytest.approx(top)
        assert np.abs(vertices[vertices[:, 2] < 0, :2]).max() == pytest.approx(1)
    torus = shapes.ring((0, 0, 0), 0.5, 0.1, shapes.METAL, axis=(1, 0, 0)).mesh
    assert torus.bounds[1] == pytest.approx([0.1, 0.6, 0.6], abs=1e-6)
    cone = shapes.cylinder((0, 0, 1), (0, 0, 3), 0.4, shapes.METAL, radius_end=0).mesh
    tip = cone.vertices[cone.vertices[:, 2] > 2.9]
    assert np.abs(tip[:, :2]).max() == pytest.approx(1e-5) and cone.bounds[:, 2] == pytest.approx([1, 3])
    white, _, pupil, mirrored = shapes.eyes((1, 0.5, 2), 0.2, pupil=(0.6, 0.4, 0.8))
    middle, extent = pupil.mesh.bounds.mean(axis=0), pupil.mesh.extents
    assert white.colour == shapes.WHITE and pupil.colour == shapes.DARK
    assert middle == pytest.approx([1 + 0.62 * 0.2, 0.5, 2]) and extent == pytest.approx([0.24, 0.16, 0.32])
    assert mirrored.mesh.bounds.mean(axis=0) == pytest.approx([1.124, -0.5, 2])
    assert shapes.shade((0.5, 0.2, 1.0), 0.5) == pytest.approx((0.25, 0.1, 0.5))
    assert shapes.shade((0.5, 0.2, 1.0), 2.0) == pytest.approx((0.75, 0.6, 1.0))


def test_the_numbers_of_things_are_those_in_the_docstrings():
    assert (len(world.training_things()), len(world.test_things()), len(world.index_things())) == (1344, 336, 320)
    assert len(world.held_out()) == 56
    assert [t.variant for t in world.index_things()].count(world.INDEX_VARIANTS[1]) == 40


def test_backgrounds_are_white_pale_or_coloured_and_a_quarter_fades():
    ramps = backgrounds(4000, np.random.default_rng(0))[:, :, :, 0]  # (n, 3, 64)
    top = ramps[:, :, 0]
    assert (top == 1).all(dim=1).float().mean() == pytest.approx(0.15, abs=0.02)
    assert (top >= 0.75).all(dim=1).float().mean() == pytest.approx(0.6 + 0.4 / 64, abs=0.02)
    assert (ramps[:, :, -1] != top).any(dim=1).float().mean() == pytest.approx(0.25, abs=0.03)


def test_the_same_thing_is_always_the_same_and_another_variant_is_not():
    first, repeated, other = (world.Thing("owl", "red", variant).asset().mesh.vertices for variant in (0, 0, 1))
    assert np.array_equal(first, repeated)
    assert not np.allclose(first, other, atol=1e-3)


def test_captions_name_kind_and_colour_and_the_view_when_asked():
    rng = np.random.default_rng(0)
    for _ in range(200):
        caption = world.caption("rabbit", "purple", rng, "back").lower()
        assert any(word in caption for word in world.KIND_WORDS["rabbit"])
        assert any(word in caption for word in world.COLOUR_WORDS["purple"])
        assert "back" in caption


def test_the_tokenizer_depends_on_the_words_alone_and_gives_each_known_word_one_token():
    captions = captions_of_the_world()
    tokenizer, repeated = make_tokenizer(captions, 20), make_tokenizer(list(reversed(captions)), 20)
    assert tokenizer.get_vocab() == repeated.get_vocab()
    words = [w for group in (world.KIND_WORDS, world.COLOUR_WORDS) for names in group.values() for w in names]
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words)
    assert tokenizer.eos_token_id == max(tokenizer.get_vocab().values())
    assert tokenizer.unk_token_id not in tokenizer("zebra").input_ids[1:-1]


def test_the_encoder_is_the_projection_onto_principal_components():
    """Random pictures of a few colours: encoding by the convolutions equals the rows applied to each 4 × 4 patch."""
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 255, (40, 64, 64, 4)).astype(np.uint8)
    renders = Renders(rgba, np.zeros(40, int), np.zeros(40, int), np.zeros(40))
    model = autoencoder.build_autoencoder(renders)
    rows, offset = autoencoder._components(renders)
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    patches = torch.nn.functional.unfold(pictures, 4, stride=4)  # (2, 48, 256)
    expected = torch.einsum("kp,bpn->bkn", rows, patches) + offset[:, None]
    assert torch.allclose(model.encode(pictures).latents.flatten(2), expected, atol=2e-4)


def test_bad_models_stay_premultiplied_pictures_differ_from_the_good_ones_and_repeat_with_their_seed():
    generator = torch.Generator().manual_seed(0)
    opacity = torch.rand(30, 1, 64, 64, generator=generator)
    good = torch.cat([opacity * torch.rand(30, 3, 64, 64, generator=generator), opacity], dim=1)
    before = good.clone()
    bad, repeated = (spoil(good, good.flip(0), np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(good, before) and torch.equal(bad, repeated)
    assert bad.min() >= 0 and bad[:, 3].max() <= 1 and (bad[:, :3] <= bad[:, 3:] + 1e-6).all()
    assert ((bad - good).abs().amax(dim=(1, 2, 3)) > 0.05).all()


def test_captions_are_compared_with_pictures_column_by_column_and_those_without_a_right_one_do_not_count():
    """Two right pictures of three share the first caption: −(log p₁ + log p₂) / 2; the second caption has none."""
    logits = torch.tensor([[1.0, 5.0], [2.0, 6.0], [4.0, 0.0]])
    right = torch.tensor([[True, False], [True, False], [False, False]])
    log_p = logits[:, 0] - logits[:, 0].exp().sum().log()
    assert torch.allclose(_from_captions(logits, right), -(log_p[0] + log_p[1]) / 2)
