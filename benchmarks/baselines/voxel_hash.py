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


class FusedSurface:
    """The mean of the points and colours that were measured in each voxel."""

    def __init__(self, voxel_size_m: float) -> None:
        self._grid = VoxelHash(voxel_size_m)
        self._sums = GrowingRows(7)  # [N, 7] sums of points (m) and colours, and the number of pixels
        self._density = GrowingRows()  # [N] most pixels per metre of the surface in any frame

    @property
    def points(self) -> np.ndarray:
        """[N, 3] float32 map frame, m."""
        return self._sums.values[:, :3] / self._sums.values[:, 6:]

    @property
    def spacing_m(self) -> np.ndarray:
        """[N] distance to the next point: a voxel's edge, or a pixel's in the nearest view where that is larger."""
        return np.maximum(self._grid.voxel_size_m, 1 / self._density.values)

    def fuse(self, points: np.ndarray, colors: np.ndarray, px_per_m: np.ndarray) -> None:
        """Adds points [P, 3] (m) with their colours [P, 3], seen in so many pixels per metre [P]."""
        keys, voxel = np.unique(self._grid.keys(points), return_inverse=True)
        rows = self._grid.insert(keys)
        for table in (self._sums, self._density):
            table.grow(len(self._grid))
        np.maximum.at(self._density.values, rows[voxel], px_per_m.astype(np.float32))
        columns = [*points.T, *colors.T.astype(np.float32), np.ones(len(points))]
        self._sums.values[rows] += np.stack([np.bincount(voxel, column, len(rows)) for column in columns], -1)

    def colors_at(self, points: np.ndarray) -> np.ndarray:
        """Colours, uint8 [P, 3], of the voxels at points [P, 3] (m); black where there is none."""
        rows = self._grid.find(self._grid.keys(points))
        sums = self._sums.values[rows] * (rows >= 0)[:, None]
        return (sums[:, 3:6] / np.maximum(sums[:, 6:], 1)).astype(np.uint8)
