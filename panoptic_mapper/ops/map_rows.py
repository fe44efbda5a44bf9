"""Shapes of the operators that select, read and change rows of the map.

They are those of cuda/map_rows.h, cuda/splat_step.h and cuda/visibility.h.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@functools.cache
def register() -> None:
    """Registers fakes; nothing here is differentiated. The operators must have been loaded."""
    torch.library.register_fake("panoptic_mapper::gather_columns", _gather_columns_fake)
    torch.library.register_fake("panoptic_mapper::adam_rows_", _changes_rows_fake)
    torch.library.register_fake("panoptic_mapper::splat_inputs", _splat_inputs_fake)
    torch.library.register_fake("panoptic_mapper::splat_step_", _changes_rows_fake)
    torch.library.register_fake("panoptic_mapper::frustum_mask", _frustum_mask_fake)
    torch.library.register_fake("panoptic_mapper::holding_mask", _holding_mask_fake)


def _gather_columns_fake(values: Tensor, ids: Tensor, widths: Sequence[int]) -> list[Tensor]:
    return [values.new_empty(ids.shape[0], width) for width in widths]


def _changes_rows_fake(*arguments: Any) -> None:
    pass


def _splat_inputs_fake(values: Tensor, ids: Tensor, with_copies: bool) -> tuple[Tensor, ...]:
    V = ids.shape[0]
    return tuple(values.new_empty(V, *width) for width in ((3,), (4,), (3,), (), (8 if with_copies else 5,)))


def _frustum_mask_fake(means: Tensor, *rest: Any) -> Tensor:
    return means.new_empty(means.shape[0], dtype=torch.bool)


def _holding_mask_fake(means: Tensor, rows: Tensor, centers: Tensor, *rest: Any) -> Tensor:
    return means.new_empty(centers.shape[0], dtype=torch.bool)
