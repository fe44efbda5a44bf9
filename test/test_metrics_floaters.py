"""Gaussians in space that was seen to be empty: toys before a wall, an oracle over random points, a real map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_room import CAMERA, SPACE, PassOn, gaussian_columns, mapped, wall_frame

from panoptic_mapper.evaluation import evaluate
from panoptic_mapper.floaters import MIN_GAP_M, MIN_GAP_SHARE, FloaterCounter, count_floaters
from panoptic_mapper.frame import Frame


def looking_from(x_m: float, depth_m: float = 2.0) -> Frame:
    """The wall at z = depth_m, seen from (x_m, 0, 0)."""
    pose = np.eye(4)
    pose[0, 3] = x_m
    return wall_frame(depth_m, pose)


def verdict(*points: tuple[float, float, float], frames: list[Frame]) -> list[bool]:
    return count_floaters(np.array(points), frames).is_floater.tolist()


def test_only_what_two_frames_see_through_floats() -> None:
    frames = [looking_from(0.0), looking_from(0.3)]
    in_the_air, on_the_wall, behind, near_the_wall = (0.1, 0, 1), (0.1, 0, 2.0), (0.1, 0, 2.5), (0.1, 0, 1.92)
    assert verdict(in_the_air, on_the_wall, behind, near_the_wall, frames=frames) == [True, False, False, False]
    seen_once = (-0.45, 0, 1)  # the view from 0.3 begins at x = -0.19 there
    assert verdict(seen_once, frames=frames) == [False]
    assert verdict(seen_once, frames=[*frames, looking_from(-0.1)]) == [True]
    behind_the_camera, beside = (0, 0, -1), (5, 0, 1)
    assert verdict(behind_the_camera, beside, frames=frames) == [False, False]


def test_what_was_on_a_surface_in_any_frame_does_not_float() -> None:
    """A door that was closed in one frame and open in two."""
    frames = [looking_from(0.0), looking_from(0.1)]
    assert verdict((0, 0, 1), frames=frames) == [True]
    assert verdict((0, 0, 1), frames=[*frames, looking_from(0.0, depth_m=1.0)]) == [False]
    assert verdict((0, 0, 1), frames=[*frames, looking_from(0.0, depth_m=0.5)]) == [True]  # hidden: says nothing


def test_pixels_without_depth_say_nothing() -> None:
    blind = [replace(f, depth=np.zeros_like(f.depth)) for f in (looking_from(0.0), looking_from(0.1))]
    floaters = count_floaters(np.array([[0, 0, 1.0]]), blind)
    assert (floaters.count, floaters.share) == (0, None)


def test_the_rim_of_something_near_is_not_taken_for_a_floater() -> None:
    """A point of the near half that falls on the first pixel of the far half, as rounding and poses have it."""
    frames = []
    for frame in (looking_from(0.0), looking_from(0.0)):
        depth = frame.depth.copy()
        depth[:, :20] = 1.0
        frames.append(replace(frame, depth=depth))
    at_pixel = [((u - 19.5) / 40, 0.0, 1.0) for u in (20, 21)]
    assert verdict(*at_pixel, frames=frames) == [False, True]


def test_share_is_of_those_that_can_be_judged() -> None:
    points = np.array([[0, 0, 1.0], [0, 0, 2.0], [0.1, 0, 2.0], [0, 0, 3.0], [9, 0, 1.0]])
    floaters = count_floaters(points, [looking_from(0.0), looking_from(0.1)])
    assert floaters.is_judged.tolist() == [True, True, True, False, False]
    assert floaters.count == 1
    assert floaters.share == pytest.approx(1 / 3)


def test_random_points_before_walls_at_random_depths_equal_the_oracle() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform((-2, -2, -1), (2, 2, 6), (3000, 3))
    through, on = np.zeros(len(points), int), np.zeros(len(points), int)
    frames = []
    for _ in range(5):
        x_m, depth_m = rng.uniform(-1, 1), rng.uniform(1, 5)
        frames.append(looking_from(x_m, depth_m))
        for k, (x, y, z) in enumerate(points):
            if z <= 0:
                continue
            u, v = 40 * (x - x_m) / z + 19.5, 40 * y / z + 14.5
            if -0.5 < u < CAMERA.width - 0.5 and -0.5 < v < CAMERA.height - 0.5:
                gap = max(MIN_GAP_M, MIN_GAP_SHARE * depth_m)
                through[k] += z < depth_m - gap
                on[k] += abs(z - depth_m) <= gap
    floaters = count_floaters(points, frames)
    np.testing.assert_array_equal(floaters.is_floater, (through >= 2) & (on == 0))
    assert 100 < floaters.count < 2000


def test_the_evaluation_counts_the_floaters_of_a_map() -> None:
    frames = [looking_from(x) for x in (0.0, 0.12, 0.24)]
    mapper = mapped(frames, segmenter=PassOn(SPACE))
    clean = evaluate(mapper, frames)
    assert clean["floaters"] == 0
    assert clean["floater_share"] == 0.0
    air = torch.tensor([[0.1, 0.1, 0.8], [-0.1, 0.0, 1.0], [0.2, 0.0, 1.2]])
    faint = torch.tensor([[3.0], [3.0], [-3.0]])  # the last is nearly transparent: no surface point
    mapper.map.gaussians.append(gaussian_columns(air, opacity_logits=faint), anchor=0)
    floating = evaluate(mapper, frames)
    assert floating["floaters"] == 2
    assert floating["floater_share"] == pytest.approx(100 * 2 / (len(mapper.map.gaussians) - 1), rel=0.05)
    assert "floaters" in floating["protocol"]


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="means"):
        FloaterCounter(np.zeros(3))
