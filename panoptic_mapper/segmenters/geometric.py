"""Panoptic labels from shape alone: floor, walls and ceiling are planes, what remains is class-agnostic objects.

No weights, no colour. Doors, pictures and other flat things on walls are part of the wall.
"""

from __future__ import annotations

import cv2
import numpy as np

from panoptic_mapper.frame import Frame, PinholeCamera, Segmentation
from panoptic_mapper.label_space import LabelSpace, SemanticClass
from panoptic_mapper.segmenters import surface
from panoptic_mapper.segmenters.up_direction import UpDirection

GEOMETRIC_LABEL_SPACE = LabelSpace.from_classes(
    [
        SemanticClass(1, "floor", False),
        SemanticClass(2, "wall", False),
        SemanticClass(3, "ceiling", False),
        SemanticClass(4, "object", True),
    ]
)
FLOOR, WALL, CEILING, OBJECT = 1, 2, 3, 4
CONFIDENCES = np.array([0, 0.9, 0.8, 0.9, 0.6], np.float32)  # per class: shape alone is rarely wrong about floors

WORK_WIDTH_PX = 320  # larger images are segmented at this width: shape needs no more, and time follows the area
TILT_COS = np.cos(np.radians(20))  # a floor's or ceiling's normal against the up direction
UPRIGHT_SIN = np.sin(np.radians(15))  # a wall's
# Blunter than the patches of `tiny`, whose classes join what was cut: here nothing does, and a cut makes two objects.
CUT_JUMP_RELATIVE = 0.05
CUT_ANGLE_DEG = 45.0
LEVEL_BIN_M = 0.04
MIN_LEVEL_SHARE = 0.01  # of the valid pixels: below this, a low horizontal patch is no floor
PLANE_BAND_M, PLANE_BAND_PER_M = 0.05, 0.015  # distance from a plane that counts as on it: base, per metre of depth
FLOOR_STEP_M = 0.15  # a frame's lowest level this much above the known floor is a table or a step
STOREY_M = 2.2  # a camera this high above the known floor has gone upstairs
MIN_WALL_AREA_M2 = 1.0
MAX_SHARE_BEHIND_WALL = 0.15  # of the valid pixels: cabinets and fridges have the room's wall behind them
LARGE_WALL_AREA_M2 = 4.0  # no furniture is as large: this is a wall even with rooms behind its doors and windows
MAX_WALLS = 6
AZIMUTH_BINS = 36
WALL_BIN_M = 0.1


