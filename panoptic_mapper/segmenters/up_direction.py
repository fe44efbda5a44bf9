"""The up direction that segmenters work with: given, or estimated from the first frames."""

from __future__ import annotations

import logging

import numpy as np

from panoptic_mapper.frame import Frame
from panoptic_mapper.geometry import estimate_up

logger = logging.getLogger(__name__)

NUM_FRAMES = 5  # the estimate is final after as many frames
SNAP_TO_Z = 0.97  # cosine above which an estimate is taken to be exactly z: most maps are made so


class UpDirection:
    """The map's up direction.

    Args:
        up: vector [3] of any length in the map frame; None = estimated from the first frames.
    """

    def __init__(self, up: np.ndarray | None = None) -> None:
        self._up = None if up is None else np.asarray(up, float) / np.linalg.norm(up)
        self._is_final = up is not None
        self._frames: list[Frame] = []

    def in_map(self, frame: Frame) -> np.ndarray | None:
        """The unit vector [3] in the map frame, or None while no frame has shown it."""
        if self._is_final:
            return self._up
        self._frames.append(frame)
        try:
            up = estimate_up(self._frames)
        except ValueError as error:
            logger.warning("%s", error)
            self._frames.pop()
            return self._up
        self._up = np.array([0.0, 0.0, 1.0]) if up[2] > SNAP_TO_Z else up
        if len(self._frames) == NUM_FRAMES:
            self._is_final = True
            self._frames.clear()
            logger.info("estimated up direction %s", np.round(self._up, 3))
        return self._up
