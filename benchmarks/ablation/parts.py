"""What each part of the mapper brings at the moderate level of noise: it is switched off, all else stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablation import noise, plots
from benchmarks.ablation.context import Context
from benchmarks.ablation.job import Job, Record
from benchmarks.ablation.measure import held_out
from benchmarks.ablation.tables import LABELS, gain_sentence, metric_table, scene_table, spread_of_all

LEVEL = "moderate"
REPLACED = {"label blending": "feature blending", "local attention": "global attention"}  # part: method of `noise`
LEFT_OUT = {  # part: what switches it off
    "label warping": ("mapper.losses.warp=0", "mapper.optimizer.warp_views=0"),
    "query merging": ("mapper.instances.merge_evidence=1e9",),
    "masks of parts": ("mapper.association.part_share=1",),
    "known place": ("mapper.association.near_share=1",),
}
PARTS = (*REPLACED, *LEFT_OUT)
WHOLE = "all parts"
METRICS = {"pq": ".1f", "miou": ".1f", "mcov": ".1f", "id_switches": ".0f", "counts.queries": ".0f"}
INTRODUCTION = """## Parts

Labels of the moderate level of noise; each row is the mapper without one part. Label blending is replaced by feature
blending, local attention by global attention; the others are left out: *masks of parts*, that a mask which lies on one
object shows a part of it, and *known place*, that a mask at an object's place is that object ([method.md](method.md)).
"""


def jobs(scenes: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """All seeds for what the method is made of, one for what associates masks."""
    few = ("query merging", "masks of parts", "known place")
    names = (WHOLE, *PARTS)
    return [job(n, scene, seed) for n in names for scene in scenes for seed in (seeds[:1] if n in few else seeds)]


def job(name: str, scene: str, seed: int) -> Job:
    """The job of the mapper without a part, or of the whole."""
    if name in LEFT_OUT:
        return Job("parts", scene, "ours", LEVEL, seed, LEFT_OUT[name])
    return noise.job(REPLACED.get(name, noise.OURS), LEVEL, scene, seed)


def run(job: Job, context: Context) -> dict[str, Any]:
    return held_out(job, context)


def report(records: Sequence[Record], image_dir: Path) -> str:
    rows = {WHOLE if name == WHOLE else f"without {name}": of_part(records, name) for name in (WHOLE, *PARTS)}
    made, (ax,) = plots.figure(width_in=9)
    names = [name.replace(" ", "\n", 1) for name in rows]
    plots.bars(ax, names, {LABELS[m]: list(spread_of_all(rows, m).values()) for m in ("pq", "miou")})
    ax.tick_params(axis="x", labelsize=8)
    ax.set_ylabel("percent")
    plots.legend(ax, loc="upper left", bbox_to_anchor=(1, 1))
    sentences = [gain_sentence(name.capitalize(), rows[WHOLE], rows[f"without {name}"]) for name in PARTS]
    texts = [INTRODUCTION, plots.save(made, image_dir, "parts"), scene_table(rows, "pq"), metric_table(rows, METRICS)]
    return "\n\n".join([*texts, "\n".join(f"- {s}" for s in sentences)]) + "\n"


def of_part(records: Sequence[Record], name: str) -> list[Record]:
    return [r for r in records if r.job == job(name, r.job.scene, r.job.seed)]
