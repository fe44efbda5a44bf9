"""Votes of voxels for instances: the few instances with the most votes at each voxel."""

from __future__ import annotations

import numpy as np

from benchmarks.baselines.voxel_hash import GrowingRows

SLOTS = 8  # instances that a voxel remembers; the one with the least votes makes room


class InstanceVotes:
    """[N, SLOTS] instance ids and their votes."""

    def __init__(self) -> None:
        self._ids = GrowingRows(SLOTS, dtype=np.int64)
        self._votes = GrowingRows(SLOTS)

    def grow(self, num_rows: int) -> None:
        self._ids.grow(num_rows)
        self._votes.grow(num_rows)

    def add(self, rows: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> None:
        """One vote at each of the rows [V], which are unique, for an instance id >= 1 with a weight."""
        stored, votes = self._ids.values[rows], self._votes.values[rows]
        is_known = stored == ids[:, None]
        slot = np.where(is_known.any(1), is_known.argmax(1), votes.argmin(1))
        at = np.arange(len(rows))
        kept = np.where(stored[at, slot] == ids, votes[at, slot], 0)
        self._ids.values[rows, slot] = ids
        self._votes.values[rows, slot] = kept + weights

    def best(self, rows: np.ndarray) -> np.ndarray:
        """The instance with the most votes at each row, int64 [V]; 0 = none."""
        slot = self._votes.values[rows].argmax(1)
        return self._ids.values[rows, slot]

    def rename(self, old: int, new: int) -> None:
        """Gives the votes of one instance to another."""
        rows = np.flatnonzero((self._ids.values == old).any(1))
        ids, votes = self._ids.values[rows], self._votes.values[rows]
        moved = np.where(ids == old, votes, 0).sum(1)
        votes[ids == old] = 0
        ids[ids == old] = 0
        self._ids.values[rows], self._votes.values[rows] = ids, votes
        self.add(rows, np.full(len(rows), new), moved)
