"""Instance queries: objects as 3D Gaussians with an embedding, their class evidence, and their stable public ids."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panoptic_mapper import ops
from panoptic_mapper.attention import squared_distances
from panoptic_mapper.config import Config, param
from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.gaussian_map import INSTANCE_DIM
from panoptic_mapper.geometry import quaternions
from panoptic_mapper.parameter_table import ParameterTable, Rows
from panoptic_mapper.transfers import to_device, to_host

logger = logging.getLogger(__name__)

MIN_STD_M = 0.03  # a query is never thinner than this, whatever its points say
REACH_M = 0.15  # an unseen side of an object reaches about this far beyond the seen ones (standard deviation)
CHI2_3_99 = 11.345  # squared Mahalanobis radius that holds 99 % of a 3D Gaussian
NEAR_DISTANCE = 2.0  # Mahalanobis radius of an object's place
BULK = 0.05  # quantile of a new query's points, on both sides of which all but a few lie
T_DEGREES = 5.0  # degrees of freedom of the Student t with which a query's Gaussian is fitted, against outliers
PART_PRIOR = 1.5  # votes for one object with which a mask on an object becomes a query of its own
SEPARATE = -1.0  # votes at which it is shown as one: a keyframe more has shown both, than have shown them as one
CLASS_DOUBT = 2.0  # evidence at which the class of an object is half sure
MIN_AGREEMENT = 0.25  # objects of different classes need up to four times the votes to merge
RECALL_PRIOR = 2  # keyframes in which a new query is held to have been seen without fail
COUNTS = ("observations", "first_seen_ns", "last_seen_ns", "contradictions", "visible", "parent_id")


@dataclass(frozen=True)
class InstanceConfig(Config):
    """Life of the instance queries."""

    lr_embeddings: float = param(5e-3, "Adam step of query embeddings", ge=0)
    lr_centers: float = param(1e-3, "Adam step of query centres, m", ge=0)
    lr_shapes: float = param(1e-3, "Adam step of query rotations and log scales", ge=0)
    spread: float = param(1.5, "standard deviations of a query over those of its points", gt=0)
    min_mask_px: int = param(30, "masks with fewer pixels (of 320x240) with depth open no query", ge=1)
    merge_evidence: float = param(2.0, "votes for one object (see association.apart_weight) that merge queries", gt=0)
    min_gaussians: int = param(8, "a query that holds fewer Gaussians is not yet an object", ge=1)
    max_queries: int = param(0, "while so many queries live no new ones are opened, 0 = no bound", ge=0)
    retire_after: int = param(3, "a query is retired when it was contradicted so much more often than observed", ge=1)


@dataclass(frozen=True)
class Observations:
    """The masks of all keyframes and the objects that they show."""

    ids: Tensor  # [M] int64 public id, 0 = none
    classes: Tensor  # [M] int64 class index
    weights: Tensor  # [M] confidence, 0..1
    frames: Tensor  # [M] int64 number of the keyframe
    stamps_ns: Tensor  # [F] int64 time of each keyframe


@dataclass(frozen=True)
class Sighting:
    """What the masks of one keyframe say about the queries in its view."""

    ids: Tensor  # [n] int64 public ids
    votes: Tensor  # [n, n] symmetric evidence that two queries are one object (+) or two (-)
    contradicted: Tensor  # [n] int64 0 or 1: other labels are where it should be seen
    visible: Tensor  # [n] int64 0 or 1: it should be seen, whatever the labels say


class InstanceQueries:
    """Q queries in rows; outside this class an object is known by its public id, which is never reused."""

    def __init__(self, config: InstanceConfig, num_classes: int, generator: torch.Generator, device: torch.device):
        self.config = config
        self._generator = generator
        widths = {"centers": 3, "quats": 4, "log_scales": 3, "embeddings": INSTANCE_DIM}
        rates = {
            "centers": config.lr_centers,
            "quats": config.lr_shapes,
            "log_scales": config.lr_shapes,
            "embeddings": config.lr_embeddings,
        }
        self.table = ParameterTable(widths, rates, device)
        self.ids = torch.zeros(0, dtype=torch.int64)  # [Q] public ids, ascending
        self._device_ids = (self.ids, to_device(self.ids, device))  # a copy is made when others take their place
        self.evidence = torch.zeros(0, num_classes)  # [Q, C] confidence-weighted votes of its masks
        self.counts = torch.zeros(0, len(COUNTS), dtype=torch.int64)  # [Q, ...] see COUNTS
        self.votes = torch.zeros(0, 0)  # [Q, Q] symmetric evidence that two queries are one object (+) or two (-)
        self.revision = 0  # counts the changes of which queries there are
        self.next_id = 1
        self._was_full = False
        self._counted: tuple[Any, ...] = (None, None, None)  # what was counted last, for which queries, and where
        self.merged_into: dict[int, int] = {}  # id that is gone -> id that took its place; 0 = retired

    def __len__(self) -> int:
        return len(self.table)

    @property
    def ids_on_device(self) -> Tensor:  # [Q] `ids` where the map is
        if self._device_ids[0] is not self.ids:
            self._device_ids = (self.ids, to_device(self.ids, self.table.device))
        return self._device_ids[1]

    @property
    def class_indices(self) -> Tensor:  # [Q] int64, class with the most evidence
        return self.evidence.argmax(1)

    @property
    def scores(self) -> Tensor:  # [Q] share of the evidence that agrees
        return self.evidence.amax(1) / self.evidence.sum(1).clamp_min(1e-6)

    @property
    def is_confirmed(self) -> Tensor:  # [Q] bool, seen more often than missed where it should have been seen
        return self.column("observations") > self.column("contradictions")

    @property
    def recall(self) -> Tensor:  # [Q] share of the keyframes that should see a query in which it has a mask, 0..1
        observations, visible = self.column("observations"), self.column("visible")
        return ((observations + RECALL_PRIOR) / (visible + RECALL_PRIOR)).clamp_max(1)

    def shown_rows(self) -> Tensor:
        """The row [Q] of the object as which each query is shown: its parent's while it may well be a part of that."""
        rows = torch.arange(len(self))
        for row in self.column("parent_id").nonzero()[:, 0].tolist():
            parent = self.resolve(int(self.column("parent_id")[row]))
            if parent:
                parent_row = int(self.rows_of(torch.tensor(parent)))
                if parent_row != row and self.votes[row, parent_row] > SEPARATE:
                    rows[row] = rows[parent_row]
        return rows

    def class_probabilities(self, rows: Tensor) -> Tensor:
        """Share of the evidence [n, C] for each class of the queries `rows`."""
        evidence = self.evidence[rows]
        return evidence / evidence.sum(1, keepdim=True).clamp_min(1e-6)

    def class_agreement(self) -> Tensor:
        """Probability [Q, Q] that two queries have the same class; with little evidence any class may be the same."""
        probabilities = self.class_probabilities(torch.arange(len(self)))
        total = self.evidence.sum(1)
        sure = total / (total + CLASS_DOUBT)
        both_sure = sure[:, None] * sure
        return (both_sure * (probabilities @ probabilities.T) + 1 - both_sure).clamp_min(MIN_AGREEMENT)

    def column(self, name: str) -> Tensor:
        """A column of `COUNTS` [Q], writable."""
        return self.counts[:, COUNTS.index(name)]

    def resolve(self, id: int) -> int:
        """The living id that an id stands for after merges, or 0 where it is retired or was never given."""
        while id in self.merged_into:
            id = self.merged_into[id]
        return id

    def rows_of(self, ids: Tensor) -> Tensor:
        """Rows of living public ids (any shape, int64); -1 where an id is 0 or gone."""
        return rows_of(ids, self.ids if ids.device == self.ids.device else self.ids_on_device)

    def are_living(self, ids: Tensor) -> Tensor:
        """Which public ids (any shape, int) are those of queries, bool, where `ids` are."""
        living = torch.zeros(self.next_id + 1, dtype=torch.bool)  # the last one stands for all that were never given
        living[self.ids] = True
        return to_device(living, ids.device)[ids.clamp_max(self.next_id).long()]

    def in_view(self, T_camera_map: Tensor, camera: PinholeCamera, means: Tensor, visible: Tensor) -> Tensor:
        """Rows [Q_view] of the queries whose 99 % ellipsoid holds a visible Gaussian, and meets the frustum.

        Args:
            T_camera_map: [4, 4] map to camera frame.
            camera: of the view.
            means: [M, 3] centres of Gaussians, m, map frame.
            visible: [V] int64 rows of those that the camera sees.
        """
        ops.load()
        holding = torch.ops.panoptic_mapper.holding_mask(
            means.detach(),
            visible,
            self.table["centers"],
            self.table["quats"],
            self.table["log_scales"],
            T_camera_map,
            *camera.numbers,
            CHI2_3_99,
        )
        return holding.nonzero()[:, 0]

    def grow(self, num_classes: int) -> None:
        """Makes room for evidence of classes that are new; there is none yet."""
        self.evidence = torch.nn.functional.pad(self.evidence, (0, num_classes - self.evidence.shape[1]))

    def is_full(self, num_more: int = 0) -> bool:
        """Whether no query may be opened beside `num_more` new ones; the first time it is, the log says so."""
        if not 0 < self.config.max_queries <= len(self) + num_more:
            return False
        if not self._was_full:
            logger.warning("max_queries=%d is reached: no further objects are opened", self.config.max_queries)
        self._was_full = True
        return True

    def add(self, points: Tensor, stamp_ns: int, parent_id: int = 0) -> int:
        """Opens one query, see `add_all`; returns its new id."""
        return self.add_all([points], stamp_ns, [parent_id])[0]

    def add_all(self, points: Sequence[Tensor], stamp_ns: int, parent_ids: Sequence[int]) -> list[int]:
        """Opens a query at the robust centre and covariance of each of some sets of points; returns the new ids.

        Args:
            points: [n, 3] m, map frame, of each; best in host memory, where they are sorted.
            stamp_ns: time of the image that shows them.
            parent_ids: for each the object that the points were held to be part of; 0 = none.
        """
        num = len(points)
        if num == 0:
            return []
        centers, covariances = zip(*(robust_gaussian(p.cpu()) for p in points), strict=True)
        quats, log_scales = self._shape(torch.stack(covariances))
        embeddings = torch.randn(num, INSTANCE_DIM, generator=self._generator)
        self.table.append(centers=torch.stack(centers), quats=quats, log_scales=log_scales, embeddings=embeddings)
        new_ids = list(range(self.next_id, self.next_id + num))
        self.ids = torch.cat([self.ids, torch.tensor(new_ids)])
        self.evidence = torch.nn.functional.pad(self.evidence, (0, 0, 0, num))
        new_counts = [[0, stamp_ns, stamp_ns, 0, 0, parent_id] for parent_id in parent_ids]
        self.counts = torch.cat([self.counts, torch.tensor(new_counts)])
        self.votes = torch.nn.functional.pad(self.votes, (0, num, 0, num))
        for row, parent_id in enumerate(parent_ids, start=len(self) - num):
            if parent_id:
                parent = int(self.rows_of(torch.tensor(parent_id)))
                self.votes[parent, row] = self.votes[row, parent] = PART_PRIOR
        self.next_id += num
        self.revision += 1
        return new_ids

    def count(self, observations: Observations) -> None:
        """Makes the evidence and the numbers and times of observations those of all masks with their present ids."""
        asked = (observations, self.ids, self.evidence)
        if all(now is before for now, before in zip(asked, self._counted, strict=True)):
            return
        self._counted = asked
        rows = self.rows_of(observations.ids).numpy()
        own = np.flatnonzero(rows >= 0)
        rows, frames = rows[own], observations.frames.numpy()[own]
        evidence, num_frames = self.evidence.zero_().numpy(), max(len(observations.stamps_ns), 1)
        np.add.at(evidence, (rows, observations.classes.numpy()[own]), observations.weights.numpy()[own])
        seen_in = np.unique(rows * num_frames + frames) // num_frames
        stamps = observations.stamps_ns.numpy()[frames]
        counts = {name: self.column(name).numpy() for name in ("observations", "first_seen_ns", "last_seen_ns")}
        counts["observations"][:] = np.bincount(seen_in, minlength=len(self))
        np.minimum.at(counts["first_seen_ns"], rows, stamps)
        np.maximum.at(counts["last_seen_ns"], rows, stamps)

    def replace_sighting(self, old: Sighting | None, new: Sighting) -> None:
        """Counts what a keyframe says now in place of what it said before."""
        for sighting, sign in ((old, -1), (new, 1)):
            if sighting is None:
                continue
            rows = self.rows_of(sighting.ids)
            living = rows >= 0
            rows = rows[living]
            self.votes[rows[:, None], rows] += sign * sighting.votes[living][:, living]
            self.column("contradictions")[rows] += sign * sighting.contradicted[living]
            self.column("visible")[rows] += sign * sighting.visible[living]

    def geometry_on_host(self) -> tuple[Tensor, Tensor, Tensor]:
        """Copies of all centres [Q, 3], quaternions [Q, 4] and log scales [Q, 3]; a GPU is waited for once."""
        centers, quats, log_scales = to_host(*(self.table[name] for name in ("centers", "quats", "log_scales")))
        return centers, quats, log_scales

    def share_near(self, points: Tensor, rows: Tensor, geometry: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Share [n] of points [P, 3] (m, map frame) at the place of each query `rows`: within its own extent.

        A side of an object that was never seen is near the sides that were, though not among their points: the
        query's Gaussian is widened by REACH_M in all directions. All in host memory, `geometry` of `geometry_on_host`.
        """
        centers, quats, log_scales = (column[rows] for column in geometry)
        std = log_scales.exp() / self.config.spread
        widened = (std.square() + REACH_M**2).sqrt().log()
        distances = squared_distances(points, centers, whitening_matrices(quats, widened))
        return (distances < NEAR_DISTANCE**2).float().mean(0)

    def refit(self, means: Tensor, weights: Tensor, rows: Tensor) -> None:
        """Moves each query towards the Gaussians that carry its label, by one step of a Student-t fit.

        Args:
            means: [N, 3] centres of the Gaussians, m.
            weights: [N] how much each counts, >= 0.
            rows: [N] row of the query that each belongs to, -1 = none.
        """
        if len(self) == 0:
            return
        centers, log_scales = self.table["centers"], self.table["log_scales"]
        whitenings = whitening_matrices(self.table["quats"], log_scales - math.log(self.config.spread))
        geometry = torch.cat([centers, whitenings.flatten(1)], dim=1)  # [Q, 3 + 9]
        member = (rows >= 0).nonzero()[:, 0]
        rows = rows[member]
        own_centers, own_whitenings = geometry[rows].split([3, 9], dim=1)
        offsets = means[member] - own_centers
        whitened = own_whitenings.unflatten(1, (3, 3)) @ offsets[:, :, None]
        weights = weights[member, None] * (T_DEGREES + 3) / (T_DEGREES + whitened.square().sum(1))
        outer = offsets[:, :, None] * offsets[:, None, :]
        moments = weights * torch.cat([torch.ones_like(weights), offsets, outer.flatten(1)], dim=1)
        sums = moments.new_zeros(len(self), moments.shape[1]).index_add_(0, rows, moments)
        sums, centers = to_host(sums, centers)  # where eigenvectors are computed
        fitted = (sums[:, 0] > self.config.min_gaussians).nonzero()[:, 0]
        if len(fitted) == 0:
            return
        mean, second = (sums[fitted, 1:] / sums[fitted, :1]).split([3, 9], dim=1)
        quats, log_scales = self._shape(second.unflatten(1, (3, 3)) - mean[:, :, None] * mean[:, None, :])
        centers, fitted = centers[fitted] + mean, to_device(fitted, means.device)
        self.table.set_rows(fitted, centers=centers, quats=quats, log_scales=log_scales)

    def merge(self, keep: int, gone: int) -> None:
        """Makes the query of row `gone` part of that of row `keep`; drop the row with `remove` afterwards."""
        self.merged_into[int(self.ids[gone])] = int(self.ids[keep])
        for name, pick in (("first_seen_ns", min), ("last_seen_ns", max)):
            self.column(name)[keep] = pick(int(self.column(name)[keep]), int(self.column(name)[gone]))

    def remove(self, rows: list[int]) -> None:
        """Drops rows; an id that was not merged counts as retired."""
        keep = torch.ones(len(self), dtype=torch.bool)
        keep[rows] = False
        for id in self.ids[~keep].tolist():
            self.merged_into.setdefault(id, 0)
        self.table.keep(to_device(keep.nonzero()[:, 0], self.table.device))
        self.ids, self.evidence, self.counts = self.ids[keep], self.evidence[keep], self.counts[keep]
        self.votes = self.votes[keep][:, keep]
        self.revision += 1

    def _shape(self, covariances: Tensor) -> tuple[Tensor, Tensor]:
        """Quaternions [n, 4] and log scales [n, 3] of covariances [n, 3, 3], widened by `spread`."""
        variances, axes = torch.linalg.eigh(covariances.cpu().double())
        signs = torch.from_numpy(np.sign(np.linalg.det(axes.numpy())))
        axes = axes * signs[:, None, None]  # a rotation, not a reflection
        stds = self.config.spread * variances.clamp_min(0).sqrt()
        return quaternions(axes).float(), stds.clamp_min(MIN_STD_M).log().float()


def rows_of(ids: Tensor, table_ids: Tensor) -> Tensor:
    """Rows (shape of `ids`, int64) of ids in `table_ids` [Q], which ascend; -1 where an id is not there."""
    if len(table_ids) == 0:
        return torch.full_like(ids, -1)
    position = torch.searchsorted(table_ids, ids.contiguous()).clamp_max(len(table_ids) - 1)
    return torch.where(table_ids[position] == ids, position, -1)


def robust_gaussian(points: Tensor) -> tuple[Tensor, Tensor]:
    """Centre [3] and covariance [3, 3] of points [n, 3] in host memory without those far beyond their bulk.

    The bulk is what lies between the 5 % quantiles of each axis, and as much again on both sides together. An object
    in two halves or around a corner is held whole, which the median and its deviations would take for outliers; the
    background behind the mask's border is not.
    """
    values = points.numpy()
    ordered = np.sort(values, axis=0)
    place = np.array([BULK, 1 - BULK]) * (len(values) - 1)  # between the two that are nearest
    below = place.astype(np.int64)
    above = np.minimum(below + 1, len(values) - 1)
    quantiles = ordered[below] + (place - below)[:, None] * (ordered[above] - ordered[below])
    low, high = quantiles.astype(np.float32)
    margin = 0.5 * (high - low) + np.float32(MIN_STD_M)
    inliers = points[torch.from_numpy(((values > low - margin) & (values < high + margin)).all(1))]
    center = inliers.mean(0)
    offsets = inliers - center
    return center, offsets.T @ offsets / len(inliers)


def whitening_matrices(quats: Tensor, log_scales: Tensor) -> Tensor:
    """A = S^-1 R^T [Q, 3, 3] of Gaussians with covariance R S S^T R^T; |A x|^2 is the squared Mahalanobis norm."""
    ops.load()
    return torch.ops.panoptic_mapper.whitening_matrices(quats, log_scales)


def gathered_geometry(rows: Rows) -> tuple[Tensor, Tensor]:
    """Centres [Q, 3] and whitening matrices [Q, 3, 3] of gathered queries, differentiable."""
    return rows["centers"], whitening_matrices(rows["quats"], rows["log_scales"])
