"""Boxes of objects from labelled points. Pure functions, robust to stray points."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from panoptic_mapper.snapshot import Box

MIN_EDGE_M = 0.01  # a box is never thinner: viewers and intersection tests need a volume
CLUSTER_CELL_M = 0.1  # points whose cells touch belong together: gaps of up to 0.1 m are always bridged
MAX_CELLS_PER_AXIS = 64  # a far stray point makes the cells larger instead of the grid
MIN_CLUSTER_SHARE = 0.1  # smaller clusters are stray; larger ones are parts that an occlusion separates
TRIM_PERCENT = 1.0  # left out at each end of each axis: label noise at the object's outline
MAX_YAW_POINTS = 1000  # points that the yaw is searched with
YAW_STEP_DEG = 1.0
HISTOGRAM_BIN_M = 0.02
MAX_HISTOGRAM_BINS = 512  # per axis: larger objects get wider bins


@dataclass(frozen=True)
class ObjectGeometry:
    """Where an object is, in the map frame, m."""

    centroid: np.ndarray  # [3] float64, mean of its points without stray ones
    box: Box  # upright
    aabb_min: np.ndarray  # [3] float64
    aabb_max: np.ndarray  # [3] float64
    num_points: int  # all of them


def extract_objects(
    points: np.ndarray,  # [N, 3] map frame, m: means of the opaque Gaussians
    instance_ids: np.ndarray,  # [N] int, 0 = no object
    up: np.ndarray,  # [3] map frame
) -> dict[int, ObjectGeometry]:
    """The geometry of every instance id that has a point, by ascending id."""
    objects = {}
    for instance_id, own in _grouped(np.asarray(points, np.float64), instance_ids):
        kept = without_strays(own)
        aabb_min, aabb_max = aabb(kept)
        box = upright_box(kept, up)
        objects[instance_id] = ObjectGeometry(kept.mean(0), box, aabb_min, aabb_max, len(own))
    return objects


def upright_box(points: np.ndarray, up: np.ndarray) -> Box:
    """The box of the smallest, best filled footprint: z axis along `up`, x axis along the longer horizontal edge.

    Args:
        points: [n, 3] with n >= 1; `TRIM_PERCENT` at each end of each axis is left out.
        up: [3], any length.

    Raises:
        ValueError: no points, or `up` has no direction.
    """
    points = _checked(points)
    axes = upright_axes(up)  # rows: two horizontal axes and up
    local = points @ axes.T
    yaw = _footprint_yaw(local[:, :2])
    R_yaw = np.array([[np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    low, high = _trimmed_range(local @ R_yaw.T)
    rows = R_yaw @ axes
    if high[1] - low[1] > high[0] - low[0]:
        quarter_turn = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
        rows = quarter_turn @ rows
        low, high = _trimmed_range(points @ rows.T)
    x, y, z, w = Rotation.from_matrix(rows.T).as_quat(canonical=True)
    return Box((low + high) / 2 @ rows, np.maximum(high - low, MIN_EDGE_M), np.array([w, x, y, z]))


def aabb(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner [3] of the box along the map's axes, trimmed like `upright_box`.

    Raises:
        ValueError: no points.
    """
    low, high = _trimmed_range(_checked(points))
    grow = np.maximum(MIN_EDGE_M - (high - low), 0) / 2
    return low - grow, high + grow


def without_strays(points: np.ndarray) -> np.ndarray:
    """The points [n, 3] of all clusters that hold at least `MIN_CLUSTER_SHARE` of them; never empty for n >= 1."""
    points = _checked(points)
    origin = points.min(0)
    cell = max(CLUSTER_CELL_M, float(np.ptp(points, axis=0).max()) / (MAX_CELLS_PER_AXIS - 1))
    cells = ((points - origin) / cell).astype(np.int64)
    occupied = np.zeros(cells.max(0) + 1, bool)
    occupied[tuple(cells.T)] = True
    clusters, _ = ndimage.label(occupied, np.ones((3, 3, 3)))
    own = clusters[tuple(cells.T)]
    sizes = np.bincount(own)
    keep = sizes >= min(MIN_CLUSTER_SHARE * len(points), sizes.max())
    return points[keep[own]]


def _grouped(points: np.ndarray, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    order = np.argsort(ids, kind="stable")
    order = order[ids[order] > 0]
    if len(order) == 0:
        return
    unique, starts = np.unique(ids[order], return_index=True)
    for instance_id, rows in zip(unique.tolist(), np.split(order, starts[1:]), strict=True):
        yield instance_id, points[rows]


def upright_axes(up: np.ndarray) -> np.ndarray:
    """A right-handed frame as rows [3, 3]: two horizontal axes, the first nearest to a map axis, and up."""
    up = np.asarray(up, np.float64)
    length = np.linalg.norm(up)
    if up.shape != (3,) or not np.isfinite(length) or length == 0:
        raise ValueError(f"up: expected a direction of three finite numbers, got {up.tolist()}")
    z = up / length
    x = np.eye(3)[np.argmin(np.abs(z))]
    x = x - (x @ z) * z
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z])


def _footprint_yaw(xy: np.ndarray) -> float:
    """The yaw (rad, 0..pi/2) of the rectangle around the points [n, 2]: small, and with the faces along its edges.

    Minimises log(area) plus the entropies of the two projections, which drop when straight faces line up. Area alone
    cannot tell the two visible faces of a cupboard from a rectangle along their diagonal: both are equal.
    """
    xy = xy[:: -(-len(xy) // MAX_YAW_POINTS)]
    yaws = np.deg2rad(np.arange(0, 90, YAW_STEP_DEG))
    cos, sin = np.cos(yaws), np.sin(yaws)
    cost = np.zeros(len(yaws))
    for side in (np.outer(xy[:, 0], cos) + np.outer(xy[:, 1], sin), np.outer(xy[:, 1], cos) - np.outer(xy[:, 0], sin)):
        low, high = _trimmed_range(side)
        cost += np.log(high - low + MIN_EDGE_M) + _entropies(side)
    return float(yaws[np.argmin(cost)])


def _entropies(values: np.ndarray) -> np.ndarray:
    """Entropy of each column's histogram [n, m] -> [m], smoothed so that the place of the bins matters little."""
    bin_m = max(HISTOGRAM_BIN_M, float(np.ptp(values, axis=0).max()) / MAX_HISTOGRAM_BINS)
    bins = ((values - values.min(0)) / bin_m).astype(np.int64) + 1
    num_bins, num_columns = int(bins.max()) + 2, values.shape[1]  # an empty bin at each end
    flat = (bins + np.arange(num_columns) * num_bins).ravel()
    shares = np.bincount(flat, minlength=num_columns * num_bins).reshape(num_columns, num_bins) / len(values)
    shares = ndimage.convolve1d(shares, [0.25, 0.5, 0.25], axis=1)
    return -(shares * np.log(np.maximum(shares, 1e-12))).sum(1)


def _trimmed_range(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles of each column; of fewer than 50 points none is trimmed (each may be a corner)."""
    low, high = np.percentile(values, [TRIM_PERCENT, 100 - TRIM_PERCENT], axis=0, method="nearest")
    return low, high


def _checked(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        raise ValueError(f"points: expected [n, 3] with n >= 1, got {points.shape}")
    return points
