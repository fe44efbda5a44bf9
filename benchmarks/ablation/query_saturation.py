"""Number of queries over the course of a sequence, against the objects that were there to be seen; and with a bound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from benchmarks.ablation import plots
from benchmarks.ablation.context import TEST_EVERY, Context
from benchmarks.ablation.job import Job, Record
from benchmarks.ablation.measure import numbers
from benchmarks.ablation.tables import LABELS, MISSING, markdown_table, metric_table, scenes_of, spread
from panoptic_mapper.build import create_mapper
from panoptic_mapper.evaluation import evaluate, split_indices
from panoptic_mapper.frame import Frame
from panoptic_mapper.mapper import PanopticMapper

LEVELS = ("clean", "moderate", "hard")
BOUNDS = (10, 20, 40, 80)  # on the number of queries
NUM_MOMENTS = 30
SATURATED = 0.95
COUNTS = {"truth": "true objects seen", "living": "queries", "objects": "objects", "opened": "queries ever opened"}
METRICS = {"pq": ".1f", "pq_things": ".1f", "miou": ".1f"}
INTRODUCTION = f"""## Number of queries

The paper begins with a number of queries and looks for the one at which quality saturates. Here queries are opened on
demand, so the question is how many there are in the end. A *true object* counts as seen from the first mapped frame on
that shows as many of its pixels with depth as open a query (`instances.min_mask_px`). *Queries* are those that live,
*objects* those of them that have enough Gaussians to be listed, *ever opened* includes the merged and retired ones.
*Saturated at* is the share of the sequence after which the living queries stay above {SATURATED:.0%} of their last
number.
"""
BOUNDED = """### With a bound on their number

The same with `instances.max_queries`, as when a scene is optimised with a fixed number of queries: while all are taken,
further objects get none, and are unassigned or fall to their neighbours. Clean labels, the first scene.
"""


def jobs(scenes: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    free = [job(scene, level, seed) for level in LEVELS for scene in scenes for seed in seeds[:1]]
    return free + [job(scene, "clean", seed, bound) for bound in BOUNDS for scene in scenes[:1] for seed in seeds[:1]]


def job(scene: str, level: str, seed: int, bound: int = 0) -> Job:
    overrides = (f"mapper.instances.max_queries={bound}",) if bound else ()
    return Job("query_saturation", scene, "ours", level, seed, overrides)


def run(job: Job, context: Context) -> dict[str, Any]:
    """`evaluate` on held-out frames, and over time the `COUNTS`: in `frames` the number of frames at each moment."""
    dataset = context.dataset(job)
    observed, config = context.observed(job, dataset), context.build_config(job)
    mapper = create_mapper(config.mapper, config.segmenter, dataset.label_space, config.device)
    train, test = split_indices(len(dataset), TEST_EVERY)
    moments = set(np.linspace(0, len(train), NUM_MOMENTS + 1).round().astype(int).tolist())
    seen: set[int] = set()
    curves: dict[str, list[int]] = {name: [] for name in ("frames", *COUNTS)}
    for number, index in enumerate(train, start=1):
        mapper.integrate(observed[index])
        seen |= objects_in(context.at_width(dataset[index]), config.mapper.instances.min_mask_px)
        if number in moments:
            for name, value in counts(mapper, len(seen)).items():
                curves[name].append(value)
            curves["frames"].append(number)
    metrics = evaluate(mapper, (context.at_width(dataset[i]) for i in test), dataset.label_space)
    return numbers(metrics) | {name: values[-1] for name, values in curves.items()} | {"curves": curves}


def objects_in(frame: Frame, min_px: int) -> set[int]:
    """Ids of the true objects of which a frame shows at least so many pixels with depth."""
    assert frame.labels is not None
    ids, px = np.unique(frame.labels.instance[frame.depth > 0], return_counts=True)
    return {int(id) for id in ids[px >= min_px] if id > 0}


def counts(mapper: PanopticMapper, num_true: int) -> dict[str, int]:
    """The `COUNTS` of this moment."""
    queries = mapper.map.queries
    objects = mapper.stats().num_objects
    return {"truth": num_true, "living": len(queries), "objects": objects, "opened": queries.next_id - 1}


def report(records: Sequence[Record], image_dir: Path) -> str:
    free = [r for r in records if not r.job.overrides]
    bounded = [r for r in records if r.job.overrides]
    scenes = scenes_of(free)
    made, axes = plots.figure(max(len(scenes), 1), width_in=4.2)
    for scene, ax in zip(scenes, axes, strict=False):
        plot_counts(ax, [r for r in free if r.job.scene == scene], scene)
    plots.legend(axes[0])
    parts = [INTRODUCTION, plots.save(made, image_dir, "queries"), table(free, scenes)]
    of_scene = [r for r in free if bounded and r.job.scene == bounded[0].job.scene and r.job.noise == "clean"]
    rows = {str(b): [r for r in bounded if r.job == job(r.job.scene, "clean", r.job.seed, b)] for b in BOUNDS}
    bounds = metric_table(rows | {"none": of_scene}, METRICS | {"living": ".0f", "truth": ".0f"}, head="bound")
    if not bounded:
        return "\n\n".join([*parts, BOUNDED, bounds]) + "\n"
    made, axes = plots.figure(1)
    plots.curve(axes[0], BOUNDS, [spread(row, "pq") for row in rows.values()], "with a bound")
    if (unbounded := spread(of_scene, "pq")) is not None:
        axes[0].axhline(unbounded.mean, color=plots.COLORS[1], linestyle="--", label="without")
    axes[0].set(xlabel="largest number of queries", ylabel=LABELS["pq"])
    plots.legend(axes[0])
    return "\n\n".join([*parts, BOUNDED, plots.save(made, image_dir, "query_bound"), bounds]) + "\n"


def plot_counts(ax: Axes, records: Sequence[Record], scene: str) -> None:
    """Living and ever opened queries of each level of noise, first seed, above the true objects."""
    for level, color in zip(LEVELS, plots.COLORS, strict=False):
        curves = next((r.result["curves"] for r in records if r.job.noise == level), None)
        if curves is None:
            continue
        ax.plot(curves["frames"], curves["living"], color=color, label=level)
        ax.plot(curves["frames"], curves["opened"], color=color, linestyle=":", linewidth=1)
        if level == LEVELS[0]:
            ax.plot(curves["frames"], curves["truth"], color="0.8", linewidth=5, zorder=0, label="true objects")
    ax.set(title=scene, xlabel="frames", ylabel="queries (dotted: ever opened)")


def table(records: Sequence[Record], scenes: Sequence[str]) -> str:
    cells = []
    for scene in scenes:
        for level in LEVELS:
            row = [r for r in records if r.job.scene == scene and r.job.noise == level]
            found = [spread(row, name) for name in COUNTS]
            moments = [saturated_at(r.result["curves"]) for r in row]
            moment = f"{np.mean(moments):.2f}" if moments else MISSING
            cells.append([scene, level, *(MISSING if s is None else s.text(".0f") for s in found), moment])
    return markdown_table(["scene", "labels", *COUNTS.values(), "saturated at"], cells)


def saturated_at(curves: dict[str, list[int]]) -> float:
    """Share of the sequence after which the living queries stay above `SATURATED` of their last number."""
    living = np.array(curves["living"])
    below = np.flatnonzero(living < SATURATED * living[-1])
    first = below[-1] + 1 if len(below) else 0
    return curves["frames"][first] / curves["frames"][-1]
