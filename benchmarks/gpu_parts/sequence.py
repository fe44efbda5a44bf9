"""Frames per second, latency and quality over a whole sequence, with the latency preset and with the slow one."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from statistics import mean
from typing import Any

from benchmarks.gpu_parts.context import Context, markdown, peak_memory_mb, percentile, reset_peak, synchronize
from panoptic_mapper.evaluation import evaluate
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.snapshot import MapSnapshot
from panoptic_mapper.worker import tune_interpreter

QUALITY = ("pq", "pq_things", "sq", "rq", "miou", "mcov", "id_switches", "psnr", "ssim", "depth_l1_m")
SNAPSHOTS_PER_S = 10.0  # what a user may ask the node for
PERCENTS = (50, 90, 99, 100)
WARM_UP_FRAMES = 5  # mapped by another mapper before: libraries are loaded and kernels compiled then


class OnlyImages:
    """A mapper of which only rendered images are evaluated: its points take minutes."""

    def __init__(self, mapper: PanopticMapper) -> None:
        self.label_space, self.render = mapper.label_space, mapper.render


def measure(context: Context) -> dict[str, Any]:
    context.warmed_mapper(WARM_UP_FRAMES)
    tune_interpreter()  # as the node does
    return {run: mapped(context, run) for run in context.runs}


def mapped(context: Context, run: str) -> dict[str, Any]:
    """Maps all frames one after another, makes snapshots as the node does, and evaluates held-out frames.

    After a frame a snapshot is begun, SNAPSHOTS_PER_S at most, unless one is in the making. A frame's latency is from
    the call with the frame in host memory to the snapshot that shows it, in host memory.
    """
    frames, mapper = context.mapped_frames, context.mapper(run)
    reset_peak(context.device)
    latencies_ms: list[float] = []
    integrate_ms: list[float] = []
    num_keyframes = 0
    synchronize(context.device)
    start = time.perf_counter()
    making: Future[None] | None = None
    due = start

    def finish(make: Callable[[], MapSnapshot], begin: float) -> None:
        make()
        latencies_ms.append(1e3 * (time.perf_counter() - begin))

    with ThreadPoolExecutor(1) as thread:
        for frame in frames:
            begin = time.perf_counter()
            num_keyframes += mapper.integrate(frame).is_keyframe
            if begin >= due and (making is None or making.done()):
                due = begin + 1 / SNAPSHOTS_PER_S
                making = thread.submit(finish, mapper.begin_snapshot(), begin)
            integrate_ms.append(1e3 * (time.perf_counter() - begin))
        synchronize(context.device)
        seconds = time.perf_counter() - start
    stats = mapper.stats()
    result = {
        "frames": len(frames),
        "keyframes": num_keyframes,
        "gaussians": stats.num_gaussians,
        "objects": stats.num_objects,
        "queries": len(mapper.map.queries),
        "steps": mapper.optimizer.num_steps,
        "frames_per_s": len(frames) / seconds,
        "snapshots_per_s": len(latencies_ms) / seconds,
        "integrate_ms": {"mean": mean(integrate_ms)} | {f"p{p}": percentile(integrate_ms, p) for p in PERCENTS},
        "latency_ms": {f"p{p}": percentile(latencies_ms, p) for p in PERCENTS},
        "stage_ms": stats.stage_ms,
        "peak_memory_mb": peak_memory_mb(context.device),
        "map_mb": stats.map_bytes / 1e6,
    }
    quality = evaluate(OnlyImages(mapper), (mapper.at_mapping_size(f) for f in context.held_out_frames))
    return result | {"quality": {name: quality.get(name) for name in QUALITY}}


def table(result: dict[str, Any]) -> str:
    names = (
        "frames",
        "keyframes",
        "steps",
        "gaussians",
        "objects",
        "queries",
        "frames_per_s",
        "snapshots_per_s",
        "peak_memory_mb",
    )
    rows: list[list[Any]] = [[name, *(run[name] for run in result.values())] for name in names]
    for measure, words in (("integrate_ms", "in the map"), ("latency_ms", "in a snapshot")):
        rows += [[f"frame {words} after, {p}, ms", *(run[measure][p] for run in result.values())]
                 for p in (f"p{percent}" for percent in PERCENTS)]  # fmt: skip
    rows += [["integrate mean, ms", *(run["integrate_ms"]["mean"] for run in result.values())]]
    stages = dict.fromkeys(stage for run in result.values() for stage in run["stage_ms"])
    rows += [[f"{stage}, median ms", *(run["stage_ms"].get(stage) for run in result.values())] for stage in stages]
    rows += [[name, *(run["quality"][name] for run in result.values())] for name in QUALITY]
    return markdown(["", *result], rows)
