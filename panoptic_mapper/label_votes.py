"""Losses of label images without the images: what the labels of all pixels say about each Gaussian.

With label blending a view's labels are sums of weights w_g(u) times what the Gaussians say, and no gradient reaches the
weights. The losses (cuda/label_losses.h) ask each pixel for the columns of its own targets. So the weights are added up
by Gaussian and target once (cuda/tally.h), and all the rest happens to the Gaussians, not to the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panoptic_mapper.label_rendering import LabelRendering
from panoptic_mapper.label_targets import LabelTargets
from panoptic_mapper.losses import floored_log, masked_mean
from panoptic_mapper.rasterizers.base import ProjectedView


@dataclass(frozen=True)
class LabelVotes:
    """Sums over the pixels of what each visible Gaussian makes up of them; the last row has those of the pixels."""

    semantic: Tensor  # [V + 1, S + T] weighted, of the pixels with a semantic target
    panoptic: Tensor  # [V + 1, P] weighted, of those with a panoptic target
    shown: Tensor  # [V + 1, P] of those, not weighted
    told: Tensor  # [V + 1] of the pixels with a semantic target, not weighted

    @staticmethod
    def of(view: ProjectedView, targets: LabelTargets, num_semantic: int, num_panoptic: int) -> LabelVotes:
        """Those of a view whose pixels have targets among so many columns, S + T and P = S + 1 + Q."""
        table = view.tally(targets.semantic, targets.panoptic, targets.weights, num_semantic, num_panoptic)
        semantic, panoptic, shown, told = table.split([num_semantic, num_panoptic, num_panoptic, 1], dim=1)
        return LabelVotes(semantic, panoptic, shown, told[:, 0])


def voted_losses(view: ProjectedView, labels: LabelRendering, targets: LabelTargets) -> Tensor:
    """Cross entropies, semantic and panoptic, and dice [3] of cuda/label_losses.h, with log p blended."""
    columns, distribution = labels.columns, labels.distribution
    things = columns.things_of(labels.class_probs)
    num_stuff, num_panoptic = columns.num_stuff, distribution.shape[1]
    votes = LabelVotes.of(view, targets, num_stuff + things.shape[1], num_panoptic)
    logs, log_things = floored_log(distribution), floored_log(things)
    semantic_logs = torch.cat([logs[:, :num_stuff], log_things], dim=1)
    masks, shown = distribution[:, columns.first_query :], votes.shown[:, columns.first_query :]
    intersection, mask_px = (shown[:-1] * masks).sum(0), votes.told[:-1] @ masks
    target_px = shown[-1]
    dice = (2 * intersection + 1) / (target_px + mask_px + 1)
    return torch.stack(
        [
            cross_entropy(votes.semantic, semantic_logs),
            cross_entropy(votes.panoptic, logs),
            masked_mean(1 - dice, (target_px > 0).to(dice.dtype)),
        ]
    )


def cross_entropy(votes: Tensor, logs: Tensor) -> Tensor:
    """Mean over the weights of the pixels, or their sum where that is less than 1: votes [V + 1, n], logs [V, n]."""
    return -(votes[:-1] * logs).sum() / votes[-1].sum().clamp_min(1)
