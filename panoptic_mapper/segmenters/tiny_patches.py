"""Depth patches for the `tiny` segmenter: smooth surfaces, how they lie, and what the semantic network can have seen.

The semantic network sees colour only, and calls a pale chair wall and a dark floor cabinet. A patch that stands before
its surroundings is no wall, nor is a level one, nor one above which the room goes on behind it; within a patch, the
majority is right more often than the pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from panoptic_mapper.frame import Frame
from panoptic_mapper.segmenters import surface
from panoptic_mapper.segmenters.tiny_classes import STRUCTURE, TINY_LABEL_SPACE

WALL, FLOOR, CEILING = STRUCTURE
PATCH_WIDTH_PX = 320  # depth is cut into patches at this width
MIN_PATCH_PX = 40  # at that width
DOMINANT = 0.6  # share of one thing class that makes a whole patch this class
LEVEL, UPRIGHT, DOWNWARD = 1, 2, 3
FACING_COS = np.cos(np.radians(25))  # of a level patch's normal against up
UPRIGHT_SIN = np.sin(np.radians(20))
FLOOR_BAND_M = 0.12
MIN_FLOOR_SHARE = 0.01  # of the image
OCCLUDER_SHARE = 0.4  # of a patch's outline that stands before something: no wall, floor or ceiling
UPPER_EDGE_PX = range(3, 46, 3)  # how far above the upper edge of a patch other surfaces are looked for
BEHIND_EDGE_M = 0.15  # such a surface counts as behind the patch's plane, or before it: more than a window's recess
MINORITY = 0.1  # share that the class of such a patch must have instead
STEP_RELATIVE, STEP_MIN = 0.15, 0.02  # inverse-depth step (relative, 1/m) that splits a thing in two


@dataclass(frozen=True)
class DepthPatches:
    """Smooth surface patches of an image, cut at depth steps and concave edges."""

    labels: np.ndarray  # [H, W] int32, 1..P; 0 = none
    is_split: np.ndarray  # [H, W] bool: large depth steps
    is_occluder: np.ndarray  # [P + 1] bool: stands before what is around it
    facing: np.ndarray  # [P + 1] int: LEVEL, UPRIGHT, DOWNWARD, or 0 where it is none of them
    heights: np.ndarray  # [P + 1] float, mean height along up from the map's origin, m
    ends_below: np.ndarray  # [P + 1] bool: upright, and what is seen above its upper edge lies behind it


def depth_patches(frame: Frame, up: np.ndarray | None) -> DepthPatches:
    """Cuts the depth image into patches and says how they lie."""
    width, height = frame.camera.width, frame.camera.height
    scale = min(1.0, PATCH_WIDTH_PX / width)
    camera = frame.camera.resized(round(width * scale), round(height * scale))
    w = surface.inverse_depth(cv2.resize(frame.depth, (camera.width, camera.height), interpolation=cv2.INTER_NEAREST))
    depth = surface.inverse(w)
    points = surface.viewing_rays(camera) * depth[..., None]
    normals = surface.surface_normals(w, camera)
    cuts = surface.jump_edges(w) | surface.concave_edges(points, normals)
    inner = surface.connected_segments((depth > 0) & ~cuts, MIN_PATCH_PX)
    facing, heights = _orientation(inner, points, normals, frame.T_map_camera, up)
    labels = surface.grow_labels(inner, depth, surface.CONCAVE_REACH_PX + 1)
    is_split = surface.jump_edges(w, STEP_RELATIVE, STEP_MIN) & (depth > 0)

    def full_size(image: np.ndarray) -> np.ndarray:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST)

    is_split = full_size(is_split.astype(np.uint8)) > 0
    ends_below = _ends_below(labels, points, normals) & (facing == UPRIGHT)
    return DepthPatches(full_size(labels), is_split, _occluders(labels, depth), facing, heights, ends_below)


def _orientation(
    labels: np.ndarray, points: np.ndarray, normals: np.ndarray, T_map_camera: np.ndarray, up: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """How each patch faces [P + 1] and its mean height [P + 1] m; all 0 where up is unknown."""
    count = labels.max() + 1
    facing, heights = np.zeros(count, int), np.zeros(count)
    if up is None:
        return facing, heights
    camera_up = T_map_camera[:3, :3].T @ up
    rising = normals @ camera_up.astype(np.float32)
    areas = np.maximum(np.bincount(labels.ravel(), minlength=count), 1)
    for value, mask in (
        (LEVEL, rising > FACING_COS),
        (UPRIGHT, np.abs(rising) < UPRIGHT_SIN),
        (DOWNWARD, rising < -FACING_COS),
    ):
        facing[np.bincount(labels[mask], minlength=count) > DOMINANT * areas] = value
    above_camera = np.bincount(labels.ravel(), weights=(points @ camera_up).ravel(), minlength=count) / areas
    facing[0] = 0
    return facing, above_camera + T_map_camera[:3, 3] @ up


def _occluders(labels: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Which patches [P + 1] have most of their outline before something farther away."""
    kernel = np.ones((3, 3), np.uint8)
    as_float = labels.astype(np.float32)
    outline = (cv2.dilate(as_float, kernel) != as_float) | (cv2.erode(as_float, kernel) != as_float)
    farthest_near = cv2.dilate(depth, np.ones((7, 7), np.uint8))
    before = farthest_near - depth > np.maximum(0.08, 0.05 * depth)
    count = labels.max() + 1
    outline_px = np.bincount(labels[outline], minlength=count)
    before_px = np.bincount(labels[outline & before], minlength=count)
    result = before_px > OCCLUDER_SHARE * np.maximum(outline_px, 1)
    result[0] = False
    return result


