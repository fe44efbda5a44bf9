"""Cameras and poses of a COLMAP reconstruction in text form: cameras.txt and images.txt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from panoptic_mapper.datasets.trajectories import floats
from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.pose_buffer import pose_from_quaternion

# Parameters of a model: how many of them are intrinsics, and how many the distortion has.
NUM_PARAMETERS = {"SIMPLE_PINHOLE": (3, 0), "PINHOLE": (4, 0), "OPENCV": (4, 4), "OPENCV_FISHEYE": (4, 4)}
CENTER_PX = 0.5  # COLMAP's centre of the top-left pixel; it is 0 here


@dataclass(frozen=True)
class ColmapCamera:
    """A camera, with the centre of its top-left pixel at (0, 0)."""

    pinhole: PinholeCamera
    distortion: tuple[float, ...]  # OpenCV's, empty = none
    is_fisheye: bool


def read_cameras(file: Path) -> dict[int, ColmapCamera]:
    """Cameras by id, of the models in NUM_PARAMETERS.

    Raises:
        ValueError: naming the file and the line.
    """
    cameras = {}
    for k, words in _lines(file):
        where = f"{file}: line {k}"
        model = words[1] if len(words) > 1 else ""
        if model not in NUM_PARAMETERS:
            raise ValueError(f"{where}: expected a camera of {', '.join(NUM_PARAMETERS)}, got '{model}'")
        num_intrinsics, num_distortion = NUM_PARAMETERS[model]
        if len(words) != 4 + num_intrinsics + num_distortion:
            raise ValueError(f"{where}: expected {num_intrinsics + num_distortion} parameters, got {len(words) - 4}")
        camera_id, width, height, *values = floats([words[0], *words[2:]], where)
        intrinsics = values[:num_intrinsics] if num_intrinsics == 4 else [values[0], *values[:3]]
        fx, fy, cx, cy = intrinsics
        try:
            pinhole = PinholeCamera(fx, fy, cx - CENTER_PX, cy - CENTER_PX, int(width), int(height))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        distortion = tuple(values[num_intrinsics:])
        cameras[int(camera_id)] = ColmapCamera(pinhole, distortion if any(distortion) else (), "FISHEYE" in model)
    if not cameras:
        raise ValueError(f"{file}: no cameras")
    return cameras


def read_images(file: Path) -> dict[str, tuple[np.ndarray, int]]:
    """T_world_camera [4, 4] and the camera's id by the image's name.

    Raises:
        ValueError: naming the file and the line.
    """
    images = {}
    is_points = False  # each image has a second line, its 2D points, which may be empty
    for k, words in _lines(file, keep_empty=True):
        if is_points or not words:
            is_points = False
            continue
        where = f"{file}: line {k}"
        if len(words) < 10:
            raise ValueError(f"{where}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, got {len(words)} words")
        qw, qx, qy, qz, *translation = floats(words[1:8], where)
        camera_id = int(floats(words[8:9], where)[0])
        try:
            T_camera_world = pose_from_quaternion(translation, (qx, qy, qz, qw))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        images[" ".join(words[9:])] = (np.linalg.inv(T_camera_world), camera_id)
        is_points = True
    if not images:
        raise ValueError(f"{file}: no images")
    return images


def _lines(file: Path, keep_empty: bool = False) -> list[tuple[int, list[str]]]:
    """Line numbers and words, without comments."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read ({error})") from error
    numbered = ((k, line.split()) for k, line in enumerate(lines, start=1) if not line.startswith("#"))
    return [(k, words) for k, words in numbered if words or keep_empty]
