"""What the images of a view say about colour and geometry (cuda/image_losses.h has the equations)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from panoptic_mapper import ops
from panoptic_mapper.density_control import DensityConfig
from panoptic_mapper.keyframes import Keyframe
from panoptic_mapper.losses import LossWeights
from panoptic_mapper.seen_counter import COUNT_WEIGHT, ERROR_SCALE

IMAGE_TERMS = ("color", "depth", "opacity")


class ImageGradients(NamedTuple):
    """The loss of images, and its gradients."""

    terms: Tensor  # [3] unweighted, see IMAGE_TERMS
    v_image: Tensor  # [H, W, F]
    v_alpha: Tensor  # [H, W]


def image_gradients(
    image: Tensor,  # [H, W, 5 or 8] colours, what was 1, colours again or not, and sums of depths
    alpha: Tensor,  # [H, W]
    keyframe: Keyframe,
    weights: LossWeights,
    density: DensityConfig,
) -> ImageGradients:
    """What a keyframe says about images of its view, with the gradients that count its Gaussians (`seen_counter`)."""
    ops.load()
    numbers = (weights.color, weights.depth, weights.opacity, weights.ssim_share)
    depths = (density.min_depth_m, density.max_depth_m)
    return ImageGradients(
        *torch.ops.panoptic_mapper.image_losses(
            image, alpha, keyframe.color, keyframe.depth, *numbers, *depths, COUNT_WEIGHT, ERROR_SCALE
        )
    )


def image_loss(
    image: Tensor, alpha: Tensor, keyframe: Keyframe, weights: LossWeights, density: DensityConfig
) -> tuple[Tensor, Tensor]:
    """The same for autograd: the weighted sum [] of the terms, differentiable, and the terms [3]."""
    return _ImageLoss.apply(image, alpha, keyframe, weights, density)


class _ImageLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, alpha: Tensor, keyframe: Keyframe, weights: LossWeights, density: DensityConfig
    ) -> tuple[Tensor, Tensor]:
        terms, v_image, v_alpha = image_gradients(image, alpha, keyframe, weights, density)
        ctx.save_for_backward(v_image, v_alpha)
        ctx.mark_non_differentiable(terms)
        weighted = [getattr(weights, name) * term for name, term in zip(IMAGE_TERMS, terms.unbind(), strict=True)]
        return torch.stack(weighted).sum(), terms

    @staticmethod
    def backward(ctx: Any, v_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        v_image, v_alpha = ctx.saved_tensors
        return v_total * v_image, v_total * v_alpha, None, None, None
