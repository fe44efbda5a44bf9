"""The operators on CUDA tensors where their kernels are not built: the values go to the CPU and back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

OPERATORS = ("local_cross_attention", "local_cross_attention_backward", "label_warp", "label_warp_backward")


@functools.cache
def register() -> None:
    """Registers the detour. The operators must have been loaded, without CUDA kernels."""
    for name in OPERATORS:
        torch.library.impl(f"panoptic_mapper::{name}", "CUDA", func=on_cpu(getattr(torch.ops.panoptic_mapper, name)))


def on_cpu(operator: Callable[..., Any]) -> Callable[..., Any]:
    """An operator that moves its tensors to the CPU and the results to where the first one came from."""

    def run(*arguments: Any) -> Any:
        device = next(a.device for a in arguments if isinstance(a, Tensor))
        results = operator(*(a.cpu() if isinstance(a, Tensor) else a for a in arguments))
        return results.to(device) if isinstance(results, Tensor) else tuple(r.to(device) for r in results)

    return run
