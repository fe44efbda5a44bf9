"""No labels: a map of geometry and colour."""

from __future__ import annotations

from panoptic_mapper.frame import Frame
from panoptic_mapper.label_space import LabelSpace


class NoSegmenter:
    """Gives no labels at all."""

    def __init__(self) -> None:
        self.label_space = LabelSpace.from_classes(())

    def segment(self, frame: Frame) -> None:
        return None
