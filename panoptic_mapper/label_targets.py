"""What a keyframe's 2D labels say about its pixels, in the columns of a view's label images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panoptic_mapper import ops
from panoptic_mapper.instances import InstanceQueries
from panoptic_mapper.keyframes import Keyframe
from panoptic_mapper.label_warping import PixelGrid
from panoptic_mapper.panoptic_map import MapView
from panoptic_mapper.transfers import to_device


@dataclass(frozen=True)
class LabelTargets:
    """Targets of the pixels; -1 = none."""

    panoptic: Tensor  # [H, W] int64 column: the stuff class, or the query that the mask was matched to
    semantic: Tensor  # [H, W] int64 column: in a mask that of its object by all its evidence, elsewhere as labelled
    weights: Tensor  # [H, W] confidence of the label, in a mask over the recall of the mask's object

    @staticmethod
    def of(keyframe: Keyframe, view: MapView, grid: PixelGrid | None = None) -> LabelTargets:
        """Those of a keyframe's pixels, or of a grid of them; the view need not be the keyframe's own.

        Weights: objects are missed now and then, what is around them is not. Were both to weigh the same, an object
        that is missed in every other image would lose the pixels along its borders.
        """
        images = [keyframe.mask_index, keyframe.semantic, keyframe.disputed, keyframe.confidence]
        if grid is not None:
            images = [None if image is None else grid.of(image) for image in images]
        columns, device = view.map.head.columns, keyframe.mask_index.device
        rows, classes, factors = _of_masks(keyframe, view.map.queries)
        ops.load()
        targets = torch.ops.panoptic_mapper.label_targets(
            *images,
            *to_device(torch.stack([rows, classes]), device).unbind(),
            to_device(factors, device),
            view.positions,
            columns.stuff_of_classes,
            columns.semantic_of_classes,
            columns.first_query,
        )
        return LabelTargets(*targets)


def _of_masks(keyframe: Keyframe, queries: InstanceQueries) -> tuple[Tensor, Tensor, Tensor]:
    """Query row, class and weight [K + 1] of each mask; the first entries stand for no mask."""
    rows = queries.rows_of(torch.tensor(keyframe.mask_ids))
    classes = torch.tensor(keyframe.mask_classes)
    factors = torch.ones(len(rows))
    if len(queries):
        classes = torch.where(rows >= 0, queries.class_indices[rows], classes)
        factors = torch.where(rows >= 0, 1 / queries.recall[rows].float(), factors)
    return rows, classes, factors
