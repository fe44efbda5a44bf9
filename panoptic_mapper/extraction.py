"""What leaves the map: label images of a view, labelled points, and objects with their boxes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from panoptic_mapper.instances import InstanceQueries
from panoptic_mapper.label_rendering import LabelRendering
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.objects import extract_objects
from panoptic_mapper.panoptic_map import MapView, PanopticMap
from panoptic_mapper.rasterizers.base import Rendering
from panoptic_mapper.snapshot import MapObject, MapSnapshot, PanopticView

MIN_ALPHA = 0.3  # pixels with less opacity show nothing
MIN_OPACITY = 0.3  # Gaussians with less do not count as surface points
MIN_CONFIDENCE = 0.5  # of a Gaussian's label, to count for its object's extent


@torch.no_grad()
def panoptic_view(
    view: MapView, rendering: Rendering, labels: LabelRendering, queries: InstanceQueries
) -> PanopticView:
    """Images for people and planners from the blended ones: each pixel's class and confirmed object by argmax."""
    rows = view.queries.ids.cpu()
    shown = torch.ones(labels.panoptic.shape[-1], dtype=torch.bool, device=labels.panoptic.device)
    shown[labels.columns.first_query :] = queries.is_confirmed[rows].to(shown.device)
    column = torch.where(shown, labels.panoptic, -1).argmax(-1)
    semantic = labels.columns.classes_of(column, labels.thing_classes)
    instance = torch.zeros_like(semantic)
    if len(rows):
        query = labels.columns.queries_of(column)
        shown_rows = queries.shown_rows()[rows]
        semantic = torch.where(query >= 0, queries.class_indices[shown_rows].to(query.device)[query], semantic)
        instance = torch.where(query >= 0, queries.ids[shown_rows].to(query.device)[query], 0)
    empty = rendering.alpha < MIN_ALPHA
    return PanopticView(
        color=(255 * rendering.color.clamp(0, 1)).round().to(torch.uint8).cpu().numpy(),
        depth=torch.where(empty, 0, rendering.depth).cpu().numpy(),
        alpha=rendering.alpha.cpu().numpy(),
        semantic=torch.where(empty, 0, semantic).int().cpu().numpy(),
        instance=torch.where(empty, 0, instance).int().cpu().numpy(),
    )


def map_snapshot(map: PanopticMap, label_space: LabelSpace, up: np.ndarray, stamp_ns: int) -> MapSnapshot:
    """Copies the surface points with their labels, and the objects."""
    gaussians = map.gaussians
    opaque = gaussians["opacity_logits"][:, 0].sigmoid() > MIN_OPACITY
    class_index, instance_id = _labels(map)
    return MapSnapshot(
        stamp_ns=stamp_ns,
        points=gaussians["means"][opaque].cpu().numpy().copy(),
        colors=(255 * gaussians["colors"][opaque].clamp(0, 1)).to(torch.uint8).cpu().numpy(),
        class_indices=class_index[opaque].int().cpu().numpy(),
        instance_ids=instance_id[opaque].int().cpu().numpy(),
        confidences=(gaussians["confidence_permille"][opaque] / 1000).float().cpu().numpy(),
        objects=map_objects(map, label_space, up),
        label_space=label_space,
    )


def map_objects(map: PanopticMap, label_space: LabelSpace, up: np.ndarray) -> tuple[MapObject, ...]:
    """The objects that have enough Gaussians to have an extent, by ascending id."""
    queries, rows = map.queries, _member_rows(map)
    member = rows >= 0
    points, numbers = map.gaussians["means"][member], rows[member] + 1  # 0 would be no object
    extents = extract_objects(points.cpu().numpy(), numbers.cpu().numpy(), up)
    objects = []
    for row in is_object(map).nonzero()[:, 0].tolist():
        extent = extents[row + 1]
        class_index = int(queries.class_indices[row])
        objects.append(
            MapObject(
                id=int(queries.ids[row]),
                class_index=class_index,
                class_name=label_space.names[class_index],
                score=float(queries.scores[row]),
                observations=int(queries.column("observations")[row]),
                centroid=extent.centroid,
                box=extent.box,
                aabb_min=extent.aabb_min,
                aabb_max=extent.aabb_max,
                num_gaussians=extent.num_points,
                first_seen_ns=int(queries.column("first_seen_ns")[row]),
                last_seen_ns=int(queries.column("last_seen_ns")[row]),
            )
        )
    return tuple(objects)


def is_object(map: PanopticMap) -> Tensor:
    """Which queries [Q] are confirmed and have enough Gaussians to be an object with an extent: bool on the CPU."""
    num_queries = len(map.queries)
    sizes = torch.bincount(_member_rows(map) + 1, minlength=num_queries + 1)[1:]
    return (sizes >= map.queries.config.min_gaussians).cpu() & map.queries.is_confirmed


def _member_rows(map: PanopticMap) -> Tensor:
    """Row of the query [N] to whose extent each Gaussian counts; -1 = none, or too faint or unsure to count."""
    gaussians = map.gaussians
    solid = gaussians["opacity_logits"][:, 0].sigmoid() > MIN_OPACITY
    solid &= gaussians["confidence_permille"] > 1000 * MIN_CONFIDENCE
    return torch.where(solid, _shown_rows(map), -1)


def _shown_rows(map: PanopticMap) -> Tensor:
    """Row of the query [N] as which each Gaussian is shown; -1 = none."""
    rows = map.queries.rows_of(map.gaussians["instance_id"].long())
    if len(map.queries) == 0:
        return rows
    return torch.where(rows >= 0, map.queries.shown_rows().to(rows.device)[rows], -1)


def _labels(map: PanopticMap) -> tuple[Tensor, Tensor]:
    """Class index and public object id [N] int64 of every Gaussian; members of a query have the query's class."""
    queries = map.queries
    class_index = map.gaussians["class_index"].long()
    rows = _shown_rows(map)
    if len(queries) == 0:
        return class_index, torch.zeros_like(class_index)
    ids = torch.where(is_object(map), queries.ids, 0)
    class_index = torch.where(rows >= 0, queries.class_indices.to(rows.device)[rows], class_index)
    return class_index, torch.where(rows >= 0, ids.to(rows.device)[rows], 0)
