"""Overlaps of true and predicted labels: all that the panoptic metrics keep of images, volumes and sets of points.

A label is one number, its key: class index << 32 | instance id. `count_pairs` counts pairs of labels as they come; the
other functions say what a segment is, each for one rule of evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

VOID = 0  # key of what is no segment: without ground truth (true side), without prediction (predicted side)
_ID_BITS = 32
_ID_MASK = (1 << _ID_BITS) - 1
BACKGROUND = 1 << _ID_BITS  # true stuff where only instances matter: matches no id, but a spill onto it counts


@dataclass(frozen=True)
class SegmentPairs:
    """Overlaps of true and predicted segments. Pairs that have nothing in common are left out."""

    true: np.ndarray  # [P] int64 key
    predicted: np.ndarray  # [P] int64 key
    sizes: np.ndarray  # [P] int64 size of the intersection: pixels, or points


def label_keys(semantic: np.ndarray, instance: np.ndarray) -> np.ndarray:
    """Keys of labels, int64, same shape; nothing is dropped: stuff may have an id, and a thing may have none."""
    return (semantic.astype(np.int64) << _ID_BITS) | instance.astype(np.int64)


def classes_of(keys: np.ndarray) -> np.ndarray:
    """Class indices of keys."""
    return keys >> _ID_BITS


def count_pairs(true_keys: np.ndarray, predicted_keys: np.ndarray) -> SegmentPairs:
    """Counts how often each pair of keys comes together in two arrays of one shape."""
    true, true_index = np.unique(true_keys, return_inverse=True)
    predicted, predicted_index = np.unique(predicted_keys, return_inverse=True)
    width = max(len(predicted), 1)
    counts = np.bincount(true_index.ravel() * width + predicted_index.ravel())
    pairs = np.nonzero(counts)[0]
    return SegmentPairs(true[pairs // width], predicted[pairs % width], counts[pairs])


def panoptic_segments(pairs: SegmentPairs, is_thing: np.ndarray) -> SegmentPairs:
    """The segments of panoptic quality: a stuff class is one, and a thing's are the pixels of one class and one id.

    What is a thing but has no id is in no segment.
    """

    def segment(keys: np.ndarray) -> np.ndarray:
        things, has_id = is_thing[classes_of(keys)], (keys & _ID_MASK) > 0
        return np.where(things & has_id, keys, np.where(things, VOID, keys & ~_ID_MASK))

    return _regrouped(pairs, segment(pairs.true), segment(pairs.predicted))


def majority_segments(pairs: SegmentPairs, is_thing: np.ndarray) -> SegmentPairs:
    """The segments of PanopticRecon++'s evaluator: all pixels of one id, of the class that most of them have.

    Ids whose class is stuff are one segment per class with the pixels of that class without an id; ids that are
    mostly unlabeled are no segment. Pixels of a thing class without an id are one segment per class.
    """

    def segment(keys: np.ndarray) -> np.ndarray:
        classes, ids = classes_of(keys), keys & _ID_MASK
        unique, index = np.unique(ids, return_inverse=True)
        areas = np.zeros((len(unique), len(is_thing)), np.int64)
        np.add.at(areas, (index, classes), pairs.sizes)
        classes = np.where(ids > 0, areas.argmax(axis=1)[index] if len(keys) else classes, classes)
        return (classes << _ID_BITS) | np.where(is_thing[classes], ids, 0)

    return _regrouped(pairs, segment(pairs.true), segment(pairs.predicted))


def instance_segments(pairs: SegmentPairs, is_thing: np.ndarray) -> SegmentPairs:
    """Bare instance ids as keys, whatever their class: 0 = void or no instance, and all true stuff is `BACKGROUND`."""
    pairs = panoptic_segments(pairs, is_thing)
    is_stuff = (pairs.true != VOID) & ~is_thing[classes_of(pairs.true)]
    true = np.where(is_stuff, BACKGROUND, pairs.true & _ID_MASK)
    return _regrouped(pairs, true, pairs.predicted & _ID_MASK)


def _regrouped(pairs: SegmentPairs, true: np.ndarray, predicted: np.ndarray) -> SegmentPairs:
    """The pairs under new keys; those that have become the same are added up."""
    unique, index = np.unique(np.stack([true, predicted]), axis=1, return_inverse=True)
    sizes = np.bincount(index.ravel(), pairs.sizes, unique.shape[1]).astype(np.int64)
    return SegmentPairs(unique[0], unique[1], sizes)
