"""Baseline: a sparse voxel grid in which every frame votes for classes and instances, and no Gaussians.

The way of Voxblox++ and PanopticFusion (a mask continues the instance whose voxels it overlaps with, voxels count which
instances were seen there, masks that show two instances as one are evidence to merge them) and of Kimera-Semantics
(each voxel sums the log likelihoods of the classes seen there; with one likelihood for all classes these are counts).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import linear_sum_assignment

from benchmarks.baselines.instance_votes import InstanceVotes
from benchmarks.baselines.voxel_hash import FusedSurface, GrowingRows, VoxelHash
from benchmarks.baselines.warping import filled_from_nearest, map_points, splatted
from panoptic_mapper.config import Config, param
from panoptic_mapper.frame import Frame, PinholeCamera
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.snapshot import PanopticView


@dataclass(frozen=True)
class VoxelConfig(Config):
    """Settings, tuned on the simulated sequences at each level of noise."""

    voxel_size_m: float = param(0.04, "edge of a voxel that collects votes, m", gt=0)
    surface_voxel_m: float = param(0.01, "edge of a voxel of the surface that is shown, m", gt=0)
    min_iou: float = param(0.1, "masks that overlap an instance less begin a new one", ge=0, le=1)
    min_mask_voxels: int = param(10, "smaller masks begin no instance", ge=1)
    covered_share: float = param(0.6, "a mask that covers this share of an instance in view shows it", gt=0, le=1)
    merge_evidence: float = param(5.0, "masks that show two instances as one, until they are merged", gt=0)
    apart_weight: float = param(2.0, "evidence of two masks that show two instances apart", ge=0)
    min_hits: int = param(3, "instances with fewer masks are not shown", ge=1)
    max_depth_m: float = param(15.0, "depth beyond this is not used, m", gt=0)
    splat_scale: float = param(
        0.35, "half the edge of a surface point's square in a view, in distances of points", gt=0
    )


@dataclass(frozen=True)
class _Observation:
    """What a frame says about the voxels that it shows: each takes the segment of most of its pixels."""

    rows: np.ndarray  # [V] int64 row of each voxel
    mask: np.ndarray  # [V] int64 index of the 2D mask, 0 = none
    semantic: np.ndarray  # [V] int64 class index, 0 = nothing said
    confidence: np.ndarray  # [V] float32
    num_masks: int
    mask_image: np.ndarray  # [H, W] int64 index of the 2D mask of each pixel, 0 = none, or the pixel is not used


class VoxelVoting:
    """Fuses the frames given to `integrate`."""

    def __init__(self, label_space: LabelSpace, config: VoxelConfig | None = None) -> None:
        self.label_space = label_space
        self.config = config or VoxelConfig()
        self.grid = VoxelHash(self.config.voxel_size_m)
        self.instances = InstanceVotes()
        self.surface = FusedSurface(self.config.surface_voxel_m)
        self._class_votes = GrowingRows(len(label_space))  # [N, C]
        self._hits = GrowingRows(dtype=np.int64)  # [I] masks by instance id; id 0 is none
        self._hits.grow(1)
        self._final: tuple[np.ndarray, np.ndarray] | None = None  # class and instance of each voxel, when asked for
        self._merge_votes: Counter[tuple[int, int]] = Counter()

    def integrate(self, frame: Frame) -> None:
        """Takes a frame in: surface, association, votes, merging."""
        self._final = None
        observation = self._observe(frame)
        known = self._known_instances(observation.rows)
        compared = (observation.semantic > 0) & (self._evidence(observation.rows) > 0)
        overlap = np.zeros((observation.num_masks + 1, len(self._hits.values)))  # voxels
        np.add.at(overlap, (observation.mask[compared], known[compared]), 1)
        instance_of = self._associate(observation, overlap)
        self._vote(observation, instance_of)
        self._merge(overlap, instance_of)

    def render(self, camera: PinholeCamera, T_map_camera: np.ndarray, depth: np.ndarray | None = None) -> PanopticView:
        """The voxels in a view.

        Args:
            depth: measured depth [H, W] (m) of the view, where it is known: voxels are then looked up at it. Else each
                voxel is a square at the mean of its points.
        """
        if depth is None:
            points = self.surface.points
            radii_m = self.config.splat_scale * self.surface.spacing_m
            nearest, depth = splatted(points, radii_m, camera, T_map_camera)
            points = points[nearest]
        else:
            points = map_points(depth, camera, T_map_camera)
        shown = depth > 0
        color, semantic, instance = self.surface.colors_at(points[shown]), *self._labels_at(points[shown])
        known = np.zeros(depth.shape, bool)
        known[shown] = semantic > 0
        images = []
        for values in (color, semantic, instance):
            image = np.zeros((*depth.shape, *values.shape[1:]), values.dtype)
            image[shown] = values
            images.append(filled_from_nearest(image, known))
        filled_depth = filled_from_nearest(depth, shown)
        return PanopticView(images[0], filled_depth, shown.astype(np.float32), images[1], images[2])

    @property
    def num_instances(self) -> int:
        return len(np.setdiff1d(self._labels()[1], 0))

    def _observe(self, frame: Frame) -> _Observation:
        """Fuses the surface, and reduces the labels of the pixels to one segment per voxel."""
        assert frame.labels is not None
        used = (frame.depth > 0) & (frame.depth < self.config.max_depth_m)
        points = map_points(frame.depth, frame.camera, frame.T_map_camera)[used]
        keys, voxel = np.unique(self.grid.keys(points), return_inverse=True)
        rows = self.grid.insert(keys)
        self._class_votes.grow(len(self.grid))
        self.instances.grow(len(self.grid))
        self.surface.fuse(points, frame.color[used], frame.camera.fx / frame.depth[used])
        semantic = frame.labels.semantic[used].astype(np.int64)
        confidence = np.ones(len(points)) if frame.labels.confidence is None else frame.labels.confidence[used]
        mask_ids, mask = np.unique(
            frame.labels.instance[used] * self.label_space.is_thing[semantic], return_inverse=True
        )
        if not len(mask_ids) or mask_ids[0] > 0:
            mask_ids, mask = np.append(0, mask_ids), mask + 1
        mask_image = np.zeros(frame.depth.shape, np.int64)
        mask_image[used] = mask
        first = _majority(voxel, (mask * len(self.label_space) + semantic), semantic > 0, len(rows))
        said = first >= 0
        return _Observation(
            rows,
            np.where(said, mask[first], 0),
            np.where(said, semantic[first], 0),
            np.where(said, confidence[first], 0).astype(np.float32),
            len(mask_ids) - 1,
            mask_image,
        )

    def _evidence(self, rows: np.ndarray) -> np.ndarray:
        return self._class_votes.values[rows].sum(1)

    def _known_instances(self, rows: np.ndarray) -> np.ndarray:
        """The instance that each voxel belongs to so far, int64 [V]; 0 = none: stuff has more votes, or nothing has."""
        votes = self._class_votes.values[rows]
        is_thing = votes[:, self.label_space.is_thing].sum(1) > votes[:, ~self.label_space.is_thing].sum(1)
        return np.where(is_thing, self.instances.best(rows), 0)

    def _associate(self, observation: _Observation, overlap: np.ndarray) -> np.ndarray:
        """The instance of each mask, int64 [K + 1], 0 = none: one to one by 3D IoU, else a new one."""
        union = overlap.sum(1, keepdims=True) + overlap.sum(0) - overlap
        iou = overlap[1:, 1:] / np.maximum(union[1:, 1:], 1)
        instance_of = np.zeros(len(overlap), np.int64)
        for k, instance in zip(*linear_sum_assignment(-iou), strict=True):
            if iou[k, instance] >= max(self.config.min_iou, 1e-6):
                instance_of[k + 1] = instance + 1
        sizes = np.bincount(observation.mask, minlength=len(overlap))
        opened = np.flatnonzero((instance_of == 0) & (sizes >= self.config.min_mask_voxels))
        opened = opened[opened > 0]
        first = len(self._hits.values)
        instance_of[opened] = first + np.arange(len(opened))
        self._hits.grow(first + len(opened))
        return instance_of

    def _vote(self, observation: _Observation, instance_of: np.ndarray) -> None:
        self._class_votes.values[observation.rows, observation.semantic] += observation.confidence
        instance = instance_of[observation.mask]
        has = instance > 0
        self.instances.add(observation.rows[has], instance[has], observation.confidence[has])
        masks = np.unique(instance_of[np.unique(observation.mask)])
        self._hits.values[masks[masks > 0]] += 1

    def _merge(self, overlap: np.ndarray, instance_of: np.ndarray) -> None:
        """Collects evidence that two instances are one object, and makes them one where it is enough."""
        in_view = overlap.sum(0)  # voxels of each instance that were compared
        covers = overlap >= self.config.covered_share * np.maximum(in_view, self.config.min_mask_voxels)
        for mask in range(1, len(overlap)):
            for pair in combinations((1 + np.flatnonzero(covers[mask, 1:])).tolist(), 2):
                self._merge_votes[pair] += 1
        shown = covers[1:].any(0)
        matched = sorted(i for i in set(instance_of.tolist()) if 0 < i < len(in_view) and shown[i])
        known = {i for pair in self._merge_votes for i in pair}
        for pair in combinations([i for i in matched if i in known], 2):
            if pair in self._merge_votes:
                self._merge_votes[pair] -= self.config.apart_weight  # type: ignore[assignment]
        for (older, younger), votes in list(self._merge_votes.items()):
            if votes >= self.config.merge_evidence:
                self._become_one(older, younger)

    def _become_one(self, older: int, younger: int) -> None:
        self.instances.rename(younger, older)
        self._hits.values[older] += self._hits.values[younger]
        for pair in [pair for pair in self._merge_votes if younger in pair]:
            del self._merge_votes[pair]

    def _labels_at(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class and instance, int32 [P] each, of the voxels at points [P, 3] (m); 0 where there is none."""
        rows = self.grid.find(self.grid.keys(points))
        semantic, instance = (np.where(rows >= 0, labels[rows], 0).astype(np.int32) for labels in self._labels())
        return semantic, instance

    def _labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Class and instance of each voxel, int64 [N] each; an instance has the class with the most votes in it."""
        if self._final is None:
            votes = self._class_votes.values
            instance = self._known_instances(np.arange(len(self.grid)))
            of_instance = np.zeros((len(self._hits.values), votes.shape[1]))
            np.add.at(of_instance, instance, np.where(self.label_space.is_thing, votes, 0))
            semantic = np.where(instance > 0, of_instance.argmax(1)[instance], votes.argmax(1))
            self._final = semantic, np.where(self._hits.values[instance] >= self.config.min_hits, instance, 0)
        return self._final


def _majority(voxel: np.ndarray, segment: np.ndarray, counts: np.ndarray, num_voxels: int) -> np.ndarray:
    """For each voxel, a pixel of the segment with the most pixels in it, int64 [V]; -1 = no pixel that counts."""
    pixels = np.flatnonzero(counts)
    pairs, first, sizes = np.unique(
        voxel[pixels] * (segment.max(initial=0) + 1) + segment[pixels], return_index=True, return_counts=True
    )
    owner = pairs // (segment.max(initial=0) + 1)
    order = np.lexsort((sizes, owner))  # the largest segment of each voxel comes last
    chosen = np.full(num_voxels, -1)
    chosen[owner[order]] = pixels[first[order]]
    return chosen
