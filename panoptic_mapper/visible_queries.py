"""Which objects a view shows: those whose ellipsoid reaches into the frustum and holds a visible Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor

from panoptic_mapper.attention import squared_distances
from panoptic_mapper.frame import PinholeCamera

CHI2_3_99 = 11.345  # squared Mahalanobis radius that holds 99 % of a 3D Gaussian
SAMPLE = 4096  # points that are compared with queries at once on a CPU
MAX_SAMPLES = 16  # into which the points are divided for that
CHUNK_VALUES = 1 << 24  # whitened offsets that are held at once on a GPU: 64 MB


def holding_sampled(
    means: Tensor,  # [V, 3] m
    centers: Tensor,  # [Q, 3] m
    whitenings: Tensor,  # [Q, 3, 3]
    asked: Tensor,  # [Q] bool, the others hold nothing
) -> Tensor:
    """Which ellipsoids hold a point: bool [Q].

    The first sample of the points finds most of them, so that few are asked of all points: what is best on a CPU.
    """
    held = torch.zeros_like(asked)
    stride = min(1 + len(means) // SAMPLE, MAX_SAMPLES)
    for start in range(stride):
        rows = (asked & ~held).nonzero()[:, 0]
        if len(rows) == 0:
            break
        distances = squared_distances(means[start::stride], centers[rows], whitenings[rows])
        held[rows] = distances.amin(0) < CHI2_3_99
    return held


def holding_dense(means: Tensor, centers: Tensor, whitenings: Tensor, asked: Tensor) -> Tensor:
    """The same, of all points and ellipsoids, without a wait of the host for a GPU, in bounded memory."""
    nearest = means.new_full((len(centers),), torch.inf)
    for chunk in means.split(max(1, CHUNK_VALUES // (3 * len(centers)))):
        nearest = torch.minimum(nearest, squared_distances(chunk, centers, whitenings).amin(0))
    return asked & (nearest < CHI2_3_99)


def spheres_meet_frustum(centers: Tensor, radius: Tensor, camera: PinholeCamera) -> Tensor:
    """Which spheres [Q] (camera frame, m) are not wholly outside one of the frustum's side planes or behind it."""
    x, y, z = centers.unbind(-1)
    inside = z > -radius
    for axis, focal, center, size in (
        (x, camera.fx, camera.cx, camera.width),
        (y, camera.fy, camera.cy, camera.height),
    ):
        low, high = -(center + 0.5) / focal, (size - 0.5 - center) / focal  # tangents of the border rays
        inside &= (axis - low * z) / (1 + low * low) ** 0.5 > -radius
        inside &= (high * z - axis) / (1 + high * high) ** 0.5 > -radius
    return inside
