"""Depth moved to another camera, against planes whose depth is known in both."""

import numpy as np
import pytest

from panoptic_mapper.datasets.depth_registration import register_depth
from panoptic_mapper.frame import PinholeCamera

CAMERA = PinholeCamera(50, 50, 19.5, 14.5, 40, 30)


def shifted(x: float = 0.0, z: float = 0.0) -> np.ndarray:
    T = np.eye(4)
    T[0, 3], T[2, 3] = x, z
    return T


def test_same_camera_changes_nothing():
    depth = np.random.default_rng(0).uniform(1, 3, (30, 40)).astype(np.float32)
    depth[3, 4] = 0
    np.testing.assert_allclose(register_depth(depth, CAMERA, CAMERA, np.eye(4)), depth, rtol=1e-6)


def test_a_plane_seen_from_the_side_moves_by_its_disparity():
    depth = np.zeros((30, 40), np.float32)
    depth[10:20, 10:20] = 2.0
    moved = register_depth(depth, CAMERA, CAMERA, shifted(x=-0.2))  # 50 px * 0.2 m / 2 m = 5 px to the left
    expected = np.zeros_like(depth)
    expected[10:20, 5:15] = 2.0
    np.testing.assert_allclose(moved, expected, rtol=1e-6)


def test_depth_is_that_along_the_other_axis():
    moved = register_depth(np.full((30, 40), 2.0, np.float32), CAMERA, CAMERA, shifted(z=0.5))
    np.testing.assert_allclose(moved[moved > 0], 2.5, rtol=1e-6)


def test_the_nearest_surface_wins():
    depth = np.full((30, 40), 4.0, np.float32)  # moves by 2.5 px
    depth[:, 20:25] = 1.0  # moves by 10 px, over the wall
    moved = register_depth(depth, CAMERA, CAMERA, shifted(x=-0.2))
    np.testing.assert_allclose(moved[:, 10:15], 1.0)
    np.testing.assert_allclose(moved[:, 2:10], 4.0)


@pytest.mark.parametrize("factor", [1.01, 1.5, 3.2])
def test_a_sharper_colour_camera_gets_no_holes(factor):
    fine = CAMERA.resized(round(40 * factor), round(30 * factor))
    moved = register_depth(np.full((30, 40), 2.0, np.float32), CAMERA, fine, np.eye(4))
    np.testing.assert_allclose(moved, 2.0, rtol=1e-6)
    moved = register_depth(np.full((30, 40), 2.0, np.float32), CAMERA, fine, shifted(x=1e-4))
    np.testing.assert_allclose(moved[:, 1:], 2.0, rtol=1e-6)


def test_cameras_in_one_place_agree_with_ones_that_are_almost():
    depth = np.random.default_rng(0).choice([0, 1, 2, 3], (30, 40)).astype(np.float32)
    wide = PinholeCamera(40, 42, 21, 13, 44, 28)
    here, almost = (register_depth(depth, CAMERA, wide, shifted(x=x)) for x in (0, 1e-7))
    assert here.shape == (28, 44)
    # Of several depth pixels that one colour pixel sees, the nearest surface or the one in the middle.
    assert np.all((almost <= here) | (here == 0))
    assert not here[:, 0].any()  # beyond the depth image
    assert (here == almost).mean() > 0.5


def test_what_lies_behind_the_colour_camera_is_left_out():
    assert not register_depth(np.full((30, 40), 1.0, np.float32), CAMERA, CAMERA, shifted(z=-2)).any()


def test_depth_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"depth image: expected \(30, 40\) as its intrinsics say, got \(3, 4\)"):
        register_depth(np.ones((3, 4)), CAMERA, CAMERA, np.eye(4))
