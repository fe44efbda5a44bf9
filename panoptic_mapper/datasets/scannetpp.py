"""Scenes of ScanNet++: iPhone colour with LiDAR depth, or iPhone or DSLR images with depth rendered from the scan.

LiDAR: iphone/rgb.mkv or iphone/rgb/frame_000000.jpg, iphone/depth.bin or iphone/depth/frame_000000.png, and
iphone/pose_intrinsic_imu.json. Rendered: <device>/render_depth/*.png (uint16 mm, by the toolbox's common.render),
<device>/colmap/cameras.txt and images.txt, and iphone/rgb/ (or iphone/rgb.mkv) or dslr/resized_images/.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from panoptic_mapper.datasets.base import Dataset, checked_index
from panoptic_mapper.datasets.colmap import ColmapCamera, read_cameras, read_images
from panoptic_mapper.datasets.image_files import number_after, numbered_files, read_color, read_depth, resized_color
from panoptic_mapper.datasets.scannetpp_depth import LidarDepth
from panoptic_mapper.datasets.trajectories import rigid
from panoptic_mapper.datasets.undistortion import Undistorter
from panoptic_mapper.datasets.video_frames import VideoFrames
from panoptic_mapper.frame import Frame, PinholeCamera
from panoptic_mapper.label_space import LabelSpace

logger = logging.getLogger(__name__)

POSES_FILE = "pose_intrinsic_imu.json"
VIDEO_FPS = 60.0
frame_number = number_after("frame_")
ReadFrame = Callable[[int], np.ndarray]


def open_scannetpp(path: str | Path) -> Dataset:
    """A scene by its folder, or by the folder of a device in it (<scene>/iphone, <scene>/dslr).

    Of a scene, the first that is there: iPhone images with rendered depth, the iPhone's LiDAR, DSLR images.

    Raises:
        ValueError: there is none of these; what was looked for is named.
    """
    path = Path(path)
    devices = (path,) if path.resolve().name in ("iphone", "dslr") else (path / "iphone", path / "dslr")
    for device in devices:
        if (device / "render_depth").is_dir():
            return RenderedScene(device)
        if (device / POSES_FILE).is_file():
            return LidarScene(device)
    folders = " or ".join(str(device) for device in devices)
    raise ValueError(
        f"{path}: expected {POSES_FILE} (iPhone LiDAR) or render_depth/ (the toolbox's common.render) in {folders}"
    )


class LidarScene:
    """A scene's iPhone recording with LiDAR depth as a `Dataset`, 256x192, in the coordinates of the scan (z up).

    Poses are `aligned_pose`; frames without one are left out and counted in the log. Video and packed depth are
    decoded in place: one frame after the other is cheap, going back is not.

    Args:
        path: the folder <scene>/iphone.

    Raises:
        ValueError: naming the file that is missing or damaged, and the frame.
    """

    label_space: LabelSpace | None = None

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = f"{self.path.resolve().parent.name}-iphone"
        self._poses_file = self.path / POSES_FILE
        self._read_color, colors = _color_source(self.path)
        self._read_depth, depths = _depth_source(self.path)
        entries = _read_poses(self._poses_file)
        self._frames: list[tuple[int, int, np.ndarray, np.ndarray]] = []  # number, stamp, T_map_camera, K
        for number, entry in entries.items():
            if (colors is None or number in colors) and (depths is None or number in depths):
                T, K = _pose_and_intrinsics(entry, f"{self._poses_file}: frame_{number:06d}")
                if T is not None:
                    self._frames.append((number, _stamp_ns(entry, number), T, K))
        if any(b[1] <= a[1] for a, b in itertools.pairwise(self._frames)):
            self._frames = [(n, _stamp_ns({}, n), T, K) for n, _, T, K in self._frames]
        if len(self._frames) < len(entries):
            left_out = len(entries) - len(self._frames)
            logger.warning("%s: %d of %d frames lack an image or a pose", self._poses_file, left_out, len(entries))
        if not self._frames:
            raise ValueError(f"{self._poses_file}: none of {len(entries)} frames has images and a finite pose")

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Frame:
        number, stamp, T, K = self._frames[checked_index(index, self)]
        color, depth = self._read_color(number), self._read_depth(number)
        (height, width), (color_height, color_width) = depth.shape, color.shape[:2]
        try:
            camera = PinholeCamera(K[0, 0], K[1, 1], K[0, 2], K[1, 2], color_width, color_height).resized(width, height)
        except ValueError as error:
            raise ValueError(f"{self._poses_file}: frame_{number:06d}: {error}") from error
        return Frame(stamp, resized_color(color, width, height), depth, T, camera)


class RenderedScene:
    """A scene's images with depth rendered from the laser scan as a `Dataset`, undistorted, with COLMAP's poses.

    Args:
        path: the folder <scene>/iphone or <scene>/dslr.
        fps: makes the stamps, from the number of a video frame or the position of a photo.

    Raises:
        ValueError: naming the file that is missing or damaged, and the line.
    """

    label_space: LabelSpace | None = None

    def __init__(self, path: str | Path, fps: float = VIDEO_FPS) -> None:
        self.path = Path(path)
        resolved = self.path.resolve()
        self.name = f"{resolved.parent.name}-{resolved.name}"
        cameras = read_cameras(self.path / "colmap" / "cameras.txt")
        images = read_images(self.path / "colmap" / "images.txt")
        self._undistorters = {i: _undistorter(camera) for i, camera in cameras.items()}
        if resolved.name == "iphone":
            self._read_color = _color_source(self.path)[0]
        self._frames: list[tuple[int, PurePosixPath, np.ndarray, int]] = []  # stamp, image, T_map_camera, camera id
        for position, (name, (T, camera_id)) in enumerate(sorted(images.items())):
            image = PurePosixPath(PurePosixPath(name).name)
            number = frame_number(image.stem)
            if camera_id not in cameras:
                raise ValueError(f"{self.path / 'colmap' / 'images.txt'}: {name}: no camera {camera_id} in cameras.txt")
            if self._depth_file(image).is_file():
                stamp = round((position if number is None else number) * 1e9 / fps)
                self._frames.append((stamp, image, T, camera_id))
        if len(self._frames) < len(images):
            left_out = len(images) - len(self._frames)
            logger.warning("%s: %d of %d images have no rendered depth", self.path, left_out, len(images))
        if not self._frames:
            raise ValueError(f"{self.path / 'render_depth'}: no depth of any of {len(images)} images in images.txt")

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Frame:
        stamp, image, T, camera_id = self._frames[checked_index(index, self)]
        color, depth = self._color_of(image), read_depth(self._depth_file(image))
        undistorter = self._undistorters[camera_id]
        source = undistorter.source
        if depth.shape != (source.height, source.width):
            raise ValueError(
                f"{self._depth_file(image)}: expected {source.width}x{source.height} as cameras.txt says,"
                f" got {depth.shape[1]}x{depth.shape[0]}"
            )
        color = resized_color(color, source.width, source.height)
        return Frame(stamp, undistorter.color(color), undistorter.nearest(depth), T, undistorter.camera)

    def _color_of(self, image: PurePosixPath) -> np.ndarray:
        if self.path.resolve().name == "dslr":
            return read_color(self.path / "resized_images" / image)
        number = frame_number(image.stem)
        if number is None:
            raise ValueError(f"{self.path / 'colmap' / 'images.txt'}: expected names frame_000000.jpg, got {image}")
        return self._read_color(number)

    def _depth_file(self, image: PurePosixPath) -> Path:
        return self.path / "render_depth" / f"{image.stem}.png"


def _color_source(iphone: Path) -> tuple[ReadFrame, dict[int, Path] | None]:
    """Reads colour by number; the numbers that there are, None where only the video knows."""
    if (iphone / "rgb").is_dir():
        files = numbered_files(iphone / "rgb", number_of=frame_number)
        return lambda number: read_color(_file_of(files, number, iphone / "rgb", "jpg")), files
    return VideoFrames(iphone / "rgb.mkv").read, None


def _depth_source(iphone: Path) -> tuple[ReadFrame, dict[int, Path] | None]:
    if (iphone / "depth").is_dir():
        files = numbered_files(iphone / "depth", (".png",), frame_number)
        return lambda number: read_depth(_file_of(files, number, iphone / "depth", "png")), files
    return LidarDepth(iphone / "depth.bin").read, None


def _file_of(files: dict[int, Path], number: int, folder: Path, suffix: str) -> Path:
    return files.get(number, folder / f"frame_{number:06d}.{suffix}")  # its reader names the file that is not there


def _undistorter(camera: ColmapCamera) -> Undistorter:
    pinhole = camera.pinhole
    if not camera.is_fisheye:
        return Undistorter(pinhole, camera.distortion or (0, 0, 0, 0))
    size = (pinhole.width, pinhole.height)
    distortion = camera.distortion or (0.0, 0.0, 0.0, 0.0)
    # The largest view without empty corners.
    K = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(
        pinhole.matrix, np.array(distortion), size, np.eye(3), balance=0.0
    )
    target = PinholeCamera(K[0, 0], K[1, 1], K[0, 2], K[1, 2], *size)
    return Undistorter(pinhole, distortion, target, is_fisheye=True)


def _read_poses(file: Path) -> dict[int, dict[str, Any]]:
    """The entries of the frames by number, in its order."""
    try:
        entries = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: expected JSON with an entry for each frame ({error})") from error
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"{file}: expected entries frame_000000, ...")
    numbered = {frame_number(name): entry for name, entry in entries.items()}
    return dict(sorted((number, entry) for number, entry in numbered.items() if number is not None))


def _pose_and_intrinsics(entry: dict[str, Any], where: str) -> tuple[np.ndarray | None, np.ndarray]:
    """T_map_camera, None where it is not finite, and K [3, 3]."""
    try:
        T, K = np.array(entry["aligned_pose"], float), np.array(entry["intrinsic"], float)
        T, K = T.reshape(4, 4), K.reshape(3, 3)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: expected aligned_pose (4x4) and intrinsic (3x3) ({error!r})") from error
    return rigid(T, where), K


def _stamp_ns(entry: dict[str, Any], number: int) -> int:
    """The entry's time in seconds, or that of the number in the video."""
    stamp = entry.get("timestamp")
    return round(stamp * 1e9) if isinstance(stamp, (int, float)) else round(number * 1e9 / VIDEO_FPS)
