"""Geometry of cameras and Gaussians in torch: back-projection, projection, quaternions, and the up direction."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from panoptic_mapper.frame import Frame, PinholeCamera

MIN_NORMALS_FOR_UP = 100
WIDTH_FOR_UP = 80  # px, about: five images of it have normals enough


def backproject(depth: Tensor, camera: PinholeCamera) -> Tensor:
    """Points [H, W, 3] of a depth image [H, W] (m) in the camera frame; pixels without depth give the origin."""
    v, u = torch.meshgrid(
        torch.arange(camera.height, device=depth.device, dtype=depth.dtype),
        torch.arange(camera.width, device=depth.device, dtype=depth.dtype),
        indexing="ij",
    )
    return torch.stack([(u - camera.cx) / camera.fx * depth, (v - camera.cy) / camera.fy * depth, depth], dim=-1)


def project(points: Tensor, camera: PinholeCamera) -> tuple[Tensor, Tensor]:
    """Pixel coordinates [..., 2] and depth [...] (m) of camera-frame points [..., 3]; use only where depth > 0."""
    x, y, depth = points.unbind(-1)
    z = depth.clamp_min(1e-6)
    # By numbers, not by tensors of them: on a GPU each of these would be a copy that the host waits for.
    return torch.stack([x / z * camera.fx + camera.cx, y / z * camera.fy + camera.cy], dim=-1), depth


def transform(T: Tensor, points: Tensor) -> Tensor:
    """Applies the rigid transform T [4, 4] to points [..., 3]."""
    return points @ T[:3, :3].T + T[:3, 3]


def inverse_pose(T: np.ndarray) -> np.ndarray:
    """The inverse of a rigid transform [4, 4]."""
    inverse = np.eye(4)
    inverse[:3, :3] = T[:3, :3].T
    inverse[:3, 3] = -T[:3, :3].T @ T[:3, 3]
    return inverse


def rotation_matrices(quats: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of quaternions wxyz [..., 4], which are normalised first."""
    q = F.normalize(quats, dim=-1)
    products = (q[..., :, None] * q[..., None, :]).flatten(-2)  # all w w, w x, .. z z
    return (products @ _rotation_of_products(q.device, q.dtype)).unflatten(-1, (3, 3))


