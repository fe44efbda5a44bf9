"""The protocol of 2D panoptic segmentation, and the check of what a segmenter gives."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.label_space import LabelSpace


class Segmenter(Protocol):
    """Gives the 2D panoptic labels of a frame. Instance ids need not, and must not, carry identity across frames."""

    label_space: LabelSpace

    def segment(self, frame: Frame) -> Segmentation | None:
        """Labels at the frame's own resolution, or None where there are none (the map then gets geometry only)."""
        ...


def check_segmentation(segmentation: Segmentation, frame: Frame, label_space: LabelSpace) -> None:
    """Refuses labels that would damage the map.

    Raises:
        ValueError: another size than the frame's, not integers, a class index outside the label space, or confidences
            that are not finite in 0..1.
    """
    if segmentation.semantic.shape != frame.depth.shape:
        raise ValueError(
            f"segmentation: expected the frame's size {frame.depth.shape}, got {segmentation.semantic.shape}"
        )
    check_ids(segmentation, label_space)


def check_ids(segmentation: Segmentation, label_space: LabelSpace) -> None:
    """The same but for the size."""
    semantic, instance, confidence = segmentation.semantic, segmentation.instance, segmentation.confidence
    for name, ids in (("semantic", semantic), ("instance", instance)):
        if not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"segmentation: expected integer {name} ids, got {ids.dtype}")
    if semantic.max() >= len(label_space):
        raise ValueError(
            f"segmentation: class index {semantic.max()}, but the label space has indices 0..{len(label_space) - 1}"
        )
    if confidence is not None and not (confidence.min() >= 0 and confidence.max() <= 1):  # NaN fails both
        num_nan = int(np.isnan(confidence).sum())
        raise ValueError(
            f"segmentation: expected confidences in 0..1, got {np.nanmin(confidence, initial=np.inf):.3g}"
            f"..{np.nanmax(confidence, initial=-np.inf):.3g} and {num_nan} NaN"
        )
