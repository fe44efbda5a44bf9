"""Checks of a rasteriser's arguments, shared by the backends."""

from __future__ import annotations

import torch
from torch import Tensor


def check_gaussians(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    T_camera_map: Tensor,  # [4, 4]
    *,
    device_type: str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Checks sizes, and that all share one device and floating dtype (`device_type` and `dtype`, where given).

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    if means.ndim != 2 or means.shape[1] != 3:
        raise ValueError(f"means: expected [N, 3], got {list(means.shape)}")
    if not means.is_floating_point() or (dtype is not None and means.dtype != dtype):
        raise ValueError(f"means: expected {dtype or 'a floating dtype'}, got {means.dtype}")
    if device_type is not None and means.device.type != device_type:
        raise ValueError(f"means: expected a tensor on {device_type}, got one on {means.device}")
    N = means.shape[0]
    expected = {"quats": (quats, (N, 4)), "scales": (scales, (N, 3)), "opacities": (opacities, (N,))}
    expected["T_camera_map"] = (T_camera_map, (4, 4))
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected {list(shape)}, got {list(tensor.shape)}")
        if tensor.dtype != means.dtype or tensor.device != means.device:
            raise ValueError(
                f"{name}: expected {means.dtype} on {means.device} as means, got {tensor.dtype} on {tensor.device}"
            )


def check_values(name: str, values: Tensor, like: Tensor, num_visible: int) -> None:
    """Checks `values` [V, any number of channels] against the device and dtype of `like`.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    if values.ndim != 2 or values.shape[0] != num_visible:
        raise ValueError(f"{name}: expected [{num_visible}, channels], one row per visible Gaussian,"
                         f" got {list(values.shape)}")  # fmt: skip
    if values.dtype != like.dtype or values.device != like.device:
        raise ValueError(f"{name}: expected {like.dtype} on {like.device}, got {values.dtype} on {values.device}")


def expected_depth(accumulated: Tensor, alpha: Tensor, min_alpha: float) -> Tensor:
    """Accumulated depth / alpha, and 0 where alpha is 0.

    alpha is 0 or at least `min_alpha`, so the clamp at half of that only turns 0 / 0 into 0. All backends use this.
    """
    return accumulated / alpha.clamp_min(0.5 * min_alpha)
