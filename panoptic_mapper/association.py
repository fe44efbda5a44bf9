"""Association: which 2D mask of a keyframe shows which object of the map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from panoptic_mapper.config import Config, param
from panoptic_mapper.transfers import to_host

MIN_QUERY_PX = 20.0  # a query that covers less of the image gives no evidence about merging, and gets none against it
REFERENCE_PX = 320 * 240  # numbers of pixels are meant for images of this size, and grow with larger ones
PROBABILITY_FLOOR = 1e-3  # bounds the cross entropy of one pixel


@dataclass(frozen=True)
class AssociationConfig(Config):
    """Cost of matching a mask to a query: dice + bce_weight * BCE + class_weight * (1 - P(class | query))."""

    max_cost: float = param(0.9, "pairs whose dice and class cost together are larger are not matched", ge=0)
    part_share: float = param(0.5, "an unmatched mask with this share on one object shows a part of it", gt=0, le=1)
    bce_weight: float = param(0.2, "weight of the binary cross entropy", ge=0)
    class_weight: float = param(0.2, "weight of the class disagreement", ge=0)
    near_share: float = param(0.6, "an unmatched mask with this share of points at an object's place is it", gt=0, le=1)
    covered_share: float = param(
        0.6, "a mask that covers this share of a query shows it, and of two is evidence to merge", gt=0.5, le=1
    )
    apart_weight: float = param(2.0, "votes against one object of two queries with a mask each; for: 1", ge=0)


@dataclass(frozen=True)
class MaskOverlap:
    """Overlap statistics of K masks with Q rendered queries over the pixels that both map and image explain."""

    intersection: Tensor  # [K, Q] sum of M_q over the pixels of mask k
    mask_px: Tensor  # [K] pixels
    query_px: Tensor  # [Q] sum of M_q
    dice_cost: Tensor  # [K, Q] 1 - dice, 0..1
    bce: Tensor  # [K, Q] binary cross entropy over mask_px + query_px
    shown_intersection: Tensor  # [K, Q] pixels of mask k that show query q: M_q > 0.5
    shown_px: Tensor  # [Q] pixels that show the query
    min_px: float  # a query shown by fewer pixels tells nothing

    def on_host(self, *others: Tensor) -> tuple[MaskOverlap, list[Tensor]]:
        """The same in host memory, and other tensors with it: what is small and asked often, for one wait."""
        intersection, mask_px, query_px, dice_cost, bce, shown_intersection, shown_px, *rest = to_host(
            self.intersection,
            self.mask_px,
            self.query_px,
            self.dice_cost,
            self.bce,
            self.shown_intersection,
            self.shown_px,
            *others,
        )
        return MaskOverlap(
            intersection, mask_px, query_px, dice_cost, bce, shown_intersection, shown_px, self.min_px
        ), rest

    def is_covered(self, share: float) -> Tensor:
        """Which masks cover more than a share of the pixels that show which queries: bool [K, Q]."""
        inside = self.shown_intersection / self.shown_px.clamp_min(1) > share
        return inside & (self.shown_px > self.min_px)


def mask_overlap(masks: Tensor, mask_index: Tensor, counted: Tensor, num_masks: int) -> MaskOverlap:
    """Overlaps of rendered query masks with 2D masks.

    Args:
        masks: [H, W, Q] M_q(u), 0..1.
        mask_index: [H, W] 0 = no mask, 1..K.
        counted: [H, W] bool, pixels whose 2D label is known and whose surface is in the map.
        num_masks: K.
    """
    pixels = counted.flatten().nonzero()[:, 0]  # [P], once: a GPU waits for each selection by a mask
    m = masks.flatten(0, 1)[pixels]  # [P, Q]
    index = mask_index.flatten()[pixels].long()
    shown = (m > 0.5).to(m.dtype)  # the little that a query has in each of 10^5 pixels makes it seen nowhere
    ones = m.new_ones(len(m), 1)  # their sums are pixels
    per_mask = m.new_zeros(num_masks + 1, 4 * m.shape[1] + 1)
    bounded = m.clamp(PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)  # in the logarithms only: a floor in each of 10^5
    log_in, log_out = -bounded.log(), -(1 - bounded).log()  # pixels would make a hundred of them out of nothing
    per_mask.index_add_(0, index, torch.cat([m, log_in, log_out, shown, ones], dim=1))
    intersection, inside, outside, shown_intersection, mask_px = per_mask.split([*4 * [m.shape[1]], 1], dim=1)
    mask_px = mask_px[:, 0]
    query_px = m.sum(0)
    both_px = (mask_px[:, None] + query_px).clamp_min(1)  # pixels of both count twice, as dice wants it
    bce = (inside + log_out.sum(0) - outside) / both_px
    dice_cost = 1 - 2 * intersection / both_px
    return MaskOverlap(
        intersection[1:],
        mask_px[1:],
        query_px,
        dice_cost[1:],
        bce[1:],
        shown_intersection[1:],
        shown.sum(0),
        MIN_QUERY_PX * pixel_scale(mask_index),
    )


def pixel_scale(image: Tensor) -> float:
    """By how much numbers of pixels grow for an image [H, W] that is larger than the reference."""
    return max(1.0, image.shape[0] * image.shape[1] / REFERENCE_PX)


def match_masks(overlap: MaskOverlap, class_probs: Tensor, config: AssociationConfig) -> list[tuple[int, int]]:
    """The cheapest one-to-one matches (mask, query).

    A pair that costs too much is left out, unless the query has the mask's class and lies within it: then the mask
    shows more of an object of which only a part was known.

    Args:
        overlap: of K masks and Q queries, in host memory.
        class_probs: [K, Q] probability that query q has the class of mask k.
        config: weights and threshold.
    """
    cost = overlap.dice_cost + config.class_weight * (1 - class_probs)
    is_part = overlap.is_covered(config.covered_share) & (class_probs > 0.5)
    rejected = (cost > config.max_cost) & ~is_part
    cost = cost + config.bce_weight * overlap.bce
    rows, columns = linear_sum_assignment(torch.where(rejected, cost + 1e3, cost).numpy())
    return [(int(k), int(q)) for k, q in zip(rows, columns, strict=True) if not rejected[k, q]]


def match_parts(
    overlap: MaskOverlap, total_px: Tensor, matched: list[tuple[int, int]], config: AssociationConfig
) -> list[tuple[int, int]]:
    """Unmatched masks that lie on a query, as (mask, query): parts of an object that the 2D model has cut in pieces.

    Args:
        overlap: of K masks and Q queries.
        total_px: [K] pixels of each mask, counted or not: what the map does not hold yet is of no query.
        matched: the pairs of `match_masks`.
        config: thresholds.
    """
    if overlap.intersection.numel() == 0:
        return []
    share, query = (overlap.shown_intersection / total_px.clamp_min(1)[:, None]).max(1)
    taken = {mask for mask, _ in matched}
    return [(k, int(query[k])) for k in (share > config.part_share).nonzero()[:, 0].tolist() if k not in taken]


def same_object_votes(overlap: MaskOverlap, config: AssociationConfig) -> Tensor:
    """Evidence [Q, Q] of one image: 1 where one mask covers both queries, -apart_weight where two cover one each.

    Two masks speak louder: 2D models join neighbours more often than they cut one object just along two queries.
    """
    covered = overlap.is_covered(config.covered_share).float()
    same = covered.T @ covered
    has_mask = covered.amax(0) if len(covered) else overlap.shown_px.new_zeros(len(overlap.shown_px))
    votes = same - config.apart_weight * (has_mask[:, None] * has_mask - same)
    return votes.fill_diagonal_(0)
