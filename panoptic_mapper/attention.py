"""Query-guided segmentation: how much each Gaussian belongs to each instance query, and the panoptic distribution.

Local cross attention: only the Gaussians and the queries that a view holds are passed in, so cost and memory follow
V x Q of the view, never the whole map. Equations (PanopticSplatting, arXiv 2503.18073; docs/method.md):

    s_gq = sigmoid(f_g . key_q) * (exp(-1/2 d_gq^2) + 1e-5)         d_gq: Mahalanobis distance to the query's Gaussian
    P_g(stuff c) = p_g(c)
    P_g(thing q) = (1 - sum_stuff p_g) * s_gq / (s_0 + sum_q' s_gq')

The mapper uses the fused operator `local_cross_attention` (cuda/local_cross_attention.h); `query_scores` with
`panoptic_distribution` is its twin in plain torch, which tests and benchmarks compare it with.

`s_0` is the score of "no query": a thing far from all queries stays unassigned instead of going to the nearest one.
"""

from __future__ import annotations

import torch
from torch import Tensor

PRIOR_FLOOR = 1e-5  # keeps a gradient for Gaussians outside the query's ellipsoid
UNASSIGNED_SCORE = 2e-3  # s_0


def query_scores(
    features: Tensor,  # [V, E] instance features of the Gaussians
    means: Tensor,  # [V, 3] their centres, m
    keys: Tensor,  # [Q, E]
    centers: Tensor,  # [Q, 3] m
    whitenings: Tensor,  # [Q, 3, 3] maps an offset in m to standard deviations of the query
) -> Tensor:
    """Scores s_gq [V, Q], differentiable in everything."""
    similarity = torch.sigmoid(features @ keys.T)
    return similarity * (torch.exp(-0.5 * squared_distances(means, centers, whitenings)) + PRIOR_FLOOR)


def squared_distances(means: Tensor, centers: Tensor, whitenings: Tensor) -> Tensor:
    """Squared Mahalanobis distances [V, Q] of points [V, 3] to Gaussians given by centre and whitening matrix."""
    # |A (x - c)|^2 with one matrix product, A x - A c; axes first, so that the sum over them runs along memory.
    offsets = torch.einsum("qij,qj->iq", whitenings, centers).reshape(-1)  # [3 Q]
    whitened = means @ whitenings.transpose(0, 1).reshape(-1, 3).T - offsets
    return whitened.square().reshape(len(means), 3, len(centers)).sum(1)


def panoptic_distribution(
    class_probs: Tensor,  # [V, C] sums to 1
    stuff_classes: Tensor,  # [S] class indices
    thing_classes: Tensor,  # [T] the others
    scores: Tensor,  # [V, Q]
) -> Tensor:
    """The panoptic distribution [V, S + 1 + Q] over [stuff classes | unassigned thing | queries]; sums to 1."""
    stuff = class_probs[:, stuff_classes]
    thing_mass = class_probs[:, thing_classes].sum(-1, keepdim=True)
    unassigned = scores.new_full((len(scores), 1), UNASSIGNED_SCORE)
    with_unassigned = torch.cat([unassigned, scores], dim=1)
    return torch.cat([stuff, thing_mass * with_unassigned / with_unassigned.sum(-1, keepdim=True)], dim=1)
