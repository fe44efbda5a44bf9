"""The map from above: points without the ceiling, object boxes with names, and the camera's path."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from panoptic_mapper.label_space import distinct_color
from panoptic_mapper.labels_layout import TextBox, place_labels
from panoptic_mapper.objects import upright_box
from panoptic_mapper.snapshot import Box, MapSnapshot

PATH_COLOR = "#1565c0"
CUT_SHARE = 0.75  # of the height from floor to ceiling; what lies higher would hide the furniture
SPLAT_RADII_M = (0.025, 0.07)  # a point where it is, and under all of these a larger one that fills the gaps
MARGIN_M = 0.4
STUFF_WHITENING = 0.45  # stuff is drawn pale, in its own colours, so that objects stand out


@dataclass(frozen=True)
class FloorPlan:
    """The horizontal frame that the map is drawn in: x along the longer side of the whole map."""

    rotation: np.ndarray  # [3, 3] rows: drawing's right, drawing's up, map's up
    low: np.ndarray  # [2] m, lower left corner of the drawing
    high: np.ndarray  # [2] m, upper right corner

    @staticmethod
    def of(snapshot: MapSnapshot, trajectory: np.ndarray, up: np.ndarray) -> FloorPlan:
        """Frames the points and the path; an empty map gets a plan of its path, or of 2 x 2 m at the origin."""
        points = np.concatenate([np.asarray(snapshot.points, np.float64), trajectory.reshape(-1, 3)])
        if len(points) == 0:
            points = np.array([[-1.0, -1, 0], [1, 1, 0]])
        rotation = rotation_of(upright_box(points, up)).T
        flat = points @ rotation[:2].T
        low, high = np.percentile(flat, [0.5, 99.5], axis=0)
        path = trajectory.reshape(-1, 3) @ rotation[:2].T
        if len(path):
            low, high = np.minimum(low, path.min(0)), np.maximum(high, path.max(0))
        return FloorPlan(rotation, low - MARGIN_M, high + MARGIN_M)

    def flatten(self, points: np.ndarray) -> np.ndarray:
        """Drawing coordinates [..., 2] (m) of map points [..., 3]."""
        return points @ self.rotation[:2].T


def draw_top_down(
    axes: Any,  # matplotlib Axes
    plan: FloorPlan,
    snapshot: MapSnapshot,
    trajectory: np.ndarray,  # [K, 3] camera centres, m
    views: list[tuple[np.ndarray, np.ndarray]],  # camera centre [3] and viewing direction [3] of each numbered row
    pixels_per_m: float,
) -> None:
    """Draws the plan; lengths of texts are in the axes' pixels."""
    image = top_down_image(plan, snapshot, pixels_per_m)
    axes.imshow(image, extent=(plan.low[0], plan.high[0], plan.low[1], plan.high[1]), interpolation="antialiased")
    axes.set_xlim(plan.low[0], plan.high[0])
    axes.set_ylim(plan.low[1], plan.high[1])
    axes.set_axis_off()
    _draw_path(axes, plan.flatten(trajectory.reshape(-1, 3)))
    taken = _draw_views(axes, plan, views, pixels_per_m)
    taken.append(_draw_scale_bar(axes, plan, pixels_per_m))
    _draw_objects(axes, plan, snapshot, pixels_per_m, taken)


def top_down_image(plan: FloorPlan, snapshot: MapSnapshot, pixels_per_m: float) -> np.ndarray:
    """Orthographic image [h, w, 3] uint8 from above, row 0 at the upper edge; the highest point below the cut wins."""
    width, height = np.ceil((plan.high - plan.low) * pixels_per_m).astype(int)
    points = np.asarray(snapshot.points, np.float64)
    image = np.full((height, width, 3), 255, np.uint8)
    if len(points) == 0:
        return image
    heights = points @ plan.rotation[2]
    floor, ceiling = np.percentile(heights, [2, 98])
    is_ceiling = np.array([name.lower() == "ceiling" for name in snapshot.label_space.names])
    shown = (heights <= floor + CUT_SHARE * (ceiling - floor)) & ~is_ceiling[snapshot.class_indices]
    order = np.nonzero(shown)[0]
    order = order[np.argsort(heights[order], kind="stable")]

    pixels = (plan.flatten(points[order]) - plan.low) * pixels_per_m
    top = np.full((height, width), -1)
    for radius_m in SPLAT_RADII_M:
        top = np.where(top >= 0, top, _splat_ranks(pixels, (height, width), max(1, round(radius_m * pixels_per_m))))
    top = top[::-1]
    image[top >= 0] = _point_colors(snapshot, order)[top[top >= 0]]
    return image


def _splat_ranks(pixels: np.ndarray, shape: tuple[int, int], radius: int) -> np.ndarray:
    """Draws each of the points [n, 2] as a disc of its row number, later ones over earlier; -1 where none is."""
    height, width = shape
    column, row = (np.floor(pixels).astype(int) + radius).T  # of an image with a border, from which discs reach in
    padded = np.full((height + 2 * radius, width + 2 * radius), -1)
    inside = (column >= 0) & (column < padded.shape[1]) & (row >= 0) & (row < padded.shape[0])
    padded[row[inside], column[inside]] = np.nonzero(inside)[0]  # of several points in one pixel the last one stays
    top = np.full(shape, -1)
    for dy in range(-radius, radius + 1):  # the disc's rows: the cost grows with the radius, not with its square
        half = isqrt(radius * radius + 1 - dy * dy)
        rows = padded[radius + dy : radius + dy + height]
        spread = ndimage.maximum_filter1d(rows, 2 * half + 1, axis=1, mode="constant", cval=-1)
        np.maximum(top, spread[:, radius : radius + width], out=top)
    return top


