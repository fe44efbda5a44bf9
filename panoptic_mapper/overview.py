"""One picture of a mapped sequence: rows of views beside what the camera saw, the map from above, and a legend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from panoptic_mapper.frame import Frame
from panoptic_mapper.label_space import LabelSpace, distinct_color
from panoptic_mapper.labels_layout import place_labels, segment_anchors
from panoptic_mapper.snapshot import MapSnapshot, PanopticView
from panoptic_mapper.top_down import FloorPlan, draw_top_down

COLUMNS = ("colour", "rendered colour", "rendered depth", "semantic", "instance")
DPI = 100
PANEL_WIDTH, GAP, LEFT, TITLE, HEADER, LEGEND_WIDTH = 380, 8, 44, 52, 34, 330  # px
MAX_PLAN_HEIGHT = 1000  # px
LABEL_TINT = 0.62  # share of the label's colour over the rendered image
MIN_LABEL_SHARE = 0.006  # smaller segments of an image get no name
TEXT, FAINT = "#222222", "#777777"


def save_overview(
    path: Path,
    rows: Sequence[tuple[Frame, PanopticView]],
    snapshot: MapSnapshot,
    trajectory: np.ndarray,  # [K, 3] camera centres, map frame, m
    up: np.ndarray,  # [3] map frame
    title: str = "",
) -> None:
    """Writes the picture as PNG, about 2000 pixels wide. An object has one colour and one number everywhere in it.

    Raises:
        ValueError: naming the file, when it cannot be written.
    """
    trajectory = np.asarray(trajectory, np.float64).reshape(-1, 3)
    plan = FloorPlan.of(snapshot, trajectory, up)
    width = LEFT + len(COLUMNS) * (PANEL_WIDTH + GAP)
    row_heights = [round(PANEL_WIDTH * f.camera.height / f.camera.width) for f, _ in rows]
    extent = plan.high - plan.low
    pixels_per_m = min((width - LEFT - LEGEND_WIDTH) / extent[0], MAX_PLAN_HEIGHT / extent[1])
    plan_size = extent * pixels_per_m
    below = max(float(plan_size[1]), 420.0)
    height = TITLE + HEADER + sum(row_heights) + GAP * len(rows) + HEADER + below + 16

    canvas = _Canvas(width, height)
    canvas.text(LEFT, TITLE / 2, title or "panoptic map", size=17, weight="bold", ha="left")
    canvas.text(width - GAP, TITLE / 2, _summary(snapshot), size=11, color=FAINT, ha="right")
    top = _draw_rows(canvas, rows, row_heights, snapshot.label_space)

    canvas.text(LEFT, top + HEADER / 2, "map from above, without the ceiling", size=12, weight="bold", ha="left")
    top += HEADER
    free = width - LEFT - LEGEND_WIDTH - plan_size[0]
    axes = canvas.axes(LEFT + free / 2, top, plan_size[0], plan_size[1])
    views = [(f.T_map_camera[:3, 3], f.T_map_camera[:3, 2]) for f, _ in rows]
    draw_top_down(axes, plan, snapshot, trajectory, views, pixels_per_m)
    _draw_legend(canvas, width - LEGEND_WIDTH + 24, top, below, rows, snapshot)
    canvas.save(path)


def depth_colors(depth: np.ndarray, near_m: float, far_m: float) -> np.ndarray:
    """Turbo colours [H, W, 3] uint8 of a depth image [H, W] (m), near is blue; black where there is none."""
    scaled = np.clip((depth - near_m) / max(far_m - near_m, 1e-6), 0, 1)
    colors = colormaps["turbo"](scaled, bytes=True)[..., :3].copy()
    colors[depth <= 0] = 0
    return colors


def tinted(color: np.ndarray, labels: np.ndarray, label_colors: np.ndarray) -> np.ndarray:
    """The grey image under the labels' colours [H, W, 3]; pixels with label 0 stay grey and dark."""
    grey = color.mean(-1, keepdims=True).repeat(3, -1)
    mixed = LABEL_TINT * label_colors + (1 - LABEL_TINT) * grey
    return np.where(labels[..., None] > 0, mixed, 0.5 * grey).round().astype(np.uint8)


def instance_colors(instance: np.ndarray) -> np.ndarray:
    """`distinct_color` of each id, [H, W, 3] uint8."""
    unique, index = np.unique(instance, return_inverse=True)
    palette = np.array([distinct_color(k) for k in unique.tolist()], np.uint8)
    return palette[index.reshape(instance.shape)]


