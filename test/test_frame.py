"""Frames: what contradicts itself is refused by name; what is resized still shows the same rays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from panoptic_mapper.frame import Frame, PinholeCamera, Segmentation, checked_pose

CAMERA = PinholeCamera(50.0, 52.0, 31.5, 23.5, 64, 48)


def make_frame(camera: PinholeCamera = CAMERA, labels: bool = True) -> Frame:
    v, u = np.mgrid[: camera.height, : camera.width]
    color = np.stack([u, v, u + v], -1).astype(np.uint8)
    segmentation = Segmentation((1 + u).astype(np.int32), (1 + v).astype(np.int32), (u / 64).astype(np.float32))
    depth = (1 + 0.01 * u + 0.02 * v).astype(np.float32)
    return Frame(5, color, depth, np.eye(4), camera, segmentation if labels else None)


def test_depth_that_is_no_measurement_becomes_zero() -> None:
    depth = make_frame().depth.copy()
    depth[0, :5] = [np.nan, np.inf, -np.inf, -1, 0]
    cleaned = replace(make_frame(), depth=depth).depth
    assert cleaned[0, :5].tolist() == [0, 0, 0, 0, 0]
    np.testing.assert_array_equal(cleaned[0, 5:], depth[0, 5:])
    assert cleaned.dtype == np.float32


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("color", np.zeros((48, 63, 3), np.uint8), r"colour image: expected uint8 \(48, 64, 3\).*\(48, 63, 3\)"),
        ("color", np.zeros((48, 64, 3), np.float32), "colour image: expected uint8.*got float32"),
        ("depth", np.zeros((24, 32), np.float32), r"depth image: expected \(48, 64\).*got \(24, 32\)"),
        ("labels", Segmentation(*np.zeros((2, 4, 4), np.int32)), r"label image: expected \(48, 64\).*got \(4, 4\)"),
        ("T_map_camera", np.full((4, 4), np.nan), "pose: not finite"),
        ("T_map_camera", np.eye(3), r"pose: expected a 4x4 matrix, got shape \(3, 3\)"),
        ("T_map_camera", np.diag([1.0, 1, 1.1, 1]), "pose: not a rigid transform"),
        ("T_map_camera", np.diag([1.0, 1, -1, 1]), "pose: not a rigid transform.*determinant -1"),
    ],
)
def test_contradictions_are_named(part: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(make_frame(), **{part: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 50, 32, 24, 64, 48), "expected finite fx, fy > 0"),
        ((50, np.nan, 32, 24, 64, 48), "expected finite fx, fy > 0"),
        ((50, 50, 320, 240, 64, 48), r"principal point \(320\.0, 240\.0\) lies outside the 64x48 image"),
        ((50, 50, 0, 0, 0, 48), "size of at least 1x1, got 0x48"),
    ],
)
def test_impossible_intrinsics_are_named(values: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PinholeCamera(*values)


def test_labels_that_contradict_themselves_are_named() -> None:
    zeros = np.zeros((4, 4), np.int32)
    with pytest.raises(ValueError, match=r"instance has shape \(4, 5\)"):
        Segmentation(zeros, np.zeros((4, 5), np.int32))
    with pytest.raises(ValueError, match=r"confidence has shape \(4,\)"):
        Segmentation(zeros, zeros, np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="negative"):
        Segmentation(zeros - 1, zeros)


def test_pose_is_made_orthonormal() -> None:
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec([0.1, 0.2, 0.3]).as_matrix()
    T[:3, 3] = 1, 2, 3
    rough = T.copy()
    rough[:3, :3] += 3e-4 * np.random.default_rng(0).uniform(-1, 1, (3, 3))
    cleaned = checked_pose(rough)
    np.testing.assert_allclose(cleaned[:3, :3].T @ cleaned[:3, :3], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(cleaned, T, atol=1e-3)
    np.testing.assert_array_equal(cleaned[:3, 3], T[:3, 3])
    assert rough[0, 0] != cleaned[0, 0]  # the caller's array is not changed


def test_resized_camera_sees_the_same_rays() -> None:
    small = CAMERA.resized(16, 16)
    # The border rays of the image are its corners at -0.5 and size - 0.5, whatever the resolution.
    for big_px, small_px in ((-0.5, -0.5), (63.5, 15.5)):
        assert (big_px - CAMERA.cx) / CAMERA.fx == pytest.approx((small_px - small.cx) / small.fx)
    for big_px, small_px in ((-0.5, -0.5), (47.5, 15.5)):
        assert (big_px - CAMERA.cy) / CAMERA.fy == pytest.approx((small_px - small.cy) / small.fy)
    np.testing.assert_array_equal(CAMERA.matrix, [[50, 0, 31.5], [0, 52, 23.5], [0, 0, 1]])


@pytest.mark.parametrize(("width", "height"), [(32, 24), (16, 12), (21, 16), (64, 48)])
def test_resized_pixels_show_what_lies_on_their_rays(width: int, height: int) -> None:
    frame = make_frame()
    small = frame.resized(width, height)
    assert small.depth.shape == small.labels.semantic.shape == (height, width)
    v, u = np.mgrid[:height, :width]
    # Where the centre of each small pixel lies in the large image.
    big_u, big_v = (u + 0.5) * 64 / width - 0.5, (v + 0.5) * 48 / height - 0.5
    nearest = 0.5 + 1e-6  # px: half a pixel of the large image is as near as the nearest pixel can be
    assert np.abs(small.labels.semantic - 1 - big_u).max() <= nearest
    assert np.abs(small.labels.instance - 1 - big_v).max() <= nearest
    assert np.abs(small.labels.confidence * 64 - big_u).max() <= nearest
    assert np.abs(small.depth - (1 + 0.01 * big_u + 0.02 * big_v)).max() <= 0.03 * nearest + 1e-6
    assert np.abs(small.color[..., 0].astype(float) - big_u).max() <= 1
    assert small.stamp_ns == frame.stamp_ns


def test_resizing_never_mixes_labels_or_depths() -> None:
    frame = make_frame()
    depth = np.where(frame.depth > 1.6, np.float32(5), np.float32(0))
    small = replace(frame, depth=depth).resized(23, 17)
    assert set(np.unique(small.depth)) == {0, 5}


def test_labels_of_any_integer_type_can_be_resized() -> None:
    labels = Segmentation(np.arange(64 * 48).reshape(48, 64), np.zeros((48, 64), np.uint16))
    small = labels.resized(32, 24)
    assert np.isin(small.semantic, labels.semantic).all()
    assert small.semantic.max() > 60 * 48


def test_the_right_size_is_not_copied() -> None:
    frame = make_frame()
    assert frame.resized(64, 48) is frame
    assert frame.labels.resized(64, 48) is frame.labels


def test_instances_of_other_classes_are_dropped_and_the_rest_stays() -> None:
    semantic = np.array([[0, 1, 2], [2, 3, 1]], np.int32)
    instance = np.array([[4, 5, 5], [0, 6, 7]], np.int32)
    confidence = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    labels = Segmentation(semantic, instance, confidence)
    told = labels.without_instances_of(np.array([True, False, True, False]))
    assert told.instance.tolist() == [[0, 5, 0], [0, 6, 7]]
    assert told.instance.dtype == np.int32
    np.testing.assert_array_equal(told.semantic, semantic)
    np.testing.assert_array_equal(told.confidence, confidence)
    assert told.without_instances_of(np.array([True, False, True, False])) is told


def test_labels_have_classes_where_any_pixel_has_one() -> None:
    nothing = np.zeros((2, 3), np.int32)
    assert not Segmentation(nothing, nothing).has_classes
    assert not Segmentation(nothing, nothing + 1).has_classes
    assert Segmentation(np.array([[0, 0, 0], [0, 2, 0]], np.int32), nothing).has_classes
