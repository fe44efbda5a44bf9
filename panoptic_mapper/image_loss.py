"""What the images of a view say about colour and geometry."""

from __future__ import annotations

import torch
from torch import Tensor

from panoptic_mapper.density_control import DensityConfig, unobstructed, usable_depth
from panoptic_mapper.losses import LossWeights, color_loss, masked_mean
from panoptic_mapper.seen_counter import ERROR_SCALE

IMAGE_TERMS = ("color", "depth", "opacity")


def image_loss(
    color: Tensor,  # [H, W, 3] rendered
    depth: Tensor,  # [H, W] m, rendered
    alpha: Tensor,  # [H, W] rendered
    observed_color: Tensor,  # [H, W, 3] uint8
    observed_depth: Tensor,  # [H, W] m, 0 = none
    *,
    weights: LossWeights,
    density: DensityConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sum [] of what a view's images say about colour and geometry.

    Beside it are its terms [3], unweighted, see `IMAGE_TERMS`, and for `relax_colors` the error of the
    colours [H, W, 3], times ERROR_SCALE.
    """
    counted = unobstructed(observed_depth, density).float()
    observed = observed_color.float() / 255
    measured = usable_depth(observed_depth, density).float()
    covered = measured * (alpha.detach() > 0.5)
    terms = [
        color_loss(color, observed, counted, weights.ssim_share),
        masked_mean((depth - observed_depth).abs(), covered),
        masked_mean(1 - alpha, measured),
    ]
    weighted = [getattr(weights, name) * term for name, term in zip(IMAGE_TERMS, terms, strict=True)]
    errors = (observed - color.detach()) * (ERROR_SCALE * counted[..., None])
    return torch.stack(weighted).sum(), torch.stack(terms).detach(), errors
