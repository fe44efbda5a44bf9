"""Queries: their shape is that of their points, and their ids outlive everything but never come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from small_room import CAMERA, CHAIR, CPU, SPACE, TABLE
from torch import Tensor

from panoptic_mapper.instances import (
    CHI2_3_99,
    COUNTS,
    MIN_STD_M,
    PART_PRIOR,
    T_DEGREES,
    InstanceConfig,
    InstanceQueries,
    Observations,
    Sighting,
    robust_gaussian,
    whitening_matrices,
)

STDS = torch.tensor([0.1, 0.2, 0.4])
R = torch.from_numpy(Rotation.from_rotvec([0.3, -0.2, 0.5]).as_matrix()).float()
CENTER = torch.tensor([1.0, -2.0, 3.0])


def make_queries(**settings: float) -> InstanceQueries:
    return InstanceQueries(InstanceConfig(**settings), len(SPACE), torch.Generator().manual_seed(0), CPU)


def cloud(n: int = 4000, seed: int = 0, center: Tensor = CENTER) -> Tensor:
    """Points of the Gaussian with covariance R diag(STDS)^2 R^T."""
    return center + torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) * STDS @ R.T


def covariance_of(queries: InstanceQueries, row: int = 0) -> Tensor:
    A = whitening_matrices(queries.table["quats"], queries.table["log_scales"])[row].double()
    return torch.linalg.inv(A.T @ A).float()


def expected_covariance(spread: float) -> Tensor:
    return spread**2 * R @ torch.diag(STDS**2) @ R.T


def add(queries: InstanceQueries, *centers: tuple[float, float, float]) -> list[int]:
    return [queries.add(cloud(50, i, torch.tensor(c)), 10 * i) for i, c in enumerate(centers)]


def masks(stamps_ns: list[int], *seen: tuple[int, int, int, float]) -> Observations:
    """Masks as (keyframe, id, class, weight) of keyframes with these stamps."""
    frames, ids, classes, weights = zip(*seen, strict=True) if seen else ([], [], [], [])
    long = {"dtype": torch.int64}
    return Observations(
        ids=torch.tensor(ids, **long),
        classes=torch.tensor(classes, **long),
        weights=torch.tensor(weights),
        frames=torch.tensor(frames, **long),
        stamps_ns=torch.tensor(stamps_ns, **long),
    )


def test_a_new_query_has_the_shape_of_its_points() -> None:
    queries = make_queries(spread=1.5)
    assert queries.add(cloud(), 123) == 1
    torch.testing.assert_close(queries.table["centers"][0], CENTER, atol=0.03, rtol=0)
    # The outermost points are left out, so the covariance may be a little smaller than that of all points.
    error = (covariance_of(queries) - expected_covariance(1.5)).abs().max() / expected_covariance(1.5).max()
    assert error < 0.1
    counts = {name: int(queries.column(name)[0]) for name in COUNTS}
    assert counts == dict.fromkeys(COUNTS, 0) | {"first_seen_ns": 123, "last_seen_ns": 123}
    assert queries.evidence.sum() == 0  # its masks are still to be counted


def test_far_points_do_not_change_a_new_query() -> None:
    clean, dirty = make_queries(), make_queries()
    clean.add(cloud(), 0)
    background = torch.tensor([5.0, 0, 0]) + cloud(160, 1)  # 4 % of the mask bleeds onto the wall behind
    dirty.add(torch.cat([cloud(), background]), 0)
    assert (clean.table["centers"] - dirty.table["centers"]).norm() < 0.1
    ratio = covariance_of(dirty).diagonal() / covariance_of(clean).diagonal()
    assert (ratio < 1.6).all()


def test_queries_opened_together_are_those_opened_one_by_one() -> None:
    together, apart = make_queries(), make_queries()
    for queries in (together, apart):
        add(queries, (9, 9, 9))
    points = [cloud(60, n, torch.tensor([float(n), 0, 0])) for n in range(3)]
    assert together.add_all(points, 5, [0, 1, 0]) == [2, 3, 4]
    assert [apart.add(p, 5, parent) for p, parent in zip(points, (0, 1, 0), strict=True)] == [2, 3, 4]
    for name in together.table.widths:
        torch.testing.assert_close(together.table[name], apart.table[name])
    for name in ("ids", "evidence", "counts", "votes"):
        assert torch.equal(getattr(together, name), getattr(apart, name)), name
    assert together.votes[0, 2] == PART_PRIOR
    assert together.add_all([], 6, []) == []
    assert together.add(cloud(), 7) == 5


def test_a_new_query_is_the_gaussian_of_what_lies_within_its_bulk() -> None:
    points = torch.cat([cloud(300), cloud(10, 1, CENTER + 20)])
    center, covariance = robust_gaussian(points)
    low, high = points.quantile(0.05, dim=0), points.quantile(0.95, dim=0)
    margin = 0.5 * (high - low) + MIN_STD_M
    bulk = torch.stack([p for p in points if (p > low - margin).all() and (p < high + margin).all()])
    assert len(bulk) < len(points)
    torch.testing.assert_close(center, bulk.mean(0))
    torch.testing.assert_close(covariance, bulk.T.cov(correction=0))


def test_ids_are_living_while_their_query_is_there() -> None:
    queries = make_queries()
    add(queries, (0, 0, 0), (1, 0, 0), (2, 0, 0))
    queries.remove([1])
    ids = torch.tensor([[0, 1, 2], [3, 4, 1000]], dtype=torch.int32)
    assert queries.are_living(ids).tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_a_new_query_holds_both_halves_of_an_object(share: float) -> None:
    """A sofa around a corner, a chair behind a table's leg: no half is an outlier of the other."""
    near, far = cloud(4000, 0), cloud(4000, 1, CENTER + torch.tensor([0.0, 2.5, 0]))
    num_far = int(share * 4000)
    points = torch.cat([near[: 4000 - num_far], far[:num_far]])
    center, covariance = robust_gaussian(points)
    np.testing.assert_allclose(center, points.mean(0), atol=0.03)
    expected = np.cov(points.T.numpy())
    np.testing.assert_allclose(covariance, expected, atol=0.05 * expected.max())


