"""No labels: a map of geometry and colour."""

from __future__ import annotations

from panoptic_mapper.frame import Frame
from panoptic_mapper.label_space import LabelSpace


class NoSegmenter:
    """Gives no labels at all; a label space may be named all the same, that of a loaded map."""

    def __init__(self, label_space: LabelSpace | None = None) -> None:
        self.label_space = label_space or LabelSpace.from_classes(())

    def segment(self, frame: Frame) -> None:
        return None
