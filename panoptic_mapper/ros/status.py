"""The state of the node as a MapStatus message, and warnings that do not flood the log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import psutil
from std_msgs.msg import Header

from panoptic_mapper.frame_queue import FrameQueue
from panoptic_mapper.map_service import MapperStatus
from panoptic_mapper.mapping_messages import NUM_FRAMES
from panoptic_mapper.msg import MapStatus
from panoptic_mapper.ros.conversions import stamp_message
from panoptic_mapper.segmenters.background import BackgroundStatus
from panoptic_mapper.timing import Clock


def status_message(
    frames: FrameQueue, get_status: Callable[[], MapperStatus] | None, map_frame: str, num_unsynchronised: int
) -> MapStatus:
    """What there is to say now.

    Args:
        get_status: asks the mapper; None while it is not up.
        num_unsynchronised: colour images that found no partners.
    """
    # In this order a frame that goes on meanwhile is counted twice rather than never.
    num_queued = frames.num_queued
    status = None if get_status is None else get_status()
    drops = frames.drops
    if num_unsynchronised > 0:
        drops["unsynchronised"] = num_unsynchronised
    reasons = sorted(drops)
    message = MapStatus(
        header=Header(frame_id=map_frame),
        state=_state(status),
        frames_received=frames.num_received + num_unsynchronised,
        queue_size=num_queued,
        queue_capacity=frames.config.max_waiting + frames.config.capacity + NUM_FRAMES,
        drop_reasons=reasons,
        drop_counts=[drops[reason] for reason in reasons],
        rss_bytes=psutil.Process().memory_info().rss,
    )
    if status is not None:
        _fill_in(message, status)
    return message


def _fill_in(message: MapStatus, status: MapperStatus) -> None:
    stats = status.stats
    message.header.stamp = stamp_message(status.last_stamp_ns)
    message.num_gaussians = stats.num_gaussians
    message.num_objects = stats.num_objects
    message.num_keyframes = stats.num_keyframes
    message.frames_integrated = status.num_integrated
    message.fps = status.rate_hz
    message.loss_names = sorted(stats.losses)
    message.loss_values = [float(stats.losses[name]) for name in message.loss_names]
    message.map_bytes = stats.map_bytes
    message.rss_bytes += status.rss_bytes
    message.latency_p50_ms, message.latency_p90_ms, message.latency_p99_ms = status.latency_ms
    if status.labels is not None:
        _fill_labels(message, status.labels)
    message.last_error = status.last_error or message.last_error


def _fill_labels(message: MapStatus, labels: BackgroundStatus) -> None:
    message.labels_state = labels.state
    message.labels_queue_size = labels.num_waiting
    message.labels_received = labels.num_labelled
    message.labels_model_ms, message.labels_delay_ms = labels.model_ms, labels.delay_ms
    troubles = Counter(labels.failures) + Counter(labels.given_up)
    message.labels_trouble_reasons = sorted(troubles)
    message.labels_trouble_counts = [troubles[reason] for reason in message.labels_trouble_reasons]
    message.last_error = labels.last_failure


def _state(status: MapperStatus | None) -> str:
    if status is None:
        return MapStatus.STATE_WAITING
    if not status.is_alive:
        return MapStatus.STATE_FAILED
    if status.is_paused:
        return MapStatus.STATE_PAUSED
    return MapStatus.STATE_MAPPING if status.num_integrated else MapStatus.STATE_WAITING


class ThrottledWarnings:
    """Passes a warning of each reason on at most every `period_s` seconds, saying how many were held back."""

    def __init__(self, warn: Callable[[str], None], period_s: float = 5.0, clock: Clock = time.monotonic) -> None:
        self._warn = warn
        self._period_s = period_s
        self._clock = clock
        self._last_s: dict[str, float] = {}
        self._held_back: dict[str, int] = {}

    def __call__(self, reason: str, message: str) -> None:
        now_s = self._clock()
        if reason in self._last_s and now_s - self._last_s[reason] < self._period_s:
            self._held_back[reason] = self._held_back.get(reason, 0) + 1
            return
        self._last_s[reason] = now_s
        held_back = self._held_back.pop(reason, 0)
        more = f" (and {held_back} more since the last warning)" if held_back else ""
        self._warn(f"dropped, {reason}: {message}{more}")
