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
    return ObjectExtractor().extract(points, instance_ids, up)


class ObjectExtractor:
    """Does `extract_objects` again and again, anew only for objects of which a point has moved, come or gone.

    A camera moves few of a building's objects. What is known is replaced as a whole, so that two threads may ask: at
    worst both compute the same.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[np.ndarray, np.ndarray, ObjectGeometry]] = {}  # id -> points, up, what came out

    def extract(self, points: np.ndarray, instance_ids: np.ndarray, up: np.ndarray) -> dict[int, ObjectGeometry]:
        """See `extract_objects`."""
        up, before, now = np.array(up, np.float64), self._known, {}
        for instance_id, own in _grouped(np.asarray(points), np.asarray(instance_ids)):
            known = before.get(instance_id)
            if known is None or not (np.array_equal(known[0], own) and np.array_equal(known[1], up)):
                known = (own.copy(), up, _geometry(own.astype(np.float64), up))
            now[instance_id] = known
        self._known = now
        return {instance_id: geometry for instance_id, (_, _, geometry) in now.items()}


def _geometry(points: np.ndarray, up: np.ndarray) -> ObjectGeometry:
    kept = without_strays(points)
    aabb_min, aabb_max = aabb(kept)
    return ObjectGeometry(kept.mean(0), upright_box(kept, up), aabb_min, aabb_max, len(points))


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
    axes = np.ascontiguousarray(points.T)  # [3, n]
    origin, end = axes.min(1), axes.max(1)
    cell = max(CLUSTER_CELL_M, float((end - origin).max()) / (MAX_CELLS_PER_AXIS - 1))
    cells = ((axes - origin[:, None]) / cell).astype(np.int64)
    shape = tuple(cells.max(1) + 1)
    flat = (cells[0] * shape[1] + cells[1]) * shape[2] + cells[2]
    occupied = np.zeros(shape, bool)
    occupied.ravel()[flat] = True
    clusters, _ = ndimage.label(occupied, np.ones((3, 3, 3)))
    own = clusters.ravel()[flat]
    sizes = np.bincount(own)
    keep = sizes >= min(MIN_CLUSTER_SHARE * len(points), sizes.max())
    return points[keep[own]]


def _grouped(points: np.ndarray, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The points [n, 3] of each id above 0, ids ascending, points in their order."""
    rows = np.flatnonzero(ids > 0)
    if len(rows) == 0:
        return
    own = ids[rows]
    if own.max() < 1 << 16:
        own = own.astype(np.uint16)  # short numbers are sorted by their digits, 10 times as fast
    order = np.argsort(own, kind="stable")
    own, grouped = own[order], points[rows[order]]
    starts = np.flatnonzero(np.diff(own)) + 1
    yield from zip(own[np.r_[0, starts]].tolist(), np.split(grouped, starts), strict=True)


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
    x, y = np.ascontiguousarray(xy[:: -(-len(xy) // MAX_YAW_POINTS)].T)
    yaws = np.deg2rad(np.arange(0, 90, YAW_STEP_DEG))
    cos, sin = np.cos(yaws)[:, None], np.sin(yaws)[:, None]
    cost = np.zeros(len(yaws))
    for side in (cos * x + sin * y, cos * y - sin * x):  # [yaws, n]
        ordered = np.sort(side, axis=1)
        low, high = _trimmed(ordered)
        cost += np.log(high - low + MIN_EDGE_M) + _entropies(side, ordered[:, 0], ordered[:, -1])
    return float(yaws[np.argmin(cost)])


def _entropies(values: np.ndarray, lowest: np.ndarray, highest: np.ndarray) -> np.ndarray:
    """Entropy of each row's histogram [m, n] -> [m], smoothed so that the place of the bins matters little.

    Args:
        lowest: [m] smallest value of each row.
        highest: [m] largest value of each row.
    """
    bin_m = max(HISTOGRAM_BIN_M, float((highest - lowest).max()) / MAX_HISTOGRAM_BINS)
    bins = ((values - lowest[:, None]) / bin_m).astype(np.int64) + 1
    num_bins = int(bins.max()) + 2  # an empty bin at each end
    bins += np.arange(len(values))[:, None] * num_bins
    counts = np.bincount(bins.ravel(), minlength=len(values) * num_bins).reshape(len(values), num_bins)
    shares = ndimage.convolve1d(counts / values.shape[1], [0.25, 0.5, 0.25], axis=1)
    return -(shares * np.log(np.maximum(shares, 1e-12))).sum(1)


def _trimmed_range(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end [3] of points [n, 3] along each axis, trimmed."""
    return _trimmed(np.sort(np.ascontiguousarray(points.T), axis=1))


def _trimmed(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles of rows [m, n] that ascend; of fewer than 50 points none is trimmed (each may be a corner)."""
    last = ordered.shape[1] - 1
    low, high = (round(last * (percent / 100)) for percent in (TRIM_PERCENT, 100 - TRIM_PERCENT))
    return ordered[:, low], ordered[:, high]


def _checked(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        raise ValueError(f"points: expected [n, 3] with n >= 1, got {points.shape}")
    return points