def test_flat_and_tiny_masks_get_the_least_thickness() -> None:
    queries = make_queries()
    flat = cloud()
    flat[:, 2] = 1.0
    queries.add(flat, 0)
    queries.add(torch.ones(40, 3), 0)
    stds = queries.table["log_scales"].exp()
    np.testing.assert_allclose(stds[0].min(), MIN_STD_M, rtol=1e-5)
    np.testing.assert_allclose(stds[1], [MIN_STD_M] * 3, rtol=1e-5)
    assert torch.isfinite(queries.table["quats"]).all()


def refit_many(queries: InstanceQueries, means: Tensor, rows: Tensor, weights: Tensor | None = None) -> None:
    for _ in range(20):
        queries.refit(means, torch.ones(len(means)) if weights is None else weights, rows)


def test_refit_converges_to_the_gaussians_of_the_object() -> None:
    queries = make_queries(spread=1.5)
    queries.add(cloud(center=CENTER + 0.5), 0)
    refit_many(queries, cloud(), torch.zeros(4000, dtype=torch.int64))
    torch.testing.assert_close(queries.table["centers"][0], CENTER, atol=0.03, rtol=0)
    # A Student t fitted to normal points has less spread than they, but the same axes.
    fitted = covariance_of(queries)
    scale = float(fitted.trace() / expected_covariance(1.5).trace())
    assert 0.5 < scale < 1.1
    assert (fitted / scale - expected_covariance(1.5)).abs().max() < 0.06 * expected_covariance(1.5).max()


