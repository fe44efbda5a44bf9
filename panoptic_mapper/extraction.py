"""What leaves the map: label images of a view, labelled points, and objects with their boxes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from panoptic_mapper.instances import InstanceQueries, rows_of
from panoptic_mapper.label_rendering import LabelRendering
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.objects import ObjectExtractor
from panoptic_mapper.panoptic_map import MapView, PanopticMap
from panoptic_mapper.rasterizers.base import Rendering
from panoptic_mapper.snapshot import MapObject, MapSnapshot, PanopticView
from panoptic_mapper.transfers import to_device

MIN_ALPHA = 0.3  # pixels with less opacity show nothing
MIN_OPACITY = 0.3  # Gaussians with less do not count as surface points
MIN_CONFIDENCE = 0.5  # of a Gaussian's label, to count for its object's extent


@torch.no_grad()
def panoptic_view(
    view: MapView, rendering: Rendering, labels: LabelRendering, queries: InstanceQueries
) -> PanopticView:
    """Images for people and planners from the blended ones: each pixel's class and confirmed object by argmax."""
    rows = queries.shown_rows()[view.queries.ids.cpu()]
    shown = torch.ones(labels.panoptic.shape[-1], dtype=torch.bool, device=labels.panoptic.device)
    shown[labels.columns.first_query :] = queries.is_confirmed[rows].to(shown.device)
    column = torch.where(shown, labels.panoptic, -1).argmax(-1)
    semantic = labels.columns.classes_of(column, labels.thing_classes)
    instance = torch.zeros_like(semantic)
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


@dataclass(frozen=True)
class FrozenMap:
    """Copies of what clouds and objects are made of, while the map goes on changing."""

    columns: dict[str, Tensor]  # of all Gaussians, on the map's device
    ids: Tensor  # [Q] public ids, ascending, on the map's device
    shown_rows: Tensor  # [Q] row of the object as which each query is shown, on the map's device
    classes: Tensor  # [Q] class index, on the map's device
    is_confirmed: Tensor  # [Q] bool, on the host as all below
    scores: Tensor  # [Q]
    counts: dict[str, Tensor]  # [Q] observations and times
    min_gaussians: int  # of an object
    copied: torch.cuda.Event | None  # on a GPU: the copies are made when this has passed

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.ids)

    def __getitem__(self, name: str) -> Tensor:
        return self.columns[name]

    def is_object(self, sizes: Tensor) -> Tensor:
        """Which queries are confirmed and have enough Gaussians to be an object with an extent: [Q] bool, on the host.

        Args:
            sizes: [Q] how many Gaussians each has.
        """
        return (sizes >= self.min_gaussians).cpu() & self.is_confirmed


COLUMNS = ("means", "colors", "opacity_logits", "class_index", "instance_id", "confidence_permille")
COUNTED = ("observations", "first_seen_ns", "last_seen_ns")


@torch.no_grad()
def freeze(map: PanopticMap) -> FrozenMap:
    """Copies what a snapshot needs, without a wait. On a GPU the copies belong to the stream of `side_stream`."""
    gaussians, queries, device = map.gaussians, map.queries, map.gaussians.table.device
    frozen = FrozenMap(
        {name: gaussians[name].clone() for name in COLUMNS},
        to_device(queries.ids, device),
        to_device(queries.shown_rows(), device),
        to_device(queries.class_indices, device),
        queries.is_confirmed,
        queries.scores,
        {name: queries.column(name).clone() for name in COUNTED},
        queries.config.min_gaussians,
        torch.cuda.Event() if device.type == "cuda" else None,
    )
    if frozen.copied is not None:
        frozen.copied.record()
        for tensor in (*frozen.columns.values(), frozen.ids, frozen.shown_rows, frozen.classes):
            tensor.record_stream(side_stream(device))
    return frozen


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which snapshots are made beside the map's own work."""
    return torch.cuda.Stream(device)


@torch.no_grad()
def map_snapshot(
    frozen: FrozenMap, label_space: LabelSpace, up: np.ndarray, stamp_ns: int, extractor: ObjectExtractor
) -> MapSnapshot:
    """The surface points with their labels, and the objects, in host memory. Any thread may make it."""
    with _beside(frozen):
        opaque = frozen["opacity_logits"][:, 0].sigmoid() > MIN_OPACITY
        rows = _member_rows(frozen, frozen.ids, frozen.shown_rows)
        is_object = frozen.is_object(_sizes(rows, len(frozen)))
        class_index, instance_id = _labels(frozen, is_object)
        return MapSnapshot(
            stamp_ns=stamp_ns,
            points=frozen["means"][opaque].cpu().numpy(),
            colors=(255 * frozen["colors"][opaque].clamp(0, 1)).to(torch.uint8).cpu().numpy(),
            class_indices=class_index[opaque].int().cpu().numpy(),
            instance_ids=instance_id[opaque].int().cpu().numpy(),
            confidences=(frozen["confidence_permille"][opaque] / 1000).float().cpu().numpy(),
            objects=_objects(frozen, rows, is_object, label_space, up, extractor),
            label_space=label_space,
        )


