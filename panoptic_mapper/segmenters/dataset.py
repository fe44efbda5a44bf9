"""Labels that come with the sequence, without the instance identities that a 2D model could not know."""

from __future__ import annotations

import numpy as np

from panoptic_mapper.datasets.noise import NoiseConfig, corrupt
from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.label_space import LabelSpace


class DatasetSegmenter:
    """Passes `frame.labels` on with new instance ids for every frame, so that identity stays the mapper's task.

    Args:
        noise: what the labels suffer on the way, to stand for a real 2D model; None = nothing.
    """

    def __init__(self, label_space: LabelSpace, seed: int = 0, noise: NoiseConfig | None = None) -> None:
        self.label_space = label_space
        self._seed = seed
        self._noise = noise or NoiseConfig()

    def segment(self, frame: Frame) -> Segmentation:
        """The frame's labels; the same frame and seed always give the same result, whatever its input ids were.

        Raises:
            ValueError: the frame has no labels.
        """
        if frame.labels is None:
            raise ValueError(f"frame at {frame.stamp_ns} ns has no labels; the 'dataset' segmenter needs them")
        rng = np.random.default_rng((self._seed, frame.stamp_ns))
        return corrupt(frame.labels, self.label_space, self._noise, rng)
