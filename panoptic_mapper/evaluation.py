"""Evaluation of a map on posed frames: renders each and compares it with what the frame holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from panoptic_mapper.frame import Frame, PinholeCamera
from panoptic_mapper.image_metrics import ImageMetrics
from panoptic_mapper.label_space import UNLABELED, LabelSpace
from panoptic_mapper.metrics import MIN_PIXELS, PanopticMetrics
from panoptic_mapper.snapshot import PanopticView

MIN_DISTANCE_M = 0.15
MIN_CLEAR_SHARE = 0.05


class Renderer(Protocol):
    """What of a mapper is evaluated."""

    label_space: LabelSpace

    def render(self, camera: PinholeCamera, T_map_camera: np.ndarray) -> PanopticView: ...


def evaluate(
    mapper: Renderer,
    frames: Iterable[Frame],
    truth_space: LabelSpace | None = None,
    min_pixels: int = MIN_PIXELS,
) -> dict[str, Any]:
    """Metrics of the map over the frames, ready for JSON.

    Args:
        frames: at the resolution that is to be evaluated; their `labels` are the ground truth, where they have any.
        truth_space: classes of the frames' labels, where they differ from the map's; classes meet by name.
        min_pixels: smaller true segments are void.

    Returns:
        `frames` (evaluated), `obstructed_frames` (left out), `psnr`, `ssim`, `depth_l1_m`, `depth_coverage`,
        `protocol`, and with labels all of
        `PanopticMetrics.compute`.
    """
    truth_space = truth_space or mapper.label_space
    to_truth = class_table(mapper.label_space, truth_space)
    images = ImageMetrics()
    labels = PanopticMetrics(truth_space, min_pixels)
    num_frames = num_labeled = num_obstructed = 0
    for frame in frames:
        if is_obstructed(frame.depth):
            num_obstructed += 1
            continue
        view = mapper.render(frame.camera, frame.T_map_camera)
        num_frames += 1
        images.update(view.color, view.depth, frame.color, frame.depth)
        if frame.labels is not None:
            num_labeled += 1
            labels.update(to_truth[view.semantic], view.instance, frame.labels.semantic, frame.labels.instance)

    result: dict[str, Any] = {"frames": num_frames, "obstructed_frames": num_obstructed} | images.compute()
    result["protocol"] |= {
        "obstructed_frames": f"left out: less than {MIN_CLEAR_SHARE:.0%} of the pixels show something at least"
        f" {MIN_DISTANCE_M} m away (a covered lens, a camera inside a wall)"
    }
    if num_labeled:
        panoptic = labels.compute()
        panoptic["protocol"] = result["protocol"] | panoptic["protocol"]
        result |= panoptic
    return result


def is_obstructed(depth: np.ndarray) -> bool:
    """Whether a depth image [H, W] (m) shows next to nothing but what is right before the lens."""
    measured = depth > 0
    return bool(measured.any() and (depth >= MIN_DISTANCE_M).mean() < MIN_CLEAR_SHARE)


def class_table(source: LabelSpace, target: LabelSpace) -> np.ndarray:
    """Index in `target` of each class of `source` by name, int32 [C]; UNLABELED where `target` lacks the name."""
    index_of = {name.lower(): index for index, name in enumerate(target.names)}
    return np.array([index_of.get(name.lower(), UNLABELED) for name in source.names], dtype=np.int32)


def split_indices(num_frames: int, test_every: int = 8) -> tuple[list[int], list[int]]:
    """Frames for mapping and frames held out: every `test_every`-th, the first in the middle of its group.

    `test_every` = 0 holds nothing out.

    Raises:
        ValueError: `test_every` is negative or 1, which would leave nothing to map.
    """
    if test_every < 0 or test_every == 1:
        raise ValueError(f"test_every: expected 0 (hold nothing out) or >= 2, got {test_every}")
    test = list(range(test_every // 2, num_frames, test_every)) if test_every else []
    held_out = set(test)
    return [i for i in range(num_frames) if i not in held_out], test
