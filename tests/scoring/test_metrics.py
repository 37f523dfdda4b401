import json

import pytest
import torch
from torch import nn

from redream.retrieval.clip import Clip
from redream.scene.cameras import VIEWS, Camera, ring
from redream.scoring.metrics import (
    SCORES_VERSION,
    MetricsError,
    a_lpips,
    clearly_named,
    clip_score,
    coverage,
    janus_count,
    janus_rate,
    score,
    score_cameras,
    silhouette_iou,
    view_accuracy,
)
from redream.settings import Settings

SETTINGS = Settings()
PROMPT = "a purple owl"


class FakeClip(Clip):
    """Embeds a picture as its mean colour, and a text as the colour that `texts` gives to a word of it."""

    def __init__(self, texts):
        self.texts = texts

    def embed_images(self, images):
        return nn.functional.normalize(images.mean(dim=(2, 3)), dim=1)

    def embed_texts(self, texts):
        colours = [next(c for word, c in self.texts.items() if word in text) for text in texts]
        return nn.functional.normalize(torch.tensor(colours, dtype=torch.float32), dim=1)


# Fronts are red, sides green, backs blue; the bare prompt is gray.
READER = FakeClip({"front": (1, 0, 0), "side": (0, 1, 0), "back": (0, 0, 1), PROMPT: (1, 1, 1)})


def coded_views(cameras, size=8):
    """Pictures whose colour is the name of the camera's view."""
    colours = torch.eye(3)[[VIEWS.index(camera.view) for camera in cameras]]  # (b, 3)
    return colours[:, :, None, None].expand(-1, -1, size, size).contiguous()


# ---------------------------------------------------------------- A-LPIPS


def test_a_lpips_of_a_constant_ring_is_zero(net, pictures):
    assert a_lpips(net, pictures[:1].expand(90, -1, -1, -1)) == 0


def test_a_lpips_does_not_depend_on_where_the_ring_begins(net, pictures):
    ring_of = torch.cat([pictures, 1 - pictures])
    values = [a_lpips(net, ring_of.roll(shift, dims=0)) for shift in (0, 1, 5)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)


def test_a_lpips_compares_the_last_view_with_the_first():
    """Mean distance of 0, 1, 3 around: (1 + 2 + 3) / 3."""
    images = torch.tensor([0.0, 1.0, 3.0])[:, None, None, None].expand(-1, 3, 2, 2)
    assert a_lpips(lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)), images) == pytest.approx(2)


# ---------------------------------------------------------------- CLIP


def test_the_clip_score_is_the_mean_cosine():
    """Red and white against gray (1, 1, 1): 1/√3 and 1."""
    images = torch.stack([torch.tensor([0.7, 0, 0]), torch.ones(3)])[:, :, None, None].expand(-1, -1, 4, 4)
    assert clip_score(READER, images, PROMPT) == pytest.approx((3**-0.5 + 1) / 2)


def test_a_clip_that_names_every_view_has_view_accuracy_one():
    cameras = score_cameras(SETTINGS)
    assert view_accuracy(READER, coded_views(cameras), cameras, PROMPT) == 1


@pytest.mark.parametrize(("view", "fraction"), [("front", 1 / 4), ("side", 1 / 2), ("back", 1 / 4)])
def test_a_clip_with_one_answer_gets_the_fraction_of_that_view(view, fraction):
    cameras = score_cameras(SETTINGS)
    same = coded_views([Camera({"front": 0.0, "side": 90.0, "back": 180.0}[view], 0.0, 1.6, 40.0)]).expand(
        120, -1, -1, -1
    )
    assert view_accuracy(READER, same, cameras, PROMPT) == fraction


def test_views_near_a_border_do_not_count():
    cameras = score_cameras(SETTINGS)
    clear = torch.tensor([clearly_named(camera) for camera in cameras])
    assert int(clear.sum()) == 84
    images = coded_views(cameras)
    images[~clear] = images[~clear].roll(1, dims=1)  # wrong names
    assert view_accuracy(READER, images, cameras, PROMPT) == 1


@pytest.mark.parametrize(
    ("azimuth_deg", "clear"),
    [(30, True), (31, False), (59, False), (60, True), (-120, True), (-121, False), (345, True)],
)
def test_a_view_is_clear_from_fifteen_degrees_beside_a_border_on(azimuth_deg, clear):
    assert clearly_named(Camera(float(azimuth_deg), 15.0, 1.6, 40.0)) is clear


def test_no_clear_view_is_an_error():
    cameras = [Camera(45.0, 0.0, 1.6, 40.0)]
    with pytest.raises(MetricsError, match="15°"):
        view_accuracy(READER, coded_views(cameras), cameras, PROMPT)


def around(*arcs):
    """Degrees of the views, 3° apart, of arcs that are given by their ends."""
    return [azimuth for first, last in arcs for azimuth in range(first, last + 1, 3)]


