"""Reader of rosbag2 recordings (mcap, sqlite3) without ROS: RGB-D images, intrinsics, poses or TF, label images."""

from __future__ import annotations

import bisect
import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import Connection

from panoptic_mapper.config import Config, param
from panoptic_mapper.datasets.bag_file import (
    find_topic,
    header_stamp_ns,
    naming,
    open_bag,
    read_messages,
    require_topic,
)
from panoptic_mapper.datasets.tf_tree import TransformTree, recorded_poses
from panoptic_mapper.frame import Frame, PinholeCamera
from panoptic_mapper.image_encoding import (
    decode_color,
    decode_compressed,
    decode_compressed_depth,
    decode_depth,
    decode_labels,
)
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.pose_buffer import Missing, pose_from_quaternion
from panoptic_mapper.segmenters.topic import TopicSegmenter

logger = logging.getLogger(__name__)

MAX_DISTORTION = 1e-6  # coefficients below this are a driver's way to write zero
TF_TOPICS = ("/tf", "/tf_static")
IMAGE = "sensor_msgs/msg/Image"
ANY_IMAGE = (IMAGE, "sensor_msgs/msg/CompressedImage")
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
STRING = "std_msgs/msg/String"
POSES = ("geometry_msgs/msg/PoseStamped", "nav_msgs/msg/Odometry")
TRANSFORMS = "tf2_msgs/msg/TFMessage"


