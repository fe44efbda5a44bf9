"""Masks that overlap, each with a class and a score, made into one label image."""

from __future__ import annotations

import numpy as np

from panoptic_mapper.frame import Segmentation

MIN_KEPT_SHARE = 0.5  # a mask of which others hold more than the rest is another view of what they show


def merge_masks(
    masks: np.ndarray,  # [K, H, W] bool
    scores: np.ndarray,  # [K] 0..1
    classes: np.ndarray,  # [K] class index
    is_thing: np.ndarray,  # [C] bool
    min_area_px: float,
) -> Segmentation:
    """A label image [H, W] in which every pixel belongs to one mask.

    The masks claim their pixels in the order of their scores, things before stuff: a thing stands before the stuff
    around it, whatever the detector is surer of. A mask that gets less than half of its pixels, or too few, gets none.
    All masks of one stuff class are one segment. Confidence is the mask's score; 1 where there is no label.
    """
    shape = masks.shape[1:]
    semantic, instance = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    confidence = np.ones(shape, np.float32)
    for k in np.lexsort((-scores, ~is_thing[classes])):
        free = masks[k] & (semantic == 0)
        same_stuff = masks[k] & (semantic == classes[k]) & ~is_thing[classes[k]]
        kept_px = int(free.sum())
        if kept_px < max(1.0, min_area_px) or kept_px + same_stuff.sum() < MIN_KEPT_SHARE * masks[k].sum():
            continue
        semantic[free] = classes[k]
        confidence[free] = scores[k]
        if is_thing[classes[k]]:
            instance[free] = instance.max() + 1
    return Segmentation(semantic, instance, confidence)


def without_duplicates(boxes: np.ndarray, scores: np.ndarray, max_iou: float) -> np.ndarray:
    """Indices [M] of the boxes [K, 4] (x0, y0, x1, y1) to keep, surest first: of two that overlap more, the surer."""
    kept = np.zeros(0, np.int64)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    for k in np.argsort(-scores, kind="stable"):
        size = np.minimum(boxes[k, 2:], boxes[kept, 2:]) - np.maximum(boxes[k, :2], boxes[kept, :2])
        intersection = np.prod(size.clip(0), axis=1)
        if (intersection <= max_iou * (area[k] + area[kept] - intersection)).all():
            kept = np.append(kept, k)
    return kept
