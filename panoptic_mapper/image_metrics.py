"""Image metrics of rendered views: PSNR and SSIM of colour, L1 and coverage of depth."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

_SSIM_SIGMA_PX = 1.5  # Gaussian window of Wang et al. 2004
_SSIM_WINDOW_PX = 11
_MAX_PSNR_DB = 100.0  # identical images: a finite number that JSON can hold


class ImageMetrics:
    """Accumulates views. PSNR and SSIM are means over views, depth metrics are means over all their pixels."""

    def __init__(self) -> None:
        self._psnr: list[float] = []
        self._ssim: list[float] = []
        self._depth_error_m = 0.0
        self._num_compared = 0
        self._num_measured = 0

    @property
    def protocol(self) -> dict[str, str]:
        """What the numbers mean, to be printed with them."""
        return {
            "psnr": "dB over all pixels of a view (an empty map is black), mean over views",
            "ssim": "Gaussian window 11x11, sigma 1.5 px, reflected borders; mean over channels, pixels and views",
            "depth_l1_m": "mean |rendered - measured| over all pixels that have both",
            "depth_coverage": "percent of the pixels with measured depth that have rendered depth",
        }

    def update(
        self,
        color: np.ndarray,  # [H, W, 3] uint8 rendered
        depth: np.ndarray,  # [H, W] m rendered, 0 = nothing there
        true_color: np.ndarray,  # [H, W, 3] uint8
        true_depth: np.ndarray,  # [H, W] m, 0 = not measured
    ) -> None:
        """Adds one view."""
        self._psnr.append(psnr(color, true_color))
        self._ssim.append(ssim(color, true_color))
        measured = true_depth > 0
        compared = measured & (depth > 0)
        error = np.abs(depth[compared].astype(np.float64) - true_depth[compared])
        self._depth_error_m += float(error.sum())
        self._num_compared += int(compared.sum())
        self._num_measured += int(measured.sum())

    def compute(self) -> dict[str, Any]:
        """`psnr` dB, `ssim`, `depth_l1_m`, `depth_coverage` percent, `protocol`; None = nothing to measure."""
        compared, measured = self._num_compared, self._num_measured
        return {
            "psnr": float(np.mean(self._psnr)) if self._psnr else None,
            "ssim": float(np.mean(self._ssim)) if self._ssim else None,
            "depth_l1_m": self._depth_error_m / compared if compared else None,
            "depth_coverage": 100.0 * compared / measured if measured else None,
            "protocol": self.protocol,
        }


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images of one shape, dB, at most 100."""
    mse = float(np.mean((image.astype(np.float64) - truth) ** 2))
    return min(_MAX_PSNR_DB, 10.0 * float(np.log10(255.0**2 / mse))) if mse > 0 else _MAX_PSNR_DB


def ssim(image: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity of two uint8 images [H, W, 3], -1..1."""
    x, y = image.astype(np.float32), truth.astype(np.float32)
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x = _blurred(x * x) - mean_x**2
    var_y = _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # keep the ratios finite on flat regions (Wang et al. 2004)
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    denominator = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float(np.mean(numerator / denominator))


def _blurred(image: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(
        image, (_SSIM_WINDOW_PX, _SSIM_WINDOW_PX), _SSIM_SIGMA_PX, borderType=cv2.BORDER_REFLECT_101
    )
