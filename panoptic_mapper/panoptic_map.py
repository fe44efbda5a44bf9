"""The panoptic map as one thing: Gaussians, instance queries and the head between them, seen through a rasteriser."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    blend_labels,
    blend_logs,
    classify,
)
from panoptic_mapper.losses import floored_log
from panoptic_mapper.panoptic_head import PanopticHead
from panoptic_mapper.parameter_table import ParameterTable, Rows
from panoptic_mapper.rasterizers.base import ProjectedView, Rasterizer, Rendering
from panoptic_mapper.spherical_harmonics import seen_colors
from panoptic_mapper.surfels import SurfaceRendering, render_surface

MIN_SEEN_PX = 0.3  # px


@dataclass(frozen=True)
class MapView:
    """What one camera sees of the map: gathered rows that gradients reach, projected and sorted."""

    gaussians: Rows  # candidates [M]; the visible ones are `projection.visible` of these
    queries: Rows  # queries in view [Q]; with global attention all
    queries_in_view: Tensor  # [Q] bool
    projection: ProjectedView
    head: PanopticHead
    labels: LabelConfig
    all_gaussians: ParameterTable  # of the map [N]; only global attention reads it
    T_camera_map: Tensor  # [4, 4] float32

    @property
    def visible_ids(self) -> Tensor:  # [V] rows of the map
        return self.gaussians.ids[self.projection.visible]

    def seen(self) -> Tensor:
        """Which candidates [M] the image really shows: bool, total blending weight of at least MIN_SEEN_PX pixels.

        What is behind a wall is projected too, and gets the little gradient that leaks through. Adam would turn that
        into full steps, and the rooms behind would be bent to explain the wall.
        """
        ones = torch.ones(len(self.projection.visible), 1, device=self.gaussians.ids.device, requires_grad=True)
        with torch.enable_grad():
            (total,) = torch.autograd.grad(self.projection.blend(ones).sum(), ones)  # sum of w_g(u) over pixels u
        seen = torch.zeros(len(self.gaussians), dtype=torch.bool, device=total.device)
        seen[self.projection.visible] = total[:, 0] > MIN_SEEN_PX
        return seen

    def render(self) -> Rendering:
        """Colour, depth and alpha."""
        return self.projection.render(self.colors())

    def render_surface(self) -> SurfaceRendering:
        """The same, with the normals of surfels and how far their depths are spread along each ray."""
        visible = self.projection.visible
        means, quats = self.gaussians["means"][visible], self.gaussians["quats"][visible]
        return render_surface(self.projection, self.colors(), means, quats, self.T_camera_map)

    def colors(self) -> Tensor:
        """RGB [V, 3] of the visible Gaussians from the camera's place."""
        visible = self.projection.visible
        colors = self.gaussians["colors"][visible]
        if HARMONICS not in self.gaussians.columns:
            return colors
        camera_center = -self.T_camera_map[:3, :3].T @ self.T_camera_map[:3, 3]
        return seen_colors(colors, self.gaussians[HARMONICS][visible], self.gaussians["means"][visible], camera_center)

    def blend_labels(self) -> LabelRendering:
        """Semantic and panoptic label images."""
        visible = LabelFeatures.of(self.gaussians, self.projection.visible)
        if self.labels.blending == "feature":
            return blend_features(self.projection, visible, self.queries, self.head)
        if self.labels.attention == "global":
            everything = LabelFeatures.of_all(self.all_gaussians, self.gaussians)
            classified = classify(everything, self.queries, self.head).at(self.visible_ids)
        else:
            classified = classify(visible, self.queries, self.head)
        return blend_labels(self.projection, classified, self.head)

    def log_labels(self, labels: LabelRendering) -> tuple[Tensor, Tensor]:
        """Logarithms of the semantic [H, W, S + T] and the panoptic labels [H, W, S + 1 + Q] that losses are made of.

        With label blending these are blended too, so that each Gaussian is told the label of its pixels, not only the
        pixel: in the logarithm of the blended probability a Gaussian that is sure of a wrong class has next to no
        gradient where others of the same pixel explain it.
        """
        if self.labels.blending == "feature":
            return floored_log(labels.semantic), floored_log(labels.panoptic)
        logs = blend_logs(self.projection, labels)
        panoptic, things = logs.split([labels.panoptic.shape[-1], logs.shape[-1] - labels.panoptic.shape[-1]], dim=-1)
        return torch.cat([panoptic[..., : labels.columns.num_stuff], things], dim=-1), panoptic


@dataclass(frozen=True)
class PanopticMap:
    """All that is learned."""

    gaussians: GaussianMap
    queries: InstanceQueries
    head: PanopticHead
    rasterizer: Rasterizer
    labels: LabelConfig = field(default_factory=LabelConfig)

    def view(self, camera: PinholeCamera, T_map_camera: np.ndarray) -> MapView:
        """Gathers and projects what a camera at a pose [4, 4] sees; local in cost and memory where attention is."""
        device = self.gaussians.table.device
        T_camera_map = torch.from_numpy(inverse_pose(T_map_camera)).float().to(device)
        candidates = self.gaussians.table.gather(self.gaussians.ids_in_frustum(T_camera_map, camera))
        projection = self.rasterizer.project(*splat_inputs(candidates), T_camera_map, camera)
        visible_means = candidates["means"].detach()[projection.visible]
        in_view = self.queries.in_view(T_camera_map, camera, visible_means)
        rows = torch.arange(len(self.queries), device=device) if self.labels.attention == "global" else in_view
        queries = self.queries.table.gather(rows)
        table = self.gaussians.table
        return MapView(
            candidates, queries, torch.isin(rows, in_view), projection, self.head, self.labels, table, T_camera_map
        )

    @torch.no_grad()
    def remember_labels(self, view: MapView, labels: LabelRendering) -> None:
        """Writes the label that each visible Gaussian of a view now has into the map's bookkeeping."""
        probability, column = labels.distribution.max(1)
        public_ids = torch.cat([self.queries.ids[view.queries.ids.cpu()], torch.zeros(1, dtype=torch.int64)])
        queries = labels.columns.queries_of(column)  # -1 (none) reads the last entry, which is 0
        book, ids = self.gaussians, view.visible_ids
        things = labels.class_probs[:, labels.columns.thing_classes]
        book["class_index"][ids] = labels.columns.classes_of(column, things).int()
        book["instance_id"][ids] = public_ids.to(column.device)[queries].int()
        book["confidence_permille"][ids] = (1000 * probability).int()
