"""Panoptic metrics of a sequence, streamed: only segment-pair counts are kept, never the stacked images.

The headline is PQ^scene: all evaluated frames stacked as one volume, so that an object counts as found only when it
keeps one id through the whole sequence. docs/evaluation.md gives the protocol of every number.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from panoptic_mapper.label_space import UNLABELED, LabelSpace

IOU_THRESHOLD = 0.5  # strictly above: the matching is then one to one by itself (Kirillov et al. 2019)
MIN_PIXELS = 100  # of the volume for the scene, of the image for a frame
_INSTANCE_BITS = 32  # a segment's key is class index << 32 | instance id; key 0 is void (truth) or nothing (prediction)
_INSTANCE_MASK = (1 << _INSTANCE_BITS) - 1
_BACKGROUND = 1 << _INSTANCE_BITS  # true stuff where only instances matter: matches no id, but a spill onto it counts


@dataclass(frozen=True)
class SegmentPairs:
    """Overlaps of true and predicted segments in a frame or a volume. Pairs without a common pixel are left out."""

    true: np.ndarray  # [P] int64 segment key, 0 = void
    predicted: np.ndarray  # [P] int64 segment key, 0 = no prediction
    pixels: np.ndarray  # [P] int64 size of the intersection


@dataclass(frozen=True)
class Match:
    """A true segment and the predicted one that overlaps it with IoU > 0.5."""

    true: int  # segment key
    predicted: int
    iou: float


@dataclass(frozen=True)
class Matching:
    """Outcome of the one-to-one matching."""

    matches: list[Match]
    missed: np.ndarray  # [.] int64 keys of true segments without a match
    spurious: np.ndarray  # [.] int64 keys of predicted segments without a match


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
        return {
            "pq": "PQ^scene: all evaluated frames stacked as one volume; mean over the classes with ground truth",
            "iou_threshold": IOU_THRESHOLD,
            "matching": "one to one, same class, IoU > threshold; a stuff class is one segment",
            "void": "pixels without ground truth are not counted; a prediction with more than half on void is no error",
            "min_pixels": self.min_pixels,
            "min_pixels_rule": "smaller true segments are void; smaller unmatched predictions are no error",
            "pq_frame": "mean over frames of the PQ of each frame alone",
            "miou": "mean over the classes with ground truth; unlabeled predictions count as misses",
            "mcov": "mean over true instances of the best IoU with any predicted instance of the volume, of any class",
            "id_switches": "changes of the predicted id matched (IoU > 0.5 in the frame, any class) to a true instance",
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

        is_thing = self.label_space.is_thing
        frame = segment_pairs(
            segment_keys(gt_semantic, gt_instance, is_thing), segment_keys(pred_semantic, pred_instance, is_thing)
        )
        self._num_frames += 1
        for true, predicted, pixels in zip(
            *(a.tolist() for a in (frame.true, frame.predicted, frame.pixels)), strict=True
        ):
            self._volume[true, predicted] += pixels
        quality = _Quality.of(match_segments(frame, self.min_pixels), num_classes)
        if quality.has_truth.any():
            self._frame_pq.append(float(quality.pq[quality.has_truth].mean()))
        self._count_id_switches(frame)

    def compute(self) -> dict[str, Any]:
        """All numbers, ready for JSON, with `protocol` and `per_class` beside them."""
        volume = self._volume_pairs()
        quality = _Quality.of(match_segments(volume, self.min_pixels), len(self.label_space))
        is_thing = self.label_space.is_thing
        result: dict[str, Any] = {}
        for suffix, chosen in (("", quality.has_truth), ("_things", is_thing), ("_stuff", ~is_thing)):
            for name in ("pq", "sq", "rq"):
                result[name + suffix] = _mean_percent(getattr(quality, name)[chosen & quality.has_truth])
        # as COCO's and torchmetrics' average: a class that is only hallucinated counts as 0
        result["pq_all_classes"] = _mean_percent(quality.pq[quality.has_truth | (quality.num_spurious > 0)])

        iou, accuracy, seen = self._semantic()
        result["miou"], result["macc"] = _mean_percent(iou[seen]), _mean_percent(accuracy[seen])
        coverage, sizes = instance_coverage(volume, is_thing, self.min_pixels)
        result["mcov"] = _mean_percent(coverage)
        result["mw_cov"] = _mean_percent(coverage, sizes)
        result["pq_frame"] = _mean_percent(np.array(self._frame_pq))
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
        matching = match_segments(_instances_only(frame, self.label_space.is_thing), self.min_pixels)
        for match in matching.matches:
            last = self._last_id.get(match.true)
            self._id_continuations += last is not None
            self._id_switches += last is not None and last != match.predicted
            self._last_id[match.true] = match.predicted


def segment_keys(semantic: np.ndarray, instance: np.ndarray, is_thing: np.ndarray) -> np.ndarray:
    """Keys of the panoptic segments, int64, same shape; a thing pixel without an id belongs to no segment (0)."""
    semantic = semantic.astype(np.int64)
    things = is_thing[semantic]
    instance = np.where(things, instance, 0).astype(np.int64)
    keys = (semantic << _INSTANCE_BITS) | instance
    return np.where(things & (instance == 0), 0, keys)


def segment_pairs(true_keys: np.ndarray, predicted_keys: np.ndarray) -> SegmentPairs:
    """Counts the pixels of every pair of overlapping segments of two key images."""
    true, true_index = np.unique(true_keys, return_inverse=True)
    predicted, predicted_index = np.unique(predicted_keys, return_inverse=True)
    size = max(len(predicted), 1)
    counts = np.bincount(true_index.ravel() * size + predicted_index.ravel())
    pairs = np.nonzero(counts)[0]
    return SegmentPairs(true[pairs // size], predicted[pairs % size], counts[pairs])


def match_segments(pairs: SegmentPairs, min_pixels: int) -> Matching:
    """Matches segments of one class with IoU > 0.5 outside void, and lists those that found no partner."""
    true, true_index = np.unique(pairs.true, return_inverse=True)
    predicted, predicted_index = np.unique(pairs.predicted, return_inverse=True)
    true_area = np.bincount(true_index, pairs.pixels, len(true))
    is_void = (true == 0) | (true_area < min_pixels)
    predicted_area = np.bincount(predicted_index, pairs.pixels, len(predicted))
    void_area = np.bincount(predicted_index, pairs.pixels * is_void[true_index], len(predicted))

    union = true_area[true_index] + (predicted_area - void_area)[predicted_index] - pairs.pixels
    iou = pairs.pixels / np.maximum(union, 1)
    same_class = pairs.true >> _INSTANCE_BITS == pairs.predicted >> _INSTANCE_BITS
    matched = same_class & (pairs.predicted != 0) & ~is_void[true_index] & (iou > IOU_THRESHOLD)

    matches = [Match(int(pairs.true[i]), int(pairs.predicted[i]), float(iou[i])) for i in np.nonzero(matched)[0]]
    missed = ~is_void & ~np.isin(true, pairs.true[matched])
    excused = (predicted == 0) | (predicted_area < min_pixels) | (void_area > 0.5 * predicted_area)
    spurious = ~excused & ~np.isin(predicted, pairs.predicted[matched])
    return Matching(matches, true[missed], predicted[spurious])


def instance_coverage(pairs: SegmentPairs, is_thing: np.ndarray, min_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """The best IoU of each true instance with any predicted instance [K], and the instances' sizes in pixels [K]."""
    pairs = _instances_only(pairs, is_thing)
    true, true_index = np.unique(pairs.true, return_inverse=True)
    _, predicted_index = np.unique(pairs.predicted, return_inverse=True)
    true_area = np.bincount(true_index, pairs.pixels, len(true))
    is_void = (true == 0) | (true_area < min_pixels)
    predicted_area = np.bincount(predicted_index, pairs.pixels * ~is_void[true_index])
    union = true_area[true_index] + predicted_area[predicted_index] - pairs.pixels
    best = np.zeros(len(true))
    np.maximum.at(best, true_index, np.where(pairs.predicted == 0, 0.0, pairs.pixels / np.maximum(union, 1)))
    counted = ~is_void & (true != _BACKGROUND)
    return best[counted], true_area[counted]


