"""Merges a semantic image, detector boxes and depth into one panoptic image (the patches: tiny_patches.py).

The semantic network draws good outlines of large things and knows no instances; the detector knows instances and
draws rectangles; depth knows where one surface ends. So boxes claim what lies in them at one depth, what remains of the
semantic image falls apart at depth steps, and fragments that touch in space are put together again.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.segmenters import surface
from panoptic_mapper.segmenters.tiny_classes import (
    CLAIMS,
    FROM_COCO,
    FROM_MOSAIC,
    SEATS,
    STRUCTURE,
    TINY_LABEL_SPACE,
    tiny_class,
)
from panoptic_mapper.segmenters.tiny_models import Detection
from panoptic_mapper.segmenters.tiny_patches import DepthPatches, depth_patches, vote_by_patch
from panoptic_mapper.segmenters.tiny_segment import Segment, snap_to_patches

STUFF_CONFIDENCE = 0.6  # on the simulated flats, 64 % of the pixels called wall and 63 % of those called floor are
COMPONENT_CONFIDENCE = 0.55  # things that no detector saw
UNREFINED_SHARE = 0.5  # of the score, for boxes that neither depth nor the semantic image could give a shape
PATCH_INSIDE = 0.7  # share of a patch inside a box that makes it part of what the box shows
MAX_BOX_SHARE = 0.1  # of the image: larger boxes of things without a semantic shape are not believed
KEEP_SHARE = 0.3  # of a mask that must be left after surer masks took their part
MERGE_GAP_M = 0.2  # what hides a part of a thing, an arm or a rail, is wider than the gaps of depth at its outline
FRAGMENT_SHARE = 0.7  # of the larger part's area: up to this, a touching part is a fragment of it
OVERLAP_SHARE = 0.35  # of a part's box in space inside the larger part's: above this they are one thing
SPILL_PX = 8  # a part this near in the image to a larger one of its class ...
SPILL_DEPTH_M = 0.25  # ... and this far behind it is the background behind an outline drawn too wide
MIN_EXTENT_PIXELS = 5


def merge_panoptic(
    mosaic: np.ndarray,  # [H, W] uint8 MOSAIC class of each pixel
    detections: list[Detection],
    frame: Frame,
    up: np.ndarray | None,  # [3] map frame; None = unknown
    min_area_px: int,
) -> Segmentation:
    """The panoptic image of a frame, in TINY_LABEL_SPACE.

    Args:
        min_area_px: smallest segment of stuff and of things without a detection, px of a 640x480 image; a detected
            thing may have a fourth of it.
    """
    min_area_px = max(1, round(min_area_px * mosaic.size / (640 * 480)))
    mosaic = cv2.medianBlur(mosaic, 5)
    patches = depth_patches(frame, up)
    semantic = vote_by_patch(FROM_MOSAIC[mosaic], patches)
    segments = claim_boxes(detections, mosaic, semantic, patches, frame.depth, max(1, min_area_px // 4))
    claimed = np.zeros(mosaic.shape, bool)
    for segment in segments:
        claimed |= segment.mask
    semantic = np.where(claimed, 0, semantic)
    segments += thing_components(semantic, patches.is_split, max(1, min_area_px // 4))
    segments = merge_fragments(snap_to_patches(segments, patches), frame)
    return compose(semantic, segments, frame.depth > 0, min_area_px)


def claim_boxes(
    detections: list[Detection],
    mosaic: np.ndarray,  # [H, W]
    semantic: np.ndarray,  # [H, W] class index
    patches: DepthPatches,
    depth: np.ndarray,  # [H, W] m
    min_area_px: int,
) -> list[Segment]:
    """The masks of the boxes: small and sure ones first, those that fill the image last; no pixel is taken twice."""
    free = np.ones(mosaic.shape, bool)
    patch_areas = np.bincount(patches.labels.ravel(), minlength=len(patches.is_occluder))
    segments = []
    for detection in sorted(detections, key=lambda d: (_box_area(d) > 0.25 * mosaic.size, -d.score)):
        class_index = int(FROM_COCO[detection.class_index])
        box = _clipped(detection.box, mosaic.shape)
        if class_index == 0 or box is None:
            continue
        if class_index in SEATS:
            class_index = _voted_seat(class_index, detection.score, semantic[box])
        inside = np.zeros(mosaic.shape, bool)
        inside[box] = True
        mask, is_refined = _mask_in_box(class_index, box, inside, mosaic, semantic, patches, patch_areas, depth)
        area = np.count_nonzero(mask)
        mask &= free
        left = np.count_nonzero(mask)
        if left < max(min_area_px, KEEP_SHARE * area):
            continue
        free &= ~mask
        segments.append(Segment(class_index, mask, detection.score * (1 if is_refined else UNREFINED_SHARE), True))
    return segments


def _mask_in_box(
    class_index: int,
    box: tuple[slice, slice],
    inside: np.ndarray,  # [H, W] bool, the box
    mosaic: np.ndarray,
    semantic: np.ndarray,
    patches: DepthPatches,
    patch_areas: np.ndarray,
    depth: np.ndarray,
) -> tuple[np.ndarray, bool]:
    """The pixels [H, W] bool of the thing in a box, and whether they have a shape of their own."""
    has_shape = CLAIMS[class_index].any()
    inside_px = np.bincount(patches.labels[box].ravel(), minlength=len(patch_areas))
    within = inside_px > PATCH_INSIDE * np.maximum(patch_areas, 1)
    within[0] = False
    by_patch = within[patches.labels] & inside
    if has_shape:
        claimed = inside & (CLAIMS[class_index][mosaic] | (semantic == class_index))
        # Parts that the semantic image missed: patches in the box that stand free and are nothing else.
        by_patch &= (patches.is_occluder[patches.labels]) & ((semantic == 0) | np.isin(semantic, STRUCTURE))
        mask = claimed | by_patch
        return near_median_depth(mask, claimed if claimed.any() else mask, depth), True
    if np.count_nonzero(inside) > MAX_BOX_SHARE * inside.size:
        return np.zeros_like(inside), False
    if np.count_nonzero(by_patch) > 0.25 * np.count_nonzero(inside):
        return near_median_depth(by_patch, by_patch & _core(inside, box), depth), True
    refined = near_median_depth(inside, _core(inside, box), depth)
    return refined, bool(np.count_nonzero(refined) < 0.8 * np.count_nonzero(inside))


def near_median_depth(mask: np.ndarray, reference: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The pixels of `mask` whose depth is near the median depth of `reference`, or that have none.

    Near means within the spread of the reference's middle half and a margin, so slanted and deep things stay whole.
    """
    known = depth[reference & (depth > 0)]
    if len(known) == 0:
        return mask
    low, middle, high = np.percentile(known, (25, 50, 75))
    margin = 1.5 * (high - low) + max(0.08, 0.05 * middle)
    return mask & ((depth <= 0) | ((depth > low - margin) & (depth < high + margin)))


