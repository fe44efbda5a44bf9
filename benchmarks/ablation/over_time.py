"""The map while it is made: held-out frames of what was seen so far, at ten moments along the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation import plots
from benchmarks.ablation.context import TEST_EVERY, Context
from benchmarks.ablation.job import Job, Record
from benchmarks.ablation.measure import numbers
from benchmarks.ablation.tables import LABELS, MISSING, Spread, markdown_table, spread
from panoptic_mapper.build import create_mapper
from panoptic_mapper.evaluation import evaluate_over_time, split_indices

NUM_MOMENTS = 10
LEVEL = "moderate"
METRICS = ("pq", "miou", "psnr")
INTRODUCTION = """## Over time

The mapper while it maps, labels of the moderate level of noise. At each tenth of the sequence it is evaluated on the
held-out frames that lie before that moment; the last value is the finished map's.
"""


def jobs(scenes: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    return [Job("over_time", scene, "ours", LEVEL, seed) for scene in scenes for seed in seeds[:1]]


def run(job: Job, context: Context) -> dict[str, Any]:
    """`curve`: the numbers of `evaluate` at each moment."""
    dataset = context.dataset(job)
    observed, config = context.observed(job, dataset), context.build_config(job)
    mapper = create_mapper(config.mapper, config.segmenter, dataset.label_space, config.device)
    train, test = split_indices(len(dataset), TEST_EVERY)
    moments = np.linspace(0, len(train), NUM_MOMENTS + 1).round().astype(int)[1:].tolist()
    points = evaluate_over_time(
        mapper,
        (observed[i] for i in train),
        moments,
        lambda num_mapped: (context.at_width(dataset[i]) for i in test if i <= train[num_mapped - 1]),
        truth_space=dataset.label_space,
    )
    return {"curve": [numbers(point) for point in points]}


def report(records: Sequence[Record], image_dir: Path) -> str:
    shares = [(i + 1) / NUM_MOMENTS for i in range(NUM_MOMENTS)]
    made, axes = plots.figure(len(METRICS), width_in=4)
    rows = []
    for metric, ax in zip(METRICS, axes, strict=True):
        values = [at_moment(records, moment, metric) for moment in range(NUM_MOMENTS)]
        plots.curve(ax, shares, values, metric)
        ax.set(xlabel="share of the sequence", ylabel=LABELS[metric])
        rows.append([LABELS[metric], *(MISSING if v is None else v.text() for v in values)])
    table = markdown_table(["share of the sequence", *(f"{s:.1f}" for s in shares)], rows)
    return "\n\n".join([INTRODUCTION, plots.save(made, image_dir, "over_time"), table]) + "\n"


def at_moment(records: Sequence[Record], moment: int, metric: str) -> Spread | None:
    at = [Record(r.key, r.job, r.result["curve"][moment], r.machine, r.wall_s) for r in records]
    return spread(at, metric)
