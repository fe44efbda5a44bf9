"""The labels of any segmenter in the classes of another label space."""

from __future__ import annotations

import numpy as np

from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.label_space import UNLABELED, LabelSpace
from panoptic_mapper.label_spaces import class_table
from panoptic_mapper.segmenters.base import Segmenter
from panoptic_mapper.segmenters.components import with_components

FRAME_PIXELS = 640 * 480  # for which areas are given


class TranslatedSegmenter:
    """Translates what a segmenter gives.

    Classes for which the target has nothing become unlabeled. What is a thing here and was stuff there (COCO's
    cabinets in NYU40) becomes an instance per connected component; what is stuff here loses its instances.

    Args:
        min_area_px: smallest component that becomes an instance, in pixels of a 640x480 image.

    Raises:
        ValueError: the target has nothing for any of the segmenter's classes.
    """

    def __init__(self, segmenter: Segmenter, target: LabelSpace, min_area_px: int) -> None:
        self.label_space = target
        self._segmenter = segmenter
        self._min_area_px = min_area_px
        self._table = class_table(segmenter.label_space, target)  # [C]
        if (self._table == UNLABELED).all():
            raise ValueError(
                f"output_space '{target.name}' has nothing for the segmenter's classes"
                f" ({', '.join(segmenter.label_space.names[1:6])}...); add synonyms or maps_from to its file"
            )
        was_stuff = ~segmenter.label_space.is_thing & (self._table != UNLABELED)
        self._new_things = np.unique(self._table[was_stuff & target.is_thing[self._table]])

    def segment(self, frame: Frame) -> Segmentation | None:
        """The segmenter's labels of the frame, translated; None where it has none."""
        found = self._segmenter.segment(frame)
        if found is None:
            return None
        semantic = self._table[found.semantic]
        instance = np.where(self.label_space.is_thing[semantic], found.instance, 0).astype(np.int32)
        min_area_px = max(1, round(self._min_area_px * semantic.size / FRAME_PIXELS))
        instance = with_components(semantic, instance, self._new_things, min_area_px)
        return Segmentation(semantic, instance, found.confidence)
