"""Reader of ScanNet-style folders: numbered colour, depth and pose files, intrinsics, and labels where there are some.

Layout (docs/datasets.md): color/%d.jpg|png, depth/%d.png (uint16 mm), pose/%d.txt (4x4 camera to world),
intrinsic/intrinsic_depth.txt, and optionally semantic/%d.png, instance/%d.png with labels.json.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from panoptic_mapper.datasets.image_files import (
    numbered_files,
    read_color,
    read_depth,
    read_ids,
    read_matrix,
    resized_color,
)
from panoptic_mapper.frame import Frame, PinholeCamera, Segmentation, checked_pose
from panoptic_mapper.label_space import LabelSpace

logger = logging.getLogger(__name__)


class ScanNetFolder:
    """A ScanNet-style folder as a `Dataset`.

    Frames have the resolution and the intrinsics of the depth images; colour and labels of another size (in ScanNet
    itself: 1296x968 beside 640x480) are resampled to it. Frames whose pose is not finite, which is how ScanNet marks
    lost tracking, are left out; they keep their place in time. Construction reads the poses only.

    Args:
        path: the folder.
        fps: frames per second that the stamps are made from; the files carry no times.

    Raises:
        ValueError: naming the file or folder that is missing or broken, or that there is no frame at all.
    """

    def __init__(self, path: str | Path, fps: float = 30.0) -> None:
        self.path = Path(path)
        self.name = self.path.resolve().name
        if not fps > 0:
            raise ValueError(f"fps: expected a positive rate, got {fps!r}")
        if not self.path.is_dir():
            raise ValueError(f"{self.path}: no such folder")
        self._color_files = numbered_files(self.path / "color")
        self._depth_files = numbered_files(self.path / "depth", (".png",))
        if not self._color_files:
            raise ValueError(f"{self.path / 'color'}: no images named by number (0.jpg, 1.jpg, ...)")
        for number in self._color_files:
            if number not in self._depth_files:
                raise ValueError(f"{self.path / 'depth' / f'{number}.png'}: no such file, but there is a colour image")
        self._K = read_intrinsics(self.path / "intrinsic" / "intrinsic_depth.txt")
        self._numbers, self._stamps_ns, self._poses = self._read_poses(fps)
        self.label_space = self._read_label_space()

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Frame:
        """Frame 0 <= index < len(self), at the depth image's resolution."""
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)} in {self.path}")
        number = self._numbers[index]
        depth = read_depth(self._depth_files[number])
        height, width = depth.shape
        color = resized_color(read_color(self._color_files[number]), width, height)
        labels = None if self.label_space is None else self._read_labels(number).resized(width, height)
        try:
            camera = PinholeCamera(self._K[0, 0], self._K[1, 1], self._K[0, 2], self._K[1, 2], width, height)
        except ValueError as error:
            raise ValueError(f"{self.path / 'intrinsic' / 'intrinsic_depth.txt'}: {error}") from error
        return Frame(self._stamps_ns[index], color, depth, self._poses[index], camera, labels)

    def _read_poses(self, fps: float) -> tuple[list[int], list[int], list[np.ndarray]]:
        """Numbers, stamps and poses (T_map_camera) of the frames with a finite pose."""
        numbers, stamps_ns, poses = [], [], []
        for position, number in enumerate(self._color_files):
            file = self.path / "pose" / f"{number}.txt"
            T = read_matrix(file)
            if not np.all(np.isfinite(T)):
                continue
            try:
                poses.append(checked_pose(T))
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
            numbers.append(number)
            stamps_ns.append(round(position * 1e9 / fps))
        num_lost = len(self._color_files) - len(numbers)
        if num_lost:
            logger.warning(
                "%s: %d of %d frames have no finite pose and are left out", self.path, num_lost, len(self._color_files)
            )
        if not numbers:
            raise ValueError(f"{self.path / 'pose'}: none of {num_lost} frames has a finite pose")
        return numbers, stamps_ns, poses

    def _read_label_space(self) -> LabelSpace | None:
        if not (self.path / "semantic").is_dir():
            return None
        return LabelSpace.from_json(self.path / "labels.json")

    def _read_labels(self, number: int) -> Segmentation:
        """Class indices and the file's instance ids; stuff has instance 0 whatever the file says."""
        assert self.label_space is not None
        semantic = self.label_space.indices_from_ids(read_ids(self.path / "semantic" / f"{number}.png"))
        instance = np.zeros_like(semantic)
        if (self.path / "instance").is_dir():
            file = self.path / "instance" / f"{number}.png"
            ids = read_ids(file)
            if ids.shape != semantic.shape:
                raise ValueError(f"{file}: expected {semantic.shape} as the semantic image, got {ids.shape}")
            instance = np.where(self.label_space.is_thing[semantic], ids, 0).astype(np.int32)
        return Segmentation(semantic, instance)


def read_intrinsics(file: Path) -> np.ndarray:
    """The upper left [3, 3] of the 4x4 matrix in the file; ValueError names the file."""
    K = read_matrix(file)[:3, :3]
    if not np.all(np.isfinite(K)) or K[0, 0] <= 0 or K[1, 1] <= 0:
        raise ValueError(f"{file}: expected finite intrinsics with fx, fy > 0, got {K.tolist()}")
    return K
