"""Sequences of the TUM RGB-D benchmark: rgb.txt, depth.txt and groundtruth.txt, associated by stamp."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from panoptic_mapper.datasets.base import checked_index
from panoptic_mapper.datasets.image_files import read_color, read_depth
from panoptic_mapper.datasets.trajectories import nearest, pose_at, read_rows, read_tum_poses, stamp_ns
from panoptic_mapper.datasets.undistortion import Undistorter
from panoptic_mapper.frame import Frame, PinholeCamera
from panoptic_mapper.label_space import LabelSpace

logger = logging.getLogger(__name__)

DEPTH_UNITS_PER_M = 5000.0
WIDTH_PX, HEIGHT_PX = 640, 480


@dataclass(frozen=True)
class TumCamera:
    """Calibration of the colour camera, to which the depth images are registered."""

    intrinsics: tuple[float, float, float, float]  # fx fy cx cy, px
    distortion: tuple[float, float, float, float, float]  # k1 k2 p1 p2 k3


# The benchmark's calibration of its three Kinects; the images of the third are published without distortion.
CAMERAS = {
    "freiburg1": TumCamera((517.3, 516.5, 318.6, 255.3), (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)),
    "freiburg2": TumCamera((520.9, 521.0, 325.1, 249.7), (0.2312, -0.7849, -0.0033, -0.0001, 0.9172)),
    "freiburg3": TumCamera((535.4, 539.2, 320.1, 247.6), (0.0, 0.0, 0.0, 0.0, 0.0)),
}


class TumSequence:
    """A TUM RGB-D sequence as a `Dataset`.

    Each colour image takes the depth image nearest in time, and the pose interpolated between the two ground-truth
    poses around it. Colour and depth are undistorted alike. Images without a partner are left out; the log counts them.

    Args:
        path: the folder with rgb.txt, depth.txt and groundtruth.txt.
        camera: "freiburg1", "freiburg2", "freiburg3", or a calibration; None = from the folder's name.
        max_difference_s: of a colour and a depth image that belong together.
        max_pose_gap_s: ground-truth poses further apart are not interpolated between.

    Raises:
        ValueError: naming the file that is missing or damaged, and the line.
    """

    label_space: LabelSpace | None = None

    def __init__(
        self,
        path: str | Path,
        camera: str | TumCamera | None = None,
        max_difference_s: float = 0.02,
        max_pose_gap_s: float = 0.1,
    ) -> None:
        self.path = Path(path)
        self.name = self.path.resolve().name
        calibration = _calibration(self.name, camera)
        self._camera = PinholeCamera(*calibration.intrinsics, WIDTH_PX, HEIGHT_PX)
        self._undistorter = Undistorter(self._camera, calibration.distortion) if any(calibration.distortion) else None
        colors, depths = _read_images(self.path / "rgb.txt"), _read_images(self.path / "depth.txt")
        poses = read_tum_poses(self.path / "groundtruth.txt", max_pose_gap_s)
        depth_stamps = [stamp for stamp, _ in depths]
        self._frames: list[tuple[int, Path, Path, np.ndarray]] = []  # stamp, colour, depth, T_map_camera
        without_depth = without_pose = 0
        for stamp, color in colors:
            k = nearest(depth_stamps, stamp, max_difference_s)
            T = pose_at(poses, stamp)
            without_depth += k is None
            without_pose += k is not None and T is None
            if k is not None and T is not None:
                self._frames.append((stamp, color, depths[k][1], T))
        if without_depth or without_pose:
            logger.warning(
                "%s: of %d colour images, %d have no depth image within %g s and %d no pose; they are left out",
                self.path,
                len(colors),
                without_depth,
                max_difference_s,
                without_pose,
            )
        if not self._frames:
            raise ValueError(
                f"{self.path}: none of {len(colors)} colour images has a depth image within {max_difference_s} s and a"
                " ground-truth pose; do the three files belong together?"
            )

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Frame:
        stamp, color_file, depth_file, T = self._frames[checked_index(index, self)]
        color, depth = read_color(color_file), read_depth(depth_file, DEPTH_UNITS_PER_M)
        for file, image in ((color_file, color), (depth_file, depth)):
            if image.shape[:2] != (HEIGHT_PX, WIDTH_PX):
                raise ValueError(f"{file}: expected {WIDTH_PX}x{HEIGHT_PX}, got {image.shape[1]}x{image.shape[0]}")
        if self._undistorter is not None:
            color, depth = self._undistorter.color(color), self._undistorter.nearest(depth)
        return Frame(stamp, color, depth, T, self._camera)


def _calibration(name: str, camera: str | TumCamera | None) -> TumCamera:
    if isinstance(camera, TumCamera):
        return camera
    found = [known for known in CAMERAS if known in (camera or name)]
    if len(found) != 1:
        known = ", ".join(CAMERAS)
        raise ValueError(
            f"{camera or name}: expected a folder named after its camera ({known}), or the argument camera"
        )
    return CAMERAS[found[0]]


def _read_images(file: Path) -> Sequence[tuple[int, Path]]:
    """Stamps (ns) and files, in the order of time."""
    rows = read_rows(file, 2, "stamp file")
    return sorted((stamp_ns(words[0], f"{file}: line {k}"), file.parent / words[1]) for k, words in rows)
