"""The protocol of 2D panoptic segmentation."""

from __future__ import annotations

from typing import Protocol

from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.label_space import LabelSpace


class Segmenter(Protocol):
    """Gives the 2D panoptic labels of a frame. Instance ids need not, and must not, carry identity across frames."""

    label_space: LabelSpace

    def segment(self, frame: Frame) -> Segmentation | None:
        """Labels at the frame's own resolution, or None where there are none (the map then gets geometry only)."""
        ...
