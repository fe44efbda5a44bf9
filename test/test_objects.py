"""Boxes of objects against boxes that the points were drawn from."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from panoptic_mapper import objects
from panoptic_mapper.objects import MIN_EDGE_M, ObjectExtractor, aabb, extract_objects, upright_box, without_strays
from panoptic_mapper.snapshot import Box

UP = np.array([0.0, 0.0, 1.0])


def cuboid(center: tuple, size: tuple, R: np.ndarray, num_points: int = 4000, seed: int = 0) -> np.ndarray:
    """Points on the surface of a cuboid, as a map holds it: [n, 3]."""
    rng = np.random.default_rng(seed)
    unit = rng.uniform(-0.5, 0.5, (num_points, 3))
    axis = rng.integers(3, size=num_points)
    unit[np.arange(num_points), axis] = rng.choice([-0.5, 0.5], num_points)
    return (unit * size) @ R.T + center


def rotation_of(box: Box) -> np.ndarray:
    w, x, y, z = box.quaternion
    return Rotation.from_quat([x, y, z, w]).as_matrix()


@pytest.mark.parametrize("up", [UP, np.array([0.0, -2.0, 0.0]), np.array([0.3, 0.2, 0.8])])
@pytest.mark.parametrize("yaw_deg", [0.0, 20.0, 75.0, 130.0])
def test_upright_box_is_the_one_the_points_come_from(up: np.ndarray, yaw_deg: float) -> None:
    unit_up = up / np.linalg.norm(up)
    tilt, _ = Rotation.align_vectors(unit_up[None], UP[None])
    R = tilt.as_matrix() @ Rotation.from_euler("z", yaw_deg, degrees=True).as_matrix()
    center, size = (1.0, -2.0, 0.4), (1.8, 0.7, 0.5)
    box = upright_box(cuboid(center, size, R), up)
    np.testing.assert_allclose(box.center, center, atol=0.02)
    np.testing.assert_allclose(box.size, size, rtol=0.04)
    R_box = rotation_of(box)
    np.testing.assert_allclose(R_box[:, 2], unit_up, atol=1e-9)
    assert np.degrees(np.arccos(min(1.0, abs(R_box[:, 0] @ R[:, 0])))) < 2.0
    assert np.linalg.det(R_box) == pytest.approx(1.0)
    assert box.quaternion[0] >= 0


def test_two_visible_faces_of_a_cupboard_give_its_own_yaw() -> None:
    R = Rotation.from_euler("z", 25, degrees=True).as_matrix()
    points = cuboid((0, 0, 1), (1.2, 0.6, 2.0), R)
    local = points @ R
    seen = points[(np.abs(local[:, 0] - 0.6) < 1e-6) | (np.abs(local[:, 1] + 0.3) < 1e-6)]
    box = upright_box(seen, UP)
    np.testing.assert_allclose(box.size, (1.2, 0.6, 2.0), rtol=0.04)
    assert abs(rotation_of(box)[:, 0] @ R[:, 0]) > np.cos(np.radians(2))


def test_the_box_holds_its_points() -> None:
    points = cuboid((0, 0, 1), (2, 1, 0.3), Rotation.from_euler("z", 33, degrees=True).as_matrix())
    box = upright_box(points, UP)
    local = (points - box.center) @ rotation_of(box)
    assert (np.abs(local) <= box.size / 2 + 0.03).all(1).mean() > 0.99


def test_stray_points_do_not_move_the_box() -> None:
    points = cuboid((1, 2, 0.5), (1, 0.6, 0.8), np.eye(3))
    strays = np.random.default_rng(5).uniform(-6, 6, (100, 3))
    clean = extract_objects(points, np.ones(len(points), int), UP)[1]
    noisy = extract_objects(np.concatenate([points, strays]), np.ones(len(points) + 100, int), UP)[1]
    np.testing.assert_allclose(noisy.box.size, clean.box.size, atol=0.03)
    np.testing.assert_allclose(noisy.box.center, clean.box.center, atol=0.03)
    np.testing.assert_allclose(noisy.centroid, (1, 2, 0.5), atol=0.03)
    np.testing.assert_allclose(noisy.aabb_max, (1.5, 2.3, 0.9), atol=0.03)
    assert noisy.num_points == 4100


def test_a_part_behind_an_occlusion_is_no_stray() -> None:
    seat, back = (
        cuboid((0, 0, 0.4), (0.5, 0.5, 0.1), np.eye(3), 300),
        cuboid((0, 0, 1.0), (0.5, 0.1, 0.3), np.eye(3), 100),
    )
    assert len(without_strays(np.concatenate([seat, back]))) == 400


@pytest.mark.parametrize(
    ("points", "size"),
    [
        ([[1, 2, 3]], (MIN_EDGE_M, MIN_EDGE_M, MIN_EDGE_M)),
        ([[1, 2, 3]] * 4, (MIN_EDGE_M, MIN_EDGE_M, MIN_EDGE_M)),
        ([[0, 0, 0], [1, 1, 0], [2, 2, 0]], (np.sqrt(8), MIN_EDGE_M, MIN_EDGE_M)),
        ([[0, 0, 0], [0, 0, 1.5]], (MIN_EDGE_M, MIN_EDGE_M, 1.5)),
    ],
)
def test_degenerate_points_give_a_thin_box(points: list, size: tuple) -> None:
    box = upright_box(np.array(points, float), UP)
    np.testing.assert_allclose(box.size, size, atol=1e-9)
    np.testing.assert_allclose(box.center, (np.min(points, 0) + np.max(points, 0)) / 2, atol=1e-9)
    low, high = aabb(np.array(points, float))
    assert (high - low >= MIN_EDGE_M - 1e-12).all()


def test_points_are_grouped_by_id_and_zero_is_nothing() -> None:
    points = np.array([[0, 0, 0], [5, 5, 5], [0.02, 0, 0], [9, 9, 9]], np.float32)
    objects = extract_objects(points, np.array([7, 2, 7, 0]), UP)
    assert list(objects) == [2, 7]
    assert objects[7].num_points == 2
    np.testing.assert_allclose(objects[7].centroid, (0.01, 0, 0), atol=1e-6)
    np.testing.assert_allclose(objects[2].aabb_min, np.full(3, 5 - MIN_EDGE_M / 2))
    assert extract_objects(points, np.zeros(4, int), UP) == {}


def test_a_hundred_objects_take_well_below_a_second_each() -> None:
    """A guard against a loop per point: 100 objects of 2000 points."""
    points = np.concatenate([cuboid((k, 0, 0), (0.8, 0.5, 0.5), np.eye(3), 2000, k) for k in range(100)])
    start = time.process_time()
    objects = extract_objects(points, np.repeat(np.arange(1, 101), 2000), UP)
    assert len(objects) == 100
    assert time.process_time() - start < 10.0


@pytest.mark.parametrize("num_points", [1, 2, 49, 50, 51, 52, 150, 151, 1000, 1051, 3333])
def test_boxes_are_trimmed_by_percentiles(num_points: int) -> None:
    """The nearest value to 1 % and 99 % of the way, as numpy defines it."""
    points = np.random.default_rng(num_points).normal(size=(num_points, 3))
    low, high = np.percentile(points, [1, 99], axis=0, method="nearest")
    middle, half = (low + high) / 2, np.maximum(high - low, MIN_EDGE_M) / 2
    np.testing.assert_allclose(aabb(points), (middle - half, middle + half), atol=1e-12)


def test_only_objects_that_changed_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    upright = objects.upright_box
    monkeypatch.setattr(objects, "upright_box", lambda own, up: (measured.append(len(own)), upright(own, up))[1])
    monkeypatch.setattr(objects, "without_strays", lambda own: own)
    points = np.concatenate([cuboid((3 * k, 0, 0), (1, 0.5, 0.5), np.eye(3), 100 + k, k) for k in range(4)])
    ids, extractor = np.repeat([5, 3, 70_000, 8], [100, 101, 102, 103]), ObjectExtractor()
    assert list(extractor.extract(points, ids, UP)) == [3, 5, 8, 70_000]
    changes = [
        (points, ids, UP, []),
        (points[:-1], ids[:-1], UP, [102]),  # object 8 loses a point
        (points[100:], ids[100:], UP, [103]),  # it gets it back, and object 5 is gone
        (points, ids, UP, [100]),
        (points, ids, np.array([0.0, 1.0, 0.0]), [101, 100, 103, 102]),
        (points, ids, UP, [101, 100, 103, 102]),
        (points + (ids == 3)[:, None], ids, UP, [101]),
    ]
    for new_points, new_ids, up, expected in changes:
        measured.clear()
        actual = extractor.extract(new_points, new_ids, up)
        assert measured == expected
        for id, geometry in extract_objects(new_points, new_ids, up).items():
            for name in ("centroid", "aabb_min", "aabb_max", "num_points"):
                np.testing.assert_array_equal(getattr(actual[id], name), getattr(geometry, name))
            for name in ("center", "size", "quaternion"):
                np.testing.assert_array_equal(getattr(actual[id].box, name), getattr(geometry.box, name))


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="points: expected"):
        upright_box(np.zeros((0, 3)), UP)
    with pytest.raises(ValueError, match="up: expected a direction"):
        upright_box(np.zeros((2, 3)), np.zeros(3))
