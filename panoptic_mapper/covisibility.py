"""Covisibility: which keyframes show the same surfaces. A graph that grows by one keyframe at a time, on the CPU."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from panoptic_mapper.frame import PinholeCamera, nearest
from panoptic_mapper.geometry import inverse_pose

POINTS = (16, 12)  # width and height of the grid of points of a keyframe that are looked for in the others
SURFACE = (64, 48)  # width and height of the depth image in which they are looked for
TOLERANCE_M, TOLERANCE = 0.1, 0.05  # a pixel of that is about a degree: depths differ by this much on one surface
MAX_VIEWS = 12  # keyframes that are asked beside the latest whether they see what a frame shows
MIN_SHARE = 0.1  # keyframes that share less are no neighbours
NEAR_M = 0.05


# A keyframe, coarsely. Records, so that those of many keyframes are read at once and none is copied.
SAMPLE = np.dtype(
    [
        ("points", np.float32, (POINTS[0] * POINTS[1], 3)),  # m, camera frame; the origin where there is no depth
        ("surface", np.float32, SURFACE[::-1]),  # m, 0 = none
        ("intrinsics", np.float32, 4),  # fx, fy, cx, cy of `surface`
        ("T_map_camera", np.float64, (4, 4)),
        ("T_camera_map", np.float64, (4, 4)),  # its inverse
        ("radius_m", np.float64),  # of the sphere around the camera that holds the points
    ]
)


class CovisibilityGraph:
    """For each keyframe, by its number, the others that see a share of its surface."""

    def __init__(self) -> None:
        self.seen_by: list[dict[int, float]] = []  # [i][j]: share of the points of i that j sees, if above MIN_SHARE
        self._records = np.zeros(64, SAMPLE)  # the first are those of the keyframes, there is room for more

    def __len__(self) -> int:
        return len(self.seen_by)

    def add(self, depth: np.ndarray, camera: PinholeCamera, T_map_camera: np.ndarray) -> None:
        """Compares a new keyframe, which gets the next number, with all that may see the same.

        Args:
            depth: [H, W] m, 0 = none.
            camera: its intrinsics.
            T_map_camera: [4, 4] its pose.
        """
        new, others, number = _sampled(depth, camera, T_map_camera), self._records[: len(self)], len(self)
        candidates = _may_meet(new, others)
        self._append(new, {})
        if len(candidates) == 0:
            return
        T_others_new = (others["T_camera_map"][candidates] @ new["T_map_camera"]).astype(np.float32)
        seen_by_others = _visible_share(new["points"][None], others, candidates, T_others_new)
        T_new_others = np.linalg.inv(T_others_new)
        others_seen = _visible_share(others["points"][candidates], new[None], np.zeros_like(candidates), T_new_others)
        shares = zip(candidates.tolist(), seen_by_others.tolist(), others_seen.tolist(), strict=True)
        for j, share, share_of_other in shares:
            if share > MIN_SHARE:
                self.seen_by[number][j] = share
            if share_of_other > MIN_SHARE:
                self.seen_by[j][number] = share_of_other

    def unseen_share(self, depth: np.ndarray, camera: PinholeCamera, T_map_camera: np.ndarray) -> float:
        """Share of an image's points that neither the latest keyframe nor those that share most with it see.

        Args:
            depth: [H, W] m, 0 = none: no point, and so nothing unseen; or no more of it than the grid POINTS.
            camera: the intrinsics of the image.
            T_map_camera: [4, 4] its pose.
        """
        points = _points(depth, camera)
        seen_by = self.seen_by[-1]
        near = np.array([len(self) - 1, *sorted(seen_by, key=lambda j: -seen_by[j])[:MAX_VIEWS]])
        T_others_new = (self._records["T_camera_map"][near] @ T_map_camera).astype(np.float32)
        seen = _visible(points[None], self._records, near, T_others_new).any(0)
        return float(((points[:, 2] > 0) & ~seen).mean())

    def restore(self, depth: np.ndarray, camera: PinholeCamera, T_map_camera: np.ndarray, seen_by: dict) -> None:
        """Adds a keyframe of which it is known already which others see it."""
        self._append(_sampled(depth, camera, T_map_camera), dict(seen_by))

    def _append(self, sample: np.ndarray, seen_by: dict[int, float]) -> None:
        if len(self) == len(self._records):
            self._records = np.concatenate([self._records, np.zeros_like(self._records)])
        self._records[len(self)] = sample
        self.seen_by.append(seen_by)


def _sampled(depth: np.ndarray, camera: PinholeCamera, T_map_camera: np.ndarray) -> np.ndarray:
    """The keyframe on both grids, a SAMPLE []: each of their pixels reads the depth nearest to its centre."""
    sample = np.zeros((), SAMPLE)
    sample["points"] = points = _points(depth, camera)
    sample["surface"], c = nearest(depth, *SURFACE), camera.resized(*SURFACE)
    sample["intrinsics"] = c.fx, c.fy, c.cx, c.cy
    sample["T_map_camera"], sample["T_camera_map"] = T_map_camera, inverse_pose(T_map_camera)
    sample["radius_m"] = np.linalg.norm(points, axis=1).max()
    return sample


def _points(depth: np.ndarray, camera: PinholeCamera) -> np.ndarray:
    """Points [P, 3] float32 (m, camera frame) of the grid POINTS, the origin where there is no depth."""
    return (_rays(camera) * nearest(depth, *POINTS)[:, :, None]).reshape(-1, 3)


@lru_cache(maxsize=8)
def _rays(camera: PinholeCamera) -> np.ndarray:
    """The points of that grid [h, w, 3] float32 at a depth of 1."""
    at = camera.resized(*POINTS)
    v, u = np.indices((at.height, at.width), dtype=np.float32)
    return np.stack([(u - at.cx) / at.fx, (v - at.cy) / at.fy, np.ones_like(u)], axis=-1)


def _may_meet(new: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Numbers [n] of the others [F] for which the spheres around both cameras that hold what they see meet."""
    offsets = others["T_map_camera"][:, :3, 3] - new["T_map_camera"][:3, 3]
    return np.flatnonzero(np.linalg.norm(offsets, axis=1) <= new["radius_m"] + others["radius_m"])


