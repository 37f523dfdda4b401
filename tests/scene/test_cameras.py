"""Cameras: the conventions of the docstring, as geometry."""

import math

import pytest
import torch

from redream.scene.cameras import Camera, CameraRange, ring, view_name

CAMERAS = [Camera(*map(float, c)) for c in [(0, 0, 1.6, 40), (90, 15, 1.5, 50), (-130, -10, 1, 60), (200, 80, 2, 30)]]


def seen_at(camera: Camera, point: list[float]) -> tuple[float, float]:
    """Where a point is in the camera's picture: (to the right, up), each in [−1, 1] at the borders."""
    local = torch.linalg.inv(camera.pose) @ torch.tensor([*point, 1.0])
    half = math.tan(math.radians(camera.fovy_deg) / 2) * -local[2]
    return (local[0] / half).item(), (local[1] / half).item()


@pytest.mark.parametrize(
    ("azimuth", "elevation", "place"),
    [
        (0.0, 0.0, [2, 0, 0]),
        (90.0, 0.0, [0, 2, 0]),
        (180.0, 0.0, [-2, 0, 0]),
        (-90.0, 0.0, [0, -2, 0]),
        (37.0, 90.0, [0, 0, 2]),
    ],
)
def test_azimuth_grows_counter_clockwise_from_the_front_and_elevation_upwards(azimuth, elevation, place):
    position = Camera(azimuth, elevation, 2.0, 40.0).pose[:3, 3]
    assert torch.allclose(position, torch.tensor(place, dtype=torch.float32), atol=1e-6)


@pytest.mark.parametrize("camera", CAMERAS)
def test_a_pose_is_a_rotation_and_a_place_on_the_sphere(camera):
    axes, position = camera.pose[:3, :3], camera.pose[:3, 3]
    assert torch.allclose(axes.T @ axes, torch.eye(3), atol=1e-6)
    assert torch.linalg.det(axes).item() == pytest.approx(1, abs=1e-5)
    assert position.norm().item() == pytest.approx(camera.distance, rel=1e-6)


@pytest.mark.parametrize("camera", CAMERAS)
def test_the_ray_through_the_centre_hits_the_origin(camera):
    origins, directions = camera.rays(1)  # one pixel, its centre is the picture's
    assert torch.allclose(origins + camera.distance * directions, torch.zeros(1, 3), atol=1e-6)


@pytest.mark.parametrize("camera", CAMERAS)
def test_up_is_up_and_a_camera_on_the_left_sees_the_front_at_its_left(camera):
    assert seen_at(camera, [0, 0, 0.1])[1] > 0
    across, _ = seen_at(Camera(90.0, 15.0, 1.6, 40.0), [0.1, 0, 0])
    assert across < 0
    across, _ = seen_at(Camera(0.0, 15.0, 1.6, 40.0), [0, 0.1, 0])  # the object's left is at the viewer's right
    assert across > 0


@pytest.mark.parametrize("camera", CAMERAS)
def test_rays_of_a_pixel_pass_through_the_point_projected_onto_it(camera):
    size = 8
    origins, directions = camera.rays(size)
    assert torch.allclose(directions.norm(dim=1), torch.ones(size**2), atol=1e-6)
    for row, column in [(0, 0), (0, 7), (5, 2)]:
        point = (origins + 1.3 * directions)[row * size + column].tolist()
        across, up = seen_at(camera, point)
        assert across == pytest.approx((column + 0.5) / size * 2 - 1, abs=1e-5)
        assert up == pytest.approx(1 - (row + 0.5) / size * 2, abs=1e-5)


def test_the_vertical_field_of_view_reaches_from_border_to_border():
    _, directions = Camera(0.0, 0.0, 1.6, 50.0).rays(1001)
    middle = directions.reshape(1001, 1001, 3)[:, 500]
    angle = math.degrees(math.acos((middle[0] @ middle[-1]).item()))
    assert angle == pytest.approx(50, abs=0.1)


@pytest.mark.parametrize("samples", [2, 3])
def test_supersampled_rays_are_those_of_a_larger_picture(samples):
    camera = CAMERAS[1]
    for few, many in zip(camera.rays(6, samples), camera.rays(6 * samples), strict=True):
        assert torch.equal(few, many)


def test_view_names_change_at_45_and_135_degrees():
    names = {0.0: "front", 44.9: "front", 45.0: "side", 90.0: "side", 135.0: "side", 135.1: "back", 180.0: "back"}
    for angle, name in names.items():
        for same in (angle, -angle, angle + 360, angle - 720):
            assert view_name(same) == Camera(same, 0.0, 1.6, 40.0).view == name


def test_sampled_cameras_stay_in_range_and_repeat_with_the_seed():
    ranges = CameraRange((-5.0, 35.0), (1.45, 1.8), (38.0, 44.0))
    cameras = [ranges.sample(torch.Generator().manual_seed(i)) for i in range(200)]
    assert cameras[7] == ranges.sample(torch.Generator().manual_seed(7))
    assert all(-5 <= c.elevation_deg <= 35 and 1.45 <= c.distance <= 1.8 and 38 <= c.fovy_deg <= 44 for c in cameras)
    quarters = [sum(c.azimuth_deg // 90 == q for c in cameras) for q in (-2, -1, 0, 1)]
    assert sum(quarters) == 200 and min(quarters) > 25


def test_uniform_cameras_and_rings_divide_the_circle():
    drawn = CameraRange((0.0, 1.0), (1.0, 2.0), (40.0, 41.0)).uniform(100, torch.Generator().manual_seed(0))
    for cameras in (drawn, ring(100, 15.0, 1.6, 40.0)):
        assert [c.azimuth_deg for c in cameras] == pytest.approx([3.6 * i for i in range(100)])
    assert len({c.elevation_deg for c in drawn}) > 50


def test_the_visible_area_is_that_between_the_rays_of_the_corners_in_the_plane_through_the_origin():
    camera = Camera(20.0, 30.0, 1.5, 50.0)
    origins, directions = camera.rays(1001)
    along = camera.pose[:3, 2]
    points = origins + directions * (-(origins @ along) / (directions @ along))[:, None]
    points = points.view(1001, 1001, 3)
    sides = [(points[0, -1] - points[0, 0]).norm(), (points[-1, 0] - points[0, 0]).norm()]
    assert camera.visible_area == pytest.approx(float(sides[0] * sides[1]) * (1001 / 1000) ** 2, rel=1e-4)
