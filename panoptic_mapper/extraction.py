"""What leaves the map: label images of a view, labelled points, and objects with their boxes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from panoptic_mapper.gaussian_map import GaussianMap
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
    """Images for people and planners from the blended ones: each pixel's class and object by argmax."""
    column = labels.panoptic.argmax(-1)
    semantic = labels.columns.classes_of(column, labels.thing_classes)
    instance = torch.zeros_like(semantic)
    rows = view.queries.ids.cpu()
    if len(rows):
        query = labels.columns.queries_of(column)
        semantic = torch.where(query >= 0, queries.class_indices[rows].to(query.device)[query], semantic)
        instance = torch.where(query >= 0, queries.ids[rows].to(query.device)[query], 0)
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
    class_index, instance_id = _labels(gaussians, map.queries)
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
    gaussians, queries = map.gaussians, map.queries
    solid = gaussians["opacity_logits"][:, 0].sigmoid() > MIN_OPACITY
    solid &= gaussians["confidence_permille"] > 1000 * MIN_CONFIDENCE
    _, instance_id = _labels(gaussians, queries)
    extents = extract_objects(gaussians["means"][solid].cpu().numpy(), instance_id[solid].cpu().numpy(), up)
    objects = []
    for row, id in enumerate(queries.ids.tolist()):
        if id not in extents or extents[id].num_points < queries.config.min_gaussians:
            continue
        class_index = int(queries.class_indices[row])
        objects.append(
            MapObject(
                id=id,
                class_index=class_index,
                class_name=label_space.names[class_index],
                score=float(queries.scores[row]),
                observations=int(queries.column("observations")[row]),
                centroid=extents[id].centroid,
                box=extents[id].box,
                aabb_min=extents[id].aabb_min,
                aabb_max=extents[id].aabb_max,
                num_gaussians=extents[id].num_points,
                first_seen_ns=int(queries.column("first_seen_ns")[row]),
                last_seen_ns=int(queries.column("last_seen_ns")[row]),
            )
        )
    return tuple(objects)


def _labels(gaussians: GaussianMap, queries: InstanceQueries) -> tuple[Tensor, Tensor]:
    """Class index and public object id [N] int64 of every Gaussian; a member of an object has the object's class."""
    rows = queries.rows_of(gaussians["instance_id"].long())
    class_index = gaussians["class_index"].long()
    if len(queries) == 0:
        return class_index, torch.zeros_like(class_index)
    device = class_index.device
    class_index = torch.where(rows >= 0, queries.class_indices.to(device)[rows], class_index)
    return class_index, torch.where(rows >= 0, queries.ids.to(device)[rows], 0)
