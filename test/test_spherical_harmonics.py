"""Spherical harmonics against scipy's, and colours that change with the direction of view."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y
from small_room import CAMERA, SPACE, PassOn, gaussian_columns, make_mapper
from torch import Tensor

from panoptic_mapper.spherical_harmonics import basis, degree_of_width, seen_colors, width_of_degree

BANDS = [(degree, order) for degree in (1, 2, 3) for order in range(-degree, degree + 1)]


def directions(n: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=g, dtype=torch.float64), dim=1)


def real_harmonic(degree: int, order: int, unit: np.ndarray) -> np.ndarray:
    """The real spherical harmonic of scipy's complex ones, which have the Condon-Shortley phase."""
    polar, azimuth = np.arccos(unit[:, 2]), np.arctan2(unit[:, 1], unit[:, 0])
    value = sph_harm_y(degree, abs(order), polar, azimuth)
    if order == 0:
        return value.real
    return 2**0.5 * (value.real if order > 0 else value.imag)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_the_basis_is_that_of_scipy(degree: int) -> None:
    unit = directions(200)
    expected = [real_harmonic(*band, unit.numpy()) for band in BANDS if band[0] <= degree]
    values = basis(unit, degree)
    assert values.shape == (200, width_of_degree(degree) // 3)
    np.testing.assert_allclose(values, np.stack(expected, axis=1), atol=1e-12)


def test_widths_and_degrees() -> None:
    assert [width_of_degree(degree) for degree in range(4)] == [0, 9, 24, 45]
    assert [degree_of_width(width) for width in (0, 9, 24, 45)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="expected 0, 9, 24 or 45 coefficients, got 12"):
        degree_of_width(12)


def test_each_channel_has_its_own_coefficients() -> None:
    means, center = torch.tensor([[1.0, 2, 3], [1, 2, 5]]), torch.tensor([1.0, 2, 4])
    harmonics = torch.zeros(2, 9)
    harmonics[:, 3:6] = torch.tensor([0.1, 0.2, -0.3])  # Y_10, which is 0.4886 z
    colors = seen_colors(torch.full((2, 3), 0.5), harmonics, means, center)
    change = 0.4886025 * torch.tensor([0.1, 0.2, -0.3])
    torch.testing.assert_close(colors, torch.stack([0.5 - change, 0.5 + change]))


def test_gradients_reach_the_coefficients_and_not_the_places() -> None:
    g = torch.Generator().manual_seed(1)
    colors, harmonics, means = (torch.randn(4, k, generator=g, requires_grad=True) for k in (3, 45, 3))
    center, weights = torch.zeros(3), torch.randn(4, 3, generator=g)
    (seen_colors(colors, harmonics, means, center) * weights).sum().backward()
    assert means.grad is None
    torch.testing.assert_close(colors.grad, weights)
    unit = torch.nn.functional.normalize(means.detach(), dim=1)
    expected = basis(unit, 3)[:, :, None] * weights[:, None]
    torch.testing.assert_close(harmonics.grad, expected.flatten(1))


def test_a_gaussian_is_red_from_the_front_and_blue_from_behind() -> None:
    mapper = make_mapper("gaussians.sh_degree=1", segmenter=PassOn(SPACE))
    harmonics = torch.zeros(1, 9)
    harmonics[0, 3:6] = torch.tensor([1.0, 0.0, -1.0]) / 2 / 0.4886025  # rgb = 0.5 + (0.5, 0, -0.5) z
    sizes = torch.full((1, 3), 0.3).log()
    columns = gaussian_columns(torch.tensor([[0.0, 0, 2]]), log_scales=sizes, opacity_logits=torch.full((1, 1), 9.0))
    mapper.map.gaussians.append(columns | {"harmonics": harmonics}, anchor=0)
    behind = np.diag([-1.0, 1, -1, 1])
    behind[2, 3] = 4
    front, back = (mapper.render(CAMERA, T).color[15, 20] / 255 for T in (np.eye(4), behind))
    np.testing.assert_allclose(front, [1, 0.5, 0], atol=0.01)
    np.testing.assert_allclose(back, [0, 0.5, 1], atol=0.01)
