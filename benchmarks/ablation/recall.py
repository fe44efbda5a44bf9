"""Objects that the 2D model misses in most views: PQ against the share of masks that are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablation import noise, plots
from benchmarks.ablation.context import Context
from benchmarks.ablation.job import Job, Record
from benchmarks.ablation.measure import held_out
from benchmarks.ablation.tables import LABELS, MISSING, markdown_table, spread

SHARES = (0.0, 0.3, 0.6, 0.75, 0.9)
METHODS = ("this mapper", "voxel voting", "mask tracker")
INTRODUCTION = """## Missed objects

Each instance is missed in a share of the frames: its pixels are unlabeled, which says nothing, unlike background. The
labels are clean otherwise. Mean over all scenes.
"""


def jobs(scenes: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    return [job(m, share, scene, seed) for share in SHARES for m in METHODS for scene in scenes for seed in seeds[:1]]


def job(method: str, share: float, scene: str, seed: int) -> Job:
    if share == 0:
        return noise.job(method, "clean", scene, seed)
    name, overrides = noise.METHODS[method]
    return Job("recall", scene, name, f"drop={share}", seed, overrides)


def run(job: Job, context: Context) -> dict[str, Any]:
    return held_out(job, context)


def report(records: Sequence[Record], image_dir: Path) -> str:
    made, axes = plots.figure(2)
    rows = []
    for metric, ax in zip(("pq", "miou"), axes, strict=True):
        for index, method in enumerate(METHODS):
            values = [spread(of_share(records, method, share), metric) for share in SHARES]
            plots.curve(ax, SHARES, values, method, index)
            rows.append([f"{LABELS[metric]}, {method}", *(MISSING if v is None else v.text() for v in values)])
        ax.set(xlabel="share of the masks that are dropped", ylabel=LABELS[metric])
        ax.set_ylim(0, 100)
        plots.legend(ax)
    table = markdown_table(["share dropped", *map(str, SHARES)], rows)
    return "\n\n".join([INTRODUCTION, plots.save(made, image_dir, "recall"), table]) + "\n"


def of_share(records: Sequence[Record], method: str, share: float) -> list[Record]:
    return [r for r in records if r.job == job(method, share, r.job.scene, r.job.seed)]
