"""Rendered sequences of Replica, in NICE-SLAM's layout or in vMAP's, with instance maps where there are some.

NICE-SLAM: results/frame000000.jpg, results/depth000000.png, traj.txt, cam_params.json (here or one folder above).
vMAP and Semantic-NeRF: rgb/rgb_0.png, depth/depth_0.png (mm), traj_w_c.txt.
Labels of both: semantic_instance/semantic_instance_0.png (uint16, Replica's object ids) and info_semantic.json, which
Replica has in <scene>/habitat/.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from panoptic_mapper.datasets.base import checked_index
from panoptic_mapper.datasets.image_files import (
    MM_PER_M,
    number_after,
    numbered_files,
    read_color,
    read_depth,
    read_ids,
    resized_color,
)
from panoptic_mapper.datasets.trajectories import read_matrix_poses
from panoptic_mapper.frame import Frame, PinholeCamera, Segmentation
from panoptic_mapper.label_space import UNLABELED, LabelSpace, SemanticClass

logger = logging.getLogger(__name__)

STUFF_NAMES = (
    *("beam", "blinds", "ceiling", "curtain", "floor", "panel", "pillar", "pipe", "rug", "vent", "wall", "wall-plug"),
    *("window", "door"),
)


@dataclass(frozen=True)
class ReplicaLabels:
    """What Replica's object ids mean."""

    label_space: LabelSpace
    index_of_object: np.ndarray  # [K] int32 class index of each object id; UNLABELED where it has no class


class ReplicaSequence:
    """A rendered Replica sequence as a `Dataset`. Poses are camera to world with OpenCV axes in both layouts.

    Args:
        path: the sequence's folder.
        fps: makes the stamps; the files carry no times.

    Raises:
        ValueError: naming the file that is missing or damaged, and the line.
    """

    def __init__(self, path: str | Path, fps: float = 30.0) -> None:
        self.path = Path(path)
        self.name = self.path.resolve().name
        if not fps > 0:
            raise ValueError(f"fps: expected a positive rate, got {fps!r}")
        self._fps = fps
        self._camera: PinholeCamera | None = None  # None = as the depth images say
        self._units_per_m = MM_PER_M
        if (self.path / "results").is_dir():
            folder, trajectory = self.path / "results", self.path / "traj.txt"
            self._colors = numbered_files(folder, number_of=number_after("frame"))
            self._depths = numbered_files(folder, (".png",), number_after("depth"))
            parameters = next(
                (f for f in (self.path / CAMERA_FILE, self.path.parent / CAMERA_FILE) if f.is_file()), None
            )
            if parameters is None:
                raise ValueError(f"{self.path / CAMERA_FILE}: no such file, nor one folder above")
            self._camera, self._units_per_m = read_camera_parameters(parameters)
        else:
            trajectory = self.path / "traj_w_c.txt"
            self._colors = numbered_files(self.path / "rgb", number_of=number_after("rgb_"))
            self._depths = numbered_files(self.path / "depth", (".png",), number_after("depth_"))
        poses = read_matrix_poses(trajectory)
        self._frames = [
            (n, T) for n, T in enumerate(poses) if n in self._colors and n in self._depths and T is not None
        ]
        images = len(self._colors.keys() | self._depths.keys())
        if len(self._frames) < images:
            logger.warning(
                "%s: %d of %d frames lack colour, depth or pose and are left out", self.path, images - len(self), images
            )
        if not self._frames:
            raise ValueError(f"{self.path}: no frame has colour, depth and a line in {trajectory.name}")
        self._labels = self._read_label_files()
        self.label_space = None if self._labels is None else self._labels.label_space

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Frame:
        number, T = self._frames[checked_index(index, self)]
        color, depth = read_color(self._colors[number]), read_depth(self._depths[number], self._units_per_m)
        height, width = depth.shape
        camera = self._camera or ninety_degrees(width, height)
        if (width, height) != (camera.width, camera.height):
            raise ValueError(
                f"{self._depths[number]}: expected {camera.width}x{camera.height} as {CAMERA_FILE} says,"
                f" got {width}x{height}"
            )
        labels = None if self._labels is None else self._segmentation(number, self._labels).resized(width, height)
        stamp = round(number * 1e9 / self._fps)
        return Frame(stamp, resized_color(color, width, height), depth, T, camera, labels)

    def _read_label_files(self) -> ReplicaLabels | None:
        folder = self.path / "semantic_instance"
        if not folder.is_dir():
            return None
        self._instances = numbered_files(folder, (".png",), number_after("semantic_instance_"))
        places = [self.path, self.path / "habitat", *self.path.resolve().parents[:2]]
        candidates = [p / sub / INFO_FILE for p in places for sub in ("", "habitat")]
        info = next((f for f in candidates if f.is_file()), None)
        if info is None:
            raise ValueError(
                f"{self.path / INFO_FILE}: no such file, nor in the two folders above or in habitat/ there;"
                " Replica has it in <scene>/habitat/"
            )
        return read_info_semantic(info)

    def _segmentation(self, number: int, labels: ReplicaLabels) -> Segmentation:
        if number not in self._instances:
            raise ValueError(f"{self.path / 'semantic_instance' / f'semantic_instance_{number}.png'}: no such file")
        ids = read_ids(self._instances[number]).astype(np.int32)
        known = ids < len(labels.index_of_object)
        semantic = np.where(known, labels.index_of_object[np.where(known, ids, 0)], UNLABELED).astype(np.int32)
        # Object 0 is an object like any other in Replica, but 0 means "none" here.
        return Segmentation(semantic, np.where(labels.label_space.is_thing[semantic], ids + 1, 0).astype(np.int32))


