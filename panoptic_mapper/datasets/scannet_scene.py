"""A scene of ScanNet v2 as it is downloaded: the `.sens` recording and the zips of 2D labels beside it."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np

from panoptic_mapper.datasets.depth_registration import register_depth
from panoptic_mapper.datasets.image_files import resized_color
from panoptic_mapper.datasets.scannet_labels import (
    LABEL_MAP_FILE,
    LabelArchive,
    ScanNetClasses,
    find_label_map,
    read_label_map,
)
from panoptic_mapper.datasets.scannet_sens import SensFile
from panoptic_mapper.frame import Frame, Segmentation, checked_pose

logger = logging.getLogger(__name__)


class ScanNetScene:
    """A ScanNet v2 scene as a `Dataset`, read in place.

    Frames are those of the colour camera, at the size of the depth image, to which colour and labels are resampled;
    depth is registered to it. Frames without a finite pose (lost tracking) are left out and counted in the log.

    Args:
        path: the scene's folder, or the `.sens` file in it.
        labels: "scannet20", "nyu40", classes of one's own, or None for no labels. They are read if there is
            `<scene>_2d-label-filt.zip`.
        fps: makes the stamps where the recording has none that increase.

    Raises:
        ValueError: naming the file that is missing or damaged, where, what was expected and what came.
    """

    def __init__(self, path: str | Path, labels: str | ScanNetClasses | None = "scannet20", fps: float = 30.0) -> None:
        sens = find_sens(Path(path))
        self.path = sens.parent
        self.name = sens.stem
        self._recording = SensFile(sens)
        if not fps > 0:
            raise ValueError(f"fps: expected a positive rate, got {fps!r}")
        depth_camera = self._recording.depth_camera
        self._camera = self._recording.color_camera.resized(depth_camera.width, depth_camera.height)
        T_base_color = self._rigid("colour", self._recording.T_base_color)
        self._T_color_depth = np.linalg.inv(T_base_color) @ self._rigid("depth", self._recording.T_base_depth)
        # Sub-pixel differences are left alone: moving depth by whole pixels would bring larger ones.
        same_axes = np.allclose(self._T_color_depth, np.eye(4), atol=1e-6)
        self._is_registered = same_axes and np.allclose(depth_camera.matrix, self._camera.matrix, atol=0.25)
        self._numbers, self._stamps_ns, self._poses = self._tracked_frames(T_base_color, fps)
        self._classes = self._open_labels(labels)
        self.label_space = None if self._classes is None else self._classes.label_space

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Frame:
        """Frame 0 <= index < len(self)."""
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)} in {self.path}")
        number, camera = self._numbers[index], self._camera
        color = resized_color(self._recording.read_color(number), camera.width, camera.height)
        depth = self._recording.read_depth(number)
        if not self._is_registered:
            depth = register_depth(depth, self._recording.depth_camera, camera, self._T_color_depth)
        labels = None if self._classes is None else self._read_labels(number).resized(camera.width, camera.height)
        return Frame(self._stamps_ns[index], color, depth, self._poses[index], camera, labels)

    def _tracked_frames(self, T_base_color: np.ndarray, fps: float) -> tuple[list[int], list[int], list[np.ndarray]]:
        """Numbers, stamps and poses (T_map_camera of the colour camera) of the frames with a finite pose."""
        frames, path = self._recording.frames, self._recording.path
        numbers = [k for k, frame in enumerate(frames) if np.all(np.isfinite(frame.T_world_base))]
        if len(numbers) < len(frames):
            logger.warning(
                "%s: %d of %d frames have no finite pose and are left out",
                path,
                len(frames) - len(numbers),
                len(frames),
            )
        if not numbers:
            raise ValueError(f"{path}: none of {len(frames)} frames has a finite pose")
        stamps_ns = [frames[k].stamp_us * 1000 for k in numbers]
        if any(b <= a for a, b in itertools.pairwise(stamps_ns)):
            stamps_ns = [round(k * 1e9 / fps) for k in numbers]
        poses = []
        for k in numbers:
            try:
                poses.append(checked_pose(frames[k].T_world_base @ T_base_color))
            except ValueError as error:
                raise ValueError(f"{path}: frame {k}: {error}") from error
        return numbers, stamps_ns, poses

    def _open_labels(self, labels: str | ScanNetClasses | None) -> ScanNetClasses | None:
        label_zip, instance_zip = (self.path / f"{self.name}_2d-{what}-filt.zip" for what in ("label", "instance"))
        if labels is None or not label_zip.is_file():
            return None
        classes = labels
        if isinstance(classes, str):
            file = find_label_map(self.path)
            if file is None:
                raise ValueError(
                    f"{self.path}: there are labels, but no {LABEL_MAP_FILE} here or in the three folders above, which"
                    " says what they mean; ScanNet's download script brings it with --label_map"
                )
            classes = ScanNetClasses.of_set(classes, read_label_map(file))
        self._semantic, self._instance = LabelArchive(label_zip), LabelArchive(instance_zip)
        return classes

    def _read_labels(self, number: int) -> Segmentation:
        """Class indices and the zip's instance ids; stuff has instance 0 whatever the file says."""
        assert self._classes is not None
        raw, ids = self._semantic.read(number), self._instance.read(number)
        if ids.shape != raw.shape:
            raise ValueError(
                f"{self._instance.path}: image {number}: expected {raw.shape} as the label image, got {ids.shape}"
            )
        semantic = self._classes.index_of_raw[raw]
        is_thing = self._classes.label_space.is_thing[semantic]
        return Segmentation(semantic, np.where(is_thing, ids, 0).astype(np.int32))

    def _rigid(self, what: str, T: np.ndarray) -> np.ndarray:
        try:
            return checked_pose(T)
        except ValueError as error:
            raise ValueError(f"{self._recording.path}: extrinsics of the {what} camera: {error}") from error


def find_sens(path: Path) -> Path:
    """The `.sens` file itself, or the only one in a folder.

    Raises:
        ValueError: there is none, or more than one.
    """
    if path.suffix == ".sens":
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        return path
    files = sorted(path.glob("*.sens")) if path.is_dir() else []
    if len(files) != 1:
        found = ", ".join(f.name for f in files) or "none"
        raise ValueError(f"{path}: expected a folder with one .sens file, found {found}")
    return files[0]
