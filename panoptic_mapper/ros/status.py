"""The state of the node as a MapStatus message, and warnings that do not flood the log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import psutil
from std_msgs.msg import Header

from panoptic_mapper.frame_queue import FrameQueue
from panoptic_mapper.msg import MapStatus
from panoptic_mapper.ros.conversions import stamp_message
from panoptic_mapper.segmenters.background import BackgroundStatus
from panoptic_mapper.timing import Clock
from panoptic_mapper.worker import MappingWorker


def status_message(
    frames: FrameQueue,
    worker: MappingWorker | None,
    map_frame: str,
    num_unsynchronised: int,
    labels: BackgroundStatus | None = None,
) -> MapStatus:
    """What there is to say now, without waiting for the worker.

    Args:
        worker: None while the mapper is not up.
        num_unsynchronised: colour images that found no partners.
        labels: of the 2D model, where it runs beside the mapper.
    """
    drops = frames.drops
    if num_unsynchronised > 0:
        drops["unsynchronised"] = num_unsynchronised
    reasons = sorted(drops)
    message = MapStatus(
        header=Header(frame_id=map_frame),
        state=_state(worker),
        frames_received=frames.num_received + num_unsynchronised,
        queue_size=frames.num_queued,
        queue_capacity=frames.config.max_waiting + frames.config.capacity,
        drop_reasons=reasons,
        drop_counts=[drops[reason] for reason in reasons],
        rss_bytes=psutil.Process().memory_info().rss,
    )
    if labels is not None:
        _fill_labels(message, labels)
    if worker is None:
        return message
    stats = worker.stats
    message.header.stamp = stamp_message(worker.last_stamp_ns)
    message.num_gaussians = stats.num_gaussians
    message.num_objects = stats.num_objects
    message.num_keyframes = stats.num_keyframes
    message.frames_integrated = worker.num_integrated
    message.fps = worker.rate.rate_hz()
    message.loss_names = sorted(stats.losses)
    message.loss_values = [float(stats.losses[name]) for name in message.loss_names]
    message.map_bytes = stats.map_bytes
    p50, p90, p99 = worker.latency_ms.percentiles()
    message.latency_p50_ms, message.latency_p90_ms, message.latency_p99_ms = p50, p90, p99
    message.last_error = worker.last_error or message.last_error
    return message


def _fill_labels(message: MapStatus, labels: BackgroundStatus) -> None:
    message.labels_state = labels.state
    message.labels_queue_size = labels.num_waiting
    message.labels_received = labels.num_labelled
    message.labels_model_ms, message.labels_delay_ms = labels.model_ms, labels.delay_ms
    troubles = Counter(labels.failures) + Counter(labels.given_up)
    message.labels_trouble_reasons = sorted(troubles)
    message.labels_trouble_counts = [troubles[reason] for reason in message.labels_trouble_reasons]
    message.last_error = labels.last_failure


def _state(worker: MappingWorker | None) -> str:
    if worker is None:
        return MapStatus.STATE_WAITING
    if not worker.is_alive:
        return MapStatus.STATE_FAILED
    if worker.is_paused:
        return MapStatus.STATE_PAUSED
    return MapStatus.STATE_MAPPING if worker.num_integrated else MapStatus.STATE_WAITING


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
