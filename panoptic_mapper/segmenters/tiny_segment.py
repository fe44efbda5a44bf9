"""The things of an image in the `tiny` segmenter, and their outlines: those of the surfaces that they mostly cover."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from panoptic_mapper.segmenters.tiny_classes import CLAIMS
from panoptic_mapper.segmenters.tiny_patches import DepthPatches

SNAP_SHARE = 0.5  # of a patch: a segment that covers more than this gets all of it
LEFT_SHARE = 0.3  # of its pixels: a segment that keeps less is dropped, it was a part of others
IS_FURNITURE = np.any(CLAIMS, axis=1)  # [C] classes of which the semantic network draws outlines, too


@dataclass(frozen=True)
class Segment:
    """One thing in the image."""

    class_index: int
    mask: np.ndarray  # [H, W] bool
    confidence: float  # 0..1
    is_detected: bool  # by the detector; else a component of the semantic image


def snap_to_patches(segments: list[Segment], patches: DepthPatches) -> list[Segment]:
    """Gives each depth patch to the segment that covers most of it; segments that lose most of theirs are dropped.

    The networks draw blurred outlines, depth sharp ones. Small things that the detector saw lose nothing: a book lies
    in the patch of its table. A chair does not.
    """
    number: np.ndarray = np.zeros(patches.labels.shape, np.int32)  # [H, W] of the segment, 0 = none
    for i, segment in enumerate(segments):
        number[segment.mask] = i + 1
    columns, num_patches = len(segments) + 1, len(patches.is_occluder)
    votes = np.bincount((patches.labels * columns + number).ravel(), minlength=num_patches * columns)
    shares = votes.reshape(num_patches, columns) / np.maximum(votes.reshape(num_patches, columns).sum(1), 1)[:, None]
    shares[0] = shares[:, 0] = 0  # neither what is in no patch nor what is in no segment counts
    owner = np.where(shares.max(1) > SNAP_SHARE, shares.argmax(1), 0)  # [P + 1]
    is_small = [s.is_detected and not IS_FURNITURE[s.class_index] for s in segments]
    stays = np.array([False, *is_small], bool)
    wanted = owner[patches.labels]
    number = np.where((wanted > 0) & ~stays[number], wanted, number)
    kept = np.bincount(number.ravel(), minlength=columns)
    return [
        replace(segment, mask=number == i + 1)
        for i, segment in enumerate(segments)
        if kept[i + 1] > LEFT_SHARE * np.count_nonzero(segment.mask)
    ]
