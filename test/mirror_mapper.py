"""A mapper that shows the last frame unchanged, and fails, waits or ends its process when asked to."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
from fake_mapper import FakeMapper

from panoptic_mapper.frame import Frame, PinholeCamera
from panoptic_mapper.snapshot import MapSnapshot, PanopticView

NUM_POINTS = 200_000  # 5.6 MB
REFUSED, FAILING, WAITING = 1001, 1002, 1003  # stamps of frames
logger = logging.getLogger("panoptic_mapper.mirror")


class Mirror(FakeMapper):
    def __init__(self, pipe: Path | None = None) -> None:
        super().__init__()
        self.pipe = pipe

    def integrate(self, frame: Frame, waited_s: float) -> str:
        if frame.stamp_ns == REFUSED:
            raise ValueError("depth is empty")
        if frame.stamp_ns == FAILING:
            raise RuntimeError("the GPU is gone")
        if frame.stamp_ns == WAITING:
            assert self.pipe is not None
            self.pipe.read_bytes()  # waits until it is opened for writing, and closed
        logger.info("frame %d", frame.stamp_ns)
        return super().integrate(frame, waited_s)

    def render(self, camera: PinholeCamera, T_map_camera: np.ndarray) -> PanopticView:
        frame = self.frames[-1]
        assert frame.labels is not None
        np.testing.assert_array_equal(frame.T_map_camera, T_map_camera)
        assert frame.camera == camera
        alpha = np.ones_like(frame.depth)
        return PanopticView(frame.color, frame.depth, alpha, frame.labels.semantic, frame.labels.instance)

    def snapshot(self) -> MapSnapshot:
        return cloud(self.last_stamp_ns)


def cloud(stamp_ns: int) -> MapSnapshot:
    """Points that depend on the time."""
    rng = np.random.default_rng(stamp_ns)
    points = rng.random((NUM_POINTS, 3), dtype=np.float32)
    colors = rng.integers(0, 256, (NUM_POINTS, 3), dtype=np.uint8)
    ids = rng.integers(0, 9, (2, NUM_POINTS)).astype(np.int32)
    objects, label_space = FakeMapper().objects(), FakeMapper.label_space
    return MapSnapshot(stamp_ns, points, colors, ids[0], ids[1], points[:, 0].copy(), objects, label_space)


def fail() -> Mirror:
    raise RuntimeError("no kernel image is available")


def refuse() -> Mirror:
    raise ValueError("device 'cuda': torch finds no NVIDIA GPU here")


def die() -> Mirror:
    os._exit(7)
