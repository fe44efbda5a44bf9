"""Instances for pixels of thing classes that have none: their connected components."""

from __future__ import annotations

import cv2
import numpy as np


def with_components(
    semantic: np.ndarray,  # [H, W] int32 class index
    instance: np.ndarray,  # [H, W] int32, 0 = none
    classes: np.ndarray,  # [L] int: indices of the classes whose pixels without an instance get one
    min_area_px: int,
) -> np.ndarray:
    """The instances [H, W] int32 with a number of its own for each further component of at least `min_area_px`."""
    instance = instance.copy()
    number = int(instance.max(initial=0))
    for index in np.intersect1d(classes, semantic):
        free = ((semantic == index) & (instance == 0)).astype(np.uint8)
        _, component, stats, _ = cv2.connectedComponentsWithStats(free, connectivity=8)
        is_large = stats[:, cv2.CC_STAT_AREA] >= min_area_px
        is_large[0] = False  # the background
        numbers = np.where(is_large, number + np.cumsum(is_large), 0).astype(np.int32)
        instance += numbers[component]
        number += int(is_large.sum())
    return instance
