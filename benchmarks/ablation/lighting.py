"""Label blending against feature blending where light and exposure change from frame to frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation import plots
from benchmarks.ablation.context import TEST_EVERY, Context
from benchmarks.ablation.job import Job, Record
from benchmarks.ablation.measure import numbers, ours
from benchmarks.ablation.tables import LABELS, MISSING, gain_sentence, markdown_table, spread
from panoptic_mapper.datasets.base import Dataset
from panoptic_mapper.evaluation import evaluate, split_indices
from panoptic_mapper.floaters import count_floaters
from panoptic_mapper.mapper import PanopticMapper

WORLD = "synthetic:num_frames=200,width=320,height=240,bare_walls=true,lighting_variance={}"
STRENGTHS = (0, 1, 2)
NOISE = (("clean", STRENGTHS), ("moderate", (1,)))  # level of label noise, strengths of the lighting
BLENDINGS = ("label", "feature")
OFF_SURFACE_M, OFF_SURFACE_SHARE = (
    0.1,
    0.05,
)  # of depth: a pixel shows something else than the surface beyond the larger
METRICS = {
    "pq": ".1f",
    "miou": ".1f",
    "off_surface_accuracy": ".1f",
    "off_surface_share": ".2f",
    "floaters": ".0f",
    "psnr": ".2f",
}
NAMES = {"off_surface_accuracy": "accuracy off the surface, %", "off_surface_share": "pixels off the surface, %"}
INTRODUCTION = """## Label blending and feature blending under changing light

A synthetic studio whose walls have no texture, in which exposure, white balance and a carried lamp change from frame to
frame (`lighting_variance` of [datasets.md](datasets.md); 0 = fixed light). Gaussians have one colour; what it cannot
explain may become floaters and wrong depth. Label blending classifies Gaussians and splats the labels; feature blending
splats the features and classifies pixels. Losses, learning rates and seeds are the same, and both splat with detached
weights. So labels never push geometry, and the geometry of both is the same (on a CPU to the last bit): *floaters*,
opaque Gaussians that at least two depth images see through, and PSNR, of views that have light of their own, are those
of the lighting. What may differ is how labels hold where the geometry is wrong: *accuracy off the surface* is the share
of right classes among the held-out pixels whose rendered depth is off by more than 0.1 m and 5 %.
"""


def jobs(scenes: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    return [
        job(blending, noise, strength, seed)
        for noise, strengths in NOISE
        for strength in strengths
        for blending in BLENDINGS
        for seed in seeds[:1]
    ]


def job(blending: str, noise: str, strength: float, seed: int) -> Job:
    overrides = (f"mapper.labels.blending={blending}",)
    return Job("lighting", WORLD.format(strength), "ours", noise, seed, overrides)


def run(job: Job, context: Context) -> dict[str, Any]:
    """What `evaluate` gives on held-out frames, `floaters`, `floater_share`, and the accuracy off the surface."""
    dataset = context.dataset(job)
    mapper, counts = ours(context.observed(job, dataset), job, context)
    assert isinstance(mapper, PanopticMapper)
    _, test = split_indices(len(dataset), TEST_EVERY)
    metrics = evaluate(mapper, (context.at_width(dataset[i]) for i in test), dataset.label_space)
    floaters = count_floaters(mapper.snapshot().points, (context.at_width(dataset[i]) for i in range(len(dataset))))
    found = {"floaters": floaters.count, "floater_share": floaters.share, "counts": counts}
    return numbers(metrics) | found | off_surface(mapper, dataset, test, context)


def off_surface(mapper: PanopticMapper, dataset: Dataset, test: list[int], context: Context) -> dict[str, float | None]:
    """Share of held-out pixels whose rendered depth is wrong, and of right classes among them, percent."""
    num_wrong_depth = num_right = num_measured = 0
    for frame in (context.at_width(dataset[i]) for i in test):
        assert frame.labels is not None
        view = mapper.render(frame.camera, frame.T_map_camera)
        measured = (frame.depth > 0) & (frame.labels.semantic > 0)
        tolerance = np.maximum(OFF_SURFACE_M, OFF_SURFACE_SHARE * frame.depth)
        wrong = measured & (view.depth > 0) & (np.abs(view.depth - frame.depth) > tolerance)
        num_measured += int(measured.sum())
        num_wrong_depth += int(wrong.sum())
        num_right += int((view.semantic == frame.labels.semantic)[wrong].sum())
    return {
        "off_surface_share": 100 * num_wrong_depth / max(num_measured, 1),
        "off_surface_accuracy": 100 * num_right / num_wrong_depth if num_wrong_depth else None,
    }


def report(records: Sequence[Record], image_dir: Path) -> str:
    rows = {
        (noise, strength, blending): [r for r in records if r.job == job(blending, noise, strength, r.job.seed)]
        for noise, strengths in NOISE
        for strength in strengths
        for blending in BLENDINGS
    }
    made, axes = plots.figure(3, width_in=4)
    for metric, ax in zip(("miou", "pq", "floaters"), axes, strict=True):
        for i, blending in enumerate(BLENDINGS):
            values = [spread(rows["clean", strength, blending], metric) for strength in STRENGTHS]
            plots.curve(ax, STRENGTHS, values, f"{blending} blending", i)
        ax.set(xlabel="lighting_variance", ylabel=LABELS.get(metric, metric), xticks=STRENGTHS)
    plots.legend(axes[0])
    cells, gains = [], []
    for (noise, strength, blending), row in rows.items():
        found = [(spread(row, metric), form) for metric, form in METRICS.items()]
        cells.append([noise, str(strength), blending, *(MISSING if v is None else v.text(form) for v, form in found)])
    for noise, strengths in NOISE:
        for strength in strengths:
            name = f"- Label instead of feature blending, labels {noise}, lighting {strength}"
            gains += [
                gain_sentence(name, rows[noise, strength, "label"], rows[noise, strength, "feature"], metric)
                for metric in ("miou", "pq")
            ]
    table = markdown_table(
        ["labels", "lighting", "blending", *(NAMES.get(m, LABELS.get(m, m)) for m in METRICS)], cells
    )
    parts = [INTRODUCTION, plots.save(made, image_dir, "lighting"), table, "\n".join(gains)]
    return "\n\n".join(parts) + "\n"