def _ends_below(
    labels: np.ndarray,  # [H, W]
    points: np.ndarray,  # [H, W, 3] m, camera frame; z = 0 where unknown
    normals: np.ndarray,  # [H, W, 3] towards the camera
) -> np.ndarray:
    """Which patches [P + 1] have, above most of their upper edge, something behind their plane and nothing before it.

    Fronts of counters and backs of sofas do. A wall goes on to the ceiling or out of the image, and what hangs on it or
    stands before it is on the camera's side.
    """
    flat, count = labels.ravel(), labels.max() + 1
    areas = np.maximum(np.bincount(flat, minlength=count), 1)[:, None]
    centres = np.stack([np.bincount(flat, points[..., i].ravel(), count) for i in range(3)], -1) / areas  # [P + 1, 3]
    facing = np.stack([np.bincount(flat, normals[..., i].ravel(), count) for i in range(3)], -1)
    facing = facing / np.maximum(np.linalg.norm(facing, axis=-1, keepdims=True), 1e-9)
    v, u = np.nonzero((labels[1:] > 0) & (labels[:-1] != labels[1:]))  # [K] pixels of upper edges
    v += 1
    patch = labels[v, u]
    farthest, nearest = np.zeros(len(v)), np.zeros(len(v))  # distance from the plane, negative behind it, m
    for reach in UPPER_EDGE_PX:
        row = np.maximum(v - reach, 0)
        is_other = (v >= reach) & (points[row, u, 2] > 0) & (labels[row, u] != patch)
        distance = np.einsum("kc,kc->k", points[row, u] - centres[patch], facing[patch]) * is_other
        farthest, nearest = np.minimum(farthest, distance), np.maximum(nearest, distance)
    is_end = (farthest < -BEHIND_EDGE_M) & (nearest < BEHIND_EDGE_M)
    result = np.bincount(patch, is_end, count) > 0.5 * np.maximum(np.bincount(patch, minlength=count), 1)
    result[0] = False
    return result


def vote_by_patch(semantic: np.ndarray, patches: DepthPatches) -> np.ndarray:
    """Mends the semantic image [H, W] by patches.

    A patch that is mostly one thing becomes that thing. Where a patch cannot be the wall, floor or ceiling that its
    pixels are called, they become the class that another part of it has, or unlabeled. Flat things on walls stay.
    """
    num_classes, num_patches = len(TINY_LABEL_SPACE), len(patches.facing)
    votes = np.bincount((patches.labels * num_classes + semantic).ravel(), minlength=num_patches * num_classes)
    votes = votes.reshape(num_patches, num_classes)
    shares = votes / np.maximum(votes.sum(1, keepdims=True), 1)
    things = np.where(TINY_LABEL_SPACE.is_thing, shares, 0)
    dominant = things.max(1) > DOMINANT
    dominant[0] = False

    floor_m = _floor_height(votes.sum(1), dominant, patches)
    possible = _possible(patches, floor_m)  # [P + 1, C]
    allowed = np.where(possible & (np.arange(num_classes) > 0), shares, 0)
    substitute = np.where(allowed.max(1) > MINORITY, allowed.argmax(1), 0)
    at_floor = (patches.facing == LEVEL) & (np.abs(patches.heights - floor_m) < FLOOR_BAND_M)
    substitute = np.where(at_floor & (things.max(1) < MINORITY), FLOOR, substitute)
    substitute = np.where(dominant, things.argmax(1), substitute)
    replaces = dominant[patches.labels] | ~possible[patches.labels, semantic]
    return np.where(replaces, substitute[patches.labels], semantic)


def _floor_height(areas: np.ndarray, is_thing: np.ndarray, patches: DepthPatches) -> float:
    """Height (m) of the lowest level patch that is large and no thing; NaN where none is seen."""
    candidates = (patches.facing == LEVEL) & ~is_thing & (areas > MIN_FLOOR_SHARE * patches.labels.size)
    return float(patches.heights[candidates].min()) if candidates.any() else float("nan")


def _possible(patches: DepthPatches, floor_m: float) -> np.ndarray:
    """Whether a patch can be of a class: [P + 1, C] bool, False only for wall, floor and ceiling."""
    possible = np.ones((len(patches.facing), len(TINY_LABEL_SPACE)), bool)
    possible[:, WALL] = (
        ~patches.is_occluder & ~patches.ends_below & ((patches.facing == 0) | (patches.facing == UPRIGHT))
    )
    possible[:, FLOOR] = ~patches.is_occluder & ((patches.facing == 0) | (patches.facing == LEVEL))
    possible[:, CEILING] = ~patches.is_occluder & ((patches.facing == 0) | (patches.facing == DOWNWARD))
    possible[(patches.facing == LEVEL) & (patches.heights > floor_m + 2 * FLOOR_BAND_M), FLOOR] = False
    return possible
