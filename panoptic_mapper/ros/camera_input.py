"""From image messages to observations in the frame queue. Callbacks here only convert and queue."""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import String

from panoptic_mapper.frame import Segmentation
from panoptic_mapper.frame_queue import FrameQueue, Observation, RejectedInput
from panoptic_mapper.image_encoding import (
    decode_compressed,
    decode_compressed_depth,
    decode_depth,
    decode_labels,
)
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.ros.conversions import camera_from_message, color_from_message, stamp_from_message
from panoptic_mapper.ros.node_config import NodeConfig
from panoptic_mapper.ros.sync import ApproximateTimeSynchronizer, Subscriber
from panoptic_mapper.segmenters.topic import TopicSegmenter

ResultT = TypeVar("ResultT")
logger = logging.getLogger(__name__)


def input_qos(config: NodeConfig) -> QoSProfile:
    return QoSProfile(depth=config.qos.depth, reliability=ReliabilityPolicy[config.qos.reliability.upper()])


class CameraInput:
    """Subscribes to colour, depth, intrinsics and (with `has_labels`) label images; fills the frame queue.

    Input that cannot become an observation is rejected with a reason and counted by the queue.
    """

    def __init__(self, node: Node, config: NodeConfig, frames: FrameQueue, has_labels: bool) -> None:
        self.num_color_images = 0
        self._num_groups = 0
        self._max_waiting = config.sync.queue_size
        self._has_labels = has_labels
        self._label_decoder: TopicSegmenter | None = None
        self._waiting: deque[tuple[Any, ...]] = deque()  # groups that cannot be read yet
        self._lock = threading.Lock()
        self._frames = frames
        self._node = node
        self._camera_info: CameraInfo | None = None
        types = {"raw": Image, "compressed": CompressedImage}
        topics = [
            (types[config.color_transport], config.topics.color),
            (types[config.depth_transport], config.topics.depth),
        ]
        if has_labels:
            topics.append((Image, config.topics.labels))
        qos = input_qos(config)
        # One group per subscription: with one group for all, or a reentrant one, images are lost at camera rate.
        subscribers = [
            Subscriber(node, type_, topic, qos_profile=qos, callback_group=MutuallyExclusiveCallbackGroup())
            for type_, topic in topics
        ]
        subscribers[0].registerCallback(self._count_color)
        self._sync = ApproximateTimeSynchronizer(subscribers, config.sync.queue_size, config.sync.slop_s)
        self._sync.registerCallback(self.on_images)
        node.create_subscription(
            CameraInfo,
            config.topics.camera_info,
            self.on_camera_info,
            qos,
            callback_group=MutuallyExclusiveCallbackGroup(),
        )

    @property
    def num_unsynchronised(self) -> int:
        """Colour images that found no depth or label image, beside those that still wait for them."""
        return max(0, self.num_color_images - self._num_groups - self._max_waiting)

    def reset_counters(self) -> None:
        self.num_color_images = self._num_groups = 0

    def on_camera_info(self, info: CameraInfo) -> None:
        """Takes the intrinsics of all images from now on."""
        with self._lock:
            self._camera_info = info
            self._queue_waiting()

    def set_label_space(self, label_space: LabelSpace) -> None:
        """Says what the label images mean."""
        with self._lock:
            self._label_decoder = TopicSegmenter(label_space)
            self._queue_waiting()

    def on_images(self, *messages: Any) -> None:
        """Takes one group of images: colour, depth, and with labels the label image.

        Groups that come before what is needed to read them wait for it: topics start in any order.
        """
        self._num_groups += 1
        with self._lock:
            self._waiting.append(messages)
            self._queue_waiting()
            missing = self._missing()
            if missing is not None and len(self._waiting) > self._frames.config.max_waiting:
                self._waiting.popleft()
                self._frames.reject(*missing)

    def _missing(self) -> tuple[str, str] | None:
        """What is not known yet, as reason and message."""
        if self._camera_info is None:
            return "no_intrinsics", "no camera_info has come yet"
        if self._has_labels and self._label_decoder is None:
            return "no_label_space", "the classes of the label images are not known yet"
        return None

    def _queue_waiting(self) -> None:
        while self._waiting and self._missing() is None:
            try:
                self._frames.put(self._observation(*self._waiting.popleft()))
            except RejectedInput as error:
                self._frames.reject(error.reason, str(error))

    def _observation(
        self, color: Image | CompressedImage, depth: Image | CompressedImage, labels: Image | None = None
    ) -> Observation:
        info, decoder = self._camera_info, self._label_decoder
        assert info is not None
        camera = _rejecting("bad_intrinsics", lambda: camera_from_message(info))
        color_image = _rejecting("bad_image", lambda: _decode_color_message(color))
        size = color_image.shape[:2]
        if size != (camera.height, camera.width):
            raise RejectedInput(
                "bad_intrinsics",
                f"camera_info is for {camera.width}x{camera.height}, the colour image has {size[1]}x{size[0]}",
            )
        depth_image = _rejecting("bad_depth", lambda: _decode_depth_message(depth))
        if depth_image.shape != size:
            raise RejectedInput(
                "size_mismatch",
                f"the depth image has {depth_image.shape[1]}x{depth_image.shape[0]}, the colour image"
                f" {size[1]}x{size[0]}; is the depth registered to the colour camera?",
            )
        if not (depth_image > 0).any():
            raise RejectedInput("bad_depth", "the depth image has no valid pixel")
        stamp_ns = stamp_from_message(color.header.stamp)
        age_s = max(0.0, (self._node.get_clock().now().nanoseconds - stamp_ns) * 1e-9)
        segmentation = None if labels is None or decoder is None else _segmentation(labels, size, decoder)
        return Observation(stamp_ns, color.header.frame_id, color_image, depth_image, camera, segmentation, age_s)

    def _count_color(self, message: Image | CompressedImage) -> None:
        self.num_color_images += 1