class _Canvas:
    """A figure addressed in pixels from the upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        bottom = self.height - top - height
        return self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        style = {"color": TEXT, "va": "center", "ha": "center"} | style
        self.figure.text(x / self.width, 1 - y / self.height, text, **style)

    def square(self, x: float, y: float, size: float, color: np.ndarray) -> None:
        """A filled square, centred at (x, y)."""
        corner = ((x - size / 2) / self.width, 1 - (y + size / 2) / self.height)
        patch = Rectangle(corner, size / self.width, size / self.height, color=color, transform=self.figure.transFigure)
        self.figure.add_artist(patch)

    def save(self, path: Path) -> None:
        try:
            self.figure.savefig(path, format="png", dpi=DPI)
        except OSError as error:
            raise ValueError(f"{path}: the overview cannot be written: {error}") from error


def _summary(snapshot: MapSnapshot) -> str:
    return f"{len(snapshot.points):,} Gaussians · {len(snapshot.objects)} objects"


def _draw_rows(
    canvas: _Canvas, rows: Sequence[tuple[Frame, PanopticView]], heights: list[int], label_space: LabelSpace
) -> float:
    """Draws the header and the rows; returns where the next thing may start, px from the top."""
    lefts = [LEFT + column * (PANEL_WIDTH + GAP) for column in range(len(COLUMNS))]
    for left, name in zip(lefts, COLUMNS, strict=True):
        canvas.text(left + PANEL_WIDTH / 2, TITLE + HEADER / 2, name, size=12, weight="bold")
    depths = np.concatenate([d[d > 0] for _, view in rows for d in (view.depth,)] or [np.zeros(0)])
    near_m, far_m = np.percentile(depths, [1, 99]) if len(depths) else (0.0, 1.0)

    top = float(TITLE + HEADER)
    for number, ((frame, view), height) in enumerate(zip(rows, heights, strict=True), start=1):
        canvas.text(LEFT / 2, top + height / 2 - 14, str(number), size=15, weight="bold")
        seconds = (frame.stamp_ns - rows[0][0].stamp_ns) * 1e-9
        canvas.text(LEFT / 2, top + height / 2 + 12, f"{seconds:.1f} s", size=8, color=FAINT)
        semantic = tinted(view.color, view.semantic, label_space.colors[view.semantic])
        instance = tinted(view.color, view.instance, instance_colors(view.instance))
        images = (frame.color, view.color, depth_colors(view.depth, near_m, far_m), semantic, instance)
        panels = [canvas.axes(left, top, PANEL_WIDTH, height) for left in lefts]
        for axes, image in zip(panels, images, strict=True):
            axes.imshow(image, interpolation="antialiased", aspect="auto")
            axes.set_axis_off()
        _draw_names(panels[3], view.semantic, dict(enumerate(label_space.names)))
        _draw_names(panels[4], view.instance, _instance_names(view, label_space))
        _draw_depth_bar(panels[2], frame.camera.width, frame.camera.height, near_m, far_m)
        top += height + GAP
    return top


def _instance_names(view: PanopticView, label_space: LabelSpace) -> dict[int, str]:
    """ "class id" of each instance in the view, by the class that most of its pixels have."""
    names = {}
    for instance in np.unique(view.instance[view.instance > 0]).tolist():
        classes = np.bincount(view.semantic[view.instance == instance])
        names[instance] = f"{label_space.names[int(np.argmax(classes))]} {instance}"
    return names


def _draw_names(axes: Any, segments: np.ndarray, names: dict[int, str]) -> None:
    scale = PANEL_WIDTH / segments.shape[1]
    anchors = segment_anchors(segments, MIN_LABEL_SHARE)
    texts = [names[segment] for segment, _ in anchors]
    area = (np.zeros(2), np.array(segments.shape[::-1]) * scale)
    for text, box in zip(texts, place_labels(texts, [c * scale for _, c in anchors], 8.5, area), strict=True):
        if box is not None:
            outline = [withStroke(linewidth=2.4, foreground="black", alpha=0.75)]
            position = (box.x / scale, box.y / scale)
            axes.text(
                *position, text, size=8.5, color="white", weight="bold", ha="center", va="center", path_effects=outline
            )


def _draw_depth_bar(axes: Any, width: int, height: int, near_m: float, far_m: float) -> None:
    """A colour bar with its range along the lower edge of a depth panel."""
    ramp = colormaps["turbo"](np.linspace(0, 1, 128), bytes=True)[None, :, :3]
    bar = axes.inset_axes((0.3, 0.035, 0.4, 0.03))
    bar.imshow(ramp, aspect="auto")
    bar.set_xticks([])
    bar.set_yticks([])
    for spine in bar.spines.values():
        spine.set(color="white", linewidth=0.8)
    outline = [withStroke(linewidth=2.4, foreground="black", alpha=0.75)]
    style = {"size": 8.5, "color": "white", "weight": "bold", "va": "center", "path_effects": outline}
    axes.text(0.285, 0.05, f"{near_m:.1f} m", ha="right", transform=axes.transAxes, **style)
    axes.text(0.715, 0.05, f"{far_m:.1f} m", ha="left", transform=axes.transAxes, **style)


def _draw_legend(
    canvas: _Canvas,
    left: float,
    top: float,
    height: float,
    rows: Sequence[tuple[Frame, PanopticView]],
    snapshot: MapSnapshot,
) -> None:
    """Colours of the classes in the map or in a view, with the number of objects of each."""
    present = set(np.unique(snapshot.class_indices).tolist()) | {o.class_index for o in snapshot.objects}
    for _, view in rows:
        present |= set(np.unique(view.semantic).tolist())
    classes = sorted(present - {0})
    counts = Counter(o.class_index for o in snapshot.objects)
    canvas.text(left, top + 10, "classes (semantic)", size=12, weight="bold", ha="left")
    step = min(24.0, (height - 80) / max(len(classes), 1))
    y = top + 40
    for index in classes:
        canvas.square(left + 8, y, min(14.0, 0.7 * step), snapshot.label_space.colors[index] / 255)
        canvas.text(left + 24, y, snapshot.label_space.names[index], size=min(10.0, 0.45 * step), ha="left")
        if counts[index]:
            count = f"{counts[index]} object{'s' if counts[index] > 1 else ''}"
            canvas.text(left + 190, y, count, size=min(10.0, 0.45 * step), color=FAINT, ha="left")
        y += step
    canvas.text(left, y + 14, "numbered dots: the rows' cameras", size=9, color=FAINT, ha="left")
