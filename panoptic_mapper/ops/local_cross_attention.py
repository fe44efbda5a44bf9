"""Gradients and shapes of local cross attention's operators (cuda/local_cross_attention.h states their contract)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


@functools.cache
def register() -> None:
    """Registers fakes and autograd. The operators must have been loaded."""
    torch.library.register_fake("panoptic_mapper::local_cross_attention", _fake)
    torch.library.register_fake("panoptic_mapper::local_cross_attention_backward", _backward_fake)
    torch.library.register_autograd("panoptic_mapper::local_cross_attention", _backward, setup_context=_context)


def _fake(features: Tensor, means: Tensor, visible: Tensor, keys: Tensor, *rest: Any) -> Tensor:
    return features.new_empty(visible.shape[0], rest[-1] + 1 + keys.shape[0])


def _backward_fake(
    v_distribution: Tensor,
    features: Tensor,
    means: Tensor,
    visible: Tensor,
    keys: Tensor,
    centers: Tensor,
    whitenings: Tensor,
    class_probs: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (features, keys, centers, whitenings, class_probs))


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.num_stuff = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, v_distribution: Tensor) -> tuple:
    v_features, v_keys, v_centers, v_whitenings, v_class_probs = (
        torch.ops.panoptic_mapper.local_cross_attention_backward(v_distribution, *ctx.saved_tensors, ctx.num_stuff)
    )
    return v_features, None, None, v_keys, v_centers, v_whitenings, v_class_probs, None, None
