"""Image metrics against torchmetrics and numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from panoptic_mapper.image_metrics import ImageMetrics, psnr, ssim


def noisy_pair(sigma: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    smooth = np.add.outer(np.arange(40) * 3, np.arange(50) * 2)[..., None] + np.array([0, 20, 40])
    noisy = smooth + rng.normal(0, sigma, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), np.clip(smooth, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [2.0, 20.0, 80.0])
def test_psnr_and_ssim_equal_torchmetrics(sigma: float) -> None:
    image, truth = noisy_pair(sigma)
    x, y = (torch.as_tensor(i).double().permute(2, 0, 1)[None] for i in (image, truth))
    assert psnr(image, truth) == pytest.approx(float(peak_signal_noise_ratio(x, y, data_range=255.0)), abs=1e-4)
    oracle = structural_similarity_index_measure(x, y, data_range=255.0)
    assert ssim(image, truth) == pytest.approx(float(oracle), abs=1e-4)  # float32 variances here


def test_identical_images_are_finite() -> None:
    image, _ = noisy_pair(5.0)
    assert psnr(image, image) == 100.0
    assert ssim(image, image) == pytest.approx(1.0)


def test_depth_error_is_over_common_pixels_and_coverage_beside_it() -> None:
    color = np.zeros((12, 12, 3), np.uint8)
    true_depth = np.full((12, 12), 2.0, np.float32)
    true_depth[0] = 0  # not measured
    depth = np.full((12, 12), 2.1, np.float32)
    depth[1] = 0  # measured, but the map is empty
    metrics = ImageMetrics()
    metrics.update(color, depth, color, true_depth)
    result = metrics.compute()
    assert result["depth_l1_m"] == pytest.approx(0.1, abs=1e-6)
    assert result["depth_coverage"] == pytest.approx(100 * 10 / 11)


def test_no_views_give_none() -> None:
    result = ImageMetrics().compute()
    assert [result[k] for k in ("psnr", "ssim", "depth_l1_m", "depth_coverage")] == [None] * 4
