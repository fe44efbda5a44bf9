"""Carrying images from view to view by depth and pose, with occlusion tests."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.geometry import inverse_pose

TOLERANCE_M = 0.05  # depths that agree up to this,
TOLERANCE = 0.03  # or up to this share of the depth, show the same surface


def map_points(depth: np.ndarray, camera: PinholeCamera, T_map_camera: np.ndarray) -> np.ndarray:
    """Points [H, W, 3] float32 of a depth image [H, W] (m) in the map frame; meaningless where there is no depth."""
    v, u = np.indices(depth.shape, dtype=np.float32)
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones_like(u)], -1)
    R, t = T_map_camera[:3, :3].astype(np.float32), T_map_camera[:3, 3].astype(np.float32)
    return (rays * depth[..., None]) @ R.T + t


def projected(
    points: np.ndarray,  # [N, 3] map frame, m
    camera: PinholeCamera,
    T_map_camera: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The pixel that each point falls on, int64 [N] in reading order and -1 outside, and its depth [N] (m)."""
    T = inverse_pose(T_map_camera).astype(np.float32)
    x, y, z = T[:3, :3] @ points.T + T[:3, 3:]
    safe = np.maximum(z, 1e-3)
    u = np.rint(camera.fx * x / safe + camera.cx)
    v = np.rint(camera.fy * y / safe + camera.cy)
    inside = (z > 1e-3) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    return np.where(inside, v * camera.width + u, -1).astype(np.int64), z


def seen_pixels(points: np.ndarray, depth: np.ndarray, camera: PinholeCamera, T_map_camera: np.ndarray) -> np.ndarray:
    """The pixel of another view that shows each point, int64 [N] in reading order; -1 where it is hidden or outside."""
    pixels, z = projected(points, camera, T_map_camera)
    there = depth.ravel()[np.maximum(pixels, 0)]
    shown = (pixels >= 0) & (there > 0) & (np.abs(there - z) < np.maximum(TOLERANCE_M, TOLERANCE * z))
    return np.where(shown, pixels, -1)


def splatted(
    points: np.ndarray,  # [N, 3] map frame, m
    radii_m: np.ndarray | float,  # half the edge of the square that each point covers: scalar or [N], m
    camera: PinholeCamera,
    T_map_camera: np.ndarray,
    max_radius_px: int = 8,
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest point at each pixel: its index [H, W], -1 = none, and its depth [H, W] (m), 0 = none."""
    pixels, z = projected(points, camera, T_map_camera)
    kept = np.flatnonzero(pixels >= 0)
    pixels, z = pixels[kept], z[kept]
    row, column = pixels // camera.width, pixels % camera.width
    radius_px = camera.fx * np.broadcast_to(radii_m, len(points))[kept] / z
    radius_px = np.minimum(np.ceil(radius_px - 0.5), max_radius_px).astype(np.int64)
    # Far points are written first, so that the nearest stays: one sort, then plain assignment in that order.
    order = np.argsort(-z, kind="stable")
    image = np.full((camera.height, camera.width), -1)
    depth = np.full((camera.height, camera.width), np.inf, np.float32)
    for radius in np.unique(radius_px):
        of_size = order[radius_px[order] == radius]
        for dv in range(-radius, radius + 1):
            for du in range(-radius, radius + 1):
                v, u = row[of_size] + dv, column[of_size] + du
                inside = (v >= 0) & (v < camera.height) & (u >= 0) & (u < camera.width)
                _write_nearest(image, depth, v[inside], u[inside], of_size[inside], z)
    filled = image >= 0
    return np.where(filled, kept[np.maximum(image, 0)], -1), np.where(filled, depth, np.float32(0))


def filled_from_nearest(image: np.ndarray, is_known: np.ndarray) -> np.ndarray:
    """An image [H, W, ...] whose unknown pixels take what the nearest known pixel has; as it is if none is known."""
    if is_known.all() or not is_known.any():
        return image
    rows, columns = ndimage.distance_transform_edt(~is_known, return_distances=False, return_indices=True)
    return image[rows, columns]


def _write_nearest(
    image: np.ndarray, depth: np.ndarray, v: np.ndarray, u: np.ndarray, points: np.ndarray, z: np.ndarray
) -> None:
    """Writes points, given from far to near, over what is further away than they are."""
    candidate_z = np.full(depth.shape, np.inf, np.float32)
    candidate = np.full(image.shape, -1)
    candidate_z[v, u] = z[points]  # the last assignment to a pixel stays: the nearest point
    candidate[v, u] = points
    nearer = candidate_z < depth
    depth[nearer] = candidate_z[nearer]
    image[nearer] = candidate[nearer]
