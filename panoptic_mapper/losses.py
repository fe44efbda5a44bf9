"""Losses of the map's optimisation. Images are [H, W, ...]; each loss is a scalar mean over what it counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from panoptic_mapper.config import Config, param

PROBABILITY_FLOOR = 1e-3  # keeps the log of a probability, and its gradient, bounded


@dataclass(frozen=True)
class LossWeights(Config):
    """Weights of the terms of the loss."""

    color: float = param(1.0, "colour: (1 - ssim_share) L1 + ssim_share (1 - SSIM)", ge=0)
    ssim_share: float = param(0.2, "share of SSIM in the colour loss", ge=0, le=1)
    depth: float = param(2.0, "depth, mean absolute error in m", ge=0)
    opacity: float = param(0.2, "missing opacity where depth was measured", ge=0)
    scale: float = param(1.0, "Gaussians larger than max_scale_m, mean excess of all their axes in m", ge=0)
    normal: float = param(0.3, "surfels only: their normals against those of the rendered depth", ge=0)
    distortion: float = param(1.0, "surfels only: spread of their depths along a ray, m^2", ge=0)
    max_scale_m: float = param(0.08, "standard deviation beyond which a Gaussian is held to be too large, m", gt=0)
    semantic: float = param(0.5, "cross entropy of the semantic labels", ge=0)
    panoptic: float = param(0.5, "cross entropy of the panoptic distribution", ge=0)
    dice: float = param(0.3, "dice of the matched masks", ge=0)
    warp: float = param(0.5, "cross entropy of the blended labels with those of neighbouring keyframes", ge=0)
    repulsion: float = param(0.01, "overlap of queries' embeddings of neighbouring objects", ge=0)


def masked_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean; 0 where nothing is counted."""
    return (values * weights).sum() / weights.sum().clamp_min(1)


def floored_log(probabilities: Tensor) -> Tensor:
    """Logarithms that, with their gradients, are bounded."""
    return (probabilities.clamp_min(0) + PROBABILITY_FLOOR).log()


def query_repulsion(keys: Tensor, centers: Tensor, reach_m: float = 1.0) -> Tensor:
    """Squared cosine of the keys [Q, E] of different queries, weighted by nearness of their centres [Q, 3]."""
    if len(keys) < 2:
        return keys.new_zeros(())
    directions = F.normalize(keys, dim=1)
    likeness = (directions @ directions.T).clamp_min(0).square()
    centers = centers.detach()
    near = torch.exp(-torch.cdist(centers, centers) / reach_m).fill_diagonal_(0)
    return masked_mean(likeness, near)
