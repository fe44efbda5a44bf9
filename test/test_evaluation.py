"""Evaluation of a stand-in map whose renderings are known."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from panoptic_mapper.evaluation import (
    class_table,
    describe_indices,
    evaluate,
    evaluate_over_time,
    is_obstructed,
    split_indices,
)
from panoptic_mapper.frame import Frame, PinholeCamera, Segmentation
from panoptic_mapper.label_space import LabelSpace, SemanticClass
from panoptic_mapper.point_metrics import LabeledPoints
from panoptic_mapper.snapshot import MapSnapshot, PanopticView

SPACE = LabelSpace.from_classes([SemanticClass(1, "wall", False), SemanticClass(5, "chair", True)])
CAMERA = PinholeCamera(20, 20, 15.5, 11.5, 32, 24)


def frame_at(x_m: float, with_labels: bool = True) -> Frame:
    semantic = np.ones((24, 32), np.int32)
    semantic[:, 16:] = 2
    labels = Segmentation(semantic, np.where(semantic == 2, 7, 0).astype(np.int32))
    pose = np.eye(4)
    pose[0, 3] = x_m
    color = np.full((24, 32, 3), 100, np.uint8)
    return Frame(0, color, np.full((24, 32), 2, np.float32), pose, CAMERA, labels if with_labels else None)


@dataclass
class StandInMap:
    """Renders the same labels from everywhere; depth tells which pose was asked for."""

    label_space: LabelSpace
    semantic: np.ndarray

    def render(self, camera: PinholeCamera, T_map_camera: np.ndarray) -> PanopticView:
        size = (camera.height, camera.width)
        depth = np.full(size, 2 + T_map_camera[0, 3], np.float32)
        color, alpha = np.full((*size, 3), 110, np.uint8), np.ones(size, np.float32)
        return PanopticView(color, depth, alpha, self.semantic, np.where(self.semantic > 0, 3, 0).astype(np.int32))


@dataclass
class StandInWithPoints(StandInMap):
    """Has two labelled Gaussians besides, both before the wall at 2 m, on the chair's and on the wall's side."""

    z_m: float = 1.0

    def snapshot(self) -> MapSnapshot:
        points = np.array([[0.3, 0, self.z_m], [-0.3, 0, self.z_m]], np.float32)
        labels = np.array([self.label_space.index_of("chair"), self.label_space.index_of("wall")], np.int32)
        ids, confidences = np.array([3, 0], np.int32), np.ones(2, np.float32)
        return MapSnapshot(0, points, np.zeros((2, 3), np.uint8), labels, ids, confidences, (), self.label_space)


def test_each_frame_is_rendered_from_its_pose() -> None:
    truth = frame_at(0).labels
    assert truth is not None
    result = evaluate(StandInMap(SPACE, truth.semantic), [frame_at(0.1), frame_at(0.3)])
    assert result["frames"] == 2
    assert result["pq"] == result["miou"] == result["mcov"] == 100.0
    assert result["psnr"] == pytest.approx(20 * np.log10(255 / 10))
    assert result["depth_l1_m"] == pytest.approx(0.2, abs=1e-6)
    assert {"iou_threshold", "void", "psnr", "depth_l1_m"} <= set(result["protocol"])
    json.dumps(result)


def test_frames_without_labels_give_image_metrics_only() -> None:
    result = evaluate(StandInMap(SPACE, np.zeros((24, 32), np.int32)), [frame_at(0, with_labels=False)])
    assert "pq" not in result
    assert result["depth_coverage"] == 100.0


def test_other_label_spaces_meet_by_name() -> None:
    other = LabelSpace.from_classes(
        [SemanticClass(9, "Chair", True), SemanticClass(3, "robot", True), SemanticClass(4, "wall", False)]
    )
    assert class_table(other, SPACE).tolist() == [0, 2, 0, 1]
    truth = frame_at(0).labels
    assert truth is not None
    rendered = np.array([0, 3, 1], np.int32)[truth.semantic]  # the truth in the words of the other space
    assert evaluate(StandInMap(other, rendered), [frame_at(0)], truth_space=SPACE)["pq"] == 100.0


def test_split_holds_out_every_kth_from_the_middle_of_a_group() -> None:
    train, test = split_indices(20, 8)
    assert test == [4, 12]
    assert sorted(train + test) == list(range(20))
    assert split_indices(3, 0) == ([0, 1, 2], [])
    assert split_indices(1) == ([0], [])
    with pytest.raises(ValueError, match="test_every"):
        split_indices(10, 1)


def test_frames_with_a_covered_lens_are_left_out_and_counted() -> None:
    near, far, none = np.full((4, 10), 0.05), np.full((4, 10), 2.0), np.zeros((4, 10))
    partly = near.copy()
    partly[0, :2] = 2.0  # 2 of 40 pixels are exactly the share that is asked for
    assert [is_obstructed(d) for d in (near, far, none, partly)] == [True, False, False, False]


def test_a_map_without_a_snapshot_has_no_metrics_in_3d() -> None:
    truth = frame_at(0).labels
    assert truth is not None
    result = evaluate(StandInMap(SPACE, truth.semantic), [frame_at(0)])
    assert not {"prq", "floaters"} & (set(result) | set(result["protocol"]))


def test_metrics_in_3d_come_with_a_snapshot_and_prq_only_with_labels() -> None:
    truth = frame_at(0).labels
    assert truth is not None
    mapper = StandInWithPoints(SPACE, truth.semantic)
    result = evaluate(mapper, [frame_at(0), frame_at(0.1)])
    assert result["floaters"] == 2
    assert (result["prq"], result["prq_reached"]) == (0.0, 0.0)  # a metre away from the wall
    assert {"pq", "prq", "floaters", "psnr"} <= set(result["protocol"])
    json.dumps(result)
    unlabeled = evaluate(mapper, [frame_at(0, with_labels=False), frame_at(0.1, with_labels=False)])
    assert unlabeled["floaters"] == 2
    assert "prq" not in unlabeled


def test_points_of_the_map_meet_the_truth_by_name() -> None:
    other = LabelSpace.from_classes([SemanticClass(9, "Chair", True), SemanticClass(4, "wall", False)])
    truth = frame_at(0).labels
    assert truth is not None
    mapper = StandInWithPoints(other, np.zeros((24, 32), np.int32), z_m=2.0)
    points = LabeledPoints(
        np.repeat([[0.3, 0, 2.0], [-0.3, 0, 2.0]], 5, axis=0), *np.repeat([[2, 1], [7, 0]], 5, axis=1)
    )
    result = evaluate(mapper, [frame_at(0)], truth_space=SPACE, true_points=points)
    assert (result["prq"], result["prq_points"], result["floaters"]) == (100.0, 10, 0)


def test_curves_over_time() -> None:
    """The map is empty for two frames, and knows the labels afterwards."""
    truth = frame_at(0).labels
    assert truth is not None

    class Learning(StandInMap):
        num_mapped = 0

        def integrate(self, frame: Frame) -> None:
            self.num_mapped += 1
            if self.num_mapped == 3:
                self.semantic = truth.semantic

    frames = [frame_at(0.1 * k) for k in range(5)]
    asked: list[int] = []

    def frames_at(num_mapped: int) -> list[Frame]:
        asked.append(num_mapped)
        return frames[:num_mapped]

    mapper = Learning(SPACE, np.zeros((24, 32), np.int32))
    curve = evaluate_over_time(mapper, frames, (2, 3, 5, 9), frames_at, min_pixels=1)
    assert asked == [result["mapped_frames"] for result in curve] == [2, 3, 5]
    assert [result["pq"] for result in curve] == [0.0, 100.0, 100.0]
    assert [result["frames"] for result in curve] == [2, 3, 5]
    assert curve[0]["protocol"]["min_pixels"] == 1


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ([], ""),
        ([7], "7"),
        ([3, 9], "3, 9"),
        ([0, 1, 2, 3], "0-3"),
        ([4, 12, 20, 28], "4-28 step 8"),
        ([0, 1, 2, 3, 5, 6, 7, 9], "0-3, 5-7, 9"),
        ([0, 2, 3, 4, 9, 10], "0, 2-4, 9, 10"),
        ([0, 4, 8, 9, 10, 20], "0-8 step 4, 9, 10, 20"),
    ],
)
def test_lists_of_frames_in_few_words(indices: list[int], words: str) -> None:
    assert describe_indices(indices) == words


def test_objects_of_a_class_that_the_truth_lacks_count_as_objects() -> None:
    space = LabelSpace.from_classes([SemanticClass(1, "wall", False), SemanticClass(2, "object", True)])
    truth = frame_at(0).labels
    assert truth is not None
    result = evaluate(StandInMap(space, truth.semantic), [frame_at(0)], SPACE)
    assert result["pq_objects"] == 100.0
    assert (result["pq_things"], result["pq_stuff"]) == (0.0, 100.0)
