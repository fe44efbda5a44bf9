"""The panoptic map as one thing: Gaussians, instance queries and the head between them, seen through a rasteriser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.gaussian_map import HARMONICS, GaussianMap, splat_inputs
from panoptic_mapper.geometry import inverse_pose
from panoptic_mapper.instances import InstanceQueries
from panoptic_mapper.label_rendering import (
    LabelConfig,
    LabelFeatures,
    LabelRendering,
    blend_features,
    classify,
)
from panoptic_mapper.panoptic_head import PanopticHead
from panoptic_mapper.parameter_table import Rows
from panoptic_mapper.rasterizers.base import ProjectedView, Rasterizer, Rendering
from panoptic_mapper.seen_counter import SeenCounter
from panoptic_mapper.spherical_harmonics import seen_colors
from panoptic_mapper.surfels import SurfaceRendering, render_surface
from panoptic_mapper.transfers import to_device


@dataclass(frozen=True)
class MapView:
    """What one camera sees of the map: gathered rows that gradients reach, projected and sorted."""

    map: PanopticMap
    gaussians: Rows  # appearance of the candidates [M], or its means; the visible are `projection.visible` of these
    projection: ProjectedView
    camera: PinholeCamera
    T_camera_map: Tensor  # [4, 4] float32

    @property
    def visible_ids(self) -> Tensor:  # [V] rows of the map
        return self.gaussians.ids[self.projection.visible]

    @cached_property
    def labels(self) -> Rows:
        """Label features of the visible Gaussians [V]: gathered, like the queries, where labels are asked for."""
        return self.map.gaussians.labels.gather(self.visible_ids)

    @cached_property
    def queries(self) -> Rows:
        """The queries in view [Q]; with global attention all."""
        queries = self.map.queries
        if self.map.labels.attention == "local":
            return queries.table.gather(self._rows_in_view)
        return queries.table.gather(torch.arange(len(queries), device=self.T_camera_map.device))

    @cached_property
    def positions(self) -> Tensor:
        """Place in `queries` of each query row of the map [R] int64; -1 = it is not there."""
        rows = self.queries.ids
        positions = torch.full((len(self.map.queries),), -1, dtype=torch.int64, device=rows.device)
        positions[rows] = torch.arange(len(rows), device=rows.device)
        return positions

    @property
    def queries_in_view(self) -> Tensor | None:
        """Which of `queries` are in view: [Q] bool, None = all."""
        if self.map.labels.attention == "local":
            return None
        is_in_view = torch.zeros(len(self.queries), dtype=torch.bool, device=self.T_camera_map.device)
        return is_in_view.index_fill_(0, self._rows_in_view, True)

    @cached_property
    def _rows_in_view(self) -> Tensor:
        return self.map.queries.in_view(
            self.T_camera_map, self.camera, self.gaussians["means"], self.projection.visible
        )

    def render(self, counter: SeenCounter | None = None) -> Rendering:
        """Colour, depth and alpha; `counter` counts in the same splat what each Gaussian makes up of the image."""
        return (counter or self.projection).render(self.colors())

    def render_surface(self, counter: SeenCounter | None = None) -> SurfaceRendering:
        """The same, with the normals of surfels and how far their depths are spread along each ray."""
        visible = self.projection.visible
        means, quats = self.gaussians["means"][visible], self.gaussians["quats"][visible]
        return render_surface(counter or self.projection, self.colors(), means, quats, self.T_camera_map)

    def colors(self) -> Tensor:
        """RGB [V, 3] of the visible Gaussians from the camera's place."""
        visible = self.projection.visible
        colors = self.gaussians["colors"].index_select(0, visible)
        if HARMONICS not in self.gaussians.columns:
            return colors
        camera_center = -self.T_camera_map[:3, :3].T @ self.T_camera_map[:3, 3]
        return seen_colors(colors, self.gaussians[HARMONICS][visible], self.gaussians["means"][visible], camera_center)

    def blend_labels(self) -> LabelRendering:
        """Semantic and panoptic label images."""
        head, config = self.map.head, self.map.labels
        means = self.gaussians["means"].detach().index_select(0, self.projection.visible)
        visible = LabelFeatures(self.labels["semantics"], self.labels["instances"], means)
        if config.blending == "feature":
            return blend_features(self.projection, visible, self.queries, head)
        if config.attention == "global":
            everything = LabelFeatures.of_all(self.map.gaussians, self.labels)
            classified = classify(everything, self.queries, head).at(self.labels.ids)
        else:
            classified = classify(visible, self.queries, head)
        return LabelRendering(classified.distribution, classified.class_probs, head.columns, self.projection.blend)


class Candidates(NamedTuple):
    """What may be in a view."""

    ids: Tensor  # [M] int64 rows of the map
    T_camera_map: Tensor  # [4, 4] float32, the pose of the view


@dataclass(frozen=True)
class PanopticMap:
    """All that is learned."""

    gaussians: GaussianMap
    queries: InstanceQueries
    head: PanopticHead
    rasterizer: Rasterizer
    labels: LabelConfig = field(default_factory=LabelConfig)

    def view(self, camera: PinholeCamera, T_map_camera: np.ndarray, limits: Tensor | None = None) -> MapView:
        """Gathers and projects what a camera at a pose [4, 4] sees; local in cost and memory where attention is.

        Args:
            limits: where a depth image was taken with it, what lies far behind that is left out
                (`occlusion.depth_limits`).
        """
        return self.view_of(self.candidates([(camera, T_map_camera, limits)])[0], camera)

    def view_of(self, candidates: Candidates, camera: PinholeCamera) -> MapView:
        """Gathers and projects what a camera sees, of which it is known already what that may be."""
        rows = self.gaussians.appearance.gather(candidates.ids)
        means, quats, scales, opacities = splat_inputs(rows)
        projection = self.rasterizer.project(means, quats, scales, opacities, candidates.T_camera_map, camera)
        return MapView(self, rows, projection, camera, candidates.T_camera_map)

    def candidates(self, views: Sequence[tuple[PinholeCamera, np.ndarray, Tensor | None]]) -> list[Candidates]:
        """What may be in some views, given by camera, pose and limits as for `view`; a GPU is waited for once."""
        poses = np.stack([inverse_pose(T_map_camera) for _, T_map_camera, _ in views]).astype(np.float32)
        T_camera_map = to_device(poses, self.gaussians.device).unbind()
        frustums = [(T, camera, limits) for T, (camera, _, limits) in zip(T_camera_map, views, strict=True)]
        ids = self.gaussians.ids_in_frustums(frustums)
        return [Candidates(*both) for both in zip(ids, T_camera_map, strict=True)]

    @torch.no_grad()
    def remember_labels(self, view: MapView, labels: LabelRendering) -> None:
        """Writes the label that each visible Gaussian of a view now has into the map's bookkeeping."""
        probability, column = labels.distribution.max(1)
        public_ids = torch.cat([self.queries.ids_on_device[view.queries.ids], view.queries.ids.new_zeros(1)])
        queries = labels.columns.queries_of(column)  # -1 (none) reads the last entry, which is 0
        book, ids = self.gaussians, view.labels.ids
        things = labels.columns.things_of(labels.class_probs)
        book["class_index"][ids] = labels.columns.classes_of(column, things).int()
        book["instance_id"][ids] = public_ids[queries].int()
        book["confidence_permille"][ids] = (1000 * probability).int()
