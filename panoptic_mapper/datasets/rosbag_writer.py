"""Writes a dataset as a rosbag2 that `ros2 bag play` and `panoptic-mapper play` can play."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from scipy.spatial.transform import Rotation

from panoptic_mapper.datasets.bag_file import TYPES
from panoptic_mapper.datasets.base import Dataset
from panoptic_mapper.datasets.rosbag import RosbagConfig
from panoptic_mapper.frame import Frame, PinholeCamera
from panoptic_mapper.image_encoding import encode_compressed, encode_labels
from panoptic_mapper.label_space import LabelSpace

Storage = Literal["mcap", "sqlite3"]
ColorFormat = Literal["raw", "jpeg"]
Progress = Callable[[int, int], None]  # frames done, frames in all

FIRST_STAMP_NS = 10**9  # time zero means "unknown" in ROS: a sequence that begins there is shifted by this much
CAMERA_FRAME = "camera_color_optical_frame"
MAX_DEPTH_MM = 65534  # further away is written as no depth


def write_rosbag(
    dataset: Dataset,
    path: str | Path,
    *,
    storage: Storage = "mcap",
    color: ColorFormat = "raw",
    every: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Writes every `every`-th frame under the node's default topics, and returns how many frames were written.

    colour (rgb8, or JPEG under .../compressed), depth (16UC1 mm), camera_info, pose (PoseStamped), /tf, and where the
    dataset has labels the label image (32SC1) and the latched label space. The bag appears when it is complete.

    Raises:
        ValueError: the target exists (and is not a bag to be overwritten) or cannot be written, a setting is out of
            range, or a frame of the dataset cannot be read.
    """
    path = Path(path)
    if every < 1:
        raise ValueError(f"every: expected at least 1, got {every}")
    if storage not in ("mcap", "sqlite3"):
        raise ValueError(f"storage: expected mcap or sqlite3, got '{storage}'")
    if color not in ("raw", "jpeg"):
        raise ValueError(f"color: expected raw or jpeg, got '{color}'")
    _check_target(path, overwrite)
    indices = range(0, len(dataset), every)
    if not indices:
        raise ValueError(f"{dataset.name}: there is no frame to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
            partial = Path(folder) / path.name  # of the same name, for the bag's files carry it
            bag_writer = Writer(partial, version=9, storage_plugin=StoragePlugin[storage.upper()])
            if storage == "mcap":  # in chunks, which every mcap reader understands; labels shrink to a hundredth
                bag_writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
            with bag_writer as writer:
                bag = _Bag(writer, dataset.label_space, color)
                for done, index in enumerate(indices):
                    bag.write(dataset[index])
                    if progress is not None:
                        progress(done + 1, len(indices))
            if path.exists():
                shutil.rmtree(path)
            partial.rename(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error}") from error
    return len(indices)


def _check_target(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if not overwrite:
        raise ValueError(f"{path}: exists already; choose another name or ask to overwrite it")
    if not (path / "metadata.yaml").is_file():
        raise ValueError(f"{path}: exists and is not a rosbag; it is not overwritten")


class _Bag:
    """The topics of a bag that is being written."""

    def __init__(self, writer: Writer, label_space: LabelSpace | None, color: ColorFormat) -> None:
        self._writer = writer
        self._label_space = label_space
        self._shift_ns: int | None = None
        topics = RosbagConfig()
        self._is_jpeg = color == "jpeg"
        color_type = "sensor_msgs/msg/CompressedImage" if self._is_jpeg else "sensor_msgs/msg/Image"
        latched = _qos(1, QosDurability.TRANSIENT_LOCAL)
        self._color = self._add(topics.color_topic + ("/compressed" if self._is_jpeg else ""), color_type)
        self._depth = self._add(topics.depth_topic, "sensor_msgs/msg/Image")
        self._info = self._add(topics.camera_info_topic, "sensor_msgs/msg/CameraInfo")
        self._pose = self._add(topics.pose_topic, "geometry_msgs/msg/PoseStamped", _qos(100))
        self._tf = self._add("/tf", "tf2_msgs/msg/TFMessage", _qos(100))
        if label_space is not None:
            self._labels = self._add(topics.labels_topic, "sensor_msgs/msg/Image")
            self._classes = self._add(topics.label_space_topic, "std_msgs/msg/String", latched)

    def write(self, frame: Frame) -> None:
        """Writes the messages of one frame; what the images need comes before them."""
        if self._shift_ns is None:
            self._shift_ns = FIRST_STAMP_NS if frame.stamp_ns < FIRST_STAMP_NS else 0
            self._write_label_space(frame.stamp_ns + self._shift_ns)
        stamp_ns = frame.stamp_ns + self._shift_ns
        header = self._header(stamp_ns, CAMERA_FRAME)
        self._put(self._info, stamp_ns, self._camera_info(header, frame.camera))
        self._write_pose(stamp_ns, frame.T_map_camera)
        depth_mm = np.rint(frame.depth * 1000)
        depth_mm = np.where(depth_mm > MAX_DEPTH_MM, 0, depth_mm).astype("<u2")
        self._put(self._depth, stamp_ns, self._image(header, "16UC1", depth_mm))
        if self._label_space is not None and frame.labels is not None:
            packed = encode_labels(self._label_space.ids[frame.labels.semantic], frame.labels.instance)
            self._put(self._labels, stamp_ns, self._image(header, "32SC1", packed))
        if self._is_jpeg:
            data = np.frombuffer(encode_compressed(frame.color), np.uint8)
            self._put(self._color, stamp_ns, self._new("sensor_msgs/msg/CompressedImage", header, "jpeg", data))
        else:
            self._put(self._color, stamp_ns, self._image(header, "rgb8", frame.color))

    def _add(self, topic: str, msgtype: str, qos: Qos | None = None) -> Any:
        return self._writer.add_connection(topic, msgtype, typestore=TYPES, offered_qos_profiles=[qos or _qos(10)])

    def _put(self, connection: Any, stamp_ns: int, message: Any) -> None:
        self._writer.write(connection, stamp_ns, TYPES.serialize_cdr(message, connection.msgtype))

    def _new(self, msgtype: str, *fields: Any) -> Any:
        return TYPES.types[msgtype](*fields)

    def _header(self, stamp_ns: int, frame_id: str) -> Any:
        stamp = self._new("builtin_interfaces/msg/Time", stamp_ns // 10**9, stamp_ns % 10**9)
        return self._new("std_msgs/msg/Header", stamp, frame_id)

    def _image(self, header: Any, encoding: str, pixels: np.ndarray) -> Any:
        height, width = pixels.shape[:2]
        data = np.ascontiguousarray(pixels).reshape(-1).view(np.uint8)
        return self._new("sensor_msgs/msg/Image", header, height, width, encoding, 0, len(data) // height, data)

    def _camera_info(self, header: Any, camera: PinholeCamera) -> Any:
        K = camera.matrix
        P = np.hstack([K, np.zeros((3, 1))])
        roi = self._new("sensor_msgs/msg/RegionOfInterest", 0, 0, 0, 0, False)
        return self._new(
            "sensor_msgs/msg/CameraInfo",
            header,
            camera.height,
            camera.width,
            "plumb_bob",
            np.zeros(5),
            K.reshape(-1),
            np.eye(3).reshape(-1),
            P.reshape(-1),
            0,
            0,
            roi,
        )

    def _write_pose(self, stamp_ns: int, T_map_camera: np.ndarray) -> None:
        """The pose as a message of its own and as a transform."""
        header = self._header(stamp_ns, RosbagConfig().map_frame)
        t = T_map_camera[:3, 3].tolist()
        q = self._new("geometry_msgs/msg/Quaternion", *Rotation.from_matrix(T_map_camera[:3, :3]).as_quat().tolist())
        pose = self._new("geometry_msgs/msg/Pose", self._new("geometry_msgs/msg/Point", *t), q)
        self._put(self._pose, stamp_ns, self._new("geometry_msgs/msg/PoseStamped", header, pose))
        transform = self._new("geometry_msgs/msg/Transform", self._new("geometry_msgs/msg/Vector3", *t), q)
        stamped = self._new("geometry_msgs/msg/TransformStamped", header, CAMERA_FRAME, transform)
        self._put(self._tf, stamp_ns, self._new("tf2_msgs/msg/TFMessage", [stamped]))

    def _write_label_space(self, stamp_ns: int) -> None:
        if self._label_space is not None:
            text = json.dumps({"classes": self._label_space.to_dict()})
            self._put(self._classes, stamp_ns, self._new("std_msgs/msg/String", text))


def _qos(depth: int, durability: QosDurability = QosDurability.VOLATILE) -> Qos:
    """Reliable delivery of the last `depth` messages, without deadlines."""
    infinite = QosTime(9223372036, 854775807)
    return Qos(
        QosHistory.KEEP_LAST,
        depth,
        QosReliability.RELIABLE,
        durability,
        infinite,
        infinite,
        QosLiveliness.AUTOMATIC,
        infinite,
        False,
    )