class GeometricSegmenter:
    """Segments by depth and pose.

    Args:
        up: the map's up direction [3]; None = estimated from the first frame in which that is possible.
        min_area_px: smallest object, in pixels of a 640x480 image.
    """

    def __init__(self, up: np.ndarray | None = None, min_area_px: int = 400) -> None:
        self.label_space = GEOMETRIC_LABEL_SPACE
        self._up = UpDirection(up)
        self._min_area_px = min_area_px
        self._floor_m: float | None = None  # the lowest level seen, along `up` from the map's origin

    def segment(self, frame: Frame) -> Segmentation | None:
        """Labels of the frame, or None while the up direction is still unknown."""
        up = self._up.in_map(frame)
        if up is None:
            return None
        size = frame.camera.width, frame.camera.height
        scale = min(1.0, WORK_WIDTH_PX / size[0])
        small = frame.resized(round(size[0] * scale), round(size[1] * scale))
        semantic, instance = self._segment_small(small, up)
        labels = Segmentation(semantic, instance).resized(*size)
        known = frame.depth > 0
        semantic, instance = np.where(known, labels.semantic, 0), np.where(known, labels.instance, 0)
        return Segmentation(semantic, instance, CONFIDENCES[semantic])

    def _segment_small(self, frame: Frame, map_up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        w = surface.inverse_depth(frame.depth)
        depth = surface.inverse(w)  # without the pin holes and some of the noise
        points = surface.viewing_rays(frame.camera) * depth[..., None]  # [H, W, 3] camera frame
        normals = surface.surface_normals(w, frame.camera)
        jumps = surface.jump_edges(w, CUT_JUMP_RELATIVE)

        up = frame.T_map_camera[:3, :3].T @ map_up  # in the camera frame
        camera_m = float(frame.T_map_camera[:3, 3] @ map_up)
        heights = points @ up.astype(np.float32) + np.float32(camera_m)  # along `map_up` from the map's origin
        rising = normals @ up.astype(np.float32)  # 1 on floors, 0 on walls, -1 on ceilings
        reliable = (depth > 0) & ~jumps

        semantic = np.zeros(depth.shape, np.int32)
        walls = find_walls(points, normals, np.abs(rising) < UPRIGHT_SIN, reliable, up, frame.camera)
        semantic[walls] = WALL
        band = PLANE_BAND_M + PLANE_BAND_PER_M * depth
        min_count = MIN_LEVEL_SHARE * np.count_nonzero(depth)
        rises = reliable & (rising > TILT_COS)
        floor_m = self._floor_level(lowest_level(heights[rises], min_count), camera_m)
        if floor_m is not None:
            semantic[rises & (np.abs(heights - floor_m) < band)] = FLOOR
        hangs = reliable & (rising < -TILT_COS) & (heights > camera_m)
        ceiling_m = lowest_level(-heights[hangs], min_count)  # mirrored: the highest
        if ceiling_m is not None:
            semantic[hangs & (np.abs(heights + ceiling_m) < band)] = CEILING

        cuts = jumps | surface.concave_edges(points, normals, CUT_ANGLE_DEG)
        min_area_px = max(1, round(self._min_area_px * depth.size / (640 * 480)))
        objects = surface.connected_segments((depth > 0) & (semantic == 0) & ~cuts, min_area_px)
        # Structure and objects grow into the cut pixels together, from both sides.
        labels = np.where(objects > 0, objects + OBJECT, semantic)
        labels = surface.grow_labels(labels, depth, iterations=surface.CONCAVE_REACH_PX + 1)
        return np.minimum(labels, OBJECT), np.maximum(labels - OBJECT, 0)

    def _floor_level(self, level_m: float | None, camera_m: float) -> float | None:
        """The frame's lowest level if it is the floor; None for a table top seen after the floor was."""
        if level_m is None:
            return None
        if self._floor_m is None or level_m < self._floor_m or camera_m - self._floor_m > STOREY_M:
            self._floor_m = level_m
        return level_m if level_m < self._floor_m + FLOOR_STEP_M else None


def lowest_level(heights: np.ndarray, min_count: float) -> float | None:
    """Median height of the lowest horizontal level that at least `min_count` of the `heights` [K] (m) lie on."""
    if len(heights) == 0:
        return None
    bins = np.floor(heights / LEVEL_BIN_M).astype(int)
    lowest = bins.min()
    counts = np.convolve(np.bincount(bins - lowest), np.ones(3), "same")  # a level may straddle bins
    full = np.flatnonzero(counts >= max(1.0, min_count))
    if len(full) == 0:
        return None
    # Noise spreads a large floor over several bins: go on to the peak that the first full bin belongs to.
    peak = full[0]
    while peak + 1 < len(counts) and counts[peak + 1] > counts[peak]:
        peak += 1
    return float(np.median(heights[np.abs(bins - lowest - peak) <= 1]))


def find_walls(
    points: np.ndarray,  # [H, W, 3] m, camera frame
    normals: np.ndarray,  # [H, W, 3] unit, towards the camera
    upright: np.ndarray,  # [H, W] bool, the normal is horizontal
    reliable: np.ndarray,  # [H, W] bool, depth and normal hold
    up: np.ndarray,  # [3] camera frame
    camera: PinholeCamera,
) -> np.ndarray:
    """Pixels [H, W] bool on large vertical planes that have almost nothing behind them, or are larger than furniture.

    Planes are the peaks of a vote over azimuth and offset, weighted with the area that a pixel covers; so a wall counts
    as one however much stands before it.
    """
    walls = np.zeros(upright.shape, bool)
    candidates = upright & reliable
    if not candidates.any():
        return walls
    depth = points[..., 2]
    band = PLANE_BAND_M + PLANE_BAND_PER_M * depth
    valid = depth > 0
    axes = _horizontal_axes(up).astype(np.float32)  # [2, 3]
    incidence = np.abs(np.einsum("hwc,hwc->hw", points, normals)) / np.maximum(np.linalg.norm(points, axis=-1), 1e-9)
    areas = depth**2 / (camera.fx * camera.fy) / np.maximum(incidence, 0.1)  # [H, W] m^2 that the pixel covers
    for _ in range(MAX_WALLS):
        plane = _strongest_plane(points[candidates], normals[candidates], areas[candidates], axes)
        if plane is None:
            break
        normal, offset = plane
        distance = points @ normal - offset  # positive on the camera's side
        facing = normals @ normal > TILT_COS
        on_plane = candidates & facing & (np.abs(distance) < band)
        if not on_plane.any():
            break
        share_behind = np.count_nonzero(valid & (distance < -3 * band)) / np.count_nonzero(valid)
        if share_behind < MAX_SHARE_BEHIND_WALL or areas[on_plane].sum() > LARGE_WALL_AREA_M2:
            walls |= on_plane
        candidates &= ~on_plane
    return walls


def _strongest_plane(
    points: np.ndarray,  # [K, 3] m
    normals: np.ndarray,  # [K, 3]
    areas: np.ndarray,  # [K] m^2
    axes: np.ndarray,  # [2, 3] horizontal
) -> tuple[np.ndarray, float] | None:
    """Unit normal [3] and offset (m) of the vertical plane with the largest area, at least MIN_WALL_AREA_M2."""
    if len(points) == 0:
        return None
    horizontal = normals @ axes.T  # [K, 2]
    azimuth = np.arctan2(horizontal[:, 1], horizontal[:, 0])
    offsets = np.einsum("kc,kc->k", points, normals)
    row = np.round(azimuth / (2 * np.pi) * AZIMUTH_BINS).astype(int) % AZIMUTH_BINS
    column = np.round(offsets / WALL_BIN_M).astype(int)
    first = column.min()
    votes: np.ndarray = np.zeros((AZIMUTH_BINS, int(column.max() - first) + 1), np.float32)
    np.add.at(votes, (row, column - first), areas)
    # Summed over neighbours (the azimuth wraps around), so that a wall may straddle bins.
    votes = cv2.boxFilter(np.pad(votes, ((1, 1), (0, 0)), "wrap"), -1, (3, 3), normalize=False)[1:-1]
    r, c = np.unravel_index(votes.argmax(), votes.shape)
    if votes[r, c] < MIN_WALL_AREA_M2:
        return None
    row_distance = np.abs((row - r + AZIMUTH_BINS // 2) % AZIMUTH_BINS - AZIMUTH_BINS // 2)
    near = (row_distance <= 1) & (np.abs(column - first - c) <= 1)
    normal = (normals[near] * areas[near, None]).sum(0)
    normal /= np.linalg.norm(normal)
    return normal, float(np.median(points[near] @ normal))


def _horizontal_axes(up: np.ndarray) -> np.ndarray:
    """Two orthonormal directions [2, 3] at right angles to `up`."""
    helper = np.eye(3)[np.abs(up).argmin()]
    first = np.cross(up, helper)
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(up, first)])
