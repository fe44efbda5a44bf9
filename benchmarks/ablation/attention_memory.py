"""Memory of an optimisation step with global and with local attention, as the scene grows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.ablation import plots
from benchmarks.ablation.context import Context
from benchmarks.ablation.job import Job, Record
from benchmarks.ablation.memory import kept_bytes, peak_bytes
from benchmarks.ablation.tables import MISSING, markdown_table, spread
from panoptic_mapper.build import create_mapper
from panoptic_mapper.keyframes import Keyframe
from panoptic_mapper.label_rendering import LabelConfig
from panoptic_mapper.mapper import PanopticMapper

ROOMS = (1, 2, 4, 8, 16)
FRAMES_PER_ROOM = 24
NUM_VIEWS = 20  # along the walk, of which the one that holds the most is measured
WORLD = "synthetic:num_rooms={},num_frames={},width=320,height=240"
Attention = Literal["local", "global"]
ATTENTIONS: tuple[Attention, ...] = ("local", "global")
MEASURES = {"kept_bytes": "labels keep", "step_bytes": "step"}
COUNTS = {"gaussians": "N", "queries": "Q", "visible": "V", "queries_in_view": "Q in view"}
MB = 1e6
INTRODUCTION = f"""## Memory of local and global attention

Synthetic buildings of more and more rooms, mapped with {FRAMES_PER_ROOM} frames a room and no optimisation; then one
step on the keyframe that sees the most. Global attention scores all N Gaussians against all Q queries; local attention
the V visible Gaussians against the queries in view.
*Labels keep*: bytes that the backward pass of the label images holds on to, each tensor once. *Step*: the most that the
whole step, geometry and labels, has allocated at a time beyond the map, which both share.
"""


def jobs(scenes: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    return [job(num_rooms) for num_rooms in ROOMS]


def job(num_rooms: int) -> Job:
    world = WORLD.format(num_rooms, num_rooms * FRAMES_PER_ROOM)
    return Job("attention_memory", world, overrides=("mapper.optimizer.steps_per_keyframe=0",))


def run(job: Job, context: Context) -> dict[str, Any]:
    """Counts (see `COUNTS`), and for each attention the `MEASURES`, None where memory did not suffice."""
    dataset = context.dataset(job)
    observed, config = context.observed(job, dataset), context.build_config(job)
    mapper = create_mapper(config.mapper, config.segmenter, dataset.label_space, config.device)
    for index in range(len(observed)):
        mapper.integrate(observed[index])
    keyframe = fullest(mapper)
    view = mapper.map.view(keyframe.camera, keyframe.T_map_camera)
    counts = (len(mapper.map.gaussians), len(mapper.map.queries), len(view.visible_ids), len(view.queries))
    del view
    result: dict[str, Any] = dict(zip(COUNTS, counts, strict=True))
    result["measured_by"] = "torch.cuda.max_memory_allocated" if mapper.device.type == "cuda" else "torch.profiler"
    for attention in ATTENTIONS:
        with attending(mapper, attention):
            result[attention] = measured(mapper, keyframe)
    return result


def fullest(mapper: PanopticMapper) -> Keyframe:
    """The keyframe with the most pairs of Gaussians and queries in view, of some along the walk."""
    keyframes = mapper.keyframes.all[:: max(1, len(mapper.keyframes) // NUM_VIEWS)]

    def num_pairs(keyframe: Keyframe) -> int:
        view = mapper.map.view(keyframe.camera, keyframe.T_map_camera)
        return len(view.visible_ids) * len(view.queries)

    return max(keyframes, key=num_pairs)


@contextmanager
def attending(mapper: PanopticMapper, attention: Attention) -> Iterator[None]:
    """Lets a mapper's optimiser attend in another way."""
    optimizer, map = mapper.optimizer, mapper.map
    optimizer.map = replace(map, labels=LabelConfig(attention=attention))
    yield
    optimizer.map = map


def measured(mapper: PanopticMapper, keyframe: Keyframe) -> dict[str, int | None]:
    """The `MEASURES` on a keyframe."""
    optimizer = mapper.optimizer
    view = optimizer.map.view(keyframe.camera, keyframe.T_map_camera)
    try:
        kept = kept_bytes(view.blend_labels)
        optimizer.step(keyframe)  # what is made on the first use only
        return {"kept_bytes": kept, "step_bytes": peak_bytes(lambda: optimizer.step(keyframe), mapper.device)}
    except torch.cuda.OutOfMemoryError:
        return dict.fromkeys(MEASURES)


def report(records: Sequence[Record], image_dir: Path) -> str:
    rows = {num_rooms: [r for r in records if r.job == job(num_rooms)] for num_rooms in ROOMS}
    made, axes = plots.figure(len(MEASURES), width_in=4.5)
    for (measure, label), ax in zip(MEASURES.items(), axes, strict=True):
        for attention, color in zip(ATTENTIONS, plots.COLORS, strict=False):
            points = [(spread(row, "gaussians"), spread(row, f"{attention}.{measure}")) for row in rows.values()]
            both = [(n.mean, size.mean / MB) for n, size in points if n is not None and size is not None]
            ax.plot([n for n, _ in both], [mb for _, mb in both], color=color, marker="o", label=attention)
        scale = "log" if ax.dataLim.height > 0 else "linear"  # nothing has no logarithm
        ax.set(xlabel="Gaussians in the map", ylabel=f"{label}, MB", xscale=scale, yscale=scale)
    plots.legend(axes[0])
    columns = {
        f"{label}, {attention}, MB": f"{attention}.{name}"
        for name, label in MEASURES.items()
        for attention in ATTENTIONS
    }
    cells = []
    for num_rooms, row in rows.items():
        counts = [spread(row, name) for name in COUNTS]
        sizes = [spread(row, name) for name in columns.values()]
        words = [MISSING if count is None else f"{count.mean:,.0f}" for count in counts]
        words += [MISSING if size is None else f"{size.mean / MB:,.1f}" for size in sizes]
        cells.append([str(num_rooms), *words])
    measured_by = sorted({f"`{r.result['measured_by']}` on {r.machine['device']}" for r in records})
    how = f"The step is measured by {', '.join(measured_by) or MISSING}."
    table = markdown_table(["rooms", *COUNTS.values(), *columns], cells)
    return "\n\n".join([INTRODUCTION, how, plots.save(made, image_dir, "attention_memory"), table]) + "\n"
