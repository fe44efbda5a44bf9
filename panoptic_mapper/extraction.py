"""What leaves the map: label images of a view, labelled points, and objects with their boxes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from math import log
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from panoptic_mapper.instances import InstanceQueries
from panoptic_mapper.label_rendering import LabelRendering
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.object_batches import BatchExtractor, fingerprints
from panoptic_mapper.objects import ObjectExtractor
from panoptic_mapper.panoptic_map import MapView, PanopticMap
from panoptic_mapper.rasterizers.base import Rendering
from panoptic_mapper.snapshot import MapObject, MapSnapshot, PanopticView
from panoptic_mapper.transfers import AsyncHostCopy, to_device

MIN_ALPHA = 0.3  # pixels with less opacity show nothing
MIN_OPACITY = 0.3  # Gaussians with less do not count as surface points
MIN_OPACITY_LOGIT = log(MIN_OPACITY / (1 - MIN_OPACITY))
MIN_CONFIDENCE = 0.5  # of a Gaussian's label, to count for its object's extent

Extractor: TypeAlias = ObjectExtractor | BatchExtractor


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
    row_of_id: Tensor  # see `_row_of_id`; on the host as all below
    ids: Tensor  # [Q] public ids, ascending
    classes: Tensor  # [Q] class index
    is_confirmed: Tensor  # [Q] bool
    scores: Tensor  # [Q]
    counts: dict[str, Tensor]  # [Q] observations and times
    min_gaussians: int  # of an object
    copied: torch.cuda.Event | None  # on a GPU: the copies are made when this has passed

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.ids)

    def __getitem__(self, name: str) -> Tensor:
        return self.columns[name]

    @property
    def device(self) -> torch.device:
        return self.columns["means"].device


COLUMNS = ("means", "colors", "opacity_logits", "class_index", "instance_id", "confidence_permille")
COUNTED = ("observations", "first_seen_ns", "last_seen_ns")


@torch.no_grad()
def freeze(map: PanopticMap) -> FrozenMap:
    """Copies what a snapshot needs, without a wait. On a GPU the copies belong to the stream of `side_stream`."""
    gaussians, queries, device = map.gaussians, map.queries, map.gaussians.device
    frozen = FrozenMap(
        {name: gaussians[name].clone() for name in COLUMNS},
        _row_of_id(queries),
        queries.ids,
        queries.class_indices,
        queries.is_confirmed,
        queries.scores,
        {name: queries.column(name).clone() for name in COUNTED},
        queries.config.min_gaussians,
        torch.cuda.Event() if device.type == "cuda" else None,
    )
    if frozen.copied is not None:
        frozen.copied.record()
        for tensor in frozen.columns.values():
            tensor.record_stream(side_stream(device))
    return frozen


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which snapshots are made beside the map's own work."""
    return torch.cuda.Stream(device)


@torch.no_grad()
def map_snapshot(
    frozen: FrozenMap, label_space: LabelSpace, up: np.ndarray, stamp_ns: int, extractor: Extractor
) -> MapSnapshot:
    """The surface points with their labels, and the objects, in host memory. Any thread may make it.

    On a GPU most of its time is waiting, without the interpreter: a thread that maps beside it loses little.
    """
    with _beside(frozen):
        rows = _rows_as_shown(frozen, frozen.row_of_id)
        members = _member_rows(frozen, rows)
        marks, is_object = _marks(frozen, members)
        cloud = AsyncHostCopy(_cloud(frozen, rows, is_object))
        objects = _objects(frozen, members, marks, is_object, label_space, up, extractor)
        return _snapshot(cloud.wait().numpy(), objects, label_space, stamp_ns)


@torch.no_grad()
def map_objects(
    frozen: FrozenMap, label_space: LabelSpace, up: np.ndarray, extractor: Extractor
) -> tuple[MapObject, ...]:
    """The objects that have enough Gaussians to have an extent, by ascending id."""
    with _beside(frozen):
        members = _member_rows(frozen, _rows_as_shown(frozen, frozen.row_of_id))
        marks, is_object = _marks(frozen, members)
        return _objects(frozen, members, marks, is_object, label_space, up, extractor)


@torch.no_grad()
def object_sizes(map: PanopticMap) -> Tensor:
    """How many Gaussians count to the extent of each query: [Q] int64, on the map's device, without a wait."""
    rows = _member_rows(map.gaussians, _rows_as_shown(map.gaussians, _row_of_id(map.queries)))
    return rows.new_zeros(len(map.queries) + 1).index_add_(0, rows + 1, torch.ones_like(rows))[1:]


def create_extractor(device: torch.device) -> Extractor:
    """What computes the boxes of a map's objects on its device."""
    return ObjectExtractor() if device.type == "cpu" else BatchExtractor()


class Columns(Protocol):
    """Columns [N, ...] of Gaussians by name."""

    def __getitem__(self, name: str) -> Tensor: ...


