"""Recordings of ARKitScenes (raw or 3dod): lowres_wide, lowres_depth, lowres_wide_intrinsics and lowres_wide.traj."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from panoptic_mapper.datasets.base import checked_index
from panoptic_mapper.datasets.image_files import read_color, read_depth
from panoptic_mapper.datasets.tf_tree import recorded_poses
from panoptic_mapper.datasets.trajectories import floats, nearest, pose_at, read_rows, rigid, stamp_ns
from panoptic_mapper.frame import Frame, PinholeCamera
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.pose_buffer import PoseBuffer

logger = logging.getLogger(__name__)

MAX_DIFFERENCE_S = 0.0015  # names of files that belong together differ by a millisecond at times


class ArkitRecording:
    """An ARKitScenes video as a `Dataset`: 256x192 colour with the LiDAR depth that ARKit registered to it.

    Poses (about 10 a second, images up to 60) are interpolated to the images' times. Images without depth, intrinsics
    or pose are left out and counted in the log. The map is z-up, as ARKitScenes' own coordinates.

    Args:
        path: the folder named by the video's id.
        max_pose_gap_s: poses further apart are not interpolated between.

    Raises:
        ValueError: naming the file that is missing or damaged, and the line.
    """

    label_space: LabelSpace | None = None

    def __init__(self, path: str | Path, max_pose_gap_s: float = 0.25) -> None:
        self.path = Path(path)
        self.name = self.path.resolve().name
        colors = _stamped_files(self.path / "lowres_wide", ".png")
        depths = _stamped_files(self.path / "lowres_depth", ".png")
        intrinsics = _stamped_files(self.path / "lowres_wide_intrinsics", ".pincam")
        poses = read_traj(self.path / "lowres_wide.traj", max_pose_gap_s)
        depth_stamps, intrinsic_stamps = list(depths), list(intrinsics)
        self._frames: list[tuple[int, Path, Path, Path, np.ndarray]] = []
        for stamp, color in colors.items():
            k, m = (nearest(stamps, stamp, MAX_DIFFERENCE_S) for stamps in (depth_stamps, intrinsic_stamps))
            T = pose_at(poses, stamp)
            if k is not None and m is not None and T is not None:
                self._frames.append((stamp, color, depths[depth_stamps[k]], intrinsics[intrinsic_stamps[m]], T))
        if len(self._frames) < len(colors):
            left_out = len(colors) - len(self._frames)
            logger.warning(
                "%s: %d of %d colour images have no depth, intrinsics or pose and are left out",
                self.path,
                left_out,
                len(colors),
            )
        if not self._frames:
            raise ValueError(f"{self.path}: none of {len(colors)} colour images has depth, intrinsics and a pose")

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Frame:
        stamp, color, depth, intrinsics, T = self._frames[checked_index(index, self)]
        try:
            return Frame(stamp, read_color(color), read_depth(depth), T, read_pincam(intrinsics))
        except ValueError as error:
            if str(error).startswith(str(self.path)):
                raise
            raise ValueError(f"{color}: {error}") from error


def read_traj(file: Path, max_gap_s: float) -> PoseBuffer:
    """Lines of `stamp rx ry rz tx ty tz`: axis times angle (rad) and translation (m) from the world to the camera."""
    poses = recorded_poses(max_gap_s)
    for k, words in read_rows(file, 7, "stamp rx ry rz tx ty tz"):
        where = f"{file}: line {k}"
        stamp, numbers = stamp_ns(words[0], where), floats(words[1:], where)
        T_camera_world = np.eye(4)
        T_camera_world[:3, :3] = Rotation.from_rotvec(numbers[:3]).as_matrix()
        T_camera_world[:3, 3] = numbers[3:]
        T = rigid(T_camera_world, where)
        if T is not None:
            poses.add(stamp, np.linalg.inv(T))
    return poses


def read_pincam(file: Path) -> PinholeCamera:
    """One line of `width height fx fy cx cy`."""
    line, words = read_rows(file, 6, "width height fx fy cx cy")[0]
    width, height, fx, fy, cx, cy = floats(words, f"{file}: line {line}")
    try:
        return PinholeCamera(fx, fy, cx, cy, int(width), int(height))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _stamped_files(folder: Path, suffix: str) -> dict[int, Path]:
    """Files named <video id>_<seconds> by their stamps (ns), in the order of time."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    files = [f for f in folder.iterdir() if f.suffix == suffix and not f.name.startswith(".")]
    if not files:
        raise ValueError(f"{folder}: no files <video id>_<seconds>{suffix}")
    return dict(sorted((stamp_ns(f.name.removesuffix(suffix).rpartition("_")[2], str(f)), f) for f in files))
