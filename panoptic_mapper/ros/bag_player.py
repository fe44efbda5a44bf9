"""Publishes a rosbag on real topics, for machines without `ros2 bag play`."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader
from rosgraph_msgs.msg import Clock

from panoptic_mapper.datasets.bag_file import naming, open_bag
from panoptic_mapper.ros.fast_dds import use_shared_memory_profile

logger = logging.getLogger(__name__)

CLOCK_PERIOD_S = 0.02  # /clock goes on between messages, for timers that run on it
MIN_QUEUE_DEPTH = 30  # messages; a second of a camera
SETTLE_S = 1.0  # subscribers of several topics match one after the other
ACKNOWLEDGE_S = 5.0  # at the end, reliable subscribers get this long to take what is queued


@dataclass
class PlayReport:
    """What was published."""

    num_messages: int = 0
    num_loops: int = 0  # complete passes over the bag
    wall_s: float = 0.0
    max_late_s: float = 0.0  # the latest that a message left after it was due
    messages_by_topic: dict[str, int] = field(default_factory=dict)
    skipped_topics: dict[str, str] = field(default_factory=dict)  # topic: why it could not be published
    unmatched_topics: list[str] = field(default_factory=list)  # nobody subscribed to these before the start
    is_interrupted: bool = False


def play(
    path: str | Path,
    rate: float = 1.0,
    loop: bool = False,
    clock: bool = True,
    wait_for_subscribers_s: float = 0.0,
    topics: Iterable[str] | None = None,
    needed_topics: Iterable[str] = (),
) -> PlayReport:
    """Publishes the bag's messages at their recorded distances in time, divided by `rate`, until its end or Ctrl-C.

    Args:
        clock: also publish the bag's time on /clock, for nodes with use_sim_time.
        wait_for_subscribers_s: start when subscribers have matched, at the latest after this time.
        topics: only these; None = all.
        needed_topics: subscribers of these are waited for, too: others, such as recorders, may match long before.

    Raises:
        ValueError: the bag cannot be read, `rate` is not positive, or no topic is left to publish.
    """
    path = Path(path)
    if not rate > 0:
        raise ValueError(f"rate: expected a positive factor, got {rate!r}")
    use_shared_memory_profile()
    reader = open_bag(path)
    context = Context()
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    report = PlayReport()
    try:
        node = rclpy.create_node("panoptic_mapper_player", context=context, enable_rosout=False)
        player = _Player(node, reader, report, rate, clock, None if topics is None else set(topics))
        player.wait_for_subscribers(wait_for_subscribers_s, set(needed_topics))
        player.play(loop)
        node.destroy_node()
    except KeyboardInterrupt:
        report.is_interrupted = True
    finally:
        rclpy.shutdown(context=context)
        reader.close()
    return report


class _Player:
    """The publishers of a bag, and its time."""

    def __init__(
        self, node: Node, reader: Reader, report: PlayReport, rate: float, clock: bool, topics: set[str] | None
    ) -> None:
        self._reader = reader
        self._report = report
        self._rate = rate
        self._publishers: dict[int, Publisher] = {}
        self._clock = node.create_publisher(Clock, "/clock", 10) if clock else None
        self._connections = [c for c in reader.connections if topics is None or c.topic in topics]
        missing = (topics or set()) - {c.topic for c in reader.connections}
        if missing:
            raise ValueError(f"{reader.path}: no topic {', '.join(sorted(missing))} in the bag")
        for connection in self._connections:
            try:
                message_type = _message_type(connection.msgtype)
            except (ImportError, AttributeError) as error:
                report.skipped_topics[connection.topic] = f"{connection.msgtype}: {error}"
                logger.warning("%s is not played, for %s is not installed", connection.topic, connection.msgtype)
                continue
            self._publishers[connection.id] = node.create_publisher(message_type, connection.topic, _qos(connection))
        self._connections = [c for c in self._connections if c.id in self._publishers]
        if not self._connections:
            raise ValueError(f"{reader.path}: there is no topic to play")
        report.messages_by_topic.update({c.topic: 0 for c in self._connections})

    def wait_for_subscribers(self, timeout_s: float, needed: set[str]) -> None:
        """Returns when one topic, and all `needed`, have one and for a while no more came, or after the timeout."""
        start = changed = time.monotonic()
        matched: set[str] = set()
        while time.monotonic() - start < timeout_s:
            now = {c.topic for c in self._connections if self._publishers[c.id].get_subscription_count() > 0}
            if now != matched:
                matched, changed = now, time.monotonic()
            if matched and needed <= matched and time.monotonic() - changed > SETTLE_S:
                break
            time.sleep(0.05)
        self._report.unmatched_topics = sorted({c.topic for c in self._connections} - matched)

    def play(self, loop: bool) -> None:
        start = time.monotonic()
        try:
            while True:
                self._play_once()
                self._report.num_loops += 1
                if not loop:
                    break
            for publisher in self._publishers.values():
                publisher.wait_for_all_acked(Duration(seconds=ACKNOWLEDGE_S))
        finally:
            self._report.wall_s = time.monotonic() - start

    def _play_once(self) -> None:
        path = Path(str(self._reader.path))
        messages = self._reader.messages(self._connections)
        start = time.monotonic()
        first_ns: int | None = None
        while True:
            with naming(path, "damaged: "):
                item = next(messages, None)
            if item is None:
                return
            connection, time_ns, raw = item
            if first_ns is None:
                first_ns = time_ns
            due = start + (time_ns - first_ns) * 1e-9 / self._rate
            self._wait_until(due, time_ns)
            self._report.max_late_s = max(self._report.max_late_s, time.monotonic() - due)
            self._publish_clock(time_ns)
            self._publishers[connection.id].publish(bytes(raw))
            self._report.num_messages += 1
            self._report.messages_by_topic[connection.topic] += 1

    def _wait_until(self, due: float, due_ns: int) -> None:
        """Sleeps until `due` (monotonic s), when the bag's time is `due_ns`; /clock goes on meanwhile."""
        while (remaining := due - time.monotonic()) > 0:
            if remaining > CLOCK_PERIOD_S:
                self._publish_clock(due_ns - round(remaining * self._rate * 1e9))
            time.sleep(min(remaining, CLOCK_PERIOD_S))

    def _publish_clock(self, time_ns: int) -> None:
        if self._clock is None:
            return
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(time_ns, 10**9)
        self._clock.publish(message)


def _message_type(name: str) -> Any:
    """The class of "package/msg/Name"."""
    package, kind, type_name = name.split("/")
    return getattr(importlib.import_module(f"{package}.{kind}"), type_name)


def _qos(connection: Connection) -> QoSProfile:
    """What the recorded publishers offered, with room for bursts."""
    offered = getattr(connection.ext, "offered_qos_profiles", [])
    names = {(q.durability.name, q.reliability.name) for q in offered}
    is_latched = any(durability == "TRANSIENT_LOCAL" for durability, _ in names)
    is_best_effort = bool(names) and all(reliability == "BEST_EFFORT" for _, reliability in names)
    depth = max([MIN_QUEUE_DEPTH, *(q.depth for q in offered)])
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.BEST_EFFORT if is_best_effort else ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if is_latched else DurabilityPolicy.VOLATILE,
    )