def _beside(frozen: FrozenMap) -> AbstractContextManager:
    """Works on the stream of snapshots, once the copies are made."""
    if frozen.copied is None:
        return nullcontext()
    stream = side_stream(frozen.device)
    stream.wait_event(frozen.copied)
    return torch.cuda.stream(stream)


def _row_of_id(queries: InstanceQueries) -> Tensor:
    """The row of the query as which each public id that was ever given is shown; -1 = gone, 0 and the last = none."""
    rows = torch.full((queries.next_id + 1,), -1)
    rows[queries.ids] = queries.shown_rows()
    return rows


def _rows_as_shown(gaussians: Columns, row_of_id: Tensor) -> Tensor:
    """Row of the query [N] as which each Gaussian is shown; -1 = none."""
    ids = gaussians["instance_id"].clamp(0, len(row_of_id) - 1)
    return to_device(row_of_id, ids.device).index_select(0, ids)


def _member_rows(gaussians: Columns, rows: Tensor) -> Tensor:
    """The rows [N] of `_rows_as_shown`, -1 for Gaussians that are too faint or unsure to count to an extent."""
    solid = gaussians["opacity_logits"][:, 0] > MIN_OPACITY_LOGIT
    solid &= gaussians["confidence_permille"] > 1000 * MIN_CONFIDENCE
    return torch.where(solid, rows, -1)


def _marks(frozen: FrozenMap, members: Tensor) -> tuple[Tensor, Tensor]:
    """Fingerprints [Q, 2] of the queries' points, and which queries are objects [Q]: confirmed, and large enough."""
    marks = fingerprints(frozen["means"], members, len(frozen)).cpu()
    return marks, (marks[:, 0] >= frozen.min_gaussians) & frozen.is_confirmed


def _cloud(frozen: FrozenMap, rows: Tensor, is_object: Tensor) -> Tensor:
    """The opaque Gaussians in one piece: [n, 7] int32, bits of x, y, z, RGB0, class index, object id, confidence.

    Members of a query have the query's class.
    """
    labels = torch.full((len(frozen) + 1, 2), -1, dtype=torch.int32)  # the last row is that of no query
    labels[:-1, 0], labels[:, 1] = frozen.classes, 0
    labels[:-1, 1][is_object] = frozen.ids[is_object].int()
    class_index, instance_id = to_device(labels, rows.device)[rows].unbind(1)
    colors = torch.nn.functional.pad((255 * frozen["colors"].clamp(0, 1)).to(torch.uint8), (0, 1))
    columns = [
        frozen["means"].contiguous().view(torch.int32),
        colors.view(torch.int32),
        torch.where(class_index < 0, frozen["class_index"], class_index)[:, None],
        instance_id[:, None],
        (frozen["confidence_permille"] / 1000).view(torch.int32)[:, None],
    ]
    opaque = (frozen["opacity_logits"][:, 0] > MIN_OPACITY_LOGIT).nonzero()[:, 0]
    return torch.cat(columns, dim=1).index_select(0, opaque)


def _snapshot(cloud: np.ndarray, objects: tuple[MapObject, ...], label_space: LabelSpace, stamp_ns: int) -> MapSnapshot:
    """A snapshot whose columns are views of the points of `_cloud`."""
    return MapSnapshot(
        stamp_ns=stamp_ns,
        points=cloud[:, :3].view(np.float32),
        colors=cloud[:, 3:4].view(np.uint8)[:, :3],
        class_indices=cloud[:, 4],
        instance_ids=cloud[:, 5],
        confidences=cloud[:, 6].view(np.float32),
        objects=objects,
        label_space=label_space,
    )


def _objects(
    frozen: FrozenMap,
    members: Tensor,
    marks: Tensor,
    is_object: Tensor,
    label_space: LabelSpace,
    up: np.ndarray,
    extractor: Extractor,
) -> tuple[MapObject, ...]:
    """The queries that are objects [Q], with the extent of the Gaussians whose row [N] is theirs."""
    ids, classes = frozen.ids.tolist(), frozen.classes.tolist()
    if isinstance(extractor, BatchExtractor):
        extents = extractor.extract(frozen["means"], members, ids, marks, up)
    else:
        member = members >= 0
        numbers = frozen.ids[members[member]]
        extents = extractor.extract(frozen["means"][member].numpy(), numbers.numpy(), up)
    scores, counts = frozen.scores.tolist(), {name: column.tolist() for name, column in frozen.counts.items()}
    objects = []
    for row in is_object.nonzero()[:, 0].tolist():
        extent = extents[ids[row]]
        objects.append(
            MapObject(
                id=ids[row],
                class_index=classes[row],
                class_name=label_space.names[classes[row]],
                score=scores[row],
                observations=counts["observations"][row],
                centroid=extent.centroid,
                box=extent.box,
                aabb_min=extent.aabb_min,
                aabb_max=extent.aabb_max,
                num_gaussians=extent.num_points,
                first_seen_ns=counts["first_seen_ns"][row],
                last_seen_ns=counts["last_seen_ns"][row],
            )
        )
    return tuple(objects)
