"""Where camera poses come from: a topic (PoseStamped or Odometry), or TF."""

from __future__ import annotations

import logging
from typing import Any, Protocol

import numpy as np
from geometry_msgs.msg import Pose, Transform
from rclpy.time import Time
from std_msgs.msg import Header

from panoptic_mapper.pose_buffer import Missing, PoseBuffer, pose_from_quaternion

logger = logging.getLogger(__name__)


def matrix_from_pose(pose: Pose) -> np.ndarray:
    """A pose message as [4, 4] float64.

    Raises:
        ValueError: not finite, or the quaternion is not of unit norm.
    """
    p, q = pose.position, pose.orientation
    return pose_from_quaternion((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))


def matrix_from_transform(transform: Transform) -> np.ndarray:
    """A transform message as [4, 4] float64. Raises ValueError like `matrix_from_pose`."""
    t, q = transform.translation, transform.rotation
    return pose_from_quaternion((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))


class TopicPoseSource:
    """Poses of the camera, or of a body that carries it, as messages bring them.

    Args:
        map_frame: frame in which the poses must be given; a message of another frame is refused.
        T_body_camera: [4, 4] pose of the camera's optical frame in the body whose pose is published.
    """

    def __init__(self, buffer: PoseBuffer, map_frame: str, T_body_camera: np.ndarray) -> None:
        self._buffer = buffer
        self._map_frame = map_frame
        self._T_body_camera = T_body_camera

    def add(self, header: Header, pose: Pose) -> None:
        """Takes a pose in.

        Raises:
            ValueError: it is given in another frame, is not finite, or its quaternion is not of unit norm.
        """
        if header.frame_id not in ("", self._map_frame):
            raise ValueError(
                f"pose: given in frame '{header.frame_id}', expected the map frame '{self._map_frame}'; is the"
                " parameter map_frame right?"
            )
        self._buffer.add(Time.from_msg(header.stamp).nanoseconds, matrix_from_pose(pose) @ self._T_body_camera)

    def lookup(self, stamp_ns: int, frame_id: str) -> np.ndarray | Missing:
        return self._buffer.lookup(stamp_ns, frame_id)


class TransformBuffer(Protocol):
    """The one method of `tf2_ros.Buffer` that is used."""

    def lookup_transform(self, target_frame: str, source_frame: str, time: Time) -> Any: ...


class TfPoseSource:
    """Poses of the camera frame from TF. Whatever TF cannot tell now may still come: the frame waits.

    Args:
        camera_frame: the camera's optical frame; empty = the frame that the colour image names.
        transform_errors: what the buffer raises when it has no transform.
    """

    def __init__(
        self,
        buffer: TransformBuffer,
        map_frame: str,
        camera_frame: str,
        transform_errors: tuple[type[Exception], ...],
    ) -> None:
        self._buffer = buffer
        self._map_frame = map_frame
        self._camera_frame = camera_frame
        self._errors = transform_errors

    def lookup(self, stamp_ns: int, frame_id: str) -> np.ndarray | Missing:
        frame_id = self._camera_frame or frame_id
        if not frame_id:
            return Missing.NEVER  # the images name no frame, so TF cannot be asked
        try:
            found = self._buffer.lookup_transform(self._map_frame, frame_id, Time(nanoseconds=stamp_ns))
            return matrix_from_transform(found.transform)
        except self._errors:
            return Missing.NOT_YET
        except ValueError as error:
            logger.warning("TF from '%s' to '%s': %s", frame_id, self._map_frame, error)
            return Missing.NEVER


class FrameTransforms:
    """Takes what services are given in some frame to the map frame, with the latest transform."""

    def __init__(
        self, map_frame: str, buffer: TransformBuffer | None, transform_errors: tuple[type[Exception], ...] = ()
    ) -> None:
        self._map_frame = map_frame
        self._buffer = buffer
        self._errors = transform_errors

    def T_map_frame(self, frame_id: str) -> np.ndarray:  # [4, 4] float64
        """The latest pose of a frame in the map; the map frame itself and "" give the identity.

        Raises:
            ValueError: TF is not installed or does not know the frame.
        """
        if frame_id in ("", self._map_frame):
            return np.eye(4)
        if self._buffer is None:
            raise ValueError(
                f"frame_id '{frame_id}' is not the map frame '{self._map_frame}', and tf2_ros, which would transform"
                " it, is not installed"
            )
        try:
            found = self._buffer.lookup_transform(self._map_frame, frame_id, Time())
        except self._errors as error:
            raise ValueError(f"frame_id '{frame_id}' cannot be taken to '{self._map_frame}': {error}") from error
        return matrix_from_transform(found.transform)


def listen_to_tf(node: Any) -> tuple[TransformBuffer, tuple[type[Exception], ...]]:
    """A buffer that the node fills from /tf and /tf_static, and what it raises when it has no transform.

    Raises:
        ValueError: tf2_ros is not installed.
    """
    try:
        import tf2_ros
    except ImportError as error:
        raise ValueError(
            "tf2_ros is not installed, which pose_source=tf needs (it is part of a ROS installation, not of the pip"
            " wheels); use pose_source=pose or pose_source=odometry, or install ros-$ROS_DISTRO-tf2-ros"
        ) from error
    buffer = tf2_ros.Buffer()
    buffer.listener = tf2_ros.TransformListener(buffer, node)  # kept alive by the buffer that it fills
    return buffer, (tf2_ros.TransformException,)