@dataclass(frozen=True)
class RosbagConfig(Config):
    """Which topics of a bag are read, and how they are put together. The topics' defaults are the node's."""

    color_topic: str = param("/camera/color/image_raw", "Image, or CompressedImage (also under .../compressed)")
    depth_topic: str = param("/camera/depth/image_raw", "Image 16UC1 (mm) or 32FC1 (m), or compressed depth")
    camera_info_topic: str = param("/camera/color/camera_info", "Intrinsics of the colour camera")
    pose_topic: str = param("/camera/pose", "PoseStamped or Odometry, for pose_source=pose")
    labels_topic: str = param("/camera/labels", "Label images 32SC1; read where the bag has them")
    label_space_topic: str = param("/camera/label_space", "Classes of the label images, String with JSON")
    pose_source: str = param("pose", "Where poses come from", choices=("pose", "tf"))
    map_frame: str = param("map", "Frame of the map, for pose_source=tf")
    camera_frame: str = param("", "Optical frame of the colour camera; empty = the one that the images name")
    body_to_camera: tuple[float, ...] = param(
        (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
        "Pose of the camera's optical frame in the body whose pose the topic gives: x y z m, quaternion x y z w",
    )
    slop_s: float = param(0.02, "Images of one frame may differ in their stamps by this much, s", ge=0)
    max_pose_gap_s: float = param(0.5, "Poses further apart than this are not interpolated between, s", gt=0)


@dataclass(frozen=True)
class _Stamped:
    """Where a message is: its header's stamp, and the time under which the bag keeps it."""

    stamp_ns: int
    bag_time_ns: int
    frame_id: str


@dataclass(frozen=True)
class _Entry:
    """What belongs together as one frame."""

    color: _Stamped
    depth: _Stamped
    labels: _Stamped | None
    T_map_camera: np.ndarray  # [4, 4]


class RosbagDataset:
    """The frames of a bag as a `Dataset`: one for each colour image that has a depth image, a pose, and a label image
    where the bag has labels. How many colour images were left out, and why, is logged.

    Construction reads the bag once from end to end for stamps and poses; images are decoded when asked for.

    Args:
        path: a bag folder, or a single .mcap or .db3 file.

    Raises:
        ValueError: the bag cannot be read, lacks a topic, or gives no frame at all.
    """

    def __init__(self, path: str | Path, config: RosbagConfig | None = None) -> None:
        self.path = Path(path)
        self.name = self.path.stem if self.path.is_file() else self.path.resolve().name
        self.config = config or RosbagConfig()
        self._reader = open_bag(self.path)
        c = self.config
        bag = self._reader
        self._color = require_topic(bag, c.color_topic, "colour images", ANY_IMAGE, ("", "/compressed"))
        depth_suffixes = ("", "/compressedDepth", "/compressed")
        self._depth = require_topic(bag, c.depth_topic, "depth images", ANY_IMAGE, depth_suffixes)
        self._info = require_topic(bag, c.camera_info_topic, "intrinsics", (CAMERA_INFO,))
        self._labels = find_topic(bag, c.labels_topic, (IMAGE,))
        self._tree = TransformTree(c.max_pose_gap_s)
        self._poses = recorded_poses(c.max_pose_gap_s)
        self._T_body_camera = pose_from_quaternion(c.body_to_camera[:3], c.body_to_camera[3:])
        self._num_bad_poses = 0
        self.camera: PinholeCamera | None = None
        self.label_space: LabelSpace | None = None
        self._images: dict[int, list[_Stamped]] = {}  # by connection id, ascending stamps
        self._scan(self._topics_to_scan())
        self._segmenter = None if self.label_space is None else TopicSegmenter(self.label_space)
        self._frames = self._associate()

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Frame:
        """Decodes frame 0 <= index < len(self)."""
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)} in {self.path}")
        entry = self._frames[index]
        color = self._decoded(self._color, entry.color)
        depth = self._decoded(self._depth, entry.depth)
        assert self.camera is not None
        with naming(self.path, f"frame {index} at {entry.color.stamp_ns} ns: "):
            labels = None
            if entry.labels is not None and self._labels is not None and self._segmenter is not None:
                labels = self._segmenter.decode(self._decoded(self._labels, entry.labels), color.shape[:2])
            return Frame(entry.color.stamp_ns, color, depth, entry.T_map_camera, self.camera, labels)

    def _topics_to_scan(self) -> list[Connection]:
        wanted = [self._color, self._depth, self._info]
        classes = find_topic(self._reader, self.config.label_space_topic, (STRING,))
        wanted += [c for c in (self._labels, classes) if c is not None]
        if self.config.pose_source == "pose":
            wanted.append(require_topic(self._reader, self.config.pose_topic, "poses", POSES))
        else:
            transforms = [find_topic(self._reader, topic, (TRANSFORMS,)) for topic in TF_TOPICS]
            wanted += [c for c in transforms if c is not None]
        return wanted

    def _scan(self, wanted: list[Connection]) -> None:
        """Reads stamps, poses, intrinsics and classes of the whole bag."""
        image_ids = {c.id for c in (self._color, self._depth, self._labels) if c is not None}
        self._images = {i: [] for i in image_ids}
        for connection, bag_time_ns, message in read_messages(self._reader, wanted):
            if connection.id in image_ids:
                stamped = _Stamped(header_stamp_ns(message.header), bag_time_ns, message.header.frame_id)
                self._images[connection.id].append(stamped)
            elif connection.topic == self.config.camera_info_topic:
                self.camera = self.camera or self._camera_from(message)
            elif connection.topic == self.config.label_space_topic:
                with naming(self.path, f"{connection.topic}: not a readable list of classes: "):
                    self.label_space = LabelSpace.from_dict(json.loads(message.data)["classes"])
            else:
                self._take_pose(connection, message)
        for stamps in self._images.values():
            stamps.sort(key=lambda s: s.stamp_ns)
        if self._num_bad_poses:
            logger.warning("%s: %d poses are not rigid transforms and are left out", self.path, self._num_bad_poses)
        if self._labels is not None and self.label_space is None:
            logger.warning(
                "%s: there are label images but no classes on %s; the labels are left out",
                self.path,
                self.config.label_space_topic,
            )
            self._labels = None

    def _camera_from(self, info: Any) -> PinholeCamera:
        if np.any(np.abs(info.d) > MAX_DISTORTION):
            raise ValueError(
                f"{self.path}: {self._info.topic}: the image is distorted (d = {info.d.tolist()});"
                " record the rectified topics"
            )
        k = info.k
        try:
            return PinholeCamera(float(k[0]), float(k[4]), float(k[2]), float(k[5]), info.width, info.height)
        except ValueError as error:
            raise ValueError(f"{self.path}: {self._info.topic}: {error}") from error

    def _take_pose(self, connection: Connection, message: Any) -> None:
        try:
            if connection.topic in TF_TOPICS:
                for t in message.transforms:
                    translation, rotation = t.transform.translation, t.transform.rotation
                    is_static = connection.topic == "/tf_static"
                    T = _matrix(translation, rotation)
                    self._tree.add(t.header.frame_id, t.child_frame_id, header_stamp_ns(t.header), T, is_static)
                return
            pose = message.pose if hasattr(message.pose, "position") else message.pose.pose  # Odometry nests it
            self._poses.add(
                header_stamp_ns(message.header), _matrix(pose.position, pose.orientation) @ self._T_body_camera
            )
        except ValueError:
            self._num_bad_poses += 1

    def _associate(self) -> list[_Entry]:
        """Puts together what belongs to each colour image."""
        frames: list[_Entry] = []
        left_out: Counter[str] = Counter()
        depths = self._images[self._depth.id]
        labels = None if self._labels is None else self._images[self._labels.id]
        for color in self._images[self._color.id]:
            depth = _nearest(depths, color.stamp_ns, self.config.slop_s)
            label = None if labels is None else _nearest(labels, color.stamp_ns, self.config.slop_s)
            T_map_camera = self._pose_of(color)
            if depth is None:
                left_out["without a depth image"] += 1
            elif T_map_camera is None:
                left_out["without a pose"] += 1
            elif labels is not None and label is None:
                left_out["without a label image"] += 1
            elif frames and frames[-1].color.stamp_ns == color.stamp_ns:
                left_out["with a stamp that came twice"] += 1
            else:
                frames.append(_Entry(color, depth, label, T_map_camera))
        total = len(self._images[self._color.id])
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        if not frames:
            hint = (
                f"; frames in TF: {', '.join(self._tree.frames()) or 'none'}" if self.config.pose_source == "tf" else ""
            )
            raise ValueError(f"{self.path}: none of {total} colour images makes a frame: {reasons}{hint}")
        if left_out:
            logger.warning("%s: %d of %d colour images left out: %s", self.path, total - len(frames), total, reasons)
        return frames

    def _pose_of(self, color: _Stamped) -> np.ndarray | None:
        """T_map_camera at the time of a colour image, None where it is not known then."""
        if self.config.pose_source == "tf":
            source = self.config.camera_frame or color.frame_id
            return self._tree.lookup(self.config.map_frame, source, color.stamp_ns)
        T = self._poses.lookup(color.stamp_ns)
        return None if isinstance(T, Missing) else T

    def _decoded(self, connection: Connection, at: _Stamped) -> np.ndarray:
        """The image of one message."""
        with naming(self.path, f"{connection.topic} at {at.stamp_ns} ns: "):
            message = self._message(connection, at)
            is_compressed = connection.msgtype.endswith("CompressedImage")
            if connection is self._color:
                return decode_compressed(message) if is_compressed else decode_color(message)
            if connection is self._depth:
                return decode_compressed_depth(message) if is_compressed else decode_depth(message)
            return decode_labels(message)

    def _message(self, connection: Connection, at: _Stamped) -> Any:
        for _, _, message in read_messages(self._reader, [connection], at.bag_time_ns, at.bag_time_ns + 1):
            if header_stamp_ns(message.header) == at.stamp_ns:
                return message
        raise ValueError("the message is no longer there")


def _matrix(translation: Any, rotation: Any) -> np.ndarray:
    t, q = translation, rotation
    return pose_from_quaternion((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))


def _nearest(candidates: list[_Stamped], stamp_ns: int, slop_s: float) -> _Stamped | None:
    """The candidate (ascending stamps) nearest in time, None where it is further away than `slop_s`."""
    i = bisect.bisect_left(candidates, stamp_ns, key=lambda s: s.stamp_ns)
    around = candidates[max(0, i - 1) : i + 1]
    best = min(around, key=lambda s: abs(s.stamp_ns - stamp_ns), default=None)
    return best if best is not None and abs(best.stamp_ns - stamp_ns) <= slop_s * 1e9 else None
