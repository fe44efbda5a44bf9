"""Approximate time synchronisation: message_filters where it is installed, else a small stand-in for it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from rclpy.time import Time

Callback = Callable[..., None]


class StandInSubscriber:
    """A subscription that hands its messages to registered callbacks, as `message_filters.Subscriber` does."""

    def __init__(self, node: Any, msg_type: Any, topic: str, **subscription_options: Any) -> None:
        self._callbacks: list[tuple[Callback, tuple[Any, ...]]] = []
        self.topic = topic
        self.sub = node.create_subscription(msg_type, topic, self.signalMessage, **subscription_options)

    def registerCallback(self, callback: Callback, *args: Any) -> None:
        self._callbacks.append((callback, args))

    def signalMessage(self, message: Any) -> None:
        for callback, args in self._callbacks:
            callback(message, *args)


class StandInApproximateTimeSynchronizer:
    """Groups messages of several topics whose header stamps lie within `slop` seconds of each other.

    The same interface and behaviour as `message_filters.ApproximateTimeSynchronizer`: a group goes out as soon as it is
    complete, with the messages nearest in time to the one that completed it; each message is used once; each topic
    keeps its `queue_size` newest stamps. Callbacks run one at a time.
    """

    def __init__(self, filters: Sequence[Any], queue_size: int, slop: float) -> None:
        self._slop_ns = slop * 1e9
        self._queue_size = queue_size
        self._queues: list[dict[int, Any]] = [{} for _ in filters]  # stamp in ns -> message
        self._callbacks: list[Callback] = []
        self._lock = threading.Lock()
        for index, filter_ in enumerate(filters):
            filter_.registerCallback(self.add, index)

    def registerCallback(self, callback: Callback) -> None:
        self._callbacks.append(callback)

    def add(self, message: Any, index: int) -> None:
        """Takes a message of topic `index`."""
        stamp_ns = Time.from_msg(message.header.stamp).nanoseconds
        with self._lock:
            queue = self._queues[index]
            queue[stamp_ns] = message
            while len(queue) > self._queue_size:
                del queue[min(queue)]
            if stamp_ns not in queue:
                return
            stamps = self._group_around(stamp_ns, index)
            if stamps is None:
                return
            group = [queue.pop(s) for queue, s in zip(self._queues, stamps, strict=True)]
            for callback in self._callbacks:
                callback(*group)

    def _group_around(self, stamp_ns: int, index: int) -> tuple[int, ...] | None:
        """One stamp per topic, that of topic `index` being `stamp_ns`, or None while there is no group."""
        candidates = []
        for i, queue in enumerate(self._queues):
            near = [stamp_ns] if i == index else [s for s in queue if abs(s - stamp_ns) <= self._slop_ns]
            candidates.append(sorted(near, key=lambda s: abs(s - stamp_ns)))
        groups = itertools.product(*candidates)
        return next((group for group in groups if max(group) - min(group) <= self._slop_ns), None)


try:
    from message_filters import ApproximateTimeSynchronizer, Subscriber
except ImportError:  # ROS from pip wheels has no message_filters
    ApproximateTimeSynchronizer = StandInApproximateTimeSynchronizer
    Subscriber = StandInSubscriber
