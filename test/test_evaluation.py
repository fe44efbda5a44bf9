"""Evaluation of a stand-in map whose renderings are known."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from panoptic_mapper.evaluation import class_table, evaluate, is_obstructed, split_indices
from panoptic_mapper.frame import Frame, PinholeCamera, Segmentation
from panoptic_mapper.label_space import LabelSpace, SemanticClass
from panoptic_mapper.snapshot import PanopticView

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
