"""Boxes of objects whose points are on a GPU: the same as `objects` computes, for many objects in a few operations.

An object at a time in numpy would hold the interpreter for milliseconds each, and with it the thread that maps.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from panoptic_mapper.objects import (
    CLUSTER_CELL_M,
    HISTOGRAM_BIN_M,
    MAX_CELLS_PER_AXIS,
    MAX_HISTOGRAM_BINS,
    MAX_YAW_POINTS,
    MIN_CLUSTER_SHARE,
    MIN_EDGE_M,
    TRIM_PERCENT,
    YAW_STEP_DEG,
    ObjectGeometry,
    upright_axes,
)
from panoptic_mapper.snapshot import Box
from panoptic_mapper.transfers import to_device, to_host

BATCH = 32  # objects at a time: bounds the memory, about 10 MB each
_SPAN = MAX_CELLS_PER_AXIS + 2  # cells per axis with an empty one at each end, so that no neighbour wraps around
_BINS = MAX_HISTOGRAM_BINS + 3  # as many as a histogram can have, with an empty one at each end
_NEIGHBOURS = [(x * _SPAN + y) * _SPAN + z for x, y, z in itertools.product((-1, 0, 1), repeat=3)]
_MIXERS = (-7046029254386353131, -4658895280553007687, -7723592293110705685, 6364136223846793005)  # odd, many bits


class BatchExtractor:
    """Does `objects.extract_objects` again and again on a device, anew only for objects whose points have changed.

    What is known is replaced as a whole, so that two threads may ask: at worst both compute the same.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[tuple[int, ...], ObjectGeometry]] = {}  # id -> fingerprint, what came out

    def extract(
        self, points: Tensor, rows: Tensor, ids: list[int], fingerprints: Tensor, up: np.ndarray
    ) -> dict[int, ObjectGeometry]:
        """The geometry of every object that has a point.

        Args:
            points: [N, 3] float32 map frame, m.
            rows: [N] int64 row of each point's object, -1 = none.
            ids: of the objects, by row.
            fingerprints: [Q, 2] of `fingerprints`, on the host.
            up: [3] map frame.
        """
        before, now, changed = self._known, {}, []
        direction = tuple(np.asarray(up, np.float64).view(np.int64).tolist())
        marks = [(count, mix, *direction) for count, mix in fingerprints.tolist()]
        for row, (id, mark) in enumerate(zip(ids, marks, strict=True)):
            known = before.get(id)
            if known is not None and known[0] == mark:
                now[id] = known
            elif mark[0] > 0:
                changed.append(row)
        if changed:
            sizes = [marks[row][0] for row in changed]
            for row, geometry in zip(changed, _geometries(points, rows, changed, sizes, len(ids), up), strict=True):
                now[ids[row]] = (marks[row], geometry)
        self._known = now
        return {id: geometry for id, (_, geometry) in now.items()}


