"""What the node publishes of the map: clouds, objects, markers and status, as messages and to whoever subscribes."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header
from visualization_msgs.msg import MarkerArray

from panoptic_mapper.msg import MapStatus, PanopticObjectArray
from panoptic_mapper.ros.conversions import cloud_message, object_array_message, stamp_message
from panoptic_mapper.ros.markers import MarkerTracker
from panoptic_mapper.snapshot import MapSnapshot

# A late subscriber (RViz started after the bag has ended) still gets the last map.
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class MapPublishers:
    """Publishes snapshots. Nothing is computed for a topic without subscribers."""

    def __init__(self, node: Node, map_frame: str) -> None:
        self._map_frame = map_frame
        self._markers = MarkerTracker()
        self._publishers = {
            "semantic_cloud": node.create_publisher(PointCloud2, "~/semantic_cloud", LATCHED),
            "instance_cloud": node.create_publisher(PointCloud2, "~/instance_cloud", LATCHED),
            "objects": node.create_publisher(PanopticObjectArray, "~/objects", LATCHED),
            "markers": node.create_publisher(MarkerArray, "~/markers", LATCHED),
        }
        self._published: dict[str, Any] = {}  # topic -> (version of the map, number of subscribers) last served

    def is_due(self, version: int) -> bool:
        """Whether somebody subscribes to a topic whose last message shows another version of the map."""
        return any(self._is_topic_due(topic, version) for topic in self._publishers)

    def publish(self, snapshot: MapSnapshot, version: int) -> None:
        """Publishes the snapshot where it is due."""
        header = Header(stamp=stamp_message(snapshot.stamp_ns), frame_id=self._map_frame)
        makers = {
            "semantic_cloud": lambda: cloud_message(snapshot, header, "semantic"),
            "instance_cloud": lambda: cloud_message(snapshot, header, "instance"),
            "objects": lambda: object_array_message(snapshot.objects, snapshot.label_space, header),
            "markers": lambda: self._markers.message(snapshot, header),
        }
        for topic, make in makers.items():
            if self._is_topic_due(topic, version):
                self._published[topic] = (version, self._publishers[topic].get_subscription_count())
                self._publishers[topic].publish(make())

    def _is_topic_due(self, topic: str, version: int) -> bool:
        num_subscribers = self._publishers[topic].get_subscription_count()
        last_version, last_num_subscribers = self._published.get(topic, (None, 0))
        return num_subscribers > 0 and (version != last_version or num_subscribers > last_num_subscribers)


class StatusPublisher:
    """Publishes MapStatus."""

    def __init__(self, node: Node) -> None:
        self._publisher = node.create_publisher(MapStatus, "~/status", 10)

    def has_subscribers(self) -> bool:
        return self._publisher.get_subscription_count() > 0

    def publish(self, status: MapStatus) -> None:
        self._publisher.publish(status)
