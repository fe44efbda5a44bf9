"""Gradients and shapes of the whitening matrices' operators (cuda/whitening.h states their contract)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


@functools.cache
def register() -> None:
    """Registers fakes and autograd. The operators must have been loaded."""
    torch.library.register_fake("panoptic_mapper::whitening_matrices", _fake)
    torch.library.register_fake("panoptic_mapper::whitening_matrices_backward", _backward_fake)
    torch.library.register_autograd("panoptic_mapper::whitening_matrices", _backward, setup_context=_context)


def _fake(quats: Tensor, log_scales: Tensor) -> Tensor:
    return quats.new_empty(quats.shape[0], 3, 3)


def _backward_fake(v_whitenings: Tensor, quats: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    return quats.new_empty(quats.shape), log_scales.new_empty(log_scales.shape)


def _context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, v_whitenings: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.panoptic_mapper.whitening_matrices_backward(v_whitenings, *ctx.saved_tensors)
