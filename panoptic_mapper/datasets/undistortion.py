"""Images of a lens with distortion as a pinhole camera would have taken them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from panoptic_mapper.frame import PinholeCamera


class Undistorter:
    """Resamples images of a distorted camera to a pinhole camera; what lies outside becomes 0.

    Args:
        source: intrinsics of the distorted images.
        coefficients: OpenCV's k1 k2 p1 p2 [k3 ...], or k1 k2 k3 k4 of the fisheye model.
        target: the pinhole camera; None = with the intrinsics of the source.
    """

    def __init__(
        self,
        source: PinholeCamera,
        coefficients: Sequence[float],
        target: PinholeCamera | None = None,
        is_fisheye: bool = False,
    ) -> None:
        self.source = source
        self.camera = target or source
        undistort = cv2.fisheye.initUndistortRectifyMap if is_fisheye else cv2.initUndistortRectifyMap
        size = (self.camera.width, self.camera.height)
        values = np.array(coefficients, dtype=np.float64)
        self._maps = undistort(source.matrix, values, np.eye(3), self.camera.matrix, size, cv2.CV_32FC1)

    def color(self, image: np.ndarray) -> np.ndarray:  # [H, W, 3] uint8
        """The colour image, interpolated."""
        return self._remap(image, cv2.INTER_LINEAR)

    def nearest(self, image: np.ndarray) -> np.ndarray:  # [H, W], as it came
        """Depth or labels, not mixed. Depth along the axis is the same in both cameras."""
        return self._remap(image, cv2.INTER_NEAREST)

    def _remap(self, image: np.ndarray, interpolation: int) -> np.ndarray:
        expected = (self.source.height, self.source.width)
        if image.shape[:2] != expected:
            raise ValueError(f"image: expected {expected} as its intrinsics say, got {image.shape[:2]}")
        return cv2.remap(image, *self._maps, interpolation)
