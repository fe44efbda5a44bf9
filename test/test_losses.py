"""Losses against values by hand; nothing pulls where nothing is counted."""

from __future__ import annotations

import math

import pytest
import torch

from panoptic_mapper.losses import masked_mean, query_repulsion


def test_masked_mean_by_hand() -> None:
    values = torch.tensor([1.0, 2.0, 30.0], requires_grad=True)
    assert masked_mean(values, torch.tensor([1.0, 3.0, 0.0])).item() == pytest.approx(7 / 4)
    nothing = masked_mean(values, torch.zeros(3))
    assert nothing == 0
    nothing.backward()
    assert values.grad.tolist() == [0, 0, 0]


def test_repulsion_by_hand() -> None:
    keys = torch.tensor([[1.0, 0], [2.0, 2.0], [-1.0, 0]], requires_grad=True)
    centers = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [0, 2.0, 0]], requires_grad=True)
    near_01, near_02, near_12 = math.exp(-1), math.exp(-2), math.exp(-math.sqrt(5))
    # cos 01 = 1/sqrt 2; the other pairs point away from each other.
    loss = query_repulsion(keys, centers)
    total = 2 * (near_01 + near_02 + near_12)
    expected = 2 * near_01 * 0.5 / max(total, 1)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert centers.grad is None  # keys give way, objects do not
    assert (keys.grad[:2] != 0).any()


def test_one_query_repels_nothing() -> None:
    assert query_repulsion(torch.ones(1, 4), torch.ones(1, 3)) == 0
    assert query_repulsion(torch.ones(0, 4), torch.ones(0, 3)) == 0
