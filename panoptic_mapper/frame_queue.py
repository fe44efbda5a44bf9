"""The way of an observation to the mapper: it waits for its pose, then for the worker. Bounded; the oldest is dropped.

ROS-free. Everything that is dropped is counted by reason, so that a map with holes can be explained.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from panoptic_mapper.config import Config, param
from panoptic_mapper.frame import Frame, PinholeCamera, Segmentation
from panoptic_mapper.pose_buffer import Missing, PoseSource
from panoptic_mapper.timing import Clock


class RejectedInput(ValueError):
    """Input that cannot become a frame. `reason` is the word under which it is counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Observation:
    """The images of one moment, before their pose is known. Shapes and types as in `Frame`."""

    stamp_ns: int
    frame_id: str  # name of the camera frame
    color: np.ndarray  # [H, W, 3] uint8 RGB
    depth: np.ndarray  # [H, W] float32 m
    camera: PinholeCamera
    labels: Segmentation | None = None
    age_s: float = 0.0  # how old it was when it arrived: arrival minus stamp

    def posed(self, T_map_camera: np.ndarray) -> Frame:
        return Frame(self.stamp_ns, self.color, self.depth, T_map_camera, self.camera, self.labels)


@dataclass(frozen=True)
class QueuedFrame:
    """A complete frame, and times by the queue's clock."""

    frame: Frame
    arrival_s: float  # of its images
    ready_s: float  # when its pose was there too, and it began to wait for the mapper
    age_s: float  # as in `Observation`


@dataclass(frozen=True)
class FrameQueueConfig(Config):
    """How many frames may wait, and for how long."""

    capacity: int = param(8, "Complete frames that wait for the mapper; the oldest is dropped beyond it.", ge=1)
    max_waiting: int = param(30, "Observations that wait for their pose; the oldest is dropped beyond it.", ge=1)
    pose_wait_s: float = param(1.0, "An observation whose pose has not come after this time is dropped, s.", ge=0)
    time_jump_s: float = param(
        1.0, "A stamp that lies further back than this is a new start (a bag played again), not disorder, s.", gt=0
    )


class FrameQueue:
    """Observations in, posed frames out, in the order of their stamps. Thread-safe; no method blocks.

    Args:
        poses: asked for the pose of the oldest waiting observation on every `resolve`.
        clock: seconds; waiting times are measured by it.
    """

    def __init__(self, poses: PoseSource, config: FrameQueueConfig | None = None, clock: Clock = time.monotonic):
        self.config = config or FrameQueueConfig()
        self.clock = clock
        self.on_ready: Callable[[], None] = lambda: None  # called after a frame became ready, from the caller's thread
        self.on_drop: Callable[[str, str], None] = lambda reason, message: None  # for warnings
        self._poses = poses
        self._waiting: deque[tuple[Observation, float]] = deque()  # with the arrival
        self._ready: deque[QueuedFrame] = deque()
        self._num_in_hand = 0
        self._drops: Counter[str] = Counter()
        self._num_received = 0
        self._last_stamp_ns: int | None = None
        self._paused = False
        self._lock = threading.RLock()

    def put(self, observation: Observation) -> None:
        """Takes an observation in; drops it where it is out of order or the queue is paused."""
        with self._lock:
            self._num_received += 1
            if self._paused:
                self._drop("paused", "the mapper is paused")
                return
            if not self._is_in_order(observation.stamp_ns):
                self._drop("out_of_order", f"stamp {observation.stamp_ns} ns follows {self._last_stamp_ns} ns")
                return
            self._last_stamp_ns = observation.stamp_ns
            self._waiting.append((observation, self.clock()))
            while len(self._waiting) > self.config.max_waiting:
                self._waiting.popleft()
                self._drop("queue_full", f"more than {self.config.max_waiting} observations wait for a pose")
        self.resolve()

    def reject(self, reason: str, message: str) -> None:
        """Counts an observation that could not even be converted."""
        with self._lock:
            self._num_received += 1
            self._drop(reason, message)

    def count(self, reason: str, message: str) -> None:
        """Counts input other than an observation: a broken pose."""
        with self._lock:
            self._drop(reason, message)

    def resolve(self) -> None:
        """Gives waiting observations their poses, and drops those that waited too long. Call it when a pose comes."""
        became_ready = False
        with self._lock:
            while self._waiting:
                observation, arrival_s = self._waiting[0]
                pose = self._poses.lookup(observation.stamp_ns, observation.frame_id)
                waited_s = self.clock() - arrival_s
                if pose is Missing.NOT_YET and waited_s < self.config.pose_wait_s:
                    break  # later ones wait behind it, so that frames leave in order
                self._waiting.popleft()
                if isinstance(pose, Missing):
                    self._drop("no_pose", f"no pose for the stamp {observation.stamp_ns} ns after {waited_s:.2f} s")
                else:
                    became_ready |= self._make_ready(observation, pose, arrival_s)
        if became_ready:
            self.on_ready()

    def pop(self) -> QueuedFrame | None:
        """The oldest complete frame, which is in hand until `finish` is called; None where none waits."""
        with self._lock:
            if not self._ready:
                return None
            self._num_in_hand += 1
            return self._ready.popleft()

    def finish(self, reason: str = "", message: str = "") -> None:
        """Says that a frame that was popped is done with; with a reason, that it failed."""
        with self._lock:
            self._num_in_hand -= 1
            if reason:
                self._drop(reason, message)

    def set_paused(self, paused: bool) -> None:
        """While paused, new observations are dropped and counted; what already waits stays."""
        with self._lock:
            self._paused = paused

    def clear(self) -> None:
        """Forgets what waits, the last stamp, and all counts; what is in hand stays so."""
        with self._lock:
            self._drops.clear()
            self._num_received = 0
            self._waiting.clear()
            self._ready.clear()
            self._last_stamp_ns = None

    @property
    def num_received(self) -> int:
        """Observations given to `put` or `reject` so far."""
        return self._num_received

    @property
    def num_queued(self) -> int:
        """Observations that wait for a pose, and frames that wait for the mapper or are in its hand."""
        with self._lock:
            return len(self._waiting) + len(self._ready) + self._num_in_hand

    @property
    def drops(self) -> dict[str, int]:
        """Number of drops by reason."""
        with self._lock:
            return dict(self._drops)

    def _is_in_order(self, stamp_ns: int) -> bool:
        if self._last_stamp_ns is None or stamp_ns > self._last_stamp_ns:
            return True
        return stamp_ns < self._last_stamp_ns - self.config.time_jump_s * 1e9

    def _make_ready(self, observation: Observation, pose: np.ndarray, arrival_s: float) -> bool:
        try:
            frame = observation.posed(pose)
        except ValueError as error:
            self._drop("bad_frame", str(error))
            return False
        self._ready.append(QueuedFrame(frame, arrival_s, self.clock(), observation.age_s))
        while len(self._ready) > self.config.capacity:
            self._ready.popleft()
            self._drop("queue_full", f"more than {self.config.capacity} frames wait for the mapper")
        return True

    def _drop(self, reason: str, message: str) -> None:
        self._drops[reason] += 1
        self.on_drop(reason, message)
