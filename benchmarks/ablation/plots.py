"""Plots of the report: one look for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.ablation.tables import Spread

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5a5a5a", "#b8a000")  # told apart by all
DPI = 110


def figure(num_panels: int = 1, width_in: float = 5.5, height_in: float = 3.6) -> tuple[Figure, list[Axes]]:
    """A figure with panels beside each other."""
    made = Figure(figsize=(width_in * num_panels, height_in), layout="constrained")
    FigureCanvasAgg(made)
    axes = [made.add_subplot(1, num_panels, i + 1) for i in range(num_panels)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="0.9")
        ax.set_axisbelow(True)
    return made, axes


def save(made: Figure, image_dir: Path, name: str) -> str:
    """Writes accuracy_NAME.png and returns the markdown that shows it."""
    image_dir.mkdir(parents=True, exist_ok=True)
    made.savefig(image_dir / f"accuracy_{name}.png", dpi=DPI)
    return f"![{name.replace('_', ' ')}](images/accuracy_{name}.png)"


def bars(ax: Axes, groups: Sequence[str], series: Mapping[str, Sequence[Spread | None]]) -> None:
    """Grouped bars with the seeds' spread; a missing one leaves a gap.

    Args:
        series: by name, a value for each group.
    """
    width = 0.82 / len(series)
    for i, (name, values) in enumerate(series.items()):
        at = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width
        shown = [(x, v) for x, v in zip(at, values, strict=True) if v is not None]
        means, stds = [v.mean for _, v in shown], [v.std or 0 for _, v in shown]
        color = COLORS[i % len(COLORS)]
        ax.bar([x for x, _ in shown], means, width * 0.92, yerr=stds, color=color, label=name, ecolor="0.25", capsize=2)
    ax.set_xticks(np.arange(len(groups)), groups)


def curve(ax: Axes, xs: Sequence[float], values: Sequence[Spread | None], name: str, index: int = 0) -> None:
    """A line with the seeds' spread around it; missing values are left out."""
    shown = [(x, v) for x, v in zip(xs, values, strict=True) if v is not None]
    if not shown:
        return
    x, mean = np.array([x for x, _ in shown]), np.array([v.mean for _, v in shown])
    std = np.array([v.std or 0 for _, v in shown])
    color = COLORS[index % len(COLORS)]
    ax.fill_between(x, mean - std, mean + std, color=color, alpha=0.18, linewidth=0)
    ax.plot(x, mean, color=color, marker="o", markersize=3.5, label=name)


def legend(ax: Axes, **options: Any) -> None:
    """A legend, if there is anything to explain."""
    if ax.get_legend_handles_labels()[1]:
        ax.legend(frameon=False, fontsize=8, **options)