def _core(inside: np.ndarray, box: tuple[slice, slice]) -> np.ndarray:
    """The middle half of a box in each direction: the thing is there, whatever its shape."""
    rows, columns = box
    height, width = rows.stop - rows.start, columns.stop - columns.start
    core = np.zeros_like(inside)
    core[rows.start + height // 4 : rows.stop - height // 4, columns.start + width // 4 : columns.stop - width // 4] = (
        True
    )
    return core


def _voted_seat(class_index: int, score: float, semantic: np.ndarray) -> int:
    """Chair, sofa or bed: the detector mixes them up, so both networks vote."""
    counts = np.array([np.count_nonzero(semantic == seat) for seat in SEATS], float)
    if counts.sum() < 0.1 * semantic.size:
        return class_index
    votes = counts / counts.sum()
    votes[SEATS.index(class_index)] += score
    return SEATS[int(votes.argmax())]


def thing_components(semantic: np.ndarray, is_split: np.ndarray, min_area_px: int) -> list[Segment]:
    """Connected components of every thing class of `semantic` [H, W], cut at large depth steps."""
    segments = []
    for class_index in np.unique(semantic):
        if not TINY_LABEL_SPACE.is_thing[class_index]:
            continue
        x, y, width, height = cv2.boundingRect((semantic == class_index).astype(np.uint8))
        window = (slice(y, y + height), slice(x, x + width))
        inside = semantic[window] == class_index
        parts = surface.connected_segments(inside & ~is_split[window], min_area_px)
        # The pixels on the cuts go to a part beside them.
        grown = cv2.dilate(parts.astype(np.float32), np.ones((5, 5), np.uint8)).astype(np.int32)
        parts = np.where(parts > 0, parts, grown)
        for part in range(1, parts.max() + 1):
            mask = np.zeros(semantic.shape, bool)
            mask[window] = (parts == part) & inside
            segments.append(Segment(int(class_index), mask, COMPONENT_CONFIDENCE, False))
    return segments


@dataclass(frozen=True)
class _Extent:
    """Where a segment is."""

    bounds: np.ndarray  # [2, 3] corners in map axes from the camera's position, without the outer 5 % of points, m
    depth_m: float  # median
    area_px: int
    box_px: np.ndarray  # [2, 2] x, y of the image corners


