"""The ROS 2 node: topics in, topics and services out. The map is in a process of its own."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from functools import partial

import rclpy
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import NotInitializedException
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node

from panoptic_mapper.build import resolved_device
from panoptic_mapper.frame_queue import FrameQueue
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.label_spaces import load_label_space
from panoptic_mapper.map_service import MapperFailure
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.mapping_process import MappingProcess
from panoptic_mapper.pose_buffer import PoseBuffer, PoseSource, pose_from_quaternion
from panoptic_mapper.ros.camera_input import CameraInput, input_qos, subscribe_label_space
from panoptic_mapper.ros.fast_dds import use_shared_memory_profile
from panoptic_mapper.ros.logs import route_logs
from panoptic_mapper.ros.node_config import NodeConfig, mapper_of_node
from panoptic_mapper.ros.parameters import read_parameters
from panoptic_mapper.ros.pose_source import FrameTransforms, TfPoseSource, TopicPoseSource, listen_to_tf
from panoptic_mapper.ros.publishers import MapPublishers, StatusPublisher
from panoptic_mapper.ros.services import MapServices
from panoptic_mapper.ros.status import ThrottledWarnings, status_message
from panoptic_mapper.text_query import create_text_encoder
from panoptic_mapper.worker import tune_interpreter

NUM_THREADS = 10  # of the executor: more than callbacks that wait at the same time
RESOLVE_PERIOD_S = 0.05  # how often frames that wait for their pose are looked at when nothing arrives
FAILED_S = (
    5.0  # in which a node that has lost its mapper says so, before it ends: a status and answers to those who ask
)
LABELS_FROM_OUTSIDE = ("topic", "dataset")  # segmenters that need the classes and the label images of another node


class MapperLost(Exception):
    """The mapper's process has ended by itself, and the node has said so for a while."""


