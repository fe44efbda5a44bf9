"""The mapper and what a user would do instead, at each level of label noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablation import plots
from benchmarks.ablation.context import Context
from benchmarks.ablation.job import Job, Record
from benchmarks.ablation.measure import held_out
from benchmarks.ablation.tables import LABELS, metric_table, scene_table, spread, spread_of_all

LEVELS = ("clean", "moderate", "hard")
OURS = "this mapper"
BASELINES = ("mask tracker", "voxel voting")  # without knowing the depth of the view
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {  # name in the report: method, overrides
    OURS: ("ours", ()),
    "feature blending": ("ours", ("mapper.labels.blending=feature",)),
    "global attention": ("ours", ("mapper.labels.attention=global",)),
    "mask tracker": ("tracker", ()),
    "voxel voting": ("voxels", ()),
    "mask tracker, depth given": ("tracker+depth", ()),
    "voxel voting, depth given": ("voxels+depth", ()),
    "voxel voting, true association": ("truth+depth", ()),  # reads the ground truth: no method to compare with
}
METRICS = {"pq": ".1f", "miou": ".1f", "mcov": ".1f", "pq_frame": ".1f", "id_switches": ".0f"}
IMAGE_METRICS = {"psnr": ".1f", "depth_l1_m": ".3f"}
INTRODUCTION = """## Label noise

Every method sees the same 2D labels: the sequence's, with instance ids permuted in every frame and the noise of
`panoptic_mapper/datasets/noise.py` at three levels.

- *Mask tracker*: masks are carried from frame to frame by depth and pose and matched by IoU; a held-out view takes the
  majority of the labels of the nearest frames.
- *Voxel voting*: votes for classes and instances in a grid of voxels, masks associated by 3D overlap; views are
  rendered from the voxels' own surface.
- Both baselines map all frames that are not held out, with one setting for all levels. It was chosen for the best PQ of
  the held-out frames of the two `sim_` scenes (seed 0, for the voxels also 1), so what they reach there is, if
  anything, too good.
- *Feature blending*, *global attention*: the mapper with that one part replaced.
- *Depth given*: the baseline is told the measured depth of the held-out view and looks its labels up there. A map
  cannot know it: these rows show how good the labels are without the geometry, and are no alternative to a map.
- *True association* is no method but a measure of the labels, for it reads the ground truth: voxel voting in which each
  mask is given to the true object that it overlaps most, nothing is merged, and the depth of the view is given. It
  shows about what votes with these labels can reach without one error of association or geometry. It is no strict
  bound: a mask of two objects votes for one of them as a whole, borders are those of voxels, and classes are voted for.
"""


def job(method: str, level: str, scene: str, seed: int) -> Job:
    """The job of a method of `METHODS` by its name."""
    name, overrides = METHODS[method]
    return Job("noise", scene, name, level, seed, overrides)


def jobs(scenes: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """All seeds; one for the baselines that are told the depth, which show what the labels hold."""
    of_method = {name: seeds[:1] if name.endswith("depth given") else seeds for name in METHODS}
    return [job(m, level, scene, s) for level in LEVELS for m in METHODS for scene in scenes for s in of_method[m]]


def run(job: Job, context: Context) -> dict[str, Any]:
    return held_out(job, context)


def report(records: Sequence[Record], image_dir: Path) -> str:
    of = {(level, name): of_method(records, name, level) for level in LEVELS for name in METHODS}
    made, (ax,) = plots.figure(width_in=9)
    of_level = [spread_of_all({name: of[level, name] for name in METHODS}, "pq") for level in LEVELS]
    series = {name: [found[name] for found in of_level] for name in METHODS}
    plots.bars(ax, LEVELS, series)
    ax.set_ylabel(LABELS["pq"])
    plots.legend(ax, loc="upper left", bbox_to_anchor=(1, 1))
    parts = [INTRODUCTION, plots.save(made, image_dir, "noise")]
    for level in LEVELS:
        rows = {name: of[level, name] for name in METHODS}
        parts += [f"### {level.capitalize()}", scene_table(rows, "pq"), metric_table(rows, METRICS | IMAGE_METRICS)]
        parts.append(lead_sentence(level, rows))
    return "\n\n".join(parts) + "\n"


def of_method(records: Sequence[Record], name: str, level: str) -> list[Record]:
    method, overrides = METHODS[name]
    return [
        r for r in records if (r.job.method, r.job.overrides, r.job.noise) == (method, overrides, level)
    ]  # fmt: skip


def lead_sentence(level: str, rows: dict[str, list[Record]]) -> str:
    """How far the mapper is from the better of the baselines, where all of them have been measured."""
    found = {name: spread(rows[name], "pq") for name in (OURS, *BASELINES)}
    scenes = {name: {r.job.scene for r in rows[name]} for name in found}
    if any(s is None for s in found.values()) or any(s != scenes[OURS] for s in scenes.values()):
        return f"{level.capitalize()}: not all of {', '.join(found)} have been measured on the same scenes."
    best = max(BASELINES, key=lambda name: found[name].mean)  # type: ignore[union-attr]
    ours, other = found[OURS].mean, found[best].mean  # type: ignore[union-attr]
    return f"{level.capitalize()}: {OURS} {ours:.1f}, the better baseline ({best}) {other:.1f}: {ours - other:+.1f} PQ."