@torch.no_grad()
def map_objects(
    frozen: FrozenMap, label_space: LabelSpace, up: np.ndarray, extractor: ObjectExtractor
) -> tuple[MapObject, ...]:
    """The objects that have enough Gaussians to have an extent, by ascending id."""
    with _beside(frozen):
        rows = _member_rows(frozen, frozen.ids, frozen.shown_rows)
        return _objects(frozen, rows, frozen.is_object(_sizes(rows, len(frozen))), label_space, up, extractor)


@torch.no_grad()
def object_sizes(map: PanopticMap) -> Tensor:
    """How many Gaussians count to the extent of each query: [Q] int64, on the map's device, without a wait."""
    queries, device = map.queries, map.gaussians.table.device
    rows = _member_rows(map.gaussians, queries.ids_on_device, to_device(queries.shown_rows(), device))
    return _sizes(rows, len(queries))


class Columns(Protocol):
    """Columns [N, ...] of Gaussians by name."""

    def __getitem__(self, name: str) -> Tensor: ...


def _beside(frozen: FrozenMap) -> AbstractContextManager:
    """Works on the stream of snapshots, once the copies are made."""
    if frozen.copied is None:
        return nullcontext()
    stream = side_stream(frozen.ids.device)
    stream.wait_event(frozen.copied)
    return torch.cuda.stream(stream)


def _objects(
    frozen: FrozenMap,
    rows: Tensor,
    is_object: Tensor,
    label_space: LabelSpace,
    up: np.ndarray,
    extractor: ObjectExtractor,
) -> tuple[MapObject, ...]:
    """The queries that are objects [Q], with the extent of the Gaussians whose row [N] is theirs."""
    member = rows >= 0
    points, numbers = frozen["means"][member], frozen.ids[rows[member]]
    extents = extractor.extract(points.cpu().numpy(), numbers.cpu().numpy(), up)
    ids, classes = frozen.ids.tolist(), frozen.classes.tolist()
    objects = []
    for row in is_object.nonzero()[:, 0].tolist():
        extent = extents[ids[row]]
        objects.append(
            MapObject(
                id=ids[row],
                class_index=classes[row],
                class_name=label_space.names[classes[row]],
                score=float(frozen.scores[row]),
                observations=int(frozen.counts["observations"][row]),
                centroid=extent.centroid,
                box=extent.box,
                aabb_min=extent.aabb_min,
                aabb_max=extent.aabb_max,
                num_gaussians=extent.num_points,
                first_seen_ns=int(frozen.counts["first_seen_ns"][row]),
                last_seen_ns=int(frozen.counts["last_seen_ns"][row]),
            )
        )
    return tuple(objects)


def _sizes(rows: Tensor, num_queries: int) -> Tensor:
    """How many of `rows` [N] are each query's: [Q]; -1 is none's."""
    return rows.new_zeros(num_queries + 1).index_add_(0, rows + 1, torch.ones_like(rows))[1:]


def _member_rows(gaussians: Columns, ids: Tensor, shown_rows: Tensor) -> Tensor:
    """Row of the query [N] to whose extent each Gaussian counts; -1 = none, or too faint or unsure to count."""
    solid = gaussians["opacity_logits"][:, 0].sigmoid() > MIN_OPACITY
    solid &= gaussians["confidence_permille"] > 1000 * MIN_CONFIDENCE
    return torch.where(solid, _rows_as_shown(gaussians, ids, shown_rows), -1)


def _rows_as_shown(gaussians: Columns, ids: Tensor, shown_rows: Tensor) -> Tensor:
    """Row of the query [N] as which each Gaussian is shown; -1 = none."""
    rows = rows_of(gaussians["instance_id"].long(), ids)
    return rows if len(ids) == 0 else torch.where(rows >= 0, shown_rows[rows], -1)


def _labels(frozen: FrozenMap, is_object: Tensor) -> tuple[Tensor, Tensor]:
    """Class index and public object id [N] int64 of every Gaussian; members of a query have the query's class."""
    class_index = frozen["class_index"].long()
    if len(frozen) == 0:
        return class_index, torch.zeros_like(class_index)
    rows = _rows_as_shown(frozen, frozen.ids, frozen.shown_rows)
    ids = torch.where(is_object.to(frozen.ids.device), frozen.ids, 0)
    class_index = torch.where(rows >= 0, frozen.classes[rows], class_index)
    return class_index, torch.where(rows >= 0, ids[rows], 0)
