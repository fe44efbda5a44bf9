"""The operators on CUDA tensors where their kernels are not built: the values go to the CPU and back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

OPERATORS = (
    "local_cross_attention",
    "local_cross_attention_backward",
    "label_warp",
    "label_warp_backward",
    "label_targets",
    "label_losses",
    "label_losses_backward",
    "frustum_mask",
    "holding_mask",
    "whitening_matrices",
    "whitening_matrices_backward",
    "splat_inputs",
    "image_losses",
    "tally_tiles",
    "list_tiles",
)
ROW_OPERATORS = ("adam_rows_", "splat_step_")  # which change a table


@functools.cache
def register() -> None:
    """Registers the detour. The operators must have been loaded, without CUDA kernels."""
    for name in OPERATORS:
        torch.library.impl(f"panoptic_mapper::{name}", "CUDA", func=on_cpu(getattr(torch.ops.panoptic_mapper, name)))
    torch.library.impl("panoptic_mapper::gather_columns", "CUDA", func=gather_columns)
    for name in ROW_OPERATORS:
        torch.library.impl(f"panoptic_mapper::{name}", "CUDA", func=on_rows(getattr(torch.ops.panoptic_mapper, name)))


def on_cpu(operator: Callable[..., Any]) -> Callable[..., Any]:
    """An operator that moves its tensors to the CPU and the results to where the first one came from."""

    def run(*arguments: Any) -> Any:
        device = next(a.device for a in arguments if isinstance(a, Tensor))
        results = operator(*map(_on_cpu, arguments))
        return results.to(device) if isinstance(results, Tensor) else tuple(r.to(device) for r in results)

    return run


def gather_columns(values: Tensor, ids: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Needs no detour."""
    return [column.contiguous() for column in values[ids].split(list(widths), dim=1)]


def on_rows(operator: Callable[..., None]) -> Callable[..., None]:
    """An operator that changes rows `ids` of values, moments and steps, and moves only these to the CPU and back."""

    def run(values: Tensor, moments: Tensor, steps: Tensor, ids: Tensor, *rest: Any) -> None:
        rows = [table[ids].cpu() for table in (values, moments, steps)]
        operator(*rows, torch.arange(len(ids)), *map(_on_cpu, rest))
        for table, changed in zip((values, moments, steps), rows, strict=True):
            table[ids] = changed.to(table.device)

    return run


def _on_cpu(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.cpu()
    return [_on_cpu(a) for a in argument] if isinstance(argument, list) else argument
