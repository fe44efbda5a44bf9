"""docs/accuracy.md from the records: how it was made, a section per experiment, and conclusions written by hand."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from benchmarks.ablation import EXPERIMENTS
from benchmarks.ablation.context import TEST_EVERY
from benchmarks.ablation.job import Job, Record
from panoptic_mapper.metrics import IOU_THRESHOLD, MIN_PIXELS

CONCLUSIONS = Path(__file__).parent / "conclusions.md"
HEAD = """# Accuracy

What each part of the mapper brings, how it stands against what a user would do instead, and how it degrades when the 2D
labels are bad. Made by

    python -m benchmarks.ablation --data FOLDER

from `benchmarks/accuracy.jsonl`, which has one record for each run; runs that are not there are shown as missing.
"""


def experiments() -> dict[str, ModuleType]:
    return {name: importlib.import_module(f"benchmarks.ablation.{name}") for name in EXPERIMENTS}


def write_report(
    path: Path,
    jobs: Mapping[str, Sequence[Job]],  # of each experiment by its name
    records: Mapping[str, Record],  # by key
    width_px: int,
    conclusions: Path = CONCLUSIONS,
) -> None:
    """Writes the report, and its plots into the folder images/ beside it."""
    words = read_conclusions(conclusions)
    used: dict[str, Record] = {}
    sections = []
    for name, module in experiments().items():
        keys = [job.key(width_px) for job in jobs.get(name, ())]
        own = {key: records[key] for key in keys if key in records}
        used |= own
        sections.append(module.report(list(own.values()), path.parent / "images").rstrip())
        sections.append(f"*{len(own)} of {len(keys)} runs measured.*")
        sections.append(words.get(name, ""))
    parts = [HEAD.rstrip(), words.get("", ""), how_it_was_made(used.values(), width_px), *sections]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(part for part in parts if part) + "\n")


def how_it_was_made(records: Iterable[Record], width_px: int) -> str:
    """The protocol of all numbers, as far as the records tell it."""
    records = list(records)
    scenes = sorted({r.job.scene for r in records}) or ["none yet"]
    seeds = sorted({r.job.seed for r in records})
    devices, commits, versions = (
        ", ".join(sorted({str(r.machine.get(name)) for r in records})) or "none yet"
        for name in ("device", "commit", "torch")
    )
    return f"""## How it was made

- Scenes: {", ".join(scenes)}; mapped and evaluated at a width of {width_px} px.
  Every {TEST_EVERY}th frame is held out of mapping, and all figures are of held-out frames.
- Seeds: {", ".join(map(str, seeds)) or "none yet"}, of the label noise and of the mapper. Values are means over seeds ±
  their sample standard deviation; those of all scenes are of the seeds' means over the scenes.
- PQ^scene: all evaluated frames stacked as one volume; a match is of one class, one to one, with IoU > {IOU_THRESHOLD}.
  Pixels without true label are void, as are true segments below {MIN_PIXELS} pixels; mean over the classes that have
  ground truth. The other metrics: [evaluation.md](evaluation.md).
- Hardware: {devices}; torch {versions}; code {commits}."""


def read_conclusions(path: Path) -> dict[str, str]:
    """Hand-written text by experiment, from headings like "## noise"; "" has what stands before the first."""
    if not path.exists():
        return {}
    head, *parts = re.split(r"^## (\w+)\n", path.read_text(), flags=re.M)
    return {"": head.strip()} | {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}
