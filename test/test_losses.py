"""Losses against values by hand and naive loops; nothing pulls where nothing is counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from panoptic_mapper.losses import (
    color_loss,
    masked_mean,
    query_repulsion,
    ssim,
)


def images(height: int = 21, width: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.rand(height, width, 3, generator=g), torch.rand(height, width, 3, generator=g)


def naive_ssim(a: np.ndarray, b: np.ndarray, window: int, stride: int) -> float:
    values = []
    for channel in range(3):
        for v in range(0, a.shape[0] - window + 1, stride):
            for u in range(0, a.shape[1] - window + 1, stride):
                x, y = (i[v : v + window, u : u + window, channel].ravel() for i in (a, b))
                covariance = ((x - x.mean()) * (y - y.mean())).mean()
                values.append(
                    (2 * x.mean() * y.mean() + 1e-4)
                    * (2 * covariance + 9e-4)
                    / ((x.mean() ** 2 + y.mean() ** 2 + 1e-4) * (x.var() + y.var() + 9e-4))
                )
    return float(np.mean(values))


@pytest.mark.parametrize("similar", [0.0, 0.7])
def test_ssim_is_that_of_its_windows(similar: float) -> None:
    a, noise = images()
    b = similar * a + (1 - similar) * noise
    expected = naive_ssim(a.double().numpy(), b.double().numpy(), 8, 4)
    np.testing.assert_allclose(ssim(a, b), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 30), (21, 3), (1, 1)])
def test_ssim_of_images_smaller_than_a_window(size: tuple[int, int]) -> None:
    a, b = images(*size)
    np.testing.assert_allclose(ssim(a, b), naive_ssim(a.double().numpy(), b.double().numpy(), min(size), 4), atol=1e-5)


def test_ssim_of_equal_images_is_one() -> None:
    a, b = images()
    np.testing.assert_allclose(ssim(a, a), 1, atol=1e-6)
    assert ssim(a, b) < 0.5
    assert color_loss(a, a, torch.ones(21, 30), 0.2).abs() < 1e-6


def test_color_loss_mixes_l1_and_ssim() -> None:
    a, b = images()
    l1 = (a - b).abs().mean()
    everywhere = torch.ones(21, 30)
    torch.testing.assert_close(color_loss(a, b, everywhere, 0), l1)
    torch.testing.assert_close(color_loss(a, b, everywhere, 0.25), 0.75 * l1 + 0.25 * (1 - ssim(a, b)))


@pytest.mark.parametrize("ssim_share", [0.0, 0.5])
def test_color_is_compared_only_where_it_counts(ssim_share: float) -> None:
    a, b = images()
    b[:, :10] = a[:, :10]
    counted = torch.zeros(21, 30)
    counted[:, :10] = 1
    a.requires_grad_()
    assert color_loss(a, b, counted, ssim_share).abs() < 1e-6
    counted[:, 10:15] = 1
    color_loss(a, b, counted, ssim_share).backward()
    assert (a.grad[:, 15:] == 0).all()
    assert (a.grad[:, 10:15] != 0).any()


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