def test_refit_is_a_step_of_a_weighted_student_t_fit() -> None:
    """Against one query after the other, with moments about the mean."""
    queries = make_queries(spread=1.5)
    add(queries, (0, 0, 0), (1, 0, 0), (2, 0, 0))
    g = torch.Generator().manual_seed(0)
    rows = torch.randint(-1, 3, (600,), generator=g)
    means = cloud(600, 2, torch.zeros(3)) + rows[:, None] * torch.tensor([0.9, 0, 0])
    weights = torch.rand(600, generator=g)
    expected = []
    for row in range(3):
        own, w = means[rows == row], weights[rows == row]
        A = whitening_matrices(queries.table["quats"], queries.table["log_scales"])[row]
        distances = (1.5 * (own - queries.table["centers"][row]) @ A.T).square().sum(1)
        w = w * (T_DEGREES + 3) / (T_DEGREES + distances)
        center = (w[:, None] * own).sum(0) / w.sum()
        covariance = torch.einsum("n,ni,nj->ij", w, own - center, own - center) / w.sum()
        expected.append((center, 1.5**2 * covariance))
    queries.refit(means, weights, rows)
    A = whitening_matrices(queries.table["quats"], queries.table["log_scales"])
    for row, (center, covariance) in enumerate(expected):
        torch.testing.assert_close(queries.table["centers"][row], center, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close((A[row].T @ A[row]).inverse(), covariance, atol=1e-5, rtol=1e-3)


def test_refit_is_robust_to_outliers() -> None:
    clean, dirty, naive = make_queries(), make_queries(), cloud().mean(0)
    for queries in (clean, dirty):
        queries.add(cloud(), 0)
    outliers = torch.tensor([6.0, 0, 0]) + cloud(400, 1)
    means = torch.cat([cloud(), outliers])
    refit_many(clean, cloud(), torch.zeros(4000, dtype=torch.int64))
    refit_many(dirty, means, torch.zeros(4400, dtype=torch.int64))
    moved = (dirty.table["centers"] - clean.table["centers"]).norm()
    assert moved < 0.15 * (means.mean(0) - naive).norm()


def test_refit_counts_members_by_weight_and_leaves_the_others() -> None:
    queries = make_queries(min_gaussians=8)
    add(queries, (0, 0, 0), (5, 0, 0), (9, 0, 0))
    before = queries.table["centers"].clone()
    means = torch.cat([cloud(200, 3, torch.tensor([0.2, 0, 0])), cloud(200, 4, torch.tensor([-0.5, 0, 0])), cloud(6)])
    rows = torch.tensor([0] * 400 + [1] * 3 + [-1] * 3)
    weights = torch.tensor([1.0] * 200 + [0.0] * 200 + [1.0] * 6)
    refit_many(queries, means, rows, weights)
    torch.testing.assert_close(queries.table["centers"][0], torch.tensor([0.2, 0, 0]), atol=0.1, rtol=0)
    assert torch.equal(queries.table["centers"][1:], before[1:])  # too few members, and none
    make_queries().refit(means, weights, torch.full_like(rows, -1))  # no query at all


def test_evidence_is_that_of_all_masks() -> None:
    queries = make_queries()
    add(queries, (0, 0, 0), (5, 0, 0))
    queries.column("contradictions")[:] = 4
    stamps = [5, 77, 99, 200]
    seen = [(0, 1, CHAIR, 1.0), (1, 2, TABLE, 0.5), (2, 2, TABLE, 1.5), (2, 2, CHAIR, 1.0), (3, 0, TABLE, 9.0)]
    for _ in range(2):  # counting again changes nothing
        queries.count(masks(stamps, *seen))
        assert queries.class_indices.tolist() == [CHAIR, TABLE]
        np.testing.assert_allclose(queries.scores, [1, 2 / 3])
        np.testing.assert_allclose(queries.class_probabilities(torch.tensor([1]))[0, [CHAIR, TABLE]], [1 / 3, 2 / 3])
        assert queries.evidence.sum() == 4  # what no object has counts nowhere
        assert queries.column("observations").tolist() == [1, 2]  # keyframes, not masks
        assert queries.column("first_seen_ns").tolist() == [0, 10]
        assert queries.column("last_seen_ns").tolist() == [5, 99]
        assert queries.column("contradictions").tolist() == [4, 4]


def test_evidence_follows_masks_to_other_objects() -> None:
    queries = make_queries()
    add(queries, (0, 0, 0), (5, 0, 0))
    queries.count(masks([20, 30], (0, 2, TABLE, 1.0), (1, 2, CHAIR, 0.25)))
    assert queries.evidence[:, [CHAIR, TABLE]].tolist() == [[0, 0], [0.25, 1]]
    queries.count(masks([20, 30], (0, 1, TABLE, 1.0), (1, 2, CHAIR, 0.25)))
    assert queries.evidence[:, [CHAIR, TABLE]].tolist() == [[0, 1], [0.25, 0]]
    assert queries.column("observations").tolist() == [1, 1]
    assert queries.column("last_seen_ns").tolist() == [20, 30]


def test_the_same_masks_count_anew_for_other_queries() -> None:
    queries = make_queries()
    add(queries, (0, 0, 0))
    observations = masks([20, 30], (0, 2, TABLE, 1.0), (1, 1, CHAIR, 0.25))
    queries.count(observations)
    assert queries.column("observations").tolist() == [1]
    add(queries, (5, 0, 0))
    queries.count(observations)
    assert queries.column("observations").tolist() == [1, 1]
    assert queries.class_indices.tolist() == [CHAIR, TABLE]
    queries.remove([0])
    queries.count(observations)
    assert queries.evidence[:, [CHAIR, TABLE]].tolist() == [[0, 1]]


@pytest.mark.parametrize("num_keyframes", [0, 3])
def test_without_masks_there_is_no_evidence(num_keyframes: int) -> None:
    queries = make_queries()
    queries.count(masks([7] * num_keyframes))  # nor any query
    add(queries, (0, 0, 0))
    queries.evidence[:] = 1
    queries.count(masks([7] * num_keyframes))
    assert queries.evidence.sum() == queries.column("observations")[0] == 0


def sighting(ids: list[int], votes: list[list[float]], contradicted: list[int], visible: list[int]) -> Sighting:
    return Sighting(torch.tensor(ids), torch.tensor(votes), torch.tensor(contradicted), torch.tensor(visible))


def test_what_a_keyframe_says_now_replaces_what_it_said_before() -> None:
    queries = make_queries()
    add(queries, (0, 0, 0), (5, 0, 0), (9, 0, 0))
    first = sighting([1, 3], [[0, -2], [-2, 0]], [0, 1], [1, 1])
    other = sighting([1, 2], [[0, 1], [1, 0]], [0, 0], [1, 1])
    queries.replace_sighting(None, first)
    queries.replace_sighting(None, other)
    assert queries.votes.tolist() == [[0, 1, -2], [1, 0, 0], [-2, 0, 0]]
    assert queries.column("contradictions").tolist() == [0, 0, 1]
    assert queries.column("visible").tolist() == [2, 1, 1]
    queries.replace_sighting(first, sighting([2, 3], [[0, 1], [1, 0]], [1, 0], [1, 1]))
    assert queries.votes.tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert queries.column("contradictions").tolist() == [0, 1, 0]
    assert queries.column("visible").tolist() == [1, 2, 1]


def test_what_a_keyframe_said_about_an_object_that_is_gone_is_gone() -> None:
    queries = make_queries()
    add(queries, (0, 0, 0), (5, 0, 0), (9, 0, 0))
    old = sighting([1, 2, 3], [[0, 1, -2], [1, 0, -2], [-2, -2, 0]], [1, 1, 1], [1, 1, 1])
    queries.replace_sighting(None, old)
    queries.remove([1])
    queries.replace_sighting(old, sighting([1, 3], [[0, 1], [1, 0]], [0, 0], [1, 1]))
    assert queries.votes.tolist() == [[0, 1], [1, 0]]
    assert queries.column("contradictions").tolist() == [0, 0]
    assert queries.column("visible").tolist() == [1, 1]


def test_a_part_on_trial_is_shown_as_its_object() -> None:
    queries = make_queries()
    add(queries, (0, 0, 0), (5, 0, 0))
    assert queries.add(cloud(), 50, parent_id=2) == 3
    assert queries.add(cloud(), 60, parent_id=3) == 4  # a part of the part
    assert queries.shown_rows().tolist() == [0, 1, 1, 1]
    assert queries.votes[2, 1] == queries.votes[1, 2] > 0
    apart = sighting([2, 3], [[0, -2], [-2, 0]], [0, 0], [1, 1])
    queries.replace_sighting(None, apart)  # the keyframe that opened it shows it apart: that is no news
    assert queries.shown_rows().tolist() == [0, 1, 1, 1]
    queries.replace_sighting(None, apart)
    assert queries.shown_rows().tolist() == [0, 1, 2, 2]


def test_a_part_whose_object_is_gone_stands_for_itself() -> None:
    queries = make_queries()
    add(queries, (0, 0, 0), (5, 0, 0))
    queries.add(cloud(), 50, parent_id=2)
    queries.merge(0, 1)
    queries.remove([1])  # object 2 is 1 now, about which and 3 nothing is known
    assert queries.shown_rows().tolist() == [0, 0]
    queries.remove([0])
    assert queries.shown_rows().tolist() == [0]


def test_recall_is_the_share_of_sightings_with_a_mask() -> None:
    queries = make_queries()
    add(queries, (0, 0, 0), (5, 0, 0), (9, 0, 0))
    queries.column("observations")[:] = torch.tensor([0, 48, 10])
    queries.column("visible")[:] = torch.tensor([0, 98, 4])
    np.testing.assert_allclose(queries.recall, [1, 0.5, 1])  # new: no doubt; never above 1


def test_classes_agree_as_far_as_they_are_sure() -> None:
    queries = make_queries()
    add(queries, (0, 0, 0), (5, 0, 0), (9, 0, 0), (12, 0, 0))
    queries.evidence.zero_()
    queries.evidence[0, CHAIR] = queries.evidence[1, TABLE] = queries.evidence[2, CHAIR] = 1000
    queries.evidence[3, TABLE] = 0.1
    agreement = queries.class_agreement()
    assert agreement[0, 2] > 0.99
    assert agreement[0, 1] == agreement[1, 0] < 0.3
    assert 0.9 < agreement[0, 3] < 1
    assert queries.is_confirmed.tolist() == [False] * 4  # never observed


def test_a_place_is_the_extent_widened_by_the_reach_of_unseen_sides() -> None:
    queries = make_queries(spread=1.5)
    add(queries, (0, 0, 0), (5, 0, 0))
    stds = torch.tensor([0.2, 0.2, 0.08])  # widened by 0.15 m: 0.25, 0.25, 0.17
    queries.table["centers"][:] = torch.tensor([[0.0, 0, 0], [5.0, 0, 0]])
    queries.table["quats"][:] = torch.tensor([1.0, 0, 0, 0])
    queries.table["log_scales"][:] = (1.5 * stds).log()
    points = torch.tensor([[0.49, 0, 0], [0.51, 0, 0], [0, 0, 0.33], [0, 0, 0.35], [0.36, 0, 0.23]])
    near = [1, 0, 1, 0, 1]  # within two standard deviations; (0.36 / 0.25)^2 + (0.23 / 0.17)^2 = 3.9 < 4
    rows = torch.tensor([1, 0])
    for point, expected in zip(points, near, strict=True):
        assert queries.share_near(point[None], rows, queries.geometry_on_host()).tolist() == [0, expected]
    np.testing.assert_allclose(queries.share_near(points, rows, queries.geometry_on_host()), [0, 3 / 5])


def test_ids_are_never_reused() -> None:
    queries = make_queries()
    assert add(queries, (0, 0, 0), (5, 0, 0), (9, 0, 0)) == [1, 2, 3]
    queries.merge(0, 2)
    queries.remove([2, 1])  # 3 became 1, and 2 is retired
    assert queries.ids.tolist() == [1]
    assert [queries.resolve(id) for id in (1, 2, 3)] == [1, 0, 1]
    assert add(queries, (3, 0, 0)) == [4]
    queries.merge(1, 0)
    queries.remove([0])
    assert [queries.resolve(id) for id in (1, 2, 3, 4)] == [4, 0, 4, 4]
    queries.remove([0])
    assert len(queries) == 0
    assert [queries.resolve(id) for id in (1, 2, 3, 4)] == [0, 0, 0, 0]
    assert add(queries, (3, 0, 0)) == [5]


def test_a_merged_query_has_the_times_of_both() -> None:
    queries = make_queries()
    add(queries, (0, 0, 0), (5, 0, 0))
    queries.count(masks([500, 30], (0, 1, CHAIR, 1.0), (1, 2, TABLE, 0.25)))
    queries.column("contradictions")[:] = torch.tensor([3, 1])
    queries.merge(0, 1)
    kept = [int(queries.column(name)[0]) for name in ("first_seen_ns", "last_seen_ns", "contradictions")]
    assert kept == [0, 500, 3]  # its own; those of the other are about something that is no more


def test_one_gaussian_among_many_brings_its_query_into_view() -> None:
    queries = make_queries()
    add(queries, (0, 0, 5), (2, 0, 5), (-2, 0, 5))
    visible = torch.tensor([0.0, 0.0, 1.0]).repeat(40_000, 1)  # in none of them
    visible[12_345] = torch.tensor([2.0, 0.0, 5.0])
    assert queries.in_view(torch.eye(4), CAMERA, visible, torch.arange(len(visible))).tolist() == [1]


def test_remove_keeps_rows_aligned() -> None:
    queries = make_queries()
    add(queries, (0, 0, 0), (5, 0, 0), (9, 0, 0))
    queries.votes[:] = torch.arange(9.0).reshape(3, 3)
    queries.count(masks([1], (0, 1, CHAIR, 1.0), (0, 3, TABLE, 9.0)))
    centers = queries.table["centers"].clone()
    queries.remove([1])
    assert queries.ids.tolist() == [1, 3]
    assert torch.equal(queries.table["centers"], centers[[0, 2]])
    assert queries.votes.tolist() == [[0, 2], [6, 8]]
    assert queries.class_indices.tolist() == [CHAIR, TABLE]
    assert len(queries.counts) == 2


def test_every_change_of_which_queries_there_are_has_a_revision() -> None:
    queries = make_queries()
    revisions = [queries.revision]
    for change in (
        lambda: add(queries, (0, 0, 0)),
        lambda: add(queries, (5, 0, 0)),
        lambda: (queries.merge(0, 1), queries.remove([1])),
    ):
        change()
        revisions.append(queries.revision)
    assert revisions == sorted(set(revisions))
    queries.count(masks([1], (0, 1, CHAIR, 1.0)))
    queries.replace_sighting(None, sighting([1], [[0.0]], [1], [1]))
    assert queries.revision == revisions[-1]


def test_rows_of_living_ids() -> None:
    queries = make_queries()
    assert queries.rows_of(torch.tensor([0, 1])).tolist() == [-1, -1]
    add(queries, (0, 0, 0), (5, 0, 0), (9, 0, 0))
    queries.remove([1])
    assert queries.rows_of(torch.tensor([[3, 2], [1, 0], [4, 99]])).tolist() == [[1, -1], [0, -1], [-1, -1]]


def test_queries_in_view_against_brute_force() -> None:
    g = torch.Generator().manual_seed(0)
    queries = make_queries()
    for _ in range(60):
        center = (torch.rand(3, generator=g) - torch.tensor([0.5, 0.5, 0])) * torch.tensor([6.0, 4.0, 5.0])
        queries.add(center + 0.3 * torch.rand(3, generator=g) * torch.randn(50, 3, generator=g), 0)
    points = (torch.rand(500, 3, generator=g) - torch.tensor([0.5, 0.5, 0])) * torch.tensor([6.0, 4.0, 4.0])
    uv = points[:, :2] / points[:, 2:] * 40 + torch.tensor([19.5, 14.5])
    visible = points[((uv > -0.5) & (uv < torch.tensor([39.5, 29.5]))).all(1)]
    expected = []
    for row in range(60):
        precision = torch.linalg.inv(covariance_of(queries, row))
        offsets = [p - queries.table["centers"][row] for p in visible]
        if any(float(x @ precision @ x) < CHI2_3_99 for x in offsets):
            expected.append(row)
    assert 10 < len(expected) < 50
    assert queries.in_view(torch.eye(4), CAMERA, visible, torch.arange(len(visible))).tolist() == expected
    assert len(queries.in_view(torch.eye(4), CAMERA, visible, torch.arange(0))) == 0
    assert len(make_queries().in_view(torch.eye(4), CAMERA, visible, torch.arange(len(visible)))) == 0
