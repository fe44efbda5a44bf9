"""Labels that another node computed and published as an image."""

from __future__ import annotations

import logging

import numpy as np

from panoptic_mapper.distinct_values import DistinctValues
from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.label_space import UNLABELED, LabelSpace

logger = logging.getLogger(__name__)


class TopicSegmenter:
    """Decodes label images when they arrive (`decode`) and passes on what is then attached to the frame (`segment`)."""

    def __init__(self, label_space: LabelSpace) -> None:
        self.label_space = label_space
        self._unknown_ids: set[int] = set()

    def decode(
        self,
        image: np.ndarray,  # [H, W] int32 or uint32: class id in the high 16 bits, instance number in the low 16
        size: tuple[int, int],  # (H, W) of the colour image that it labels
    ) -> Segmentation:
        """The labels of a packed image. Class ids outside the label space become unlabeled and are warned of once.

        Instance numbers may start anew in every class: pixels belong to one instance where both numbers agree.
        Instances of stuff and unlabeled pixels are dropped.

        Raises:
            ValueError: the image is not 32 bit, or of another size.
        """
        if image.dtype not in (np.int32, np.uint32):
            raise ValueError(f"label image: expected 32 bit integers (32SC1), got {image.dtype}")
        if image.shape != size:
            raise ValueError(f"label image: expected {size} as the colour image, got {image.shape}")
        distinct = DistinctValues.of(np.ascontiguousarray(image).view(np.uint32))
        packed = distinct.values
        class_ids, numbers = (packed >> 16).astype(np.int32), packed & 0xFFFF
        semantic = self.label_space.indices_from_ids(class_ids)
        self._warn_unknown(class_ids[(semantic == UNLABELED) & (class_ids != UNLABELED)])
        is_instance = self.label_space.is_thing[semantic] & (numbers > 0)
        instance = np.where(is_instance, np.cumsum(is_instance), 0).astype(np.int32)
        return Segmentation(distinct.replaced_by(semantic), distinct.replaced_by(instance))

    def segment(self, frame: Frame) -> Segmentation:
        """The labels that came with the frame.

        Raises:
            ValueError: the frame has none.
        """
        if frame.labels is None:
            raise ValueError(f"frame at {frame.stamp_ns} ns has no labels; is the label image topic published?")
        return frame.labels

    def _warn_unknown(self, class_ids: np.ndarray) -> None:
        new = {int(i) for i in class_ids} - self._unknown_ids
        if new:
            self._unknown_ids |= new
            logger.warning("label image: class ids %s are not in the label space; taken as unlabeled", sorted(new))
