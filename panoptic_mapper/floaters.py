"""Floaters: Gaussians in space that depth images have seen to be empty."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from panoptic_mapper.frame import Frame

MIN_GAP_M = 0.1  # a centre is well in front of the measured surface by this, or
MIN_GAP_SHARE = 0.05  # by this share of its depth, whichever is larger: beyond the noise of depth sensors
MIN_FRAMES = 2  # that see through a floater; one alone may be an edge, or a thing that moved


@dataclass(frozen=True)
class Floaters:
    """Which of N centres float."""

    is_floater: np.ndarray  # [N] bool
    is_judged: np.ndarray  # [N] bool: a floater, or on the measured surface in at least one frame

    @property
    def count(self) -> int:
        return int(self.is_floater.sum())

    @property
    def share(self) -> float | None:
        """Share 0..1 of floaters among the judged; None where nothing was judged."""
        return float(self.is_floater[self.is_judged].mean()) if self.is_judged.any() else None


class FloaterCounter:
    """Looks at centres [N, 3] (map frame, m) through frames; `compute` gives the verdict so far.

    A floater is well in front of the measured surface in `MIN_FRAMES` frames, and on it in none. Being behind
    it says nothing: the surface may hide it.
    """

    def __init__(self, means: np.ndarray) -> None:
        if means.ndim != 2 or means.shape[1] != 3:
            raise ValueError(f"means: expected shape (N, 3), got {means.shape}")
        self._means = means.astype(np.float64)
        self._seen_through = np.zeros(len(means), np.int64)
        self._on_surface = np.zeros(len(means), np.int64)

    def update(self, frame: Frame) -> None:
        """Takes the evidence of one frame's depth."""
        camera, T = frame.camera, frame.T_map_camera
        x, y, z = ((self._means - T[:3, 3]) @ T[:3, :3]).T
        rows = np.flatnonzero(z > 0)
        u = np.rint(x[rows] / z[rows] * camera.fx + camera.cx)
        v = np.rint(y[rows] / z[rows] * camera.fy + camera.cy)
        inside = (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
        rows, pixels = rows[inside], (v[inside].astype(np.int64), u[inside].astype(np.int64))

        # The nearest depth around a pixel: beside the silhouette of something near, a point of it must not be taken
        # for one in front of what is behind.
        measured = np.where(frame.depth > 0, frame.depth, np.float32(np.inf))
        nearest = cv2.erode(measured, np.ones((3, 3), np.uint8))
        depth, nearest, z = frame.depth[pixels], nearest[pixels], z[rows]
        gap = np.maximum(MIN_GAP_M, MIN_GAP_SHARE * depth)
        self._seen_through[rows] += (depth > 0) & (z < nearest - gap)
        self._on_surface[rows] += (depth > 0) & (np.abs(z - depth) <= gap)

    def compute(self) -> Floaters:
        is_floater = (self._seen_through >= MIN_FRAMES) & (self._on_surface == 0)
        return Floaters(is_floater, is_floater | (self._on_surface > 0))


def count_floaters(means: np.ndarray, frames: Iterable[Frame]) -> Floaters:
    """The floaters among centres [N, 3] (map frame, m) by the depth of the frames; pass only those opaque enough."""
    counter = FloaterCounter(means)
    for frame in frames:
        counter.update(frame)
    return counter.compute()
