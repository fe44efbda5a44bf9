"""Labels that come with the sequence, without the instance identities that a 2D model could not know."""

from __future__ import annotations

import numpy as np

from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.label_space import LabelSpace


class DatasetSegmenter:
    """Passes `frame.labels` on with new instance ids for every frame, so that identity stays the mapper's task."""

    def __init__(self, label_space: LabelSpace, seed: int = 0) -> None:
        self.label_space = label_space
        self._seed = seed

    def segment(self, frame: Frame) -> Segmentation:
        """The frame's labels; the same frame and seed always give the same result, whatever its input ids were.

        Raises:
            ValueError: the frame has no labels.
        """
        if frame.labels is None:
            raise ValueError(f"frame at {frame.stamp_ns} ns has no labels; the 'dataset' segmenter needs them")
        rng = np.random.default_rng((self._seed, frame.stamp_ns))
        return permute_instances(frame.labels, rng)


def permute_instances(labels: Segmentation, rng: np.random.Generator) -> Segmentation:
    """Renumbers the K instances to a random permutation of 1..K that does not depend on the ids they had."""
    ids, first_pixels, inverse = np.unique(labels.instance, return_index=True, return_inverse=True)
    is_instance = ids > 0
    # Numbering by the first pixel in reading order forgets the ids; shuffling hides that order too.
    order = np.argsort(first_pixels[is_instance])
    new_ids = np.zeros(len(ids), dtype=np.int32)
    new_ids[np.flatnonzero(is_instance)[order]] = 1 + rng.permutation(len(order))
    instance = new_ids[inverse].reshape(labels.instance.shape)
    return Segmentation(labels.semantic.astype(np.int32), instance, labels.confidence)