def fingerprints(points: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """How many points [N, 3] each row has, and a number made of their coordinates in any order: [num_rows, 2] int64.

    Args:
        rows: [N] int64 row of each point, -1 = none.
    """
    bits = points.contiguous().view(torch.int32).to(torch.int64)
    mixed = bits[:, 0] * _MIXERS[0] + bits[:, 1] * _MIXERS[1] + bits[:, 2] * _MIXERS[2]
    mixed ^= mixed >> 29
    mixed *= _MIXERS[3]
    mixed ^= mixed >> 32
    counted = torch.stack([torch.ones_like(mixed), mixed], dim=1)
    return counted.new_zeros(num_rows + 1, 2).index_add_(0, rows + 1, counted)[1:]


def _geometries(
    points: Tensor, rows: Tensor, chosen: list[int], sizes: list[int], num_rows: int, up: np.ndarray
) -> list[ObjectGeometry]:
    """Geometry of the objects of the rows `chosen` [K], which have `sizes` points; the rest as of `extract`."""
    numbers = torch.full((num_rows + 1,), -1)
    numbers[torch.tensor(chosen) + 1] = torch.arange(len(chosen))
    own = to_device(numbers, points.device)[rows + 1]  # [N] number among the chosen
    member = (own >= 0).nonzero()[:, 0]
    own, order = own[member].sort(stable=True)
    points = points[member[order]]
    geometries, end = [], 0
    for first in range(0, len(chosen), BATCH):
        begin, end = end, end + sum(sizes[first : first + BATCH])
        geometries += _batch(points[begin:end], own[begin:end] - first, len(sizes[first : first + BATCH]), up)
    return geometries


def _batch(points: Tensor, own: Tensor, num: int, up: np.ndarray) -> list[ObjectGeometry]:
    """Geometry of objects 0 to `num` - 1, `own` [n] ascends and says whose each point [n, 3] is."""
    axes = upright_axes(up)
    low, _ = _extremes(points, own, num)
    local = points - low[own]  # short numbers: nothing is lost in a large building
    total = _counts(own, num)
    kept = _without_strays(local, own, num, total).nonzero()[:, 0]
    local, own = local[kept], own[kept]
    counts = _counts(own, num)
    horizontal = local @ to_device(axes.T.astype(np.float32), points.device)
    yaw = _footprint_yaws(horizontal[:, :2], own, counts)  # [K]
    cos, sin = yaw.cos()[own], yaw.sin()[own]
    x, y, z = horizontal.unbind(1)
    sides = torch.stack([*local.unbind(1), cos * x + sin * y, cos * y - sin * x, z])  # [6, n]
    ends = _ends(sides, own, counts)[:2]
    means = local.new_zeros(num, 3, dtype=torch.float64).index_add_(0, own, local.double()) / counts[:, None]
    on_host = [t.double().numpy() for t in to_host(low, total, yaw, means, ends)]
    return _assembled(axes, *on_host)


def _assembled(
    axes: np.ndarray, origins: np.ndarray, totals: np.ndarray, yaws: np.ndarray, means: np.ndarray, ends: np.ndarray
) -> list[ObjectGeometry]:
    """Objects [K] from their yaw, their mean and the ends [2, 6, K] of their points along the map's and own axes."""
    low, high = ends.transpose(0, 2, 1)  # [K, 6]
    cos, sin, zero, one = np.cos(yaws), np.sin(yaws), np.zeros_like(yaws), np.ones_like(yaws)
    turns = np.stack([cos, sin, zero, -sin, cos, zero, zero, zero, one], axis=1).reshape(-1, 3, 3)
    own_low, own_high = low[:, 3:].copy(), high[:, 3:].copy()
    wide = own_high[:, 1] - own_low[:, 1] > own_high[:, 0] - own_low[:, 0]
    quarter_turn = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])  # the new x is y, the new y is -x
    turns[wide] = quarter_turn @ turns[wide]
    own_low[wide], own_high[wide] = (
        np.stack([own_low[wide, 1], -own_high[wide, 0], own_low[wide, 2]], axis=1),
        np.stack([own_high[wide, 1], -own_low[wide, 0], own_high[wide, 2]], axis=1),
    )
    frames = turns @ axes  # [K, 3, 3] rows: the box's axes in the map
    quaternions = Rotation.from_matrix(frames.transpose(0, 2, 1)).as_quat(canonical=True)[:, [3, 0, 1, 2]]
    centers = origins + np.einsum("ki,kij->kj", (own_low + own_high) / 2, frames)
    sizes = np.maximum(own_high - own_low, MIN_EDGE_M)
    grow = np.maximum(MIN_EDGE_M - (high - low)[:, :3], 0) / 2
    corners = low[:, :3] - grow + origins, high[:, :3] + grow + origins
    boxes = map(Box, centers, sizes, quaternions)
    return list(map(ObjectGeometry, means + origins, boxes, *corners, totals.astype(int).tolist()))


def _without_strays(local: Tensor, own: Tensor, num: int, total: Tensor) -> Tensor:
    """Which points [n, 3] are in a cluster of enough of their object's points: [n] bool (`objects.without_strays`)."""
    low, high = _extremes(local, own, num)
    cell_m = ((high - low).amax(1) / (MAX_CELLS_PER_AXIS - 1)).clamp_min(CLUSTER_CELL_M)
    x, y, z = (((local - low[own]) / cell_m[own, None]).long() + 1).unbind(1)
    cells, cell_of_point, sizes = (((own * _SPAN + x) * _SPAN + y) * _SPAN + z).unique(
        return_inverse=True, return_counts=True
    )
    steps = to_device(torch.tensor(_NEIGHBOURS), cells.device)
    near = cells + steps[:, None]  # [27, C]
    places = torch.searchsorted(cells, near).clamp_max_(len(cells) - 1)
    labels = torch.arange(len(cells), device=cells.device)
    places = torch.where(cells[places] == near, places, labels)
    while True:  # each takes the least number around it, and then that one's
        least = labels[places].amin(0)
        least = least[least]
        if torch.equal(least, labels):
            break
        labels = least
    cluster_sizes = torch.zeros_like(sizes).index_add_(0, labels, sizes)
    owner = cells // _SPAN**3
    largest = torch.zeros_like(total).scatter_reduce_(0, owner, cluster_sizes, "amax")
    least_size = torch.minimum(MIN_CLUSTER_SHARE * total.double(), largest.double())
    return (cluster_sizes[labels] >= least_size[owner])[cell_of_point]


