"""How the map depends on the optimisation steps after each keyframe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablation import noise, plots
from benchmarks.ablation.context import Context
from benchmarks.ablation.job import Job, Record
from benchmarks.ablation.measure import held_out
from benchmarks.ablation.tables import LABELS, metric_table, scene_table, scenes_of, spread
from panoptic_mapper.map_optimizer import OptimizerConfig

DEFAULT = OptimizerConfig().steps_per_keyframe
STEPS = (2, 5, DEFAULT, 20, 40)
LEVEL = "moderate"
METRICS = {"pq": ".1f", "miou": ".1f", "psnr": ".2f", "depth_l1_m": ".4f"}
INTRODUCTION = """## Iterations

The mapper with more or fewer optimisation steps after each keyframe, labels of the moderate level of noise. The first
table is of PQ.
"""


def jobs(scenes: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    return [job(steps, scene, seed) for steps in STEPS for scene in scenes for seed in seeds[:1]]


def job(steps: int, scene: str, seed: int) -> Job:
    if steps == DEFAULT:
        return noise.job(noise.OURS, LEVEL, scene, seed)
    return Job("iterations", scene, "ours", LEVEL, seed, (f"mapper.optimizer.steps_per_keyframe={steps}",))


def run(job: Job, context: Context) -> dict[str, Any]:
    return held_out(job, context)


def report(records: Sequence[Record], image_dir: Path) -> str:
    rows = {steps: [r for r in records if r.job == job(steps, r.job.scene, r.job.seed)] for steps in STEPS}
    made, axes = plots.figure(3, width_in=4)
    for metric, ax in zip(("pq", "psnr", "depth_l1_m"), axes, strict=True):
        for i, scene in enumerate(scenes_of(records)):
            plots.curve(ax, STEPS, [spread(row, metric, scene) for row in rows.values()], scene, i)
        ax.set_xscale("log")
        ax.set_xticks(STEPS, map(str, STEPS))
        ax.minorticks_off()
        ax.set(xlabel="steps per keyframe", ylabel=LABELS[metric])
    plots.legend(axes[0])
    named = {str(steps): row for steps, row in rows.items()}
    head = "steps per keyframe"
    tables = [scene_table(named, "pq", head=head), metric_table(named, METRICS, head=head)]
    return "\n\n".join([INTRODUCTION, plots.save(made, image_dir, "iterations"), *tables]) + "\n"
