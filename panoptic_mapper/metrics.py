"""Panoptic metrics of a sequence, streamed: only counts of label pairs are kept, never the stacked images.

The headline is PQ^scene: all evaluated frames stacked as one volume, so that an object counts as found only when it
keeps one id through the whole sequence. docs/evaluation.md gives the protocol of every number.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from panoptic_mapper.label_space import UNLABELED, LabelSpace
from panoptic_mapper.matching import MatchingRule, PanopticQuality, match_segments, mean_percent, overlaps
from panoptic_mapper.segment_pairs import (
    BACKGROUND,
    VOID,
    SegmentPairs,
    count_pairs,
    instance_segments,
    label_keys,
    majority_segments,
    panoptic_segments,
)

IOU_THRESHOLD = 0.5
LOOSE_IOU_THRESHOLD = 0.3
PR_IOU_THRESHOLDS = (0.1, 0.3)  # of PanopticRecon++'s released evaluators for ScanNet and for ScanNet++
MIN_PIXELS = 100  # of the volume for the scene, of the image for a frame

_LOOSE, _SQ, _RQ = f"pq_{LOOSE_IOU_THRESHOLD}", "mean IoU of the matches", "TP / (TP + FP/2 + FN/2)"
_PR = {f"pq_pr_{t}": t for t in PR_IOU_THRESHOLDS}


class PanopticMetrics:
    """Accumulates frames; `compute` gives the numbers so far. Percentages are 0..100, None = nothing to measure."""

    def __init__(self, label_space: LabelSpace, min_pixels: int = MIN_PIXELS) -> None:
        if min_pixels < 1:
            raise ValueError(f"min_pixels: expected >= 1, got {min_pixels}")
        self.label_space = label_space
        self.min_pixels = min_pixels
        self._volume: Counter[tuple[int, int]] = Counter()  # (true key, predicted key) -> pixels
        self._confusion = np.zeros((len(label_space), len(label_space)), np.int64)  # [true, predicted]
        self._frame_pq: list[float] = []
        self._num_frames = 0
        self._last_id: dict[int, int] = {}  # true instance -> the predicted id that it was last matched to
        self._id_switches = 0
        self._id_continuations = 0  # matches of instances that were matched before: each could have been a switch

    @property
    def protocol(self) -> dict[str, Any]:
        """What the numbers mean, to be printed with them."""
        scene = "PQ^scene, same class"
        return {
            "pq": f"{scene}, IoU > {IOU_THRESHOLD}, one to one",
            "sq": f"{_SQ} of pq",
            "rq": f"{_RQ} of pq",
            _LOOSE: f"{scene}, IoU > {LOOSE_IOU_THRESHOLD}, one to one with the largest sum of IoU",
            **{name: f"PR++ rule, not comparable with pq: IoU > {t}, many to many" for name, t in _PR.items()},
            "pq_frame": f"mean over frames of the PQ of each frame alone, IoU > {IOU_THRESHOLD}",
            "miou": "mean over the classes with ground truth; unlabeled predictions are misses",
            "macc": "share of right pixels per class, mean over the classes with ground truth",
            "mcov": "scene, best IoU of each true instance with any predicted one of any class",
            "mw_cov": "mcov weighted by the instances' pixels",
            "id_switches": f"changes of the id that a true instance has in frames (IoU > {IOU_THRESHOLD}, any class)",
            "scene": "all evaluated frames stacked as one volume; pq, sq, rq: mean over the classes with ground truth",
            "iou_threshold": IOU_THRESHOLD,
            "matching": "one to one, same class, IoU > threshold; a stuff class is one segment",
            "void": "pixels without ground truth are not counted; a prediction with more than half on void is no error",
            "min_pixels": self.min_pixels,
            "min_pixels_rule": "smaller true segments are void; smaller unmatched predictions are no error",
            "pr_rule": "as PanopticRecon++'s released evaluator: an id has the class of most of its pixels, every pair"
            " of segments above the threshold is a match, min_pixels does not apply",
            "unit": "percent, id_switch_rate included; id_switches is a count",
        }

    def update(
        self,
        pred_semantic: np.ndarray,  # [H, W] int class index, 0 = unlabeled
        pred_instance: np.ndarray,  # [H, W] int object id, 0 = none; ignored where the class is stuff
        gt_semantic: np.ndarray,  # [H, W] int class index, 0 = void
        gt_instance: np.ndarray,  # [H, W] int, the same id for the same object in all frames
    ) -> None:
        """Adds one frame.

        Raises:
            ValueError: naming the array whose shape or values do not fit.
        """
        arrays = {"pred_semantic": pred_semantic, "pred_instance": pred_instance}
        arrays |= {"gt_semantic": gt_semantic, "gt_instance": gt_instance}
        self._check(arrays)
        num_classes = len(self.label_space)
        flat = gt_semantic.astype(np.int64).ravel() * num_classes + pred_semantic.ravel()
        self._confusion += np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)

        frame = count_pairs(label_keys(gt_semantic, gt_instance), label_keys(pred_semantic, pred_instance))
        self._num_frames += 1
        columns = (array.tolist() for array in (frame.true, frame.predicted, frame.sizes))
        for true, predicted, pixels in zip(*columns, strict=True):
            self._volume[true, predicted] += pixels
        quality = self._quality(panoptic_segments(frame, self.label_space.is_thing), self._rule(IOU_THRESHOLD))
        if quality.has_truth.any():
            self._frame_pq.append(float(quality.pq[quality.has_truth].mean()))
        self._count_id_switches(frame)

    def compute(self) -> dict[str, Any]:
        """All numbers, ready for JSON, with `protocol` and `per_class` beside them."""
        is_thing, volume = self.label_space.is_thing, self._volume_pairs()
        segments = panoptic_segments(volume, is_thing)
        quality = self._quality(segments, self._rule(IOU_THRESHOLD))
        result: dict[str, Any] = _means(quality, "", quality.has_truth)
        result |= _means(quality, "_things", quality.has_truth & is_thing)
        result |= _means(quality, "_stuff", quality.has_truth & ~is_thing)
        # as COCO's and torchmetrics' average: a class that is only hallucinated counts as 0
        result["pq_all_classes"] = mean_percent(quality.pq[quality.has_truth | (quality.num_spurious > 0)])
        loose = self._quality(segments, self._rule(LOOSE_IOU_THRESHOLD))
        result |= _means(loose, f"_{LOOSE_IOU_THRESHOLD}", loose.has_truth)
        for threshold in PR_IOU_THRESHOLDS:
            pr = self._quality(majority_segments(volume, is_thing), MatchingRule(threshold, one_to_one=False))
            result |= _means(pr, f"_pr_{threshold}", pr.has_truth)

        iou, accuracy, seen = self._semantic()
        result["miou"], result["macc"] = mean_percent(iou[seen]), mean_percent(accuracy[seen])
        coverage, sizes = instance_coverage(volume, is_thing, self.min_pixels)
        result["mcov"] = mean_percent(coverage)
        result["mw_cov"] = mean_percent(coverage, sizes)
        result["pq_frame"] = mean_percent(np.array(self._frame_pq))
        result["id_switches"] = self._id_switches
        result["id_switch_rate"] = (
            100.0 * self._id_switches / self._id_continuations if self._id_continuations else None
        )
        result["tp"] = int(quality.num_matched.sum())
        result["fp"] = int(quality.num_spurious.sum())
        result["fn"] = int(quality.num_missed.sum())
        result["label_frames"] = self._num_frames
        result["per_class"] = {
            self.label_space.names[c]: {
                "pq": 100 * float(quality.pq[c]) if quality.has_truth[c] else None,
                "iou": 100 * float(iou[c]) if seen[c] else None,
                "tp": int(quality.num_matched[c]),
                "fp": int(quality.num_spurious[c]),
                "fn": int(quality.num_missed[c]),
            }
            for c in np.nonzero(quality.has_truth | (quality.num_spurious > 0) | seen)[0].tolist()
        }
        result["protocol"] = self.protocol
        return result

    def _rule(self, iou_threshold: float) -> MatchingRule:
        return MatchingRule(iou_threshold, one_to_one=True, min_size=self.min_pixels)

    def _quality(self, pairs: SegmentPairs, rule: MatchingRule) -> PanopticQuality:
        return PanopticQuality.of(match_segments(pairs, rule), len(self.label_space))

    def _check(self, arrays: dict[str, np.ndarray]) -> None:
        expected = arrays["gt_semantic"].shape
        for name, array in arrays.items():
            if array.shape != expected:
                raise ValueError(f"{name}: expected shape {expected} as the ground truth, got {array.shape}")
            top = len(self.label_space) - 1 if name.endswith("semantic") else np.iinfo(np.int32).max
            if array.size and (array.min() < 0 or array.max() > top):
                raise ValueError(f"{name}: expected values 0..{top}, got {array.min()}..{array.max()}")

    def _volume_pairs(self) -> SegmentPairs:
        keys = np.array(list(self._volume.keys()), np.int64).reshape(-1, 2)
        return SegmentPairs(keys[:, 0], keys[:, 1], np.array(list(self._volume.values()), np.int64))

    def _semantic(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """IoU [C], accuracy [C] and which classes have ground truth [C]; void pixels are left out."""
        confusion = self._confusion.copy()
        confusion[UNLABELED] = 0
        hits, truth, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
        return hits / np.maximum(truth + predicted - hits, 1), hits / np.maximum(truth, 1), truth > 0

    def _count_id_switches(self, frame: SegmentPairs) -> None:
        """Matches instances whatever their class: a flickering class is no change of identity."""
        matching = match_segments(instance_segments(frame, self.label_space.is_thing), self._rule(IOU_THRESHOLD))
        for true, predicted in zip(matching.true.tolist(), matching.predicted.tolist(), strict=True):
            last = self._last_id.get(true)
            self._id_continuations += last is not None
            self._id_switches += last is not None and last != predicted
            self._last_id[true] = predicted


def instance_coverage(pairs: SegmentPairs, is_thing: np.ndarray, min_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """The best IoU of each true instance with any predicted instance [K], and the instances' sizes [K]."""
    pairs = instance_segments(pairs, is_thing)
    found = overlaps(pairs, min_pixels)
    best = np.zeros(len(found.true))
    np.maximum.at(best, np.searchsorted(found.true, pairs.true), found.iou)
    counted = ~found.is_void & ~np.isin(found.true, (VOID, BACKGROUND))
    return best[counted], found.true_sizes[counted]


def _means(quality: PanopticQuality, suffix: str, classes: np.ndarray) -> dict[str, float | None]:
    """PQ, SQ and RQ as means over the chosen classes [C] bool, with a suffix to their names."""
    return {f"{name}{suffix}": mean_percent(getattr(quality, name)[classes]) for name in ("pq", "sq", "rq")}
