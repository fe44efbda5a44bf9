"""Panoptic reconstruction quality (PRQ, Dahnert et al. 2021) on labelled points of the true surface.

Each true point asks the map what it is: the label of the nearest Gaussian within a distance, or nothing. Segments are
sets of points, and are matched like those of images. It measures the labels where they are in 3D, without rendering.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree

from panoptic_mapper.frame import Frame
from panoptic_mapper.geometry import backproject, transform
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.matching import MatchingRule, PanopticQuality, match_segments, mean_percent
from panoptic_mapper.segment_pairs import count_pairs, label_keys, panoptic_segments

PRQ_IOU_THRESHOLD = 0.25  # that of the published metric
VOXEL_SIZE_M = 0.05  # one true point in each; bounds the cost of large scenes
MAX_DISTANCE_M = 0.1  # of a Gaussian's centre from a point that it labels: where Gaussians are sparse, 2 voxels
MIN_POINTS = 4  # about 10 x 10 cm of surface: smaller true segments are void
_AXIS_BITS = 21  # of a voxel's code: 100 km along each axis


@dataclass(frozen=True)
class LabeledPoints:
    """Points with panoptic labels.

    Raises:
        ValueError: naming the array whose shape does not fit.
    """

    points: np.ndarray  # [N, 3] map frame, m
    semantic: np.ndarray  # [N] int class index; 0 = void in ground truth, nothing known in a map
    instance: np.ndarray  # [N] int, 0 = none

    def __post_init__(self) -> None:
        n = len(self.points)
        for name, shape in (("points", (n, 3)), ("semantic", (n,)), ("instance", (n,))):
            if getattr(self, name).shape != shape:
                raise ValueError(f"labelled points: {name} has shape {getattr(self, name).shape}, expected {shape}")


class SurfaceSampler:
    """Collects labelled points of the surfaces that frames measure: in each voxel the one that came first."""

    def __init__(self, voxel_size_m: float = VOXEL_SIZE_M) -> None:
        if voxel_size_m <= 0:
            raise ValueError(f"voxel_size_m: expected > 0, got {voxel_size_m}")
        self.voxel_size_m = voxel_size_m
        self._origin: np.ndarray | None = None  # [3] where voxels are counted from: the first camera
        self._codes = np.zeros(0, np.int64)  # voxels that have their point
        self._parts: list[LabeledPoints] = []

    def update(self, frame: Frame) -> None:
        """Adds what a frame with labels shows; pixels without measured depth are skipped.

        Raises:
            ValueError: the frame has no labels.
        """
        if frame.labels is None:
            raise ValueError(f"frame at {frame.stamp_ns} ns has no labels to take points from")
        measured = frame.depth > 0
        in_camera = backproject(torch.from_numpy(frame.depth.astype(np.float64)), frame.camera)
        points = transform(torch.from_numpy(frame.T_map_camera), in_camera).numpy()[measured]
        if self._origin is None:
            self._origin = frame.T_map_camera[:3, 3].copy()
        codes, first = np.unique(self._voxel_codes(points - self._origin), return_index=True)
        is_new = ~np.isin(codes, self._codes, assume_unique=True)
        chosen = first[is_new]
        labels = frame.labels
        self._codes = np.concatenate([self._codes, codes[is_new]])
        self._parts.append(
            LabeledPoints(points[chosen], labels.semantic[measured][chosen], labels.instance[measured][chosen])
        )

    def compute(self) -> LabeledPoints:
        """All points so far, in the order of their frames."""
        empty = LabeledPoints(np.zeros((0, 3)), np.zeros(0, np.int32), np.zeros(0, np.int32))
        parts = self._parts or [empty]
        return LabeledPoints(
            *(np.concatenate([getattr(p, name) for p in parts]) for name in ("points", "semantic", "instance"))
        )

    def _voxel_codes(self, offsets: np.ndarray) -> np.ndarray:
        """A number [N] int64 for the voxel that each offset [N, 3] from the origin lies in."""
        index = np.floor(offsets / self.voxel_size_m).astype(np.int64) + (1 << (_AXIS_BITS - 1))
        return (index[:, 0] << 2 * _AXIS_BITS) | (index[:, 1] << _AXIS_BITS) | index[:, 2]


def nearest_labels(
    points: np.ndarray,  # [N, 3] map frame, m
    source: LabeledPoints,
    max_distance_m: float = MAX_DISTANCE_M,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class [N] and instance [N] of the source's nearest point, 0 where none is within the distance, and is it [N]."""
    if len(source.points) == 0 or len(points) == 0:
        nothing = np.zeros(len(points), np.int64)
        return nothing, nothing, nothing > 0
    distances, index = cKDTree(source.points).query(points, distance_upper_bound=max_distance_m)
    found = np.isfinite(distances)
    index = np.where(found, index, 0)
    return np.where(found, source.semantic[index], 0), np.where(found, source.instance[index], 0), found


def point_quality(
    truth: LabeledPoints, source: LabeledPoints, label_space: LabelSpace, max_distance_m: float = MAX_DISTANCE_M
) -> dict[str, Any]:
    """PRQ of a map at the points of the ground truth, ready for JSON.

    Args:
        truth: points of the true surface, about evenly spread: each counts the same.
        source: the map's labelled points, classes of the same label space.
        max_distance_m: how far from a true point the map's may be to label it.

    Returns:
        `prq`, `rsq`, `rrq`, `prq_things`, `prq_stuff` in percent (None = nothing to measure), `prq_points` (number of
        true points with a label), `prq_reached` (percent of these near which the map has a Gaussian), `protocol`.
    """
    is_thing = label_space.is_thing
    semantic, instance, found = nearest_labels(truth.points, source, max_distance_m)
    pairs = count_pairs(label_keys(truth.semantic, truth.instance), label_keys(semantic, instance))
    rule = MatchingRule(PRQ_IOU_THRESHOLD, one_to_one=True, min_size=MIN_POINTS)
    quality = PanopticQuality.of(match_segments(panoptic_segments(pairs, is_thing), rule), len(label_space))
    classes, labeled = quality.has_truth, truth.semantic > 0
    return {
        "prq": mean_percent(quality.pq[classes]),
        "rsq": mean_percent(quality.sq[classes]),
        "rrq": mean_percent(quality.rq[classes]),
        "prq_things": mean_percent(quality.pq[classes & is_thing]),
        "prq_stuff": mean_percent(quality.pq[classes & ~is_thing]),
        "prq_points": int(labeled.sum()),
        "prq_reached": mean_percent(found[labeled]),
        "protocol": {
            "prq": f"3D points, same class, IoU > {PRQ_IOU_THRESHOLD}, one to one with the largest sum of IoU",
            "prq_rule": f"labels of the nearest Gaussian within {max_distance_m} m of true surface points, by default"
            f" one per {VOXEL_SIZE_M} m voxel; true segments below {MIN_POINTS} points are void",
        },
    }
