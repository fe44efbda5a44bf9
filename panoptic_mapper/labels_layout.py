"""Where names go in a picture: inside the segment they name, and never over one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

PIXELS_PER_POINT = 100 / 72  # of a figure with 100 dots per inch
_CHARACTER_WIDTH = 0.66  # of the font size: mean of bold DejaVu Sans, a little generous
_LINE_HEIGHT = 1.45
_SHIFTS = [(0, 0), (0, 1), (0, -1), (0.6, 1), (-0.6, 1), (0.6, -1), (-0.6, -1), (0, 2), (0, -2), (1.1, 0), (-1.1, 0)]


@dataclass(frozen=True)
class TextBox:
    """A place of a text, in pixels."""

    x: float  # centre
    y: float
    width: float
    height: float

    def overlaps(self, other: TextBox) -> bool:
        return (
            abs(self.x - other.x) * 2 < self.width + other.width
            and abs(self.y - other.y) * 2 < self.height + other.height
        )


def place_labels(
    texts: Sequence[str],
    centers: Sequence[np.ndarray],  # [2] px each, where the text should be
    size_pt: float,
    area: tuple[np.ndarray, np.ndarray],  # lower and upper corner [2] px of where texts may be
    taken: Sequence[TextBox] = (),
) -> list[TextBox | None]:
    """Places texts in the order given, next to their centre where it is taken; None where no place is free."""
    occupied = list(taken)
    placed: list[TextBox | None] = []
    for text, center in zip(texts, centers, strict=True):
        width = len(text) * _CHARACTER_WIDTH * size_pt * PIXELS_PER_POINT
        height = _LINE_HEIGHT * size_pt * PIXELS_PER_POINT
        free = None
        for shift_x, shift_y in _SHIFTS:
            spot = np.array(center) + np.array([shift_x * width, shift_y * height])
            half = np.array([width, height]) / 2
            if (area[1] - area[0] < 2 * half).any():
                break
            x, y = np.clip(spot, area[0] + half, area[1] - half)
            box = TextBox(float(x), float(y), width, height)
            if not any(box.overlaps(other) for other in occupied):
                free = box
                occupied.append(box)
                break
        placed.append(free)
    return placed


def segment_anchors(segments: np.ndarray, min_share: float) -> list[tuple[int, np.ndarray]]:
    """The middle (x, y) px of each segment's largest connected part, large segments first.

    Args:
        segments: [H, W] int, 0 = none.
        min_share: of the image; smaller segments are left out.

    The middle is the point of the part that is furthest from its outline: always inside, which the centre of mass of
    an L-shaped segment is not.
    """
    ids, counts = np.unique(segments[segments > 0], return_counts=True)
    anchors = []
    for segment in ids[np.argsort(-counts, kind="stable")].tolist():
        mask = (segments == segment).astype(np.uint8)
        _, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        if stats[largest, cv2.CC_STAT_AREA] < min_share * segments.size:
            continue
        padded = np.pad((parts == largest).astype(np.uint8), 1)  # the image's edge is an outline too
        distance = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(int(np.argmax(distance)), distance.shape)
        anchors.append((segment, np.array([x, y], np.float64)))
    return anchors
