"""Means, spreads and markdown tables of records. What was not measured is shown as missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.ablation.context import SCENES
from benchmarks.ablation.job import Record

MISSING = "missing"
ALL_SCENES = "all scenes"
LABELS = {  # of metrics in tables and plots
    "pq": "PQ^scene@0.5",
    "miou": "mIoU",
    "mcov": "mCov",
    "pq_frame": "PQ frame",
    "id_switches": "id switches",
    "psnr": "PSNR dB",
    "depth_l1_m": "depth L1 m",
}


@dataclass(frozen=True)
class Spread:
    """A mean over seeds with its sample standard deviation."""

    mean: float
    std: float | None  # None with a single seed
    num_seeds: int

    def text(self, form: str = ".1f", num_asked: int = 0) -> str:
        """ "93.1 ± 0.4"; with the number of seeds where fewer than asked were measured, or one."""
        words = format(self.mean, form) + ("" if self.std is None else f" ± {self.std:{form}}")
        if self.num_seeds < num_asked:
            words += f" ({self.num_seeds} of {num_asked} seeds)"
        elif self.std is None:
            words += " (1 seed)"
        return words


def spread(records: Iterable[Record], metric: str, scene: str = ALL_SCENES) -> Spread | None:
    """A metric of one method over seeds, in one scene or as the mean over scenes; None where nothing is measured.

    The mean over scenes counts only seeds that have all scenes of the records, and its spread is that of these means.
    """
    by_seed: dict[int, dict[str, float]] = {}
    for record in records:
        if (value := metric_of(record, metric)) is not None:
            by_seed.setdefault(record.job.seed, {})[record.job.scene] = value
    scenes = {name for values in by_seed.values() for name in values} if scene == ALL_SCENES else {scene}
    means = [np.mean([values[s] for s in scenes]) for values in by_seed.values() if scenes <= set(values)]
    if not means:
        return None
    std = float(np.std(means, ddof=1)) if len(means) > 1 else None
    return Spread(float(np.mean(means)), std, len(means))


def spread_of_all(rows: Mapping[str, Sequence[Record]], metric: str) -> dict[str, Spread | None]:
    """The mean over all scenes of the rows, by row; None for a row that lacks one of them, as it has no such mean."""
    scenes = {record.job.scene for row in rows.values() for record in row}
    return {name: spread(row, metric) if set(scenes_of(row)) == scenes else None for name, row in rows.items()}


def metric_of(record: Record, metric: str) -> float | None:
    """A number of a record by its name, "counts.gaussians" for what lies deeper; None where it is not there."""
    value = record.result
    for name in metric.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None  # type: ignore[assignment]
    return None if value is None else float(value)  # type: ignore[arg-type]


def scenes_of(records: Iterable[Record]) -> list[str]:
    """The records' scenes: the usual ones in their order, then others."""
    found = {record.job.scene for record in records}
    return [s for s in SCENES if s in found] + sorted(found - set(SCENES))


def seeds_of(records: Iterable[Record]) -> list[int]:
    return sorted({record.job.seed for record in records})


def scene_table(rows: Mapping[str, Sequence[Record]], metric: str, form: str = ".1f", head: str = "method") -> str:
    """A metric with its spread, by row and scene.

    Args:
        rows: the records of each row by the row's name.
    """
    records = [record for row in rows.values() for record in row]
    scenes, num_seeds = scenes_of(records), len(seeds_of(records))
    columns = [*scenes, ALL_SCENES] if len(scenes) > 1 else scenes
    of_all = spread_of_all(rows, metric)
    cells = []
    for name, row in rows.items():
        found = [of_all[name] if scene == ALL_SCENES else spread(row, metric, scene) for scene in columns]
        cells.append([name, *(MISSING if s is None else s.text(form, num_seeds) for s in found)])
    return markdown_table([head, *columns], cells)


def metric_table(rows: Mapping[str, Sequence[Record]], metrics: Mapping[str, str], head: str = "method") -> str:
    """Several metrics, means over all scenes, by row.

    Args:
        metrics: how each is formatted, by name.
    """
    records = [record for row in rows.values() for record in row]
    num_seeds = len(seeds_of(records))
    found = {metric: spread_of_all(rows, metric) for metric in metrics}
    cells = []
    for name in rows:
        values = [(found[metric][name], form) for metric, form in metrics.items()]
        cells.append([name, *(MISSING if s is None else s.text(form, num_seeds) for s, form in values)])
    return markdown_table([head, *(LABELS.get(m, m) for m in metrics)], cells)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def gain_sentence(name: str, with_it: Sequence[Record], without: Sequence[Record], metric: str = "pq") -> str:
    """Says whether a part brings more than the seeds' spread, from the scenes and seeds that both sides have.

    Where the two sides were measured with different states of the code, it says only that.
    """
    runs = [
        {(r.job.scene, r.job.seed): r for r in side if metric_of(r, metric) is not None} for side in (with_it, without)
    ]
    common = [key for key in runs[0] if key in runs[1]]
    sides = [spread([side[key] for key in common], metric) for side in runs]
    label = LABELS.get(metric, metric)
    if sides[0] is None or sides[1] is None:
        return f"{name}: {MISSING}."
    gain = sides[0].mean - sides[1].mean
    change = f"{name}: {gain:+.1f} {label} ({sides[1].mean:.1f} without, {sides[0].mean:.1f} with)"
    states = [sorted({side[key].machine["commit"] for key in common}) for side in runs]
    if states[0] != states[1]:
        of_sides = " and ".join(", ".join(commits) for commits in reversed(states))
        return f"{change}, of different states of the code: {of_sides}."
    deviations = [side.std for side in sides if side is not None and side.std is not None]
    if len(deviations) < 2:
        return f"{change}; one seed alone has no spread to compare with."
    width = max(deviations)
    seeds = f"the seeds' spread of {width:.1f} ({sides[0].num_seeds} seeds)"
    if abs(gain) <= width:
        return f"{change}. This is within {seeds}: no gain is shown."
    return f"{change}. This is a {'gain' if gain > 0 else 'loss'} larger than {seeds}."
