"""Covisibility: which keyframes show the same surfaces. A graph that grows by one keyframe at a time, on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.geometry import inverse_pose

POINTS = (16, 12)  # width and height of the grid of points of a keyframe that are looked for in the others
SURFACE = (64, 48)  # width and height of the depth image in which they are looked for
TOLERANCE_M, TOLERANCE = 0.1, 0.05  # a pixel of that is about a degree: depths differ by this much on one surface
MAX_VIEWS = 12  # keyframes that are asked beside the latest whether they see what a frame shows
MIN_SHARE = 0.1  # keyframes that share less are no neighbours
NEAR_M = 0.05


class _Sample(NamedTuple):
    """A keyframe, coarsely."""

    points: np.ndarray  # [P, 3] float32 m, camera frame; the origin where there is no depth
    surface: np.ndarray  # [h, w] float32 m, 0 = none
    intrinsics: np.ndarray  # [4] float32 fx, fy, cx, cy of `surface`
    T_map_camera: np.ndarray  # [4, 4] float64
    T_camera_map: np.ndarray  # [4, 4] float64, its inverse
    radius_m: float  # of the sphere around the camera that holds the points


@dataclass(frozen=True)
class _Batch:
    """Samples of F keyframes, stacked."""

    points: np.ndarray  # [F, P, 3]
    surface: np.ndarray  # [F, h, w]
    intrinsics: np.ndarray  # [F, 4]

    @staticmethod
    def of(samples: list[_Sample]) -> _Batch:
        return _Batch(*(np.stack([s[k] for s in samples]) for k in range(3)))


class CovisibilityGraph:
    """For each keyframe, by its number, the others that see a share of its surface."""

    def __init__(self) -> None:
        self.seen_by: list[dict[int, float]] = []  # [i][j]: share of the points of i that j sees, if above MIN_SHARE
        self._samples: list[_Sample] = []

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, depth: np.ndarray, camera: PinholeCamera, T_map_camera: np.ndarray) -> None:
        """Compares a new keyframe, which gets the next number, with all that may see the same.

        Args:
            depth: [H, W] m, 0 = none.
            camera: its intrinsics.
            T_map_camera: [4, 4] its pose.
        """
        new, number = _sampled(depth, camera, T_map_camera), len(self)
        self.seen_by.append({})
        candidates = _may_meet(new, self._samples)
        self._samples.append(new)
        if not candidates:
            return
        others = [self._samples[j] for j in candidates]
        T_others_new = (np.stack([o.T_camera_map for o in others]) @ new.T_map_camera).astype(np.float32)
        one, all_others = _Batch.of([new]), _Batch.of(others)
        seen_by_others = _visible_share(one.points, all_others, T_others_new)
        others_seen = _visible_share(all_others.points, one, np.linalg.inv(T_others_new))
        for j, share, share_of_other in zip(candidates, seen_by_others.tolist(), others_seen.tolist(), strict=True):
            if share > MIN_SHARE:
                self.seen_by[number][j] = share
            if share_of_other > MIN_SHARE:
                self.seen_by[j][number] = share_of_other

    def unseen_share(self, depth: np.ndarray, camera: PinholeCamera, T_map_camera: np.ndarray) -> float:
        """Share of an image's points that neither the latest keyframe nor those that share most with it see.

        Args:
            depth: [H, W] m, 0 = none: no point, and so nothing unseen.
            camera: its intrinsics.
            T_map_camera: [4, 4] its pose.
        """
        new = _sampled(depth, camera, T_map_camera)
        seen_by = self.seen_by[-1]
        near = [len(self) - 1, *sorted(seen_by, key=lambda j: -seen_by[j])[:MAX_VIEWS]]
        others = [self._samples[j] for j in near]
        T_others_new = (np.stack([o.T_camera_map for o in others]) @ new.T_map_camera).astype(np.float32)
        seen = _visible(new.points[None], _Batch.of(others), T_others_new).any(0)
        return float(((new.points[:, 2] > 0) & ~seen).mean())

    def restore(self, depth: np.ndarray, camera: PinholeCamera, T_map_camera: np.ndarray, seen_by: dict) -> None:
        """Adds a keyframe of which it is known already which others see it."""
        self._samples.append(_sampled(depth, camera, T_map_camera))
        self.seen_by.append(dict(seen_by))


def _sampled(depth: np.ndarray, camera: PinholeCamera, T_map_camera: np.ndarray) -> _Sample:
    """The keyframe on both grids: each of their pixels reads the depth nearest to its centre."""
    (z, at), (surface, surface_camera) = (_resampled(depth, camera, *size) for size in (POINTS, SURFACE))
    v, u = np.indices(z.shape, dtype=np.float32)
    points = np.stack([(u - at.cx) / at.fx * z, (v - at.cy) / at.fy * z, z], -1).reshape(-1, 3).astype(np.float32)
    c = surface_camera
    radius_m = float(np.linalg.norm(points, axis=1).max())
    intrinsics = np.array([c.fx, c.fy, c.cx, c.cy], np.float32)
    return _Sample(points, surface, intrinsics, T_map_camera, inverse_pose(T_map_camera), radius_m)


def _resampled(depth: np.ndarray, camera: PinholeCamera, width: int, height: int) -> tuple[np.ndarray, PinholeCamera]:
    rows = ((np.arange(height) + 0.5) * depth.shape[0] / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * depth.shape[1] / width).astype(np.int64)
    return depth[rows[:, None], columns], camera.resized(width, height)


def _may_meet(new: _Sample, others: list[_Sample]) -> list[int]:
    """Numbers of the others for which the spheres around both cameras that hold what they see meet."""
    if not others:
        return []
    offsets = np.stack([o.T_map_camera[:3, 3] for o in others]) - new.T_map_camera[:3, 3]
    meet = np.linalg.norm(offsets, axis=1) <= new.radius_m + np.array([o.radius_m for o in others])
    return np.flatnonzero(meet).tolist()


def _visible_share(points: np.ndarray, views: _Batch, T_views_points: np.ndarray) -> np.ndarray:
    """Share [F] of points that views see, see `_visible`."""
    num_points = (points[..., 2] > 0).sum(1)
    return _visible(points, views, T_views_points).sum(1) / np.maximum(num_points, 1)


def _visible(points: np.ndarray, views: _Batch, T_views_points: np.ndarray) -> np.ndarray:
    """Which points views see, bool [F, P]: inside the image, and neither before nor behind the surface there.

    Args:
        points: [F or 1, P, 3] in the frames of their own cameras, the origin = none.
        views: F views, or one.
        T_views_points: [F, 4, 4] from there to the views' cameras.
    """
    moved = points @ T_views_points[:, :3, :3].transpose(0, 2, 1) + T_views_points[:, None, :3, 3]  # [F, P, 3]
    z = moved[..., 2]
    fx, fy, cx, cy = views.intrinsics.T[:, :, None]
    inverse = 1 / np.maximum(z, NEAR_M)
    u = np.rint(fx * moved[..., 0] * inverse + cx)
    v = np.rint(fy * moved[..., 1] * inverse + cy)
    height, width = views.surface.shape[1:]
    inside = (z > NEAR_M) & (u >= 0) & (v >= 0) & (u < width) & (v < height)
    pixel = np.where(inside, v * width + u, 0).astype(np.int64)
    first = np.arange(len(views.surface))[:, None] * (height * width)
    surface = views.surface.ravel()[pixel + first]
    same = np.abs(z - surface) < np.maximum(TOLERANCE_M, TOLERANCE * z)
    return inside & same & (surface > 0) & (points[..., 2] > 0)
