"""A sparse grid of voxels in numpy: rows of growing arrays, found by the packed integer coordinates of a voxel."""

from __future__ import annotations

import numpy as np

_BITS = 21  # per axis: 2^21 voxels of 1 cm are 20 km
_OFFSET = 1 << (_BITS - 1)


class VoxelHash:
    """Numbers voxels 0..N-1 in the order in which they were first touched."""

    def __init__(self, voxel_size_m: float) -> None:
        self.voxel_size_m = voxel_size_m
        self._keys = np.zeros(0, np.int64)  # [N] ascending
        self._rows = np.zeros(0, np.int64)  # [N] row of each key

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self, points: np.ndarray) -> np.ndarray:
        """The voxel of each point [N, 3] (m) as one number, int64 [N]."""
        x, y, z = (np.floor(points / self.voxel_size_m).astype(np.int64) + _OFFSET).T
        return (x << 2 * _BITS) | (y << _BITS) | z

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Rows of voxels by key, int64 [N]; -1 where nothing was ever put."""
        if not len(self._keys):
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[at] == keys, self._rows[at], -1)

    def insert(self, keys: np.ndarray) -> np.ndarray:
        """Rows of voxels by key, int64 [N]; `keys` ascending and unique, those that are new get the next rows."""
        rows = self.find(keys)
        is_new = rows < 0
        rows[is_new] = len(self) + np.arange(is_new.sum())
        at = np.searchsorted(self._keys, keys[is_new])
        self._keys = np.insert(self._keys, at, keys[is_new])
        self._rows = np.insert(self._rows, at, rows[is_new])
        return rows


class GrowingRows:
    """An array [N, ...] of zeros whose N grows cheaply."""

    def __init__(self, *shape: int, dtype: type = np.float32) -> None:
        self._data: np.ndarray = np.zeros((1024, *shape), dtype)
        self.values = self._data[:0]  # [N, ...]

    def grow(self, num_rows: int) -> None:
        if num_rows > len(self._data):
            larger = np.zeros((2 * num_rows, *self._data.shape[1:]), self._data.dtype)
            larger[: len(self.values)] = self.values
            self._data = larger
        self.values = self._data[:num_rows]
