"""Association: which 2D mask of a keyframe shows which object of the map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from panoptic_mapper.config import Config, param

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
    explained_px: Tensor  # [Q] pixels that show the query, whether the image has a label there or not

    def is_covered(self, share: float) -> Tensor:
        """Which masks cover more than a share of the pixels that show which queries: bool [K, Q]."""
        inside = self.shown_intersection / self.shown_px.clamp_min(1) > share
        return inside & (self.shown_px > self.min_px)


def overlap_sums(
    masks: Tensor, mask_index: Tensor, explained: Tensor, is_labelled: Tensor, num_masks: int
) -> tuple[Tensor, Tensor]:
    """Sums over the explained pixels of each 2D mask, of which `mask_overlap` makes its statistics.

    Pixels are not selected, for which a GPU would make the host wait, but multiplied by 1 or 0: matrix products of
    each image row, [groups, W] x [W, Q], summed over the rows.

    Args:
        masks: [H, W, Q] M_q(u), 0..1.
        mask_index: [H, W] 0 = no mask, 1..K.
        explained: [H, W] bool, pixels whose surface is in the map.
        is_labelled: [H, W] bool, pixels whose 2D label is known.
        num_masks: K.

    Returns:
        Sums [K + 2, 4 Q] of M_q, its logit, -log(1 - M_q), and M_q > 0.5, and the number of pixels [K + 2]. Row k is of
        mask k, row 0 of labelled pixels in no mask, the last of those without a label.
    """
    group = torch.where(explained, torch.where(is_labelled, mask_index, num_masks + 1), -1)
    members = (group[..., None] == torch.arange(num_masks + 2, device=group.device)).to(masks.dtype)  # [H, W, K + 2]
    logits = torch.logit(masks, PROBABILITY_FLOOR)  # bounded here only: a floor in each of 10^5 pixels would make a
    log_out = torch.nn.functional.softplus(logits)  # hundred of them out of nothing
    shown = (masks > 0.5).to(masks.dtype)  # the little that a query has in each of 10^5 pixels makes it seen nowhere
    per_row = [members.transpose(1, 2) @ values for values in (masks, logits, log_out, shown)]
    return torch.cat(per_row, dim=-1).sum(0), members.sum((0, 1))


def mask_overlap(sums: Tensor, px: Tensor, min_px: float) -> MaskOverlap:
    """Overlaps of rendered query masks with 2D masks.

    Args:
        sums: [K + 2, 4 Q] of `overlap_sums`; best in host memory, where what is small and asked often is cheaper.
        px: [K + 2] of `overlap_sums`.
        min_px: pixels of which a query needs more to tell anything.
    """
    intersection, logits, log_out, shown = sums.chunk(4, dim=1)
    query_px, log_out, shown_px = (x[:-1].sum(0) for x in (intersection, log_out, shown))
    mask_px = px[1:-1]
    both_px = (mask_px[:, None] + query_px).clamp_min(1)  # pixels of both count twice, as dice wants it
    return MaskOverlap(
        intersection[1:-1],
        mask_px,
        query_px,
        1 - 2 * intersection[1:-1] / both_px,
        (log_out - logits[1:-1]) / both_px,  # -log(M) = -log(1 - M) - logit(M)
        shown[1:-1],
        shown_px,
        min_px,
        shown.sum(0),
    )


def min_query_px(image: Tensor) -> float:
    """Pixels of an image [H, W] of which a query needs more to tell anything."""
    return MIN_QUERY_PX * pixel_scale(image)


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
