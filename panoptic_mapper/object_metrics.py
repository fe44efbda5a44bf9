"""Panoptic quality of things whatever their class, for maps that find objects without knowing what they are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.matching import MatchingRule, PanopticQuality, match_segments
from panoptic_mapper.segment_pairs import BACKGROUND, SegmentPairs, count_pairs

IOU_THRESHOLD = 0.5


class ObjectMetrics:
    """Accumulates frames as one volume; the map's things count even if the ground truth lacks their class."""

    def __init__(self, label_space: LabelSpace, min_pixels: int) -> None:
        self._is_thing = label_space.is_thing
        self._min_pixels = min_pixels
        self._volume: Counter[tuple[int, int]] = Counter()  # (bare true id or BACKGROUND, predicted id) -> pixels

    def update(self, pred_objects: np.ndarray, gt_semantic: np.ndarray, gt_instance: np.ndarray) -> None:
        """Adds a frame: object ids [H, W] of the map, 0 = stuff or nothing, and true labels [H, W]."""
        is_thing = self._is_thing[gt_semantic]
        true = np.where(is_thing, gt_instance, np.where(gt_semantic > 0, BACKGROUND, 0)).astype(np.int64)
        pairs = count_pairs(true, pred_objects.astype(np.int64))
        columns = (array.tolist() for array in (pairs.true, pairs.predicted, pairs.sizes))
        for key, predicted, pixels in zip(*columns, strict=True):
            self._volume[key, predicted] += pixels

    def compute(self) -> dict[str, Any]:
        """`pq_objects`, `sq_objects`, `rq_objects` in percent, None without true things, and `protocol`."""
        keys = np.array(list(self._volume), np.int64).reshape(-1, 2)
        pairs = SegmentPairs(keys[:, 0], keys[:, 1], np.array(list(self._volume.values()), np.int64))
        rule = MatchingRule(IOU_THRESHOLD, min_size=self._min_pixels)
        quality = PanopticQuality.of(match_segments(pairs, rule), 2)  # 0: ids, 1: BACKGROUND
        result: dict[str, Any] = {
            f"{name}_objects": 100.0 * float(getattr(quality, name)[0]) if quality.has_truth[0] else None
            for name in ("pq", "sq", "rq")
        }
        words = f"PQ^scene of things as one class, whatever the map calls them, IoU > {IOU_THRESHOLD}, one to one"
        return result | {"protocol": {"pq_objects": words}}
