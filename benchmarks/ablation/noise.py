"""The mapper and what a user would do instead, at each level of label noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablation.context import Context
from benchmarks.ablation.job import Job, Record
from benchmarks.ablation.measure import held_out

LEVELS = ("clean", "moderate", "hard")
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {"ours": ("ours", ())}  # name in the report: method, overrides


def jobs(scenes: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    return [
        Job("noise", scene, method, level, seed, overrides)
        for level in LEVELS
        for method, overrides in METHODS.values()
        for scene in scenes
        for seed in seeds
    ]


def run(job: Job, context: Context) -> dict[str, Any]:
    return held_out(job, context)


def report(records: Sequence[Record], image_dir: Path) -> str:
    return f"## Label noise\n\n{len(records)} runs.\n"
