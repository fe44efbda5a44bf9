"""Label warping: what a neighbouring keyframe says about the pixels of a view, as a loss of the view's labels.

Each pixel u of view i is lifted with its depth, moved to the camera of keyframe j, and projected to u'. Where that is
inside the image and the surface there is the same one (nothing of j's scene hides it), j's labels at u' are a target:

    X = T_ji D_i(u) K_i^-1 u        u' = K_j X        kept: |X_z - D_j(u')| < max(tolerance_m, tolerance X_z)
    L = -sum_{u kept} sum_k q_j(u', k) log(p_i(u, k) + floor) / sum_{u kept} sum_k q_j(u', k)

The labels are read at the pixel nearest to u': interpolating across a border gives what neither side says.

The mapper uses the fused operator `label_warp` (cuda/label_warp.h); `warped_cross_entropy` is its twin in plain torch,
which tests and benchmarks compare it with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.losses import PROBABILITY_FLOOR

NEAR_M = 0.01  # what is nearer to the other camera's plane is not seen by it
TOLERANCE_M = 0.03  # m
TOLERANCE = 0.02  # share of the depth


@dataclass(frozen=True)
class PixelGrid:
    """Every `stride`-th pixel of an image along both axes, from the one at (left, top)."""

    stride: int
    left: int = 0
    top: int = 0

    def of(self, image: Tensor) -> Tensor:
        """The pixels [h, w, ...] of an image [H, W, ...]: a view."""
        return image[self.top :: self.stride, self.left :: self.stride]

    def intrinsics(self, camera: PinholeCamera) -> Tensor:
        """fx, fy, cx, cy [4] float64 of the grid as an image."""
        cx, cy = camera.cx - self.left, camera.cy - self.top
        return torch.tensor([camera.fx, camera.fy, cx, cy], dtype=torch.float64) / self.stride


def warped_cross_entropy(
    probabilities: Tensor,  # [H, W, K] of view i, >= 0; gradients reach these only
    depth: Tensor,  # [H, W] m of view i, 0 = none
    intrinsics: Tensor,  # [4] fx, fy, cx, cy of view i
    targets: Tensor,  # [H', W', K] labels of keyframe j, >= 0; all 0 where it says nothing
    target_depth: Tensor,  # [H', W'] m, 0 = none
    target_intrinsics: Tensor,  # [4]
    T_target_source: Tensor,  # [4, 4] from the camera of i to that of j
) -> Tensor:  # scalar
    """Cross entropy of a view's labels with those that a keyframe has for the same surface, weighted by their mass.

    All tensors have one floating dtype and one device. Without overlap the loss is 0, and so are its gradients.
    """
    pixel, kept = warp_pixels(depth, intrinsics, target_depth, target_intrinsics, T_target_source)
    q = targets.reshape(-1, targets.shape[-1])[pixel] * kept[..., None]
    total = -(q * (probabilities.clamp_min(0) + PROBABILITY_FLOOR).log()).sum()
    return total / q.sum().clamp_min(1)


@torch.no_grad()
def warp_pixels(
    depth: Tensor, intrinsics: Tensor, target_depth: Tensor, target_intrinsics: Tensor, T_target_source: Tensor
) -> tuple[Tensor, Tensor]:
    """The pixel [H, W] (int64, flat) of another image that shows what each pixel shows, and whether it does [H, W].

    Arguments as in `warped_cross_entropy`. Pixels that are not seen read pixel 0.
    """
    (fx, fy, cx, cy), (gx, gy, dx, dy) = intrinsics, target_intrinsics
    height, width = depth.shape
    a = (torch.arange(width, device=depth.device, dtype=depth.dtype) - cx) / fx  # [W] the rays, at a depth of 1 m
    b = ((torch.arange(height, device=depth.device, dtype=depth.dtype) - cy) / fy)[:, None]  # [H, 1]
    x, y, z = (depth * (r[0] * a + r[1] * b + r[2]) + r[3] for r in T_target_source[:3])
    in_front = (depth > 0) & (z > NEAR_M)
    scale = torch.where(in_front, z, 1).reciprocal()
    u, v = torch.floor(gx * x * scale + dx + 0.5), torch.floor(gy * y * scale + dy + 0.5)
    inside = in_front & (u >= 0) & (v >= 0) & (u < target_depth.shape[1]) & (v < target_depth.shape[0])
    u, v = (torch.where(inside, at, 0).long() for at in (u, v))
    pixel = v * target_depth.shape[1] + u
    surface = target_depth.reshape(-1)[pixel]
    same = (z - surface).abs() < (TOLERANCE * z).clamp_min(TOLERANCE_M)
    return pixel, inside & (surface > 0) & same


def one_hot_labels(columns: Tensor, weights: Tensor, num_columns: int) -> Tensor:
    """Labels [H, W, num_columns] with `weights` [H, W] at `columns` [H, W] int64; all 0 where a column is -1."""
    image = weights.new_zeros(*columns.shape, num_columns)
    return image.scatter_(-1, columns.clamp_min(0)[..., None], (weights * (columns >= 0))[..., None])
