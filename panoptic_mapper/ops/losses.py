"""Gradients and shapes of the operators of losses; cuda/label_losses.h, cuda/image_losses.h state their contracts."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


@functools.cache
def register() -> None:
    """Registers fakes and autograd. The operators must have been loaded."""
    torch.library.register_fake("panoptic_mapper::image_losses", _image_losses_fake)
    torch.library.register_fake("panoptic_mapper::label_targets", _targets_fake)
    torch.library.register_fake("panoptic_mapper::label_losses", _losses_fake)
    torch.library.register_fake("panoptic_mapper::label_losses_backward", _backward_fake)
    torch.library.register_autograd("panoptic_mapper::label_losses", _backward, setup_context=_context)


def _image_losses_fake(image: Tensor, alpha: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return image.new_empty(3), image.new_empty(image.shape), alpha.new_empty(alpha.shape)


def _targets_fake(
    mask_index: Tensor, semantic: Tensor, disputed: Tensor | None, confidence: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    panoptic = mask_index.new_empty(mask_index.shape, dtype=torch.int64)
    return panoptic, torch.empty_like(panoptic), confidence.new_empty(confidence.shape)


def _losses_fake(masks: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return masks.new_empty(3), masks.new_empty(4 + 3 * masks.shape[2])


def _backward_fake(v_losses: Tensor, sums: Tensor, masks: Tensor, logs: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return masks.new_empty(masks.shape), logs.new_empty(logs.shape)


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.num_stuff = inputs
    _, sums = output
    ctx.mark_non_differentiable(sums)
    ctx.save_for_backward(sums, *tensors)


def _backward(ctx: Any, v_losses: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.panoptic_mapper.label_losses_backward(v_losses, *ctx.saved_tensors, ctx.num_stuff)
    return (*gradients, None, None, None, None)