@pytest.mark.parametrize(
    ("fronts_deg", "fraction", "faces"),
    [
        (around((-42, 42)), 0, 0),
        (around((-42, 42), (138, 222)), 29 / 51, 1),  # two-faced
        (around((0, 357)), 1, 2),  # a front all round is the worst
        (around((-99, 99)), 0, 0),  # the front spills over the sides
        ([180], 1 / 51, 0),  # 3° are no face
        ([177, 180, 183], 3 / 51, 1),
        (around((120, 129), (180, 186), (-120, -114)), 10 / 51, 3),
    ],
)
def test_janus_rate_and_count_of_fronts_behind(fronts_deg, fraction, faces):
    cameras, fronts = score_cameras(SETTINGS), {azimuth % 360 for azimuth in fronts_deg}
    names = ["front" if camera.azimuth_deg in fronts else "side" for camera in cameras]
    assert janus_rate(names, cameras) == pytest.approx(fraction) and janus_count(names, cameras) == faces


@pytest.mark.parametrize(("turned_deg", "fraction", "faces"), [(0, 0, 0), (180, 29 / 51, 1), (None, 1, 2)])
def test_a_second_front_in_the_renders_raises_janus_rate_and_count(turned_deg, fraction, faces):
    """A second front that is turned by so much; None: a front all round. The view names are coded as colours, front is red."""

    def render(camera):
        second = None if turned_deg is None else Camera(camera.azimuth_deg - turned_deg, 15.0, 1.6, 40.0)
        shown = Camera(0.0, 15.0, 1.6, 40.0) if second is None or second.view == "front" else camera
        return coded_views([shown]), torch.ones(1, 1, 8, 8)

    scores = score(render, PROMPT, {"a": READER}, {}, SETTINGS, True)
    assert scores["janus_rate_a"] == pytest.approx(fraction, abs=1e-6) and scores["janus_count_a"] == faces


# ---------------------------------------------------------------- silhouettes


def half(rows, columns):
    """An opaque block of an 8 × 8 picture, (1, 1, 8, 8)."""
    opacity = torch.zeros(1, 1, 8, 8)
    opacity[:, :, rows, columns] = 1
    return opacity


LEFT, TOP, ALL = half(slice(None), slice(4)), half(slice(4), slice(None)), half(slice(None), slice(None))


@pytest.mark.parametrize(
    ("a", "b", "iou"),
    [
        (LEFT, LEFT, 1),
        (LEFT, 1 - LEFT, 0),
        (LEFT, TOP, 1 / 3),  # a quarter of the plane of three quarters
        (LEFT, ALL, 1 / 2),
        (0 * ALL, 0 * ALL, 1),
        (0 * ALL, LEFT, 0),
        (0.6 * LEFT, LEFT, 1),  # only more or less than one half matters
    ],
)
def test_silhouettes_of_half_planes(a, b, iou):
    assert silhouette_iou(a, b) == pytest.approx(iou)
    assert silhouette_iou(b, a) == pytest.approx(iou)


def test_silhouette_iou_is_the_mean_over_views():
    assert silhouette_iou(torch.cat([LEFT, LEFT]), torch.cat([LEFT, TOP])) == pytest.approx((1 + 1 / 3) / 2)


def test_coverage_is_the_mean_opacity():
    assert coverage(torch.cat([0.5 * LEFT, ALL])) == pytest.approx((0.25 + 1) / 2)


# ---------------------------------------------------------------- all of them


def test_score_repeats_itself_and_equals_its_metrics(net):
    def render(camera):
        return coded_views([camera], 16), torch.full((1, 1, 16, 16), 0.25)

    first, second = (score(render, PROMPT, {"a": READER}, {"a": net, "b": None}, SETTINGS, True) for _ in range(2))
    images = coded_views(score_cameras(SETTINGS), 16)
    assert first == second
    assert first == {
        "clip_a": round(clip_score(READER, images, PROMPT), 6),
        "version": SCORES_VERSION,
        "view_accuracy_a": 1,
        "janus_rate_a": 0,
        "janus_count_a": 0,
        "a_lpips_a": round(a_lpips(net, images), 6),
        "a_lpips_b": None,
        "coverage": 0.25,
        "not_available": {"a_lpips_b": "This perceptual net's weights are not here."},
    }
    json.dumps(first)


@pytest.mark.parametrize(("has_front", "expected"), [(True, 1), (None, 1), (False, None)])
def test_an_object_without_a_front_has_no_view_accuracy(has_front, expected):
    def render(camera):
        return coded_views([camera]), torch.ones(1, 1, 8, 8)

    scores = score(render, PROMPT, {"a": READER, "b": READER}, {}, SETTINGS, has_front)
    assert scores["view_accuracy_a"] == scores["view_accuracy_b"] == expected
    of_views = {f"{key}_{name}" for key in ("view_accuracy", "janus_rate", "janus_count") for name in "ab"}
    assert set(scores["not_available"]) == (of_views if expected is None else set())
    assert all((scores[key] is None) == (expected is None) for key in of_views)


def test_the_cameras_of_scores_go_once_around_from_the_front():
    cameras = score_cameras(SETTINGS)
    assert cameras == ring(120, 15.0, SETTINGS.output.score_distance, 40.0)
    assert cameras[0].azimuth_deg == 0 and cameras[1].azimuth_deg == 3