@lru_cache
def _rotation_of_products(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The matrix [16, 9] that takes the products of a unit quaternion's elements to its rotation matrix.

    One product of matrices: a GPU's host is asked for few operators.
    """
    w, x, y, z = torch.eye(4).unbind()

    def times(a: Tensor, b: Tensor) -> Tensor:
        return torch.outer(a, b).flatten()

    rows = [
        [
            times(w, w) + times(x, x) - times(y, y) - times(z, z),
            2 * times(x, y) - 2 * times(w, z),
            2 * times(x, z) + 2 * times(w, y),
        ],
        [
            2 * times(x, y) + 2 * times(w, z),
            times(w, w) - times(x, x) + times(y, y) - times(z, z),
            2 * times(y, z) - 2 * times(w, x),
        ],
        [
            2 * times(x, z) - 2 * times(w, y),
            2 * times(y, z) + 2 * times(w, x),
            times(w, w) - times(x, x) - times(y, y) + times(z, z),
        ],
    ]
    return torch.stack([element for row in rows for element in row], dim=1).to(device, dtype)


def quaternions(R: Tensor) -> Tensor:
    """Unit quaternions wxyz [B, 4] of rotation matrices [B, 3, 3], with w >= 0."""
    # The columns of (trace and differences) for each choice of the largest component (Shepperd 1978).
    t = R.diagonal(dim1=-2, dim2=-1)
    x, y, z = t.unbind(-1)
    squares = torch.stack([1 + t.sum(-1), 1 + x - y - z, 1 - x + y - z, 1 - x - y + z], dim=-1)  # 4 * component^2
    differences, sums = (R - R.mT).flatten(1), (R + R.mT).flatten(1)  # [B, 9] each
    elements = torch.cat([squares, differences, sums], dim=1)
    products = elements.index_select(1, _elements_of_products(R.device)).unflatten(1, (4, 4))
    quats = F.normalize(products[torch.arange(len(R), device=R.device), squares.argmax(-1)], dim=-1)
    return torch.where(quats[:, :1] < 0, -quats, quats)


@lru_cache
def _elements_of_products(device: torch.device) -> Tensor:
    """Where the products of a quaternion's elements [16] (4 w w, 4 w x, ..) are among squares, differences and sums."""
    wx, wy, wz = (4 + 3 * i + j for i, j in ((2, 1), (0, 2), (1, 0)))
    xy, xz, yz = (13 + 3 * i + j for i, j in ((0, 1), (0, 2), (1, 2)))
    return torch.tensor([0, wx, wy, wz, wx, 1, xy, xz, wy, xy, 2, yz, wz, xz, yz, 3], device=device)


def surface_normals(points: Tensor, max_step: float = 0.1) -> tuple[Tensor, Tensor]:
    """Unit normals [H, W, 3] towards the camera of organised camera-frame points [H, W, 3], and where they hold.

    Central differences; a normal is invalid at the border, next to missing depth, and across depth steps larger than
    `max_step` times the depth.
    """
    z = points[..., 2]
    normals = torch.zeros_like(points)
    valid = torch.zeros_like(z, dtype=torch.bool)
    du = points[1:-1, 2:] - points[1:-1, :-2]
    dv = points[2:, 1:-1] - points[:-2, 1:-1]
    center = points[1:-1, 1:-1]
    n = F.normalize(torch.cross(dv, du, dim=-1), dim=-1)
    normals[1:-1, 1:-1] = torch.where((n * center).sum(-1, keepdim=True) > 0, -n, n)
    smooth = torch.maximum(du[..., 2].abs(), dv[..., 2].abs()) < max_step * center[..., 2]
    neighbours = torch.stack([z[1:-1, 2:], z[1:-1, :-2], z[2:, 1:-1], z[:-2, 1:-1], z[1:-1, 1:-1]])
    valid[1:-1, 1:-1] = smooth & (neighbours > 0).all(0)
    return normals, valid


def estimate_up(frames: list[Frame], max_tilt_deg: float = 50.0) -> np.ndarray:
    """The map's up direction [3] from a few frames: the mode of the surface normals near the cameras' own up.

    Cameras are held roughly upright, and floors and tables are the surfaces that face up.

    Raises:
        ValueError: too few surfaces do.
    """
    normals, camera_ups = [], []
    for frame in frames:
        step = max(1, frame.camera.width // WIDTH_FOR_UP)
        frame = frame.resized(frame.camera.width // step, frame.camera.height // step)
        n, valid = surface_normals(backproject(torch.from_numpy(frame.depth), frame.camera))
        normals.append(n[valid].double().numpy() @ frame.T_map_camera[:3, :3].T)
        camera_ups.append(-frame.T_map_camera[:3, 1])
    up = _unit(np.mean(camera_ups, axis=0))
    candidates = np.concatenate(normals)
    candidates = candidates[candidates @ up > np.cos(np.radians(max_tilt_deg))]
    if len(candidates) < MIN_NORMALS_FOR_UP:
        raise ValueError(f"up direction: only {len(candidates)} surface normals face up; give it in the configuration")
    sample = candidates[:: max(1, len(candidates) // 700)]
    up = sample[((sample @ sample.T) > np.cos(np.radians(8))).sum(1).argmax()]  # the most crowded direction
    for width_deg in (8, 5, 3):
        near = candidates[candidates @ up > np.cos(np.radians(width_deg))]
        if len(near) == 0:
            break  # several surfaces around the mean, none along it
        up = _unit(near.mean(0))
    return up


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
