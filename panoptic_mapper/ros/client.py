"""A small client of the node for programs and tests: watches its topics, waits for conditions, calls its services."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions

from panoptic_mapper.msg import MapStatus

SPIN_S = 0.1  # how long to sleep inside the executor while nothing comes


class MapperClient:
    """Use as a context manager. It has its own ROS context, so it disturbs no other node of the process.

    Args:
        check: called while waiting; raises where waiting has become pointless (the node has died).
        domain_id: ROS domain; None = that of the environment.
    """

    def __init__(self, check: Callable[[], None] = lambda: None, domain_id: int | None = None) -> None:
        self._check = check
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain_id, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("panoptic_mapper_client", context=self._context, enable_rosout=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._clients: dict[str, Any] = {}
        self._latest: dict[str, Any] = {}
        self.node.create_subscription(MapStatus, "/panoptic_mapper/status", self._keep("status"), 10)

    def __enter__(self) -> MapperClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)

    @property
    def status(self) -> MapStatus | None:
        """The latest status; None before the first."""
        return self._latest.get("status")

    def wait_until(self, condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
        """The first true value of `condition`, which is asked whenever something has come.

        Raises:
            TimeoutError: naming `what` was waited for.
        """
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            self._check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} within {timeout_s:g} s")
            self._executor.spin_once(timeout_sec=SPIN_S)
        return value

    def wait_for_status(self, condition: Callable[[MapStatus], Any], timeout_s: float, what: str) -> MapStatus:
        """The first status, from now on, that fulfils `condition`."""
        self._latest.pop("status", None)
        self.wait_until(lambda: self.status is not None and condition(self.status), timeout_s, what)
        assert self.status is not None
        return self.status

    def wait_for_message(self, message_type: type, topic: str, timeout_s: float) -> Any:
        """The next message of a topic of the node, or its latched last one."""
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._latest.pop(topic, None)
        subscription = self.node.create_subscription(
            message_type, f"/panoptic_mapper/{topic}", self._keep(topic), latched
        )
        try:
            return self.wait_until(lambda: self._latest.get(topic), timeout_s, f"message on {topic}")
        finally:
            self.node.destroy_subscription(subscription)

    def call(self, service_type: type, name: str, request: Any = None, timeout_s: float = 60.0) -> Any:
        """The answer of a service of the node."""
        if name not in self._clients:
            self._clients[name] = self.node.create_client(service_type, f"/panoptic_mapper/{name}")
        client = self._clients[name]
        self.wait_until(client.service_is_ready, timeout_s, f"service {name}")
        future = client.call_async(request or service_type.Request())  # type: ignore[attr-defined]
        self.wait_until(future.done, timeout_s, f"answer of {name}")
        return future.result()

    def _keep(self, key: str) -> Callable[[Any], None]:
        def callback(message: Any) -> None:
            self._latest[key] = message

        return callback