CAMERA_FILE, INFO_FILE = "cam_params.json", "info_semantic.json"


def read_camera_parameters(file: Path) -> tuple[PinholeCamera, float]:
    """Camera and depth units per metre of NICE-SLAM's cam_params.json."""
    values = _read_json(file, "camera", dict)
    try:
        numbers = {key: float(values[key]) for key in ("fx", "fy", "cx", "cy", "w", "h", "scale")}
        camera = PinholeCamera(
            numbers["fx"], numbers["fy"], numbers["cx"], numbers["cy"], int(numbers["w"]), int(numbers["h"])
        )
        if not numbers["scale"] > 0:
            raise ValueError(f"scale: expected a positive number of depth units per metre, got {numbers['scale']}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: camera: expected fx, fy, cx, cy, w, h and scale ({error})") from error
    return camera, numbers["scale"]


def ninety_degrees(width: int, height: int) -> PinholeCamera:
    """The camera of vMAP's and Semantic-NeRF's renderings: 90 degrees wide, whatever the size."""
    return PinholeCamera(width / 2, width / 2, (width - 1) / 2, (height - 1) / 2, width, height)


def read_info_semantic(file: Path) -> ReplicaLabels:
    """Classes and the class of each object of Replica's info_semantic.json.

    Raises:
        ValueError: naming the file and what it lacks.
    """
    id_to_label, entries = _read_json(file, "id_to_label", list), _read_json(file, "classes", list)
    try:
        classes = [SemanticClass(int(e["id"]), str(e["name"]), e["name"] not in STUFF_NAMES) for e in entries]
        label_space = LabelSpace.from_classes(c for c in classes if c.id > 0 and c.name != "undefined")
        class_ids = np.array([int(label) for label in id_to_label] or [0])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file}: expected classes with id and name, and id_to_label with class ids ({error!r})"
        ) from error
    return ReplicaLabels(label_space, label_space.indices_from_ids(class_ids))


def _read_json(file: Path, key: str, kind: type) -> Any:
    try:
        value = json.loads(file.read_text())[key]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: expected JSON with '{key}' ({error!r})") from error
    if not isinstance(value, kind):
        raise ValueError(f"{file}: {key}: expected a {kind.__name__}, got {type(value).__name__}")
    return value
