"""The library's log records in the node's log (/rosout and the console)."""

from __future__ import annotations

import logging
from typing import Any


class RosLogHandler(logging.Handler):
    """Hands records to an rclpy logger."""

    def __init__(self, ros_logger: Any) -> None:
        super().__init__()
        self._ros_logger = ros_logger

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        # rclpy demands that a line of code always logs at the same severity.
        if record.levelno >= logging.ERROR:
            self._ros_logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._ros_logger.warning(text)
        elif record.levelno >= logging.INFO:
            self._ros_logger.info(text)
        else:
            self._ros_logger.debug(text)


def route_logs(ros_logger: Any) -> None:
    """Sends the records of all our modules, INFO and above, to `ros_logger`; an earlier route is replaced."""
    package_logger = logging.getLogger("panoptic_mapper")
    package_logger.handlers = [h for h in package_logger.handlers if not isinstance(h, RosLogHandler)]
    package_logger.addHandler(RosLogHandler(ros_logger))
    package_logger.setLevel(logging.INFO)
