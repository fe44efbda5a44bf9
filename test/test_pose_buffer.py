"""Poses by stamp: interpolation against closed forms, no extrapolation, bad poses refused."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from panoptic_mapper.pose_buffer import Missing, PoseBuffer, PoseBufferConfig, pose_from_quaternion

MS = 1_000_000


def pose(angle_deg: float, x_m: float) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler("z", angle_deg, degrees=True).as_matrix()
    T[0, 3] = x_m
    return T


@pytest.fixture
def buffer() -> PoseBuffer:
    buffer = PoseBuffer(PoseBufferConfig(max_gap_s=0.1, capacity=4, time_jump_s=5.0))
    buffer.add(1000 * MS, pose(0, 0.0))
    buffer.add(1100 * MS, pose(40, 2.0))
    return buffer


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_rotation_and_position_are_interpolated(buffer, share):
    T = buffer.lookup(1000 * MS + int(share * 100 * MS))
    np.testing.assert_allclose(T, pose(40 * share, 2.0 * share), atol=1e-9)


def test_nothing_is_extrapolated(buffer):
    assert buffer.lookup(1100 * MS + 1) is Missing.NOT_YET
    assert buffer.lookup(1000 * MS - 1) is Missing.NEVER
    assert PoseBuffer().lookup(0) is Missing.NOT_YET


def test_poses_too_far_apart_are_not_joined_until_one_comes_between(buffer):
    buffer.add(1300 * MS, pose(0, 0.0))
    assert buffer.lookup(1200 * MS) is Missing.NEVER
    buffer.add(1200 * MS, pose(10, 5.0))  # late, out of order
    np.testing.assert_allclose(buffer.lookup(1200 * MS), pose(10, 5.0), atol=1e-12)
    np.testing.assert_allclose(buffer.lookup(1250 * MS), pose(5, 2.5), atol=1e-9)


def test_the_oldest_pose_goes_and_a_known_stamp_is_replaced(buffer):
    for k in (2, 3, 4):
        buffer.add((1000 + 100 * k) * MS, pose(0, k))
    assert len(buffer) == 4
    assert buffer.lookup(1000 * MS) is Missing.NEVER
    buffer.add(1200 * MS, pose(0, 9.0))
    assert len(buffer) == 4
    assert buffer.lookup(1200 * MS)[0, 3] == 9.0


def test_a_jump_back_in_time_starts_a_new_trajectory(buffer):
    buffer.add(10_000 * MS, pose(0, 1.0))
    buffer.add(1050 * MS, pose(0, 7.0))
    assert len(buffer) == 1
    assert buffer.lookup(1050 * MS)[0, 3] == 7.0
    assert buffer.lookup(1060 * MS) is Missing.NOT_YET


def test_a_result_is_a_copy(buffer):
    buffer.lookup(1000 * MS)[:] = 0
    np.testing.assert_array_equal(buffer.lookup(1000 * MS), pose(0, 0.0))


@pytest.mark.parametrize(
    ("translation", "quaternion", "message"),
    [
        ((0, 0, np.nan), (0, 0, 0, 1), "not finite"),
        ((0, 0, 0), (0, np.inf, 0, 1), "not finite"),
        ((0, 0, 0), (0, 0, 0, 0), "unit quaternion"),
        ((0, 0, 0), (0, 0, 0, 1.05), "norm 1.05"),
        ((0, 0), (0, 0, 0, 1), "position of 3"),
    ],
)
def test_bad_quaternion_poses_are_refused(translation, quaternion, message):
    with pytest.raises(ValueError, match=message):
        pose_from_quaternion(translation, quaternion)


def test_quaternion_order_and_rounding():
    T = pose_from_quaternion((1, 2, 3), (0, 0, np.sin(0.5) * 1.001, np.cos(0.5) * 1.001))
    np.testing.assert_allclose(T[:3, :3] @ (1, 0, 0), (np.cos(1.0), np.sin(1.0), 0), atol=1e-12)
    np.testing.assert_array_equal(T[:3, 3], (1, 2, 3))


def test_a_matrix_that_is_not_rigid_is_refused(buffer):
    with pytest.raises(ValueError, match="not a rigid"):
        buffer.add(1200 * MS, np.diag([1.0, 1.0, 2.0, 1.0]))
    with pytest.raises(ValueError, match="not finite"):
        buffer.add(1200 * MS, np.full((4, 4), np.nan))
    assert len(buffer) == 2
