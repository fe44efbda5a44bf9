"""Sequences of 7-Scenes: frame-000000.color.png, .depth.png and .pose.txt in one folder."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from panoptic_mapper.datasets.base import checked_index
from panoptic_mapper.datasets.depth_registration import register_depth
from panoptic_mapper.datasets.image_files import number_after, numbered_files, read_color, read_depth, read_matrix
from panoptic_mapper.datasets.trajectories import rigid
from panoptic_mapper.frame import Frame, PinholeCamera
from panoptic_mapper.label_space import LabelSpace

logger = logging.getLogger(__name__)

DEPTH_CAMERA = PinholeCamera(585.0, 585.0, 320.0, 240.0, 640, 480)  # as the dataset's page gives it
COLOR_CAMERA = PinholeCamera(525.0, 525.0, 320.0, 240.0, 640, 480)  # the dataset gives none: a Kinect's usual values
PREFIX, POSE_SUFFIX = "frame-", ".pose.txt"


def kinect_color_from_depth() -> np.ndarray:
    """T_color_depth [4, 4] of a Kinect v1 as calibrated elsewhere; the dataset gives none."""
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec([0.00816, -0.00789, -0.00271]).as_matrix()
    T[:3, 3] = (-0.0256, 0.0001, 0.0020)
    return T


class SevenScenesSequence:
    """A 7-Scenes sequence as a `Dataset`.

    The files' depth is that of the infrared camera, whose poses they hold, while colour comes from a camera 2.5 cm
    beside it. Depth is registered to colour with a Kinect's usual calibration, and poses become the colour camera's.

    Args:
        path: a folder seq-XX.
        is_registered: take depth as it is, for copies in which it was registered already, with `camera`.
        camera: the colour camera.
        fps: makes the stamps; the files carry no times.

    Raises:
        ValueError: naming the file that is missing or damaged.
    """

    label_space: LabelSpace | None = None

    def __init__(
        self,
        path: str | Path,
        is_registered: bool = False,
        camera: PinholeCamera = COLOR_CAMERA,
        fps: float = 30.0,
    ) -> None:
        self.path = Path(path)
        resolved = self.path.resolve()
        self.name = f"{resolved.parent.name}-{resolved.name}"
        if not fps > 0:
            raise ValueError(f"fps: expected a positive rate, got {fps!r}")
        self._camera, self._fps = camera, fps
        self._T_color_depth = None if is_registered else kinect_color_from_depth()
        names = numbered_files(self.path, (".txt",), _pose_number)
        if not names:
            parts = ", ".join(sorted(p.name for p in self.path.glob("seq-*") if p.is_dir()))
            hint = f"; it holds the sequences {parts}: name one of them" if parts else ""
            raise ValueError(f"{self.path}: no files frame-000000.pose.txt, ...{hint}")
        self._frames: list[tuple[int, np.ndarray]] = []  # number, T_map_depth
        for number, file in names.items():
            T = rigid(read_matrix(file), file)
            if T is not None:
                self._frames.append((number, T))
        if len(self._frames) < len(names):
            lost = len(names) - len(self._frames)
            logger.warning("%s: %d of %d frames have no finite pose and are left out", self.path, lost, len(names))
        if not self._frames:
            raise ValueError(f"{self.path}: none of {len(names)} frames has a finite pose")

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Frame:
        number, T = self._frames[checked_index(index, self)]
        stem = self.path / f"{PREFIX}{number:06d}"
        color, depth = read_color(Path(f"{stem}.color.png")), read_depth(Path(f"{stem}.depth.png"))
        stamp = round(number * 1e9 / self._fps)
        if self._T_color_depth is None:
            return Frame(stamp, color, depth, T, self._camera)
        depth = register_depth(depth, DEPTH_CAMERA, self._camera, self._T_color_depth)
        return Frame(stamp, color, depth, T @ np.linalg.inv(self._T_color_depth), self._camera)


def _pose_number(stem: str) -> int | None:
    return number_after(PREFIX)(stem.removesuffix(".pose")) if stem.endswith(".pose") else None
