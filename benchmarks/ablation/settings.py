"""The online and the offline setting, each with 3D Gaussians and with surfels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablation import noise
from benchmarks.ablation.context import Context
from benchmarks.ablation.job import Job, Record
from benchmarks.ablation.measure import held_out
from benchmarks.ablation.tables import metric_table, scene_table

LEVELS = ("clean", "moderate")
OFFLINE, SURFEL = ("mode=offline",), ("mapper.gaussians.base=surfel",)
SETTINGS: dict[str, tuple[str, ...]] = {
    "online, 3DGS": (),
    "online, surfels": SURFEL,
    "offline, 3DGS": OFFLINE,
    "offline, surfels": (*OFFLINE, *SURFEL),
}
METRICS = {"pq": ".1f", "miou": ".1f", "psnr": ".2f", "depth_l1_m": ".4f", "counts.gaussians": ".0f"}
INTRODUCTION = """## Online and offline, 3D Gaussians and surfels

Offline, the map of the online pass is optimised as a whole (`offline.iterations` steps with density control and SH
colours). Surfels are Gaussians with one scale collapsed, held on the surface by normals and distortion. The panoptic
code is the same.
"""


def jobs(scenes: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    return [
        job(s, level, scene, n) for level in LEVELS for s in settings_at(level) for scene in scenes for n in seeds[:1]
    ]


def settings_at(level: str) -> list[str]:
    """Offline, which takes long, with clean labels only."""
    return [name for name, overrides in SETTINGS.items() if level == "clean" or OFFLINE[0] not in overrides]


def job(setting: str, level: str, scene: str, seed: int) -> Job:
    if not SETTINGS[setting]:
        return noise.job(noise.OURS, level, scene, seed)
    return Job("settings", scene, "ours", level, seed, SETTINGS[setting])


def run(job: Job, context: Context) -> dict[str, Any]:
    return held_out(job, context)


def report(records: Sequence[Record], image_dir: Path) -> str:
    parts = [INTRODUCTION]
    for level in LEVELS:
        rows = {s: [r for r in records if r.job == job(s, level, r.job.scene, r.job.seed)] for s in settings_at(level)}
        parts += [f"### {level.capitalize()} labels", scene_table(rows, "pq"), metric_table(rows, METRICS)]
    return "\n\n".join(parts) + "\n"
