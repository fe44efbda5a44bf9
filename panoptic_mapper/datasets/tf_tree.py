"""Transforms between named frames over time, as recorded on /tf and /tf_static."""

from __future__ import annotations

import numpy as np

from panoptic_mapper.pose_buffer import Missing, PoseBuffer, PoseBufferConfig

UNBOUNDED = 10**9  # a recorded sequence is kept whole


def recorded_poses(max_gap_s: float) -> PoseBuffer:
    """A buffer that keeps all poses of a recording, whatever their order."""
    return PoseBuffer(PoseBufferConfig(max_gap_s=max_gap_s, capacity=UNBOUNDED, time_jump_s=1e9))


class TransformTree:
    """Frames that each have one parent; moving ones are interpolated, never extrapolated."""

    def __init__(self, max_gap_s: float) -> None:
        self._max_gap_s = max_gap_s
        self._parents: dict[str, str] = {}
        self._moving: dict[str, PoseBuffer] = {}  # by child frame
        self._static: dict[str, np.ndarray] = {}  # by child frame, T_parent_child [4, 4]

    def add(self, parent: str, child: str, stamp_ns: int, T_parent_child: np.ndarray, is_static: bool) -> None:
        """Takes a transform in; ValueError where it is not rigid."""
        parent, child = parent.lstrip("/"), child.lstrip("/")
        if is_static:
            self._static[child] = T_parent_child
        else:
            self._moving.setdefault(child, recorded_poses(self._max_gap_s)).add(stamp_ns, T_parent_child)
        self._parents[child] = parent

    def lookup(self, target: str, source: str, stamp_ns: int) -> np.ndarray | None:
        """T_target_source [4, 4] at that time; None where no transforms known at that time join the frames."""
        target_chain = self._to_root(target.lstrip("/"), stamp_ns)
        source_chain = self._to_root(source.lstrip("/"), stamp_ns)
        for ancestor, T_ancestor_source in source_chain.items():
            if ancestor in target_chain:
                return np.linalg.inv(target_chain[ancestor]) @ T_ancestor_source
        return None

    def frames(self) -> list[str]:
        """All frame names, sorted."""
        return sorted(set(self._parents) | set(self._parents.values()))

    def _to_root(self, frame: str, stamp_ns: int) -> dict[str, np.ndarray]:
        """T_ancestor_frame of the frame itself and of its ancestors, up to where a transform is missing."""
        T: np.ndarray | Missing = np.eye(4)
        chain: dict[str, np.ndarray] = {}
        while not isinstance(T, Missing) and frame not in chain:  # a cycle ends the walk
            chain[frame] = T
            if frame not in self._parents:
                break
            step = self._static[frame] if frame in self._static else self._moving[frame].lookup(stamp_ns)
            T = step if isinstance(step, Missing) else step @ T
            frame = self._parents[frame]
        return chain
