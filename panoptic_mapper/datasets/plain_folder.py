"""A folder of images, depth and poses of one's own, described by a small sequence.yaml."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from panoptic_mapper.config import Config, load_config, param, section
from panoptic_mapper.datasets.base import checked_index
from panoptic_mapper.datasets.image_files import COLOR_SUFFIXES, read_color, read_depth, read_ids, resized_color
from panoptic_mapper.datasets.trajectories import pose_at, read_matrix_poses, read_tum_poses, stamp_ns
from panoptic_mapper.datasets.undistortion import Undistorter
from panoptic_mapper.frame import Frame, PinholeCamera, Segmentation
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.label_spaces import load_label_space, shipped_label_spaces

logger = logging.getLogger(__name__)

DESCRIPTION_FILE = "sequence.yaml"
AXES = {"opencv": np.diag([1.0, 1, 1, 1]), "opengl": np.diag([1.0, -1, -1, 1])}  # camera's points to its OpenCV axes


@dataclass(frozen=True)
class PlainCamera(Config):
    """Intrinsics of the depth image, to which colour is registered."""

    fx: float = param(0.0, "focal length, px", gt=0)
    fy: float = param(0.0, "focal length, px", gt=0)
    cx: float = param(math.nan, "principal point, px; the centre of the top-left pixel is 0")
    cy: float = param(math.nan, "principal point, px")
    width: int = param(0, "size of the depth image, px", ge=1)
    height: int = param(0, "size of the depth image, px", ge=1)
    distortion: tuple[float, ...] = param((), "OpenCV's k1 k2 p1 p2 [k3 ...] of both images; empty = none")


@dataclass(frozen=True)
class PlainFolderConfig(Config):
    """What sequence.yaml may hold. Folders and files are relative to it."""

    color: str = param("color", "folder of the colour images")
    depth: str = param("depth", "folder of the depth images, uint16, registered to colour")
    depth_units_per_m: float = param(1000.0, "value of one metre in the depth images", gt=0)
    poses: str = param("poses.txt", "file of the poses")
    pose_format: Literal["matrix", "tum"] = param(
        "matrix",
        "matrix: a line of 16 numbers, row by row, for each colour image in the order of names;"
        " tum: lines of stamp tx ty tz qx qy qz qw, and colour images named by their time in seconds",
        choices=("matrix", "tum"),
    )
    pose_direction: Literal["camera_to_world", "world_to_camera"] = param(
        "camera_to_world", "which way the poses take points", choices=("camera_to_world", "world_to_camera")
    )
    camera_axes: Literal["opencv", "opengl"] = param(
        "opencv", "x right, y down, z forward; or x right, y up, z backward", choices=tuple(AXES)
    )
    max_pose_gap_s: float = param(0.2, "tum: poses further apart are not interpolated between", gt=0)
    fps: float = param(30.0, "matrix: images per second, which makes the stamps", gt=0)
    semantic: str = param("", "folder of class ids (uint8 or uint16), named as the colour images; empty = none")
    instance: str = param("", "folder of instance ids (0 = none), named as the colour images; empty = none")
    labels: str = param(
        "labels.json", "classes, needed with semantic: a labels.json, or a label space (name or YAML file)"
    )
    camera: PlainCamera = section(PlainCamera)


class PlainFolder:
    """A folder with a sequence.yaml as a `Dataset`. Frames have the size and the intrinsics of the depth images.

    Raises:
        ValueError: naming the file that is missing or damaged, or the setting that does not fit.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.resolve().name
        file = self.path / DESCRIPTION_FILE
        self.config = load_config(PlainFolderConfig, file)
        c = self.config.camera
        try:
            self._camera = PinholeCamera(c.fx, c.fy, c.cx, c.cy, c.width, c.height)
        except ValueError as error:
            raise ValueError(f"{file}: camera: {error}") from error
        if c.distortion and len(c.distortion) not in (4, 5, 8):
            raise ValueError(f"{file}: camera: distortion: expected 4, 5 or 8 coefficients, got {len(c.distortion)}")
        self._undistorter = Undistorter(self._camera, c.distortion) if c.distortion else None
        self._frames = self._find_frames()
        self.label_space = self._read_label_space() if self.config.semantic else None

    def _read_label_space(self) -> LabelSpace:
        is_shipped = self.config.labels in shipped_label_spaces()
        return load_label_space(self.config.labels if is_shipped else self.path / self.config.labels)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Frame:
        stamp, color_file, T = self._frames[checked_index(index, self)]
        width, height = self._camera.width, self._camera.height
        color = resized_color(read_color(color_file), width, height)
        depth_file = self.path / self.config.depth / f"{color_file.stem}.png"
        depth = read_depth(depth_file, self.config.depth_units_per_m)
        if depth.shape != (height, width):
            raise ValueError(f"{depth_file}: expected {width}x{height} as the camera, got {depth.shape[::-1]}")
        labels = self._read_labels(color_file.stem).resized(width, height) if self.label_space else None
        if self._undistorter is not None:
            color, depth = self._undistorter.color(color), self._undistorter.nearest(depth)
            if labels is not None:
                labels = Segmentation(*map(self._undistorter.nearest, (labels.semantic, labels.instance)))
        return Frame(stamp, color, depth, T, self._camera, labels)

    def _find_frames(self) -> list[tuple[int, Path, np.ndarray]]:
        """Stamp, colour image and T_map_camera of the images that have a pose."""
        folder, pose_file = self.path / self.config.color, self.path / self.config.poses
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
        files = [f for f in folder.iterdir() if f.suffix.lower() in COLOR_SUFFIXES]
        if not files:
            raise ValueError(f"{folder}: no images ({', '.join(COLOR_SUFFIXES)})")
        if self.config.pose_format == "tum":
            buffer = read_tum_poses(pose_file, self.config.max_pose_gap_s)
            stamped = sorted((stamp_ns(f.stem, str(f)), f) for f in files)
            posed = [(stamp, f, pose_at(buffer, stamp)) for stamp, f in stamped]
        else:
            poses = read_matrix_poses(pose_file)
            if len(poses) != len(files):
                raise ValueError(f"{pose_file}: expected {len(files)} poses as images in {folder}, got {len(poses)}")
            named = sorted(files, key=_natural)
            posed = [
                (round(k * 1e9 / self.config.fps), f, T) for k, (f, T) in enumerate(zip(named, poses, strict=True))
            ]
        frames = [(stamp, f, self._to_map(T)) for stamp, f, T in posed if T is not None]
        if len(frames) < len(files):
            logger.warning(
                "%s: %d of %d images have no pose and are left out", folder, len(files) - len(frames), len(files)
            )
        if not frames:
            raise ValueError(f"{pose_file}: none of {len(files)} images in {folder} has a pose")
        return frames

    def _to_map(self, T: np.ndarray) -> np.ndarray:
        if self.config.pose_direction == "world_to_camera":
            T = np.linalg.inv(T)
        return T @ AXES[self.config.camera_axes]

    def _read_labels(self, stem: str) -> Segmentation:
        assert self.label_space is not None
        semantic_file = self.path / self.config.semantic / f"{stem}.png"
        semantic = self.label_space.indices_from_ids(read_ids(semantic_file))
        instance = np.zeros_like(semantic)
        if self.config.instance:
            file = self.path / self.config.instance / f"{stem}.png"
            ids = read_ids(file)
            if ids.shape != semantic.shape:
                raise ValueError(f"{file}: expected {semantic.shape} as {semantic_file}, got {ids.shape}")
            instance = np.where(self.label_space.is_thing[semantic], ids, 0).astype(np.int32)
        return Segmentation(semantic, instance)


def _natural(file: Path) -> list[str | int]:
    """Sorts names by the numbers in them: frame-2 before frame-10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", file.stem)]
