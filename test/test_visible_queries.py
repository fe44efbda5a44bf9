"""Which ellipsoids hold a point: both ways of asking against float64 brute force."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from panoptic_mapper import visible_queries
from panoptic_mapper.visible_queries import CHI2_3_99, holding_dense, holding_sampled


def scene(num_points: int, num_queries: int = 40, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    means = 4 * torch.rand(num_points, 3, generator=g)
    centers = 4 * torch.rand(num_queries, 3, generator=g)
    stds = (0.02 + 0.1 * torch.rand(num_queries, 3, generator=g)) * (1000 / max(num_points, 1000)) ** (1 / 3)
    rotations = torch.linalg.qr(torch.randn(num_queries, 3, 3, generator=g))[0]
    return means, centers, rotations.transpose(1, 2) / stds[:, :, None], torch.rand(num_queries, generator=g) < 0.8


@pytest.mark.parametrize("holding", [holding_sampled, holding_dense])
@pytest.mark.parametrize("num_points", [1, 1000, 40_001])
def test_an_ellipsoid_holds_a_point_or_none(holding, num_points: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visible_queries, "CHUNK_VALUES", 40 * 3 * 7001)  # several chunks, the last one not full
    means, centers, whitenings, asked = scene(num_points)
    offsets = means[:, None].double() - centers.double()
    distances = torch.einsum("qij,vqj->vqi", whitenings.double(), offsets).square().sum(-1)
    expected = asked & (distances.amin(0) < CHI2_3_99)
    assert num_points == 1 or 0 < expected.sum() < asked.sum()
    assert torch.equal(holding(means, centers, whitenings, asked), expected)


@pytest.mark.parametrize("holding", [holding_sampled, holding_dense])
def test_what_is_not_asked_holds_nothing(holding) -> None:
    means, centers, whitenings, asked = scene(1000)
    assert not holding(means, centers, whitenings, torch.zeros_like(asked)).any()
    assert holding(centers, centers, whitenings, torch.ones_like(asked)).all()
