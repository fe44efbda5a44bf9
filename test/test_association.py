"""Matching of masks to queries against brute force over pixels."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch

from panoptic_mapper.association import (
    AssociationConfig,
    MaskOverlap,
    mask_overlap,
    match_masks,
    match_parts,
    min_query_px,
    overlap_sums,
    pixel_scale,
    same_object_votes,
)

H, W, K, Q = 12, 15, 3, 4


def overlap_of(masks: torch.Tensor, index: torch.Tensor, counted: torch.Tensor, num_masks: int) -> MaskOverlap:
    """Statistics over the counted pixels, all of which the map explains."""
    sums, px = overlap_sums(masks, index, counted, torch.ones_like(counted), num_masks)
    return mask_overlap(sums, px, min_query_px(masks))


def random_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    masks = torch.rand(H, W, Q, generator=g)
    masks[:, :5, 0] = 1.0
    masks[:, 5:, 0] = 0.0
    return masks, torch.randint(0, K + 1, (H, W), generator=g).int(), torch.rand(H, W, generator=g) > 0.3


def test_overlaps_against_brute_force() -> None:
    masks, index, counted = random_inputs()
    overlap = overlap_of(masks, index, counted, K)
    pixels = [(v, u) for v in range(H) for u in range(W) if counted[v, u]]
    for k in range(K):
        for q in range(Q):
            inter = area = total = bce = 0.0
            for v, u in pixels:
                m = min(max(float(masks[v, u, q]), 1e-3), 1 - 1e-3)
                is_inside = int(index[v, u]) == k + 1
                inter, area = inter + float(masks[v, u, q]) * is_inside, area + is_inside
                total += float(masks[v, u, q])
                bce -= math.log(m) if is_inside else math.log(1 - m)
            np.testing.assert_allclose(overlap.intersection[k, q], inter, rtol=1e-5)
            np.testing.assert_allclose(overlap.query_px[q], total, rtol=1e-5)
            np.testing.assert_allclose(overlap.mask_px[k], area)
            np.testing.assert_allclose(overlap.dice_cost[k, q], 1 - 2 * inter / (area + total), rtol=1e-4)
            np.testing.assert_allclose(overlap.bce[k, q], bce / (area + total), rtol=1e-4)


def test_pixels_without_a_label_count_only_as_explained() -> None:
    masks, index, explained = random_inputs()
    is_labelled = torch.rand(H, W, generator=torch.Generator().manual_seed(1)) > 0.4
    actual = mask_overlap(*overlap_sums(masks, index, explained, is_labelled, K), 20.0)
    expected = overlap_of(masks, index, explained & is_labelled, K)
    shown = masks > 0.5
    assert torch.equal(actual.explained_px, (shown & explained[..., None]).sum((0, 1)).float())
    assert torch.equal(actual.shown_px, (shown & (explained & is_labelled)[..., None]).sum((0, 1)).float())
    for name in ("intersection", "mask_px", "query_px", "dice_cost", "bce", "shown_intersection"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name))


def test_a_perfect_overlap_costs_nothing() -> None:
    index = torch.zeros(H, W, dtype=torch.int32)
    index[3:9, 2:8], index[:2] = 1, 2
    masks = torch.stack([index == 1, index == 2], -1).float()
    overlap = overlap_of(masks, index, torch.ones(H, W, dtype=torch.bool), 2)
    assert (overlap.dice_cost.diagonal() < 0.01).all()
    assert (overlap.bce.diagonal() < 0.01).all()
    assert overlap.dice_cost[0, 1] > 0.99
    assert overlap.bce[0, 1] > 3


def test_where_nothing_is_counted_nothing_overlaps() -> None:
    masks, index, counted = random_inputs()
    overlap = overlap_of(masks, index, torch.zeros_like(counted), K)
    assert (overlap.dice_cost == 1).all()
    assert match_masks(overlap, torch.ones(K, Q), AssociationConfig(max_cost=0.9)) == []
    assert (same_object_votes(overlap, AssociationConfig()) == 0).all()


def test_a_query_that_is_nowhere_has_no_pixels() -> None:
    """However large the image."""
    index = torch.ones(300, 400, dtype=torch.int32)
    overlap = overlap_of(torch.zeros(300, 400, 2), index, torch.ones(300, 400, dtype=torch.bool), 1)
    assert overlap.query_px.tolist() == [0, 0]
    assert (same_object_votes(overlap, AssociationConfig()) == 0).all()


def make_overlap(dice_cost: list[list[float]], bce: list[list[float]] | None = None) -> MaskOverlap:
    cost = torch.tensor(dice_cost)
    zero = torch.zeros(cost.shape)
    return MaskOverlap(
        zero,
        zero.sum(1),
        zero.sum(0),
        cost,
        zero if bce is None else torch.tensor(bce),
        zero,
        zero.sum(0),
        20,
        zero.sum(0),
    )


def test_the_cheapest_one_to_one_matching_is_chosen() -> None:
    g = torch.Generator().manual_seed(3)
    config = AssociationConfig(max_cost=1, bce_weight=0.3, class_weight=0.7)
    dice, bce, probs = (torch.rand(3, 5, generator=g) for _ in range(3))
    matches = match_masks(make_overlap(dice.tolist(), bce.tolist()), probs, config)
    cost = dice + 0.3 * bce + 0.7 * (1 - probs)
    best = min(permutations(range(5), 3), key=lambda columns: sum(float(cost[k, q]) for k, q in enumerate(columns)))
    assert matches == list(enumerate(best))


def test_pairs_beyond_the_threshold_are_rejected_even_when_nothing_else_is_left() -> None:
    config = AssociationConfig(max_cost=0.8)
    overlap = make_overlap([[0.2, 0.85], [0.81, 0.95]])
    assert match_masks(overlap, torch.ones(2, 2), config) == [(0, 0)]
    # Mask 1 may only have query 0; mask 0 gives it up rather than leave mask 1 without.
    assert match_masks(make_overlap([[0.2, 0.7], [0.6, 0.85]]), torch.ones(2, 2), config) == [(0, 1), (1, 0)]


def test_the_class_decides_between_equal_overlaps() -> None:
    config = AssociationConfig(class_weight=0.5)
    probs = torch.tensor([[0.1, 0.9]])
    assert match_masks(make_overlap([[0.3, 0.3]]), probs, config) == [(0, 1)]
    assert match_masks(make_overlap([[0.3, 0.75]]), probs, config) == [(0, 0)]


def test_more_masks_than_queries() -> None:
    assert match_masks(make_overlap([[0.5], [0.1], [0.6]]), torch.ones(3, 1), AssociationConfig()) == [(1, 0)]
    assert match_masks(make_overlap([[], []]), torch.ones(2, 0), AssociationConfig()) == []


def strips(*columns: tuple[int, int], width: int = 30) -> torch.Tensor:
    """Masks [10, width, n], each 1 in its range of columns."""
    masks = torch.zeros(10, width, len(columns))
    for n, (start, stop) in enumerate(columns):
        masks[:, start:stop, n] = 1
    return masks


def votes_of(index: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    overlap = overlap_of(masks, index, torch.ones(10, 30, dtype=torch.bool), int(index.max()))
    return same_object_votes(overlap, AssociationConfig(covered_share=0.6))


def test_queries_that_one_mask_covers_are_one_object_and_those_of_two_masks_are_two() -> None:
    index = torch.zeros(10, 30, dtype=torch.int32)
    index[:, :12], index[:, 12:20] = 1, 2
    masks = strips((0, 6), (6, 12), (12, 20), (20, 30))  # two parts of mask 1, all of mask 2, no mask
    votes = votes_of(index, masks)
    assert votes.tolist() == [[0, 1, -2, 0], [1, 0, -2, 0], [-2, -2, 0, 0], [0, 0, 0, 0]]


def test_a_query_that_is_hardly_seen_or_half_covered_gives_no_evidence() -> None:
    index = torch.zeros(10, 30, dtype=torch.int32)
    index[:, :12] = 1
    assert (votes_of(index, strips((0, 6), (6, 7))) == 0).all()  # 10 pixels only
    assert (votes_of(index, strips((0, 6), (6, 18))) == 0).all()  # half on the mask
    assert votes_of(index, strips((0, 6), (6, 15)))[0, 1] == 1  # two thirds


def test_a_query_inside_a_mask_of_its_class_is_matched_however_much_more_the_mask_shows() -> None:
    index = torch.zeros(10, 200, dtype=torch.int32)
    index[:] = 1
    overlap = overlap_of(strips((0, 5), width=200), index, torch.ones(10, 200, dtype=torch.bool), 1)
    assert overlap.dice_cost[0, 0] > 0.94
    assert match_masks(overlap, torch.tensor([[0.9]]), AssociationConfig()) == [(0, 0)]
    assert match_masks(overlap, torch.tensor([[0.1]]), AssociationConfig()) == []  # of another class


def test_a_mask_without_a_match_on_a_query_is_a_part_of_it() -> None:
    index = torch.zeros(10, 30, dtype=torch.int32)
    index[:, :14], index[:, 14:20], index[:, 20:26] = 1, 2, 3
    overlap = overlap_of(strips((0, 23), (26, 30)), index, torch.ones(10, 30, dtype=torch.bool), 3)
    config = AssociationConfig(part_share=0.6)
    total_px = torch.tensor([140, 60, 60])
    assert match_parts(overlap, total_px, [(0, 0)], config) == [(1, 0)]  # mask 3 is on it by half only
    assert match_parts(overlap, total_px, [(0, 0), (1, 1)], config) == []
    # What the map does not hold yet is on no query.
    assert match_parts(overlap, 2 * total_px, [(0, 0)], config) == []
    no_queries = overlap_of(torch.zeros(10, 30, 0), index, torch.ones(10, 30, dtype=torch.bool), 3)
    assert match_parts(no_queries, total_px, [], config) == []


def test_the_little_that_a_query_has_everywhere_shows_it_nowhere() -> None:
    index = torch.ones(100, 100, dtype=torch.int32)
    overlap = overlap_of(torch.full((100, 100, 1), 0.1), index, torch.ones(100, 100, dtype=torch.bool), 1)
    assert overlap.query_px[0] == pytest.approx(1000)
    assert overlap.shown_px[0] == 0
    assert not overlap.is_covered(0.6).any()


@pytest.mark.parametrize(("size", "scale"), [((60, 80), 1), ((240, 320), 1), ((480, 640), 4)])
def test_numbers_of_pixels_grow_with_the_image(size: tuple[int, int], scale: float) -> None:
    assert pixel_scale(torch.zeros(size)) == scale