def _instances_only(pairs: SegmentPairs, is_thing: np.ndarray) -> SegmentPairs:
    """The pairs with bare instance ids as keys: 0 = void or no instance, and all true stuff is one `_BACKGROUND`."""
    is_stuff = (pairs.true != 0) & ~is_thing[pairs.true >> _INSTANCE_BITS]
    true = np.where(is_stuff, _BACKGROUND, pairs.true & _INSTANCE_MASK)
    keys = np.stack([true, pairs.predicted & _INSTANCE_MASK])
    unique, index = np.unique(keys, axis=1, return_inverse=True)  # an id may have come with several classes
    pixels = np.bincount(index.ravel(), pairs.pixels, unique.shape[1]).astype(np.int64)
    return SegmentPairs(unique[0], unique[1], pixels)


@dataclass(frozen=True)
class _Quality:
    """Panoptic quality per class; all [C]."""

    iou_sum: np.ndarray
    num_matched: np.ndarray
    num_spurious: np.ndarray
    num_missed: np.ndarray

    @staticmethod
    def of(matching: Matching, num_classes: int) -> _Quality:
        def per_class(keys: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
            return np.bincount(keys >> _INSTANCE_BITS, weights, num_classes)

        matched = np.array([m.true for m in matching.matches], np.int64)
        ious = np.array([m.iou for m in matching.matches], np.float64)
        return _Quality(
            per_class(matched, ious), per_class(matched), per_class(matching.spurious), per_class(matching.missed)
        )

    @property
    def has_truth(self) -> np.ndarray:
        return self.num_matched + self.num_missed > 0

    @property
    def sq(self) -> np.ndarray:  # mean IoU of the matches
        return self.iou_sum / np.maximum(self.num_matched, 1)

    @property
    def rq(self) -> np.ndarray:  # F1 of the matches
        errors = self.num_spurious + self.num_missed
        return self.num_matched / np.maximum(self.num_matched + 0.5 * errors, 0.5)

    @property
    def pq(self) -> np.ndarray:
        return self.sq * self.rq


def _mean_percent(values: np.ndarray, weights: np.ndarray | None = None) -> float | None:
    return 100.0 * float(np.average(values, weights=weights)) if len(values) else None
