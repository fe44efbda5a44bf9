"""Which predicted segment is which true one, and the panoptic quality that follows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from panoptic_mapper.segment_pairs import VOID, SegmentPairs, classes_of


@dataclass(frozen=True)
class MatchingRule:
    """When a predicted segment counts as a true one of its class."""

    iou_threshold: float  # strictly above; at 0.5 and more, matches are one to one by themselves (Kirillov et al. 2019)
    one_to_one: bool = True  # False: every pair above the threshold is a match
    min_size: int = 1  # smaller true segments are void, smaller unmatched predictions are no error


@dataclass(frozen=True)
class Matching:
    """Outcome of a rule: M matches, and the segments without one, by key."""

    true: np.ndarray  # [M] int64 keys
    predicted: np.ndarray  # [M] int64 keys
    ious: np.ndarray  # [M] float64
    missed: np.ndarray  # [.] int64 true segments without a match
    spurious: np.ndarray  # [.] int64 predicted segments without a match


@dataclass(frozen=True)
class Overlaps:
    """IoU of pairs of segments, and the sizes of the segments."""

    iou: np.ndarray  # [P] float64 of each pair, void left out; 0 where either is void
    true: np.ndarray  # [T] int64 keys of true segments, ascending
    true_sizes: np.ndarray  # [T] int64
    is_void: np.ndarray  # [T] bool, void itself or a segment below the least size
    predicted: np.ndarray  # [S] int64 keys of predicted segments, ascending
    predicted_sizes: np.ndarray  # [S] int64, void included
    void_sizes: np.ndarray  # [S] int64, of these on void


def overlaps(pairs: SegmentPairs, min_size: int) -> Overlaps:
    """IoU of every pair; true segments smaller than `min_size` are void."""
    true, true_index = np.unique(pairs.true, return_inverse=True)
    predicted, predicted_index = np.unique(pairs.predicted, return_inverse=True)
    true_sizes = _sums(true_index, pairs.sizes, len(true))
    is_void = (true == VOID) | (true_sizes < min_size)
    on_void = is_void[true_index]
    predicted_sizes = _sums(predicted_index, pairs.sizes, len(predicted))
    void_sizes = _sums(predicted_index, pairs.sizes * on_void, len(predicted))
    union = true_sizes[true_index] + (predicted_sizes - void_sizes)[predicted_index] - pairs.sizes
    iou = np.where(on_void | (pairs.predicted == VOID), 0.0, pairs.sizes / np.maximum(union, 1))
    return Overlaps(iou, true, true_sizes, is_void, predicted, predicted_sizes, void_sizes)


def match_segments(pairs: SegmentPairs, rule: MatchingRule) -> Matching:
    """Matches segments of one class by the rule, and lists those that found no partner.

    A predicted segment without a match is no error where more than half of it is void, or where it is too small.
    """
    found = overlaps(pairs, rule.min_size)
    same_class = classes_of(pairs.true) == classes_of(pairs.predicted)
    rows = np.flatnonzero(same_class & (found.iou > rule.iou_threshold))
    if rule.one_to_one and rule.iou_threshold < 0.5:
        rows = rows[_best_one_to_one(pairs.true[rows], pairs.predicted[rows], found.iou[rows])]
    true, predicted = pairs.true[rows], pairs.predicted[rows]
    missed = ~found.is_void & ~np.isin(found.true, true)
    excused = (found.predicted == VOID) | (found.predicted_sizes < rule.min_size)
    excused |= found.void_sizes > 0.5 * found.predicted_sizes
    spurious = ~excused & ~np.isin(found.predicted, predicted)
    return Matching(true, predicted, found.iou[rows], found.true[missed], found.predicted[spurious])


def _best_one_to_one(true: np.ndarray, predicted: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Which candidates [P] to keep, bool: the one-to-one matching with the largest sum of IoU."""
    _, rows = np.unique(true, return_inverse=True)
    _, columns = np.unique(predicted, return_inverse=True)
    gain = np.zeros((rows.max(initial=-1) + 1, columns.max(initial=-1) + 1))
    gain[rows, columns] = iou
    chosen = np.zeros(gain.shape, bool)
    chosen[linear_sum_assignment(gain, maximize=True)] = True
    return chosen[rows, columns]


@dataclass(frozen=True)
class PanopticQuality:
    """Panoptic quality per class; all [C]."""

    iou_sum: np.ndarray
    num_matched: np.ndarray
    num_spurious: np.ndarray
    num_missed: np.ndarray

    @staticmethod
    def of(matching: Matching, num_classes: int) -> PanopticQuality:
        def per_class(keys: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
            return np.bincount(classes_of(keys), weights, num_classes)

        return PanopticQuality(
            per_class(matching.true, matching.ious),
            per_class(matching.true),
            per_class(matching.spurious),
            per_class(matching.missed),
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


def mean_percent(values: np.ndarray, weights: np.ndarray | None = None) -> float | None:
    """The mean of values 0..1 as a percentage; None of no values."""
    return 100.0 * float(np.average(values, weights=weights)) if len(values) else None


def _sums(index: np.ndarray, sizes: np.ndarray, length: int) -> np.ndarray:
    return np.bincount(index, sizes, length).astype(np.int64)
