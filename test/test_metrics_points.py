"""Panoptic reconstruction quality on 3D points: toys by hand, and brute forces over random points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from metric_oracles import is_one_of, panoptic, qualities
from small_room import CHAIR, FLOOR, ROOM_SPACE, SPACE, TABLE, WALL, mapped, room_frames, wall_frame, without_labels

from panoptic_mapper.evaluation import evaluate
from panoptic_mapper.frame import Frame
from panoptic_mapper.point_metrics import (
    MIN_POINTS,
    PRQ_IOU_THRESHOLD,
    LabeledPoints,
    SurfaceSampler,
    nearest_labels,
    point_quality,
)


def row(*segments: tuple[int, int, int], y_m: float = 0.0) -> LabeledPoints:
    """Points 1 m apart along x from runs of (class, instance, number)."""
    semantic = np.concatenate([np.full(n, c) for c, _, n in segments])
    instance = np.concatenate([np.full(n, i) for _, i, n in segments])
    points = np.zeros((len(semantic), 3))
    points[:, 0], points[:, 1] = np.arange(len(semantic)), y_m
    return LabeledPoints(points, semantic, instance)


def test_object_split_in_three() -> None:
    """Parts of 48, 27 and 25 points: the best is matched, two are spurious, though one is above the threshold too."""
    result = point_quality(row((CHAIR, 1, 100)), row((CHAIR, 7, 48), (CHAIR, 8, 27), (CHAIR, 9, 25)), SPACE)
    assert result["prq"] == pytest.approx(100 * 0.48 / (1 + 2 / 2))
    assert result["rsq"] == pytest.approx(48)
    assert result["rrq"] == pytest.approx(50)


def test_two_objects_merged() -> None:
    result = point_quality(row((CHAIR, 1, 60), (CHAIR, 2, 40)), row((CHAIR, 7, 100)), SPACE)
    assert result["prq"] == pytest.approx(100 * 0.6 / 1.5)


def test_iou_of_exactly_one_quarter_is_no_match() -> None:
    truth = row((CHAIR, 1, 100), (WALL, 0, 60))
    quarter = point_quality(truth, row((CHAIR, 7, 25), (WALL, 0, 135)), SPACE)
    more = point_quality(truth, row((CHAIR, 7, 26), (WALL, 0, 134)), SPACE)
    assert quarter["prq_things"] == 0.0
    assert more["prq_things"] == pytest.approx(26)
    assert more["prq_stuff"] == pytest.approx(100 * 60 / 134)
    assert more["prq"] == pytest.approx((26 + 100 * 60 / 134) / 2)


def test_points_that_the_map_does_not_reach_are_missed() -> None:
    truth = row((CHAIR, 1, 80), (TABLE, 2, 20))
    near, far = row((CHAIR, 3, 80), (TABLE, 4, 20), y_m=0.09), row((CHAIR, 3, 80), (TABLE, 4, 20), y_m=0.11)
    assert point_quality(truth, near, SPACE)["prq"] == 100.0
    nothing = point_quality(truth, far, SPACE)
    assert (nothing["prq"], nothing["prq_reached"], nothing["prq_points"]) == (0.0, 0.0, 100)
    empty = LabeledPoints(np.zeros((0, 3)), np.zeros(0, int), np.zeros(0, int))
    assert point_quality(truth, empty, SPACE)["prq"] == 0.0
    assert point_quality(empty, near, SPACE)["prq"] is None
    half = point_quality(truth, row((CHAIR, 3, 80)), SPACE)
    assert (half["prq"], half["prq_reached"]) == (50.0, 80.0)


def test_void_and_small_segments_do_not_count() -> None:
    truth = row((0, 0, 50), (CHAIR, 1, 50), (TABLE, 2, MIN_POINTS - 1))
    predicted = row((TABLE, 5, 50), (CHAIR, 3, 50), (CHAIR, 3, MIN_POINTS - 1))
    result = point_quality(truth, predicted, SPACE)
    assert result["prq"] == 100.0  # the table that is predicted on void is no error, and the small one is void
    assert result["prq_points"] == 50 + MIN_POINTS - 1
    seen = row((CHAIR, 1, 50), (TABLE, 2, MIN_POINTS))
    assert point_quality(seen, row((CHAIR, 3, 50), (CHAIR, 3, MIN_POINTS)), SPACE)["prq"] < 50


@pytest.mark.parametrize("seed", range(60))
def test_random_points_equal_the_brute_force(seed: int) -> None:
    """Nearest points by all distances, and matchings by all orders."""
    rng = np.random.default_rng(seed)
    labels = np.array([(0, 0), (WALL, 0), (FLOOR, 0), (CHAIR, 1), (CHAIR, 2), (CHAIR, 3), (TABLE, 4), (TABLE, 0)])
    centers = rng.uniform(0, 0.6, (len(labels), 3))  # m: labels are regions around these, so that segments overlap

    def labeled(num: int, offset: np.ndarray) -> LabeledPoints:
        points = rng.uniform(0, 0.6, (num, 3))
        region = np.linalg.norm(points[:, None] - centers - offset, axis=-1).argmin(1)
        return LabeledPoints(points, *labels[region].T)

    truth = labeled(int(rng.integers(0, 60)), np.zeros(3))
    source = labeled(int(rng.integers(0, 120)), rng.normal(0, 0.05, (len(labels), 3)))
    asked: list[tuple[int, int]] = []
    for point in truth.points:
        distances = np.linalg.norm(source.points - point, axis=1)
        k = int(distances.argmin()) if len(distances) else -1
        is_near = k >= 0 and distances[k] < 0.1
        asked.append((int(source.semantic[k]), int(source.instance[k])) if is_near else (0, 0))
    semantic, instance, _ = nearest_labels(truth.points, source)
    assert list(zip(semantic.tolist(), instance.tolist(), strict=True)) == asked
    true = list(zip(truth.semantic.tolist(), truth.instance.tolist(), strict=True))
    expected = qualities(panoptic(asked, SPACE), panoptic(true, SPACE), PRQ_IOU_THRESHOLD, MIN_POINTS)
    assert is_one_of(point_quality(truth, source, SPACE)["prq"], expected)


def test_one_measured_point_is_taken_from_each_voxel() -> None:
    frame = wall_frame(2.0)
    sampler = SurfaceSampler(voxel_size_m=0.25)
    sampler.update(frame)
    found = sampler.compute()
    # 40 x 30 pixels of 0.05 m: the wall spans 2.0 x 1.5 m, and half a voxel more may be cut at each end
    assert 8 * 6 <= len(found.points) <= 9 * 7
    u, v = (found.points[:, :2] / 2.0 * 40 + (19.5, 14.5)).T
    assert np.abs(u - u.round()).max() < 1e-6  # measured points, not centres of voxels
    pixels = v.round().astype(int), u.round().astype(int)
    assert frame.labels is not None
    np.testing.assert_array_equal(found.semantic, frame.labels.semantic[pixels])
    np.testing.assert_array_equal(found.instance, frame.labels.instance[pixels])
    assert len({tuple(x) for x in np.floor(found.points / 0.25).tolist()}) == len(found.points)
    sampler.update(frame)
    assert len(sampler.compute().points) == len(found.points)  # the same surface again adds nothing


def test_voxels_stay_in_place_while_the_camera_moves() -> None:
    sampler = SurfaceSampler(voxel_size_m=0.5)
    sampler.update(wall_frame(2.0))
    assert len(sampler.compute().points) == 4 * 4  # x from -0.98 to 0.98 m, y from -0.73 to 0.73 m
    pose = np.eye(4)
    pose[0, 3] = 0.6  # x up to 1.58 m: two more columns
    sampler.update(wall_frame(2.0, pose))
    points = sampler.compute().points
    assert len(points) == 6 * 4
    assert len({tuple(x) for x in np.floor(points / 0.5).tolist()}) == len(points)


def test_points_are_where_the_pose_says() -> None:
    pose = np.eye(4)
    pose[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]  # looks along x
    pose[:3, 3] = 5, -3, 1
    sampler = SurfaceSampler()
    sampler.update(wall_frame(2.0, pose))
    points = sampler.compute().points - pose[:3, 3]
    np.testing.assert_allclose(points[:, 0], 2.0, atol=1e-6)
    np.testing.assert_allclose(points[:, 1:].min(0), [-19.5 / 20, -14.5 / 20], atol=0.06)


def test_no_voxels_are_mixed_up_far_from_the_origin() -> None:
    pose = np.eye(4)
    pose[:3, 3] = 500_000.0, 4_000_000.0, 30.0  # metres of a national grid
    sampler = SurfaceSampler()
    sampler.update(wall_frame(2.0, pose))
    assert len(sampler.compute().points) == pytest.approx(40 * 30, rel=0.1)  # pixels of 5 cm, voxels of 5 cm


def test_pixels_without_depth_and_frames_without_labels() -> None:
    frame = wall_frame()
    blind = replace(frame, depth=np.where(np.arange(40) < 20, np.float32(0), frame.depth))
    sampler = SurfaceSampler()
    sampler.update(blind)
    assert CHAIR not in sampler.compute().semantic  # the chair is in the left half
    assert TABLE in sampler.compute().semantic
    with pytest.raises(ValueError, match="no labels"):
        sampler.update(without_labels(frame))
    with pytest.raises(ValueError, match="voxel_size_m"):
        SurfaceSampler(0)
    with pytest.raises(ValueError, match="instance"):
        LabeledPoints(np.zeros((3, 3)), np.zeros(3), np.zeros(2))


def test_a_mapped_room_is_measured_and_points_may_be_given() -> None:
    frames = room_frames(6)
    mapper = mapped(frames)
    result = evaluate(mapper, frames, ROOM_SPACE)
    assert result["prq"] > 50
    assert result["prq_reached"] > 60  # images of 80 pixels: many Gaussians are further apart than the 0.1 m
    given = SurfaceSampler(0.2)
    for frame in frames:
        given.update(frame)
    coarse = evaluate(mapper, frames[:1], ROOM_SPACE, true_points=given.compute())
    assert coarse["prq_points"] < result["prq_points"] / 4
    swapped = [_with_swapped_things(frame) for frame in frames]  # wrong ground truth must show
    assert evaluate(mapper, swapped, ROOM_SPACE)["prq"] < result["prq"] - 20


def _with_swapped_things(frame: Frame) -> Frame:
    """Every thing has the next thing's class."""
    assert frame.labels is not None
    things = np.flatnonzero(ROOM_SPACE.is_thing)
    table = np.arange(len(ROOM_SPACE), dtype=np.int32)
    table[things] = np.roll(things, 1)
    return replace(frame, labels=replace(frame.labels, semantic=table[frame.labels.semantic]))