def rotation_of(box: Box) -> np.ndarray:
    """Box axes to map axes, [3, 3]."""
    return Rotation.from_quat(np.roll(box.quaternion, -1)).as_matrix()


def footprint(box: Box) -> np.ndarray:
    """The four corners of an upright box at its centre's height, in order, [4, 3] m."""
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) / 2 * box.size
    return corners @ rotation_of(box).T + box.center


def _point_colors(snapshot: MapSnapshot, rows: np.ndarray) -> np.ndarray:
    """Objects in their colour, shaded by the points' brightness; the rest pale. [n, 3] uint8."""
    own = snapshot.colors[rows].astype(np.float64)
    ids = snapshot.instance_ids[rows]
    unique, index = np.unique(ids, return_inverse=True)
    palette = np.array([distinct_color(k) for k in unique.tolist()], np.float64).reshape(-1, 3)
    brightness = own.mean(1, keepdims=True) / 255
    thing = palette[index] * (0.65 + 0.35 * brightness)
    stuff = own + (255 - own) * STUFF_WHITENING
    return np.where(ids[:, None] > 0, thing, stuff).round().astype(np.uint8)


def _draw_path(axes: Any, path: np.ndarray) -> None:
    if len(path) == 0:
        return
    axes.plot(*path.T, color="white", linewidth=3.2, alpha=0.8, solid_joinstyle="round")
    axes.plot(*path.T, color=PATH_COLOR, linewidth=1.6, solid_joinstyle="round")


def _draw_views(axes: Any, plan: FloorPlan, views: list, pixels_per_m: float) -> list[TextBox]:
    """A numbered dot with a pointer for each row of pictures; returns the places that they take."""
    taken = []
    for number, (center, direction) in enumerate(views, start=1):
        x, y = plan.flatten(center)
        pointer = plan.flatten(direction)
        pointer = pointer / max(float(np.linalg.norm(pointer)), 1e-9) * 26 / pixels_per_m
        arrow = {"arrowstyle": "-|>", "color": PATH_COLOR, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (x + pointer[0], y + pointer[1]), (x, y), arrowprops=arrow, zorder=5)
        circle = {"boxstyle": "circle,pad=0.25", "facecolor": PATH_COLOR, "edgecolor": "white", "linewidth": 1.2}
        axes.text(
            x, y, str(number), color="white", size=8, weight="bold", ha="center", va="center", bbox=circle, zorder=6
        )
        taken.append(TextBox(x * pixels_per_m, y * pixels_per_m, 24, 24))
    return taken


def _draw_scale_bar(axes: Any, plan: FloorPlan, pixels_per_m: float) -> TextBox:
    length = next(m for m in (5.0, 2.0, 1.0, 0.5, 0.0) if m <= 0.25 * (plan.high[0] - plan.low[0]))
    x, y = plan.low + np.array([12, 14]) / pixels_per_m
    axes.plot([x, x + length], [y, y], color="#222222", linewidth=3, solid_capstyle="butt")
    axes.text(x + length / 2, y + 6 / pixels_per_m, f"{length:g} m", size=9, ha="center", va="bottom", color="#222222")
    return TextBox((x + length / 2) * pixels_per_m, y * pixels_per_m + 8, length * pixels_per_m + 8, 34)


def _draw_objects(axes: Any, plan: FloorPlan, snapshot: MapSnapshot, pixels_per_m: float, taken: list[TextBox]) -> None:
    from matplotlib.patches import Polygon

    objects = sorted(snapshot.objects, key=lambda o: -float(o.box.size[0] * o.box.size[1]))
    for o in objects:
        corners = plan.flatten(footprint(o.box))
        dark = np.array(distinct_color(o.id)) / 255 * 0.6
        axes.add_patch(Polygon(corners, fill=False, edgecolor="white", linewidth=3, alpha=0.7))
        axes.add_patch(Polygon(corners, fill=False, edgecolor=dark, linewidth=1.5))
    centers = [plan.flatten(o.box.center) * pixels_per_m for o in objects]
    area = (plan.low * pixels_per_m, plan.high * pixels_per_m)
    labels = place_labels([f"{o.class_name} {o.id}" for o in objects], centers, 8, area, taken)
    for o, center, label in zip(objects, centers, labels, strict=True):
        if label is None:
            continue
        x, y = label.x / pixels_per_m, label.y / pixels_per_m
        dark = np.array(distinct_color(o.id)) / 255 * 0.6
        if abs(label.y - center[1]) > 14 or abs(label.x - center[0]) > label.width / 2:
            axes.plot(*np.stack([center / pixels_per_m, (x, y)]).T, color=dark, linewidth=0.8, zorder=3)
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        name = f"{o.class_name} {o.id}"
        axes.text(x, y, name, size=8, color=dark, weight="bold", ha="center", va="center", bbox=box, zorder=4)