class MapperNode(Node):
    """Wires the parts together. Call `close` before `destroy_node`.

    Args:
        make_mapper: pickled for the mapper's process, so a function of a module, or a partial of one.

    Raises:
        ValueError: a parameter is unknown or wrong, or something that the parameters ask for is not installed.
        MapperFailure: the mapper cannot be made for another reason.
    """

    def __init__(
        self, make_mapper: Callable[[NodeConfig, LabelSpace | None], PanopticMapper] = mapper_of_node, **node_options
    ):
        super().__init__("panoptic_mapper", automatically_declare_parameters_from_overrides=True, **node_options)
        self.config = config = read_parameters(self, NodeConfig)
        resolved_device(config.device)  # a device that is not there ends the node now, not at the first frame
        route_logs(self.get_logger())
        self._make_mapper = make_mapper
        self._label_space: LabelSpace | None = None
        self._publishing = threading.Lock()  # held while a snapshot is made and published
        self.pose_source = self._create_pose_source()
        self.frames = FrameQueue(self.pose_source, config.queue)
        self.frames.on_drop = ThrottledWarnings(self._warn)
        needs_labels = config.segmenter.name in LABELS_FROM_OUTSIDE
        self._camera_input = CameraInput(self, config, self.frames, needs_labels)
        self._map_publishers = MapPublishers(self, config.map_frame)
        self._status_publisher = StatusPublisher(self)
        MapServices(
            self,
            lambda: self.mapper if self.mapper.is_started else None,
            self._transforms,
            config.map_frame,
            self._camera_input.reset_counters,
            config.text_query,
            create_text_encoder(config.text_query),
        )
        self._start_timer(1 / config.publish.map_rate_hz, self._publish_map)
        self._start_timer(1 / config.publish.status_rate_hz, self._publish_status)
        self._start_timer(RESOLVE_PERIOD_S, self.frames.resolve)
        self.mapper = MappingProcess(self.frames, self._on_death)
        try:
            if not needs_labels:
                self._start_mapping(None)
            elif config.labels_file:
                self._start_mapping(load_label_space(config.labels_file))
            else:
                subscribe_label_space(self, config.topics.label_space, self._start_mapping)
                self.get_logger().info(f"waiting for the classes on {config.topics.label_space}")
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Ends the mapper, and its 2D model at once; the frame and the message in hand are finished."""
        self.mapper.close()
        with self._publishing:
            pass

    def _create_pose_source(self) -> PoseSource:
        config = self.config
        if config.pose_source == "tf":
            buffer, errors = listen_to_tf(self)
            self._transforms = FrameTransforms(config.map_frame, buffer, errors)
            return TfPoseSource(buffer, config.map_frame, config.camera_frame, errors)
        try:
            self._transforms = FrameTransforms(config.map_frame, *listen_to_tf(self))
        except ValueError:  # only requests in other frames need it, and are told then
            self._transforms = FrameTransforms(config.map_frame, None)
        T_body_camera = pose_from_quaternion(config.body_to_camera[:3], config.body_to_camera[3:])
        source = TopicPoseSource(PoseBuffer(config.poses), config.map_frame, T_body_camera)
        is_odometry = config.pose_source == "odometry"

        def on_pose(message: PoseStamped | Odometry) -> None:
            try:
                source.add(message.header, message.pose.pose if is_odometry else message.pose)
            except ValueError as error:
                self.frames.count("bad_pose", str(error))
                return
            self.frames.resolve()

        self.create_subscription(
            Odometry if is_odometry else PoseStamped,
            config.topics.pose,
            on_pose,
            input_qos(config),
            callback_group=MutuallyExclusiveCallbackGroup(),
        )
        return source

    def _start_mapping(self, label_space: LabelSpace | None) -> None:
        """Makes the mapper; called once the classes are known, and again when they are announced again."""
        if self.mapper.is_started:
            if label_space != self._label_space:
                self.get_logger().warning("another label space came; the node keeps the first until it is restarted")
            return
        self._label_space = label_space
        if label_space is not None:
            self._camera_input.set_label_space(label_space)  # first: frames already wait while the mapper is made
        make = partial(self._make_mapper, self.config, label_space)
        self.mapper.start(make, self.config.worker, self.config.service_timeout_s)
        self.get_logger().info(f"mapping into frame '{self.config.map_frame}'")

    def _on_death(self, reason: str) -> None:
        self.get_logger().fatal(reason)
        self._start_timer(FAILED_S, self._end)

    def _end(self) -> None:
        raise MapperLost

    def _publish_map(self) -> None:
        if not (self.mapper.is_running and self._map_publishers.is_due(self.mapper.version)):
            return
        with self._publishing:
            try:
                snapshot, version = self.mapper.snapshot()
            except MapperFailure:  # the node is being closed, or it is in the log
                return
            self._map_publishers.publish(snapshot, version)

    def _publish_status(self) -> None:
        if self._status_publisher.has_subscribers():
            lost = self._camera_input.num_unsynchronised
            get_status = self.mapper.status if self.mapper.is_started else None
            self._status_publisher.publish(status_message(self.frames, get_status, self.config.map_frame, lost))

    def _start_timer(self, period_s: float, callback: Callable[[], None]) -> None:
        # By the steady clock: the status must go on when a bag, and with it /clock, has ended.
        group = MutuallyExclusiveCallbackGroup()
        self.create_timer(period_s, callback, callback_group=group, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _warn(self, message: str) -> None:
        self.get_logger().warning(message)


def _spin(executor: MultiThreadedExecutor, node: MapperNode) -> None:
    """Spins until shutdown; a callback that fails is logged, and costs its message only."""
    while rclpy.ok():
        try:
            executor.spin()
        except (ExternalShutdownException, MapperLost):
            raise
        except Exception:
            if rclpy.ok():
                node.get_logger().error(f"a callback failed:\n{traceback.format_exc()}")


def main(args: list[str] | None = None) -> int:
    """Runs the node until SIGINT or SIGTERM; returns the exit status."""
    tune_interpreter()
    use_shared_memory_profile()
    rclpy.init(args=args)
    node: MapperNode | None = None
    try:
        node = MapperNode()
        executor = MultiThreadedExecutor(num_threads=NUM_THREADS)
        executor.add_node(node)
        node.get_logger().info("running")
        _spin(executor, node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except MapperLost:
        return 1
    except (ValueError, MapperFailure) as error:
        rclpy.logging.get_logger("panoptic_mapper").fatal(str(error))
        return 1
    except (RuntimeError, NotInitializedException):
        if rclpy.ok():  # else the signal came while the node was still starting
            raise
    finally:
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
