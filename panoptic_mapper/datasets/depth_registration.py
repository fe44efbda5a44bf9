"""Depth of a sensor of its own, seen from the colour camera."""

from __future__ import annotations

import math

import numpy as np

from panoptic_mapper.frame import PinholeCamera

APPROACH = 1.1  # how much closer than the depth camera the colour camera may be to a surface without holes in it


def register_depth(
    depth: np.ndarray,  # [H, W] m, 0 = none
    depth_camera: PinholeCamera,
    color_camera: PinholeCamera,
    T_color_depth: np.ndarray,  # [4, 4] depth camera's points to the colour camera
) -> np.ndarray:  # [color_camera.height, color_camera.width] float32 m, 0 = none
    """The depth image that the colour camera would see: pixels are moved along their rays, and the nearest wins.

    Where the colour camera has more pixels per radian, each depth pixel is split so finely that its surface gets no
    holes. What the depth camera did not see stays without depth.

    Raises:
        ValueError: the depth image is not of the depth camera's size.
    """
    if depth.shape != (depth_camera.height, depth_camera.width):
        expected = (depth_camera.height, depth_camera.width)
        raise ValueError(f"depth image: expected {expected} as its intrinsics say, got {depth.shape}")
    if np.allclose(T_color_depth, np.eye(4), rtol=0, atol=1e-9):
        return _resampled(depth, depth_camera, color_camera)
    rows, cols = np.nonzero(depth > 0)
    rays = np.stack([(cols - depth_camera.cx) / depth_camera.fx, (rows - depth_camera.cy) / depth_camera.fy])
    z = depth[rows, cols].astype(np.float32)
    R, t = T_color_depth[:3, :3].astype(np.float32), T_color_depth[:3, 3:].astype(np.float32)
    nearest = np.full(color_camera.height * color_camera.width, np.inf, np.float32)
    for dx, dy in _offsets(depth_camera, color_camera):
        x, y = rays[0].astype(np.float32) + dx, rays[1].astype(np.float32) + dy
        points = R @ np.stack([x * z, y * z, z]) + t  # [3, M] colour camera
        points = points[:, points[2] > 0]
        # Not rint, which rounds halves to even numbers: a shift by half a pixel would leave every other column empty.
        u = np.floor(points[0] / points[2] * np.float32(color_camera.fx) + np.float32(color_camera.cx + 0.5))
        v = np.floor(points[1] / points[2] * np.float32(color_camera.fy) + np.float32(color_camera.cy + 0.5))
        inside = (u >= 0) & (u < color_camera.width) & (v >= 0) & (v < color_camera.height)
        pixels = v[inside].astype(np.int64) * color_camera.width + u[inside].astype(np.int64)
        np.minimum.at(nearest, pixels, points[2, inside])
    return np.where(np.isinf(nearest), 0, nearest).reshape(color_camera.height, color_camera.width)


def _resampled(depth: np.ndarray, depth_camera: PinholeCamera, color_camera: PinholeCamera) -> np.ndarray:
    """The nearest depth pixel of each colour pixel: all there is to do where both cameras are in one place."""
    u = (np.arange(color_camera.width) - color_camera.cx) / color_camera.fx * depth_camera.fx + depth_camera.cx
    v = (np.arange(color_camera.height) - color_camera.cy) / color_camera.fy * depth_camera.fy + depth_camera.cy
    cols, rows = np.floor(u + 0.5).astype(np.int64), np.floor(v + 0.5).astype(np.int64)
    sampled = depth[np.clip(rows, 0, depth_camera.height - 1)[:, None], np.clip(cols, 0, depth_camera.width - 1)]
    inside = ((rows >= 0) & (rows < depth_camera.height))[:, None] & (cols >= 0) & (cols < depth_camera.width)
    return np.where(inside & (sampled > 0), sampled, 0).astype(np.float32)


def _offsets(depth_camera: PinholeCamera, color_camera: PinholeCamera) -> list[tuple[np.float32, np.float32]]:
    """Of the parts of a depth pixel from its centre, as ray directions: less than a colour pixel apart."""
    finest = max(color_camera.fx / depth_camera.fx, color_camera.fy / depth_camera.fy)
    splits = math.floor(finest * APPROACH) + 1
    parts = (np.arange(splits) + 0.5) / splits - 0.5  # px
    return [(np.float32(du / depth_camera.fx), np.float32(dv / depth_camera.fy)) for du in parts for dv in parts]
