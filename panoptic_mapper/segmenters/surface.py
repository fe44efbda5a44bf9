"""Smooth surface patches in a depth image: normals, the edges between things, and segments grown between the edges.

Everything works on inverse depth w = 1/z. A plane n.X = d is affine in it over the image, w = n.(x, y, 1) / d with
(x, y, 1) the viewing ray, so filters keep planes exact at any slant, differences of w are normals, and the noise of
structured-light and stereo cameras is about the same everywhere.
"""

from __future__ import annotations

import cv2
import numpy as np

from panoptic_mapper.frame import PinholeCamera

JUMP_RELATIVE = 0.02  # a step of inverse depth, relative to it, that separates two surfaces ...
JUMP_MIN = 0.006  # ... but at least this, 1/m: above the noise of a Kinect (0.003)
CONCAVE_ANGLE_DEG = 25.0  # surfaces that meet in a concave edge of at least this angle belong to two things
CONCAVE_REACH_PX = 3  # distance from the edge at which the two normals are compared
NORMAL_REACH_PX = 2  # half the width of the normals' kernel: at the image's rim they are wrong
SMOOTHING_PX = 7  # diameter of the edge-preserving filter


def viewing_rays(camera: PinholeCamera) -> np.ndarray:
    """Rays [H, W, 3] float32 with z = 1: times depth, they are points of the camera frame."""
    x = (np.arange(camera.width, dtype=np.float32) - camera.cx) / camera.fx
    y = (np.arange(camera.height, dtype=np.float32) - camera.cy) / camera.fy
    rays = np.ones((camera.height, camera.width, 3), np.float32)
    rays[..., 0], rays[..., 1] = x[None, :], y[:, None]
    return rays


def inverse_depth(depth: np.ndarray) -> np.ndarray:
    """Filtered inverse depth [H, W] float32 1/m of a depth image [H, W] m; pin holes are filled, 0 = none."""
    w = inverse(depth)
    w = np.where(w > 0, w, cv2.medianBlur(w, 5))
    middle = float(np.median(w[w > 0])) if (w > 0).any() else 1.0
    smooth = cv2.bilateralFilter(w, SMOOTHING_PX, max(JUMP_MIN, JUMP_RELATIVE * middle), SMOOTHING_PX / 2)
    return np.where(w > 0, smooth, 0)


def inverse(image: np.ndarray) -> np.ndarray:
    """1 / image where that is positive, 0 elsewhere."""
    return np.divide(1, image, out=np.zeros_like(image), where=image > 0)


def surface_normals(w: np.ndarray, camera: PinholeCamera) -> np.ndarray:
    """Unit normals [H, W, 3] float32 towards the camera; meaningless at jumps, holes and the rim."""
    wx = cv2.Sobel(w, cv2.CV_32F, 1, 0, ksize=5, scale=camera.fx / 128)  # per unit of x = (u - cx) / fx
    wy = cv2.Sobel(w, cv2.CV_32F, 0, 1, ksize=5, scale=camera.fy / 128)
    rays = viewing_rays(camera)
    normals = -np.stack([wx, wy, w - rays[..., 0] * wx - rays[..., 1] * wy], axis=-1)
    return normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)


def jump_edges(w: np.ndarray, relative: float = JUMP_RELATIVE, minimum: float = JUMP_MIN) -> np.ndarray:
    """Pixels [H, W] bool on either side of a depth discontinuity, beside missing depth, or at the image's rim."""
    tolerance = np.maximum(minimum, relative * w)
    left, right, above, below = _neighbours(w)
    edges = w <= 0
    for behind, ahead in ((left, right), (above, below)):
        # The second difference is zero on every plane, however slanted; a crease bends too, but by small steps.
        bend = np.abs(ahead - 2 * w + behind)
        step = np.maximum(np.abs(ahead - w), np.abs(w - behind))
        edges |= (bend > tolerance) & (step > tolerance)
    rim = np.ones_like(edges)
    rim[NORMAL_REACH_PX:-NORMAL_REACH_PX, NORMAL_REACH_PX:-NORMAL_REACH_PX] = False
    return edges | rim


def concave_edges(
    points: np.ndarray,  # [H, W, 3] m
    normals: np.ndarray,  # [H, W, 3]
    angle_deg: float = CONCAVE_ANGLE_DEG,
) -> np.ndarray:
    """Pixels [H, W] bool where the surfaces on both sides meet in a concave edge of at least `angle_deg`.

    Two patches are convex to each other where (n1 - n2).(p1 - p2) > 0 (Stein et al. 2014, local convexity).
    """
    edges = np.zeros(points.shape[:2], bool)
    cos_limit = np.cos(np.radians(angle_deg))
    r = CONCAVE_REACH_PX
    for axis in (0, 1):
        before = [slice(None), slice(None)]
        after, middle = before.copy(), before.copy()
        before[axis], after[axis], middle[axis] = slice(0, -2 * r), slice(2 * r, None), slice(r, -r)
        n1, n2 = normals[tuple(before)], normals[tuple(after)]
        direction = points[tuple(before)] - points[tuple(after)]
        cosine = np.einsum("hwc,hwc->hw", n1, n2)
        convexity = np.einsum("hwc,hwc->hw", n1 - n2, direction)
        edges[tuple(middle)] |= (cosine < cos_limit) & (convexity < 0)
    return edges


def connected_segments(mask: np.ndarray, min_area_px: int) -> np.ndarray:
    """4-connected components [H, W] int32 of a mask, numbered 1.. without gaps; 0 outside and where too small."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_area_px
    keep[0] = False
    table = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return table[labels] if count > 1 else labels


def grow_labels(labels: np.ndarray, depth: np.ndarray, iterations: int) -> np.ndarray:
    """Extends labels [H, W] int32 by `iterations` pixels where they are 0 and the depth goes on without a step."""
    free = depth > 0
    tolerance = 2 * np.maximum(JUMP_RELATIVE * depth, JUMP_MIN * depth**2)
    continues = [np.abs(d - depth) < tolerance for d in _neighbours(depth)]
    labels = labels.copy()
    for _ in range(iterations):
        for neighbour, on_surface in zip(_neighbours(labels), continues, strict=True):
            take = free & on_surface & (labels == 0)
            labels[take] = neighbour[take]
    return labels


def _neighbours(image: np.ndarray) -> tuple[np.ndarray, ...]:
    """The left, right, upper and lower neighbour of every pixel, 0 beyond the border: four copies of [H, W]."""
    padded = cv2.copyMakeBorder(image, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]