def merge_fragments(segments: list[Segment], frame: Frame) -> list[Segment]:
    """Joins parts of one class that touch in space, largest first, up to the size that the class may have.

    A part joins if it is a small fragment of the other or if their boxes overlap; two chairs side by side do neither.
    Parts that no detector saw are dropped where they have no depth, or lie behind a larger thing of their class: there
    the semantic image has spilled over an outline.
    """
    kept: list[tuple[Segment, _Extent | None]] = []
    for segment in sorted(segments, key=lambda s: -np.count_nonzero(s.mask)):
        extent = _extent(segment.mask, frame)
        same_class = [i for i, (other, e) in enumerate(kept) if other.class_index == segment.class_index and e]
        if extent is None:
            if segment.is_detected:
                kept.append((segment, None))
            continue
        target = next((i for i in same_class if _belongs(segment, extent, *kept[i])), None)
        if target is not None:
            whole = kept[target][0]
            joined = Segment(
                whole.class_index,
                whole.mask | segment.mask,
                max(whole.confidence, segment.confidence),
                whole.is_detected or segment.is_detected,
            )
            kept[target] = (joined, _extent(joined.mask, frame))
        elif segment.is_detected or not any(_is_spill(extent, kept[i][1]) for i in same_class):
            kept.append((segment, extent))
    return [segment for segment, _ in kept]


def _belongs(part: Segment, a: _Extent, whole: Segment, b: _Extent | None) -> bool:
    if b is None or (part.is_detected and whole.is_detected):
        return False  # the detector saw two
    gap = np.maximum(0, np.maximum(a.bounds[0] - b.bounds[1], b.bounds[0] - a.bounds[1]))
    union = np.maximum(a.bounds[1], b.bounds[1]) - np.minimum(a.bounds[0], b.bounds[0])
    if np.linalg.norm(gap) > MERGE_GAP_M or np.linalg.norm(union) > tiny_class(part.class_index).max_extent_m:
        return False
    overlap = np.minimum(a.bounds[1], b.bounds[1]) - np.maximum(a.bounds[0], b.bounds[0])
    share = np.prod(np.maximum(0, overlap)) / max(np.prod(a.bounds[1] - a.bounds[0]), 1e-9)
    return bool(a.area_px < FRAGMENT_SHARE * b.area_px or share > OVERLAP_SHARE)


def _is_spill(a: _Extent, b: _Extent | None) -> bool:
    """Whether the part `a` lies in the image beside or inside the larger `b`, but well behind it."""
    if b is None:
        return False
    touches = bool(np.all(a.box_px[0] <= b.box_px[1] + SPILL_PX) and np.all(b.box_px[0] <= a.box_px[1] + SPILL_PX))
    return touches and a.area_px < FRAGMENT_SHARE * b.area_px and a.depth_m > b.depth_m + SPILL_DEPTH_M


def _extent(mask: np.ndarray, frame: Frame) -> _Extent | None:
    """The extent of a mask [H, W]; None where it has no depth."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    rows, columns = slice(y, y + height, 2), slice(x, x + width, 2)  # every other pixel is enough
    depth = frame.depth[rows, columns]
    v, u = np.nonzero(mask[rows, columns] & (depth > 0))
    if len(v) < MIN_EXTENT_PIXELS:
        return None
    z, camera = depth[v, u], frame.camera
    u, v = x + 2 * u, y + 2 * v
    points = np.stack([(u - camera.cx) / camera.fx * z, (v - camera.cy) / camera.fy * z, z], axis=-1)
    bounds = np.percentile(points @ frame.T_map_camera[:3, :3].T, (5, 95), axis=0)
    box_px = np.array([[x, y], [x + width, y + height]])
    return _Extent(bounds, float(np.median(z)), int(np.count_nonzero(mask)), box_px)


def compose(semantic: np.ndarray, segments: list[Segment], has_depth: np.ndarray, min_area_px: int) -> Segmentation:
    """Stuff from `semantic` [H, W] and the segments over it; specks become unlabeled.

    Where `has_depth` [H, W] is False nothing could mend the label, so its confidence is halved.
    """
    result = np.zeros(semantic.shape, np.int32)
    instance = np.zeros(semantic.shape, np.int32)
    confidence = np.zeros(semantic.shape, np.float32)
    for class_index in STRUCTURE:
        stuff = surface.connected_segments(semantic == class_index, min_area_px) > 0
        result[stuff], confidence[stuff] = class_index, STUFF_CONFIDENCE
    number = 0
    for segment in segments:
        if not segment.is_detected and np.count_nonzero(segment.mask) < min_area_px:
            continue
        number += 1
        result[segment.mask], instance[segment.mask] = segment.class_index, number
        confidence[segment.mask] = segment.confidence
    return Segmentation(result, instance, np.where(has_depth, confidence, confidence / 2))


def _box_area(detection: Detection) -> float:
    x0, y0, x1, y1 = detection.box
    return (x1 - x0) * (y1 - y0)


def _clipped(box: tuple[float, float, float, float], shape: tuple[int, ...]) -> tuple[slice, slice] | None:
    """Rows and columns of a box inside the image, or None where it is outside."""
    x0, y0 = max(0, round(box[0])), max(0, round(box[1]))
    x1, y1 = min(shape[1], round(box[2])), min(shape[0], round(box[3]))
    return (slice(y0, y1), slice(x0, x1)) if x1 > x0 and y1 > y0 else None