def _visible_share(points: np.ndarray, views: np.ndarray, chosen: np.ndarray, T_views_points: np.ndarray) -> np.ndarray:
    """Share [n] of points that views see, see `_visible`."""
    num_points = (points[..., 2] > 0).sum(1)
    return _visible(points, views, chosen, T_views_points).sum(1) / np.maximum(num_points, 1)


def _visible(points: np.ndarray, views: np.ndarray, chosen: np.ndarray, T_views_points: np.ndarray) -> np.ndarray:
    """Which points views see, bool [n, P]: inside the image, and neither before nor behind the surface there.

    Args:
        points: [n or 1, P, 3] in the frames of their own cameras, the origin = none.
        views: [F] records.
        chosen: [n] which of them are asked.
        T_views_points: [n, 4, 4] from there to these cameras.
    """
    # Axes first: what follows then runs along memory.
    x, y, z = (T_views_points[:, :3, :3] @ points.transpose(0, 2, 1) + T_views_points[:, :3, 3:]).transpose(1, 0, 2)
    fx, fy, cx, cy = views["intrinsics"][chosen].T[:, :, None]
    inverse = 1 / np.maximum(z, NEAR_M)
    u = np.rint(fx * x * inverse + cx)
    v = np.rint(fy * y * inverse + cy)
    width, height = SURFACE
    visible = (z > NEAR_M) & (u >= 0) & (v >= 0) & (u < width) & (v < height) & (points[..., 2] > 0)
    inside = np.flatnonzero(visible)  # of these alone the surface is read
    z, u, v = z.ravel()[inside], u.ravel()[inside].astype(np.intp), v.ravel()[inside].astype(np.intp)
    surface = views["surface"][chosen[inside // points.shape[1]], v, u]
    visible.put(inside, (np.abs(z - surface) < np.maximum(TOLERANCE_M, TOLERANCE * z)) & (surface > 0))
    return visible
