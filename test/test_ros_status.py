"""The status message, throttled warnings, and our log records in the node's log."""

import logging
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("panoptic_mapper.msg", reason="ROS 2 or the built messages are not installed")
from fake_mapper import FakeMapper

from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.frame_queue import FrameQueue, Observation
from panoptic_mapper.map_server import MapServer
from panoptic_mapper.pose_buffer import PoseBuffer
from panoptic_mapper.ros.conversions import stamp_from_message
from panoptic_mapper.ros.logs import route_logs
from panoptic_mapper.ros.status import ThrottledWarnings, status_message
from panoptic_mapper.segmenters.background import BackgroundStatus

pytestmark = pytest.mark.ros
CAMERA = PinholeCamera(4.0, 4.0, 1.5, 1.5, 4, 4)


def put(frames: FrameQueue, stamp_ns: int) -> None:
    frames.put(Observation(stamp_ns, "camera", np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), np.float32), CAMERA))


def test_status_counts_what_came_and_what_became_of_it():
    poses = PoseBuffer()
    frames = FrameQueue(poses)
    server = MapServer(FakeMapper(), frames)
    poses.add(10, np.eye(4))
    put(frames, 10)
    assert server.worker.step()
    put(frames, 20)
    frames.reject("bad_image", "")
    frames.reject("bad_image", "")
    server.start()
    try:
        message = status_message(frames, server.status, "map", num_unsynchronised=3)
        server.pause()
        paused = status_message(frames, server.status, "map", 0)
    finally:
        server.close()
    assert (message.state, paused.state) == ("mapping", "paused")
    assert status_message(frames, server.status, "map", 0).state == "failed"
    assert (message.frames_received, message.frames_integrated, message.queue_size) == (7, 1, 1)
    drops = dict(zip(message.drop_reasons, message.drop_counts, strict=True))
    assert drops == {"bad_image": 2, "unsynchronised": 3}
    # Nothing gets lost without a trace.
    assert message.frames_received == message.frames_integrated + message.queue_size + sum(drops.values())
    assert (stamp_from_message(message.header.stamp), message.header.frame_id) == (10, "map")
    assert (message.num_objects, message.num_gaussians, message.map_bytes) == (2, 2, 100)
    assert dict(zip(message.loss_names, message.loss_values, strict=True)) == {"rgb": 0.5}
    assert message.latency_p50_ms > 0
    assert message.rss_bytes > server.status().rss_bytes > 10**6


def test_a_frame_in_the_hand_of_the_mapper_is_not_lost():
    poses = PoseBuffer()
    frames = FrameQueue(poses)
    server, messages = MapServer(FakeMapper(), frames), []
    server.worker.on_version = lambda version: messages.append(status_message(frames, server.status, "map", 0))
    for stamp_ns in (10, 20):
        poses.add(stamp_ns, np.eye(4))
        put(frames, stamp_ns)
    assert server.worker.step()
    (message,) = messages
    assert message.frames_received == 2
    assert message.frames_integrated + message.queue_size == 3  # once too often while it goes from one to the other
    after = status_message(frames, server.status, "map", 0)
    assert (after.frames_integrated, after.queue_size) == (1, 1)


def test_status_tells_how_the_2d_model_does():
    labels = BackgroundStatus(
        state="retrying",
        num_waiting=4,
        num_labelled=9,
        given_up={"too_old": 2, "failed": 1},
        failures={"crash": 1},
        last_failure="crash: ended by SIGSEGV",
        model_ms=200.0,
        delay_ms=750.0,
    )
    status = MapServer(FakeMapper(), FrameQueue(PoseBuffer())).status()
    for last_error in ("", "the mapping thread failed"):
        status = replace(status, labels=labels, last_error=last_error)
        message = status_message(FrameQueue(PoseBuffer()), lambda status=status: status, "map", 0)
        assert (message.labels_state, message.labels_queue_size, message.labels_received) == ("retrying", 4, 9)
        assert (message.labels_model_ms, message.labels_delay_ms) == (200.0, 750.0)
        troubles = dict(zip(message.labels_trouble_reasons, message.labels_trouble_counts, strict=True))
        assert troubles == {"crash": 1, "failed": 1, "too_old": 2}
        assert message.labels_trouble_reasons == sorted(message.labels_trouble_reasons)
        assert message.last_error == (last_error or "crash: ended by SIGSEGV")
    assert status_message(FrameQueue(PoseBuffer()), None, "map", 0).labels_state == ""


def test_status_before_the_mapper_is_up():
    message = status_message(FrameQueue(PoseBuffer()), None, "map", 0)
    assert (message.state, message.frames_received, message.num_gaussians) == ("waiting", 0, 0)


def test_warnings_are_throttled_by_reason_and_say_how_many_were_held_back():
    now, lines = [0.0], []
    warn = ThrottledWarnings(lines.append, period_s=5.0, clock=lambda: now[0])
    for _ in range(4):
        warn("no_pose", "first")
    warn("bad_image", "other")
    now[0] = 5.0
    warn("no_pose", "second")
    now[0] = 20.0
    warn("no_pose", "third")
    assert lines == [
        "dropped, no_pose: first",
        "dropped, bad_image: other",
        "dropped, no_pose: second (and 3 more since the last warning)",
        "dropped, no_pose: third",
    ]


def test_log_records_reach_the_node_at_their_severity():
    class RosLogger:
        def __init__(self):
            self.lines = []

        def __getattr__(self, severity):
            return lambda text: self.lines.append((severity, text))

    package_logger, first, second = logging.getLogger("panoptic_mapper"), RosLogger(), RosLogger()
    before = (package_logger.handlers[:], package_logger.level)
    try:
        route_logs(first)
        route_logs(second)
        logger = logging.getLogger("panoptic_mapper.some.module")
        logger.info("a")
        logger.warning("b")
        logger.error("c")
        logger.debug("d")
    finally:
        package_logger.handlers, package_logger.level = before
    assert first.lines == []
    assert second.lines == [("info", "a"), ("warning", "b"), ("error", "c")]
