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
    rows, cols = np.nonzero(depth > 0)
    splits = _num_splits(depth_camera, color_camera)
    offsets = (np.arange(splits) + 0.5) / splits - 0.5  # px, within the pixel
    du, dv = (grid.ravel()[:, None] for grid in np.meshgrid(offsets, offsets))
    z = depth[rows, cols].astype(np.float64)
    x = (cols + du - depth_camera.cx) / depth_camera.fx * z
    y = (rows + dv - depth_camera.cy) / depth_camera.fy * z
    points = np.stack([x, y, np.broadcast_to(z, x.shape)], -1).reshape(-1, 3)
    points = points @ T_color_depth[:3, :3].T + T_color_depth[:3, 3]
    points = points[points[:, 2] > 0]
    # Not rint, which rounds halves to even numbers: a shift by half a pixel would leave every other column empty.
    u = np.floor(points[:, 0] / points[:, 2] * color_camera.fx + color_camera.cx + 0.5).astype(np.int64)
    v = np.floor(points[:, 1] / points[:, 2] * color_camera.fy + color_camera.cy + 0.5).astype(np.int64)
    inside = (u >= 0) & (u < color_camera.width) & (v >= 0) & (v < color_camera.height)
    nearest = np.full(color_camera.height * color_camera.width, np.inf, np.float32)
    np.minimum.at(nearest, (v * color_camera.width + u)[inside], points[inside, 2].astype(np.float32))
    return np.where(np.isinf(nearest), 0, nearest).reshape(color_camera.height, color_camera.width)


def _num_splits(depth_camera: PinholeCamera, color_camera: PinholeCamera) -> int:
    """Into how many parts a depth pixel is split along each axis: samples lie less than a colour pixel apart."""
    finest = max(color_camera.fx / depth_camera.fx, color_camera.fy / depth_camera.fy)
    return math.floor(finest * APPROACH) + 1