def _footprint_yaws(xy: Tensor, own: Tensor, counts: Tensor) -> Tensor:
    """The yaw [K] (rad) of the rectangle around the points [n, 2] of each object (`objects._footprint_yaw`)."""
    first = counts.cumsum(0) - counts
    stride = (counts + MAX_YAW_POINTS - 1) // MAX_YAW_POINTS
    place = torch.arange(len(own), device=own.device) - first[own]
    sample = (place % stride[own] == 0).nonzero()[:, 0]
    (x, y), own = xy[sample].unbind(1), own[sample]
    counts = _counts(own, len(counts))
    yaws = torch.deg2rad(torch.arange(0, 90, YAW_STEP_DEG, device=xy.device))
    cos, sin = yaws.cos()[:, None], yaws.sin()[:, None]
    sides = torch.cat([cos * x + sin * y, cos * y - sin * x])  # [2 * yaws, s]
    trimmed_low, trimmed_high, lowest, highest = _ends(sides, own, counts)  # [2 * yaws, K]
    cost = (trimmed_high - trimmed_low + MIN_EDGE_M).log()
    cost += _entropies(sides, own, counts, lowest, highest)
    return yaws[cost.view(2, len(yaws), -1).sum(0).argmin(0)]


def _entropies(sides: Tensor, own: Tensor, counts: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """Entropy [A, K] of the smoothed histogram of each object's values on each side [A, s] (`objects._entropies`).

    Args:
        lowest: [A, K] smallest value.
        highest: [A, K] largest value.
    """
    num_sides, num = lowest.shape
    widest = (highest - lowest).view(2, -1, num).amax(1, keepdim=True)  # the bins of all yaws of a side are alike
    bin_m = (widest / MAX_HISTOGRAM_BINS).clamp_min(HISTOGRAM_BIN_M).expand(2, num_sides // 2, num).reshape(-1, num)
    bins = ((sides - lowest[:, own]) / bin_m[:, own]).long() + 1
    bins += own * _BINS
    histogram = sides.new_zeros(num_sides, num * _BINS).scatter_add_(1, bins, torch.ones_like(sides))
    shares = histogram.view(num_sides, num, _BINS) / counts[:, None]
    smooth = 0.5 * shares
    smooth[..., 1:] += 0.25 * shares[..., :-1]
    smooth[..., :-1] += 0.25 * shares[..., 1:]
    return torch.special.entr(smooth).sum(-1)


def _ends(values: Tensor, own: Tensor, counts: Tensor) -> Tensor:
    """Trimmed lower, trimmed upper, lowest and highest of the values [A, n] of each object: [4, A, K]."""
    num_sides, last = len(values), counts - 1
    low, high = (torch.round(last.double() * (p / 100)).long() for p in (TRIM_PERCENT, 100 - TRIM_PERCENT))
    ordered = _ordered(values, own, len(counts))
    starts = torch.arange(num_sides, device=own.device)[:, None] * values.shape[1] + (counts.cumsum(0) - counts)
    return ordered[starts + torch.stack([low, high, torch.zeros_like(last), last])[:, None]]


def _ordered(values: Tensor, own: Tensor, num: int) -> Tensor:
    """The values [A, n] of all sides one after the other, of each those of object 0, 1, ... ascending: [A * n].

    One sort does it: of whole numbers whose upper half is the side and the object, and the lower one the value, by
    the bits of a float32, which ascend with it once those of negative numbers are turned around.
    """
    bits = values.contiguous().view(torch.int32)
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    groups = torch.arange(len(values), device=own.device)[:, None] * num + own  # [A, n]
    ordered = ((groups << 32) + bits).view(-1).sort().values
    bits = (ordered - (groups << 32).view(-1)).to(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)


def _extremes(points: Tensor, own: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Lowest and highest coordinates [K, 3] of each object's points [n, 3]."""
    index = own[:, None].expand(-1, 3)
    low = points.new_full((num, 3), torch.inf).scatter_reduce_(0, index, points, "amin")
    return low, points.new_full((num, 3), -torch.inf).scatter_reduce_(0, index, points, "amax")


def _counts(own: Tensor, num: int) -> Tensor:
    """How many points each object has: [K] int64."""
    return own.new_zeros(num).index_add_(0, own, torch.ones_like(own))
