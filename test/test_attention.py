"""Query-guided segmentation against naive float64 loops, with gradients."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from panoptic_mapper.attention import (
    PRIOR_FLOOR,
    UNASSIGNED_SCORE,
    panoptic_distribution,
    query_scores,
    squared_distances,
)

V, Q, E, C = 7, 4, 6, 5
STUFF, THINGS = torch.tensor([0, 2]), torch.tensor([1, 3, 4])  # of C = 5 classes, "unlabeled" among the stuff


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    features, means = torch.randn(V, E, generator=g), torch.randn(V, 3, generator=g)
    keys, centers = torch.randn(Q, E, generator=g), torch.randn(Q, 3, generator=g)
    whitenings = torch.randn(Q, 3, 3, generator=g)
    return [t.to(dtype).requires_grad_() for t in (features, means, keys, centers, whitenings)]


def naive_scores(features: Tensor, means: Tensor, keys: Tensor, centers: Tensor, whitenings: Tensor) -> Tensor:
    rows = []
    for v in range(V):
        row = []
        for q in range(Q):
            precision = whitenings[q].T @ whitenings[q]
            offset = means[v] - centers[q]
            density = torch.exp(-offset @ precision @ offset / 2)
            row.append(1 / (1 + torch.exp(-(features[v] * keys[q]).sum())) * (density + PRIOR_FLOOR))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_scores_and_their_gradients_are_those_of_the_equation() -> None:
    weights = torch.randn(V, Q, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, actual = inputs(), inputs()
    (naive_scores(*expected) * weights).sum().backward()
    (query_scores(*actual) * weights).sum().backward()
    torch.testing.assert_close(query_scores(*actual), naive_scores(*expected), rtol=1e-10, atol=1e-12)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.grad, e.grad, rtol=1e-9, atol=1e-12)


def test_float32_is_precise_enough_far_from_the_origin() -> None:
    """The distances are differences of large products: the map may be 100 m from its origin."""
    _, means, _, centers, _ = inputs()
    shift = torch.tensor([80.0, -60.0, 3.0], dtype=torch.float64)
    R = torch.from_numpy(Rotation.random(Q, random_state=0).as_matrix())
    whitenings = R / torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64)[:, None]
    exact = squared_distances(means + shift, centers + shift, whitenings)
    rounded = squared_distances(*(t.float() for t in (means + shift, centers + shift, whitenings)))
    assert (torch.exp(-rounded / 2) - torch.exp(-exact / 2)).abs().max() < 1e-3


def class_probs(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(V, C, dtype=dtype, generator=torch.Generator().manual_seed(2)).softmax(1)


def test_distribution_is_that_of_the_equation() -> None:
    probs, scores = class_probs().requires_grad_(), naive_scores(*inputs()).detach().requires_grad_()
    actual = panoptic_distribution(probs, STUFF, THINGS, scores)
    assert actual.shape == (V, 2 + 1 + Q)
    rows = []
    for v in range(V):
        thing = probs[v, 1] + probs[v, 3] + probs[v, 4]
        total = UNASSIGNED_SCORE + scores[v].sum()
        shares = [thing * UNASSIGNED_SCORE / total] + [thing * scores[v, q] / total for q in range(Q)]
        rows.append(torch.stack([probs[v, 0], probs[v, 2], *shares]))
    expected = torch.stack(rows)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for a, e in zip(
        torch.autograd.grad((actual * weights).sum(), [probs, scores]),
        torch.autograd.grad((expected * weights).sum(), [probs, scores]),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-13)


def test_distribution_sums_to_one_whatever_the_scores() -> None:
    for scores in (naive_scores(*inputs()), torch.zeros(V, Q, dtype=torch.float64), torch.zeros(V, 0)):
        distribution = panoptic_distribution(class_probs(scores.dtype), STUFF, THINGS, scores)
        torch.testing.assert_close(distribution.sum(1), torch.ones(V, dtype=scores.dtype))


def one_thing_at(x_m: float) -> Tensor:
    """Distribution [1 + 1 + 1] of a certain thing whose feature agrees with the only query, at the origin, 0.3 m."""
    features, keys = torch.full((1, E), 1.0), torch.full((1, E), 1.0)
    scores = query_scores(features, torch.tensor([[x_m, 0, 0]]), keys, torch.zeros(1, 3), torch.eye(3)[None] / 0.3)
    return panoptic_distribution(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), torch.tensor([1]), scores)[0]


def test_a_near_thing_is_assigned_and_a_far_one_is_not() -> None:
    assert one_thing_at(0.2)[2] > 0.99
    far = one_thing_at(5.0)
    assert far[1] > 0.9
    assert far[2] < 0.1


def test_density_at_the_centre_does_not_depend_on_the_size() -> None:
    features = keys = torch.zeros(1, E)
    for size_m in (0.05, 5.0):
        scores = query_scores(features, torch.ones(1, 3), keys, torch.ones(1, 3), torch.eye(3)[None] / size_m)
        np.testing.assert_allclose(scores, [[0.5 * (1 + PRIOR_FLOOR)]], rtol=1e-6)
