"""Gradients and shapes of label warping's operators (cuda/label_warp.h states their contract)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


@functools.cache
def register() -> None:
    """Registers fakes and autograd. The operators must have been loaded."""
    torch.library.register_fake("panoptic_mapper::label_warp", _fake)
    torch.library.register_fake("panoptic_mapper::label_warp_backward", _backward_fake)
    torch.library.register_autograd("panoptic_mapper::label_warp", _backward, setup_context=_context)


def _fake(probabilities: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    return probabilities.new_empty(()), probabilities.new_empty(())


def _backward_fake(v_loss: Tensor, mass: Tensor, probabilities: Tensor, *rest: Tensor) -> Tensor:
    return probabilities.new_empty(probabilities.shape)


def _context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    _, mass = output
    ctx.mark_non_differentiable(mass)
    ctx.save_for_backward(mass, *inputs)


def _backward(ctx: Any, v_loss: Tensor, _: Tensor) -> tuple:
    v_probabilities = torch.ops.panoptic_mapper.label_warp_backward(v_loss, *ctx.saved_tensors)
    return (v_probabilities, *[None] * (len(ctx.saved_tensors) - 2))
