"""Poses by time stamp, interpolated between neighbours. A pose is never extrapolated and never made up."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from panoptic_mapper.config import Config, param
from panoptic_mapper.frame import checked_pose

QUATERNION_TOLERANCE = 1e-2  # of the norm: rounded float32 stays well below, a forgotten component well above


class Missing(Enum):
    """Why there is no pose for a stamp."""

    NOT_YET = "not yet"  # it may still come
    NEVER = "never"  # all known poses are later, or the two around the stamp are too far apart


class PoseSource(Protocol):
    """Where a waiting observation asks for its pose."""

    def lookup(self, stamp_ns: int, frame_id: str) -> np.ndarray | Missing:
        """T_map_camera [4, 4] float64 of the camera frame `frame_id` at that time, or why there is none."""
        ...


@dataclass(frozen=True)
class PoseBufferConfig(Config):
    """How poses become a trajectory."""

    max_gap_s: float = param(0.2, "Poses further apart than this are not interpolated between, s.", gt=0)
    capacity: int = param(2000, "Number of poses kept; the ones with the oldest stamps go first.", ge=2)
    time_jump_s: float = param(
        1.0, "A stamp that lies further back than this starts a new trajectory (a bag played again), s.", gt=0
    )


class PoseBuffer:
    """A trajectory that grows at its end. Thread-safe."""

    def __init__(self, config: PoseBufferConfig | None = None) -> None:
        self.config = config or PoseBufferConfig()
        self._stamps_ns: list[int] = []  # ascending
        self._poses: list[np.ndarray] = []  # [4, 4] float64, row by row with the stamps
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._stamps_ns)

    def add(self, stamp_ns: int, T: np.ndarray) -> None:
        """Takes a pose; one that comes late is put in its place, and one of a known stamp replaces it.

        Raises:
            ValueError: the pose is not finite or not a rigid transform.
        """
        T = checked_pose(T)
        with self._lock:
            if self._stamps_ns and stamp_ns < self._stamps_ns[-1] - self.config.time_jump_s * 1e9:
                self._stamps_ns.clear()
                self._poses.clear()
            i = bisect.bisect_left(self._stamps_ns, stamp_ns)
            if i < len(self._stamps_ns) and self._stamps_ns[i] == stamp_ns:
                self._poses[i] = T
                return
            self._stamps_ns.insert(i, stamp_ns)
            self._poses.insert(i, T)
            if len(self._stamps_ns) > self.config.capacity:
                del self._stamps_ns[0], self._poses[0]

    def lookup(self, stamp_ns: int, frame_id: str = "") -> np.ndarray | Missing:
        """The pose at a stamp, interpolated between the two poses around it; `frame_id` plays no part."""
        with self._lock:
            i = bisect.bisect_left(self._stamps_ns, stamp_ns)
            if i == len(self._stamps_ns):
                return Missing.NOT_YET
            if self._stamps_ns[i] == stamp_ns:
                return self._poses[i].copy()
            if i == 0 or self._stamps_ns[i] - self._stamps_ns[i - 1] > self.config.max_gap_s * 1e9:
                return Missing.NEVER
            share = (stamp_ns - self._stamps_ns[i - 1]) / (self._stamps_ns[i] - self._stamps_ns[i - 1])
            return interpolate_pose(self._poses[i - 1], self._poses[i], share)

    def clear(self) -> None:
        with self._lock:
            self._stamps_ns.clear()
            self._poses.clear()


def interpolate_pose(T_a: np.ndarray, T_b: np.ndarray, share: float) -> np.ndarray:
    """The rigid transform at `share` (0 = `T_a`, 1 = `T_b`): slerp of the rotation, straight line of the position."""
    T = np.eye(4)
    T[:3, :3] = Slerp([0.0, 1.0], Rotation.from_matrix([T_a[:3, :3], T_b[:3, :3]]))(share).as_matrix()
    T[:3, 3] = (1 - share) * T_a[:3, 3] + share * T_b[:3, 3]
    return T


def pose_from_quaternion(translation: Sequence[float], quaternion_xyzw: Sequence[float]) -> np.ndarray:
    """A transform [4, 4] float64 from a position (m) and a unit quaternion in ROS' order x y z w.

    Raises:
        ValueError: a value is not finite, or the quaternion's norm is not 1.
    """
    t, q = np.asarray(translation, dtype=np.float64), np.asarray(quaternion_xyzw, dtype=np.float64)
    if t.shape != (3,) or q.shape != (4,):
        raise ValueError(f"pose: expected a position of 3 and a quaternion of 4 values, got {t.shape} and {q.shape}")
    if not (np.all(np.isfinite(t)) and np.all(np.isfinite(q))):
        raise ValueError(f"pose: not finite: position {t.tolist()}, quaternion xyzw {q.tolist()}")
    norm = float(np.linalg.norm(q))
    if abs(norm - 1) > QUATERNION_TOLERANCE:
        raise ValueError(f"pose: expected a unit quaternion, got xyzw {q.tolist()} of norm {norm:.4g}")
    T = np.eye(4)
    T[:3, :3] = Rotation.from_quat(q).as_matrix()
    T[:3, 3] = t
    return T