def _decode_color_message(message: Image | CompressedImage) -> np.ndarray:  # [H, W, 3] uint8 RGB
    return decode_compressed(message) if isinstance(message, CompressedImage) else color_from_message(message)


def _decode_depth_message(message: Image | CompressedImage) -> np.ndarray:  # [H, W] float32 m
    return decode_compressed_depth(message) if isinstance(message, CompressedImage) else decode_depth(message)


def _segmentation(message: Image, size: tuple[int, int], decoder: TopicSegmenter) -> Segmentation:
    image = _rejecting("bad_labels", lambda: decode_labels(message))
    if image.shape != size:
        raise RejectedInput(
            "size_mismatch",
            f"the label image has {image.shape[1]}x{image.shape[0]}, the colour image {size[1]}x{size[0]}",
        )
    return _rejecting("bad_labels", lambda: decoder.decode(image, size))


def _rejecting(reason: str, convert: Callable[[], ResultT]) -> ResultT:
    """The result of `convert`, whose ValueError becomes a rejection with that reason."""
    try:
        return convert()
    except ValueError as error:
        raise RejectedInput(reason, str(error)) from error


def subscribe_label_space(node: Node, topic: str, on_label_space: Callable[[LabelSpace], None]) -> None:
    """Calls back with every readable label space that the (latched) topic brings."""

    def callback(message: String) -> None:
        try:
            on_label_space(label_space_from_json(message.data))
        except ValueError as error:
            logger.warning("%s: %s", topic, error)

    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_subscription(String, topic, callback, latched, callback_group=MutuallyExclusiveCallbackGroup())


def label_space_from_json(text: str) -> LabelSpace:
    """Reads `{"classes": [{"id", "name", "isthing"}, ...]}`.

    Raises:
        ValueError: the text is not that.
    """
    try:
        return LabelSpace.from_dict(json.loads(text)["classes"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"label space: not a readable list of classes ({error!r})") from error
