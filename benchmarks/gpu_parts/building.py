"""What a large map costs in a local view: the same frames in a map as it is, and in one made large by copies of it."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_parts.context import Context, markdown, peak_memory_mb, percentile, reset_peak, synchronize
from panoptic_mapper.mapper import PanopticMapper

GAP_M = 1.0  # between two copies
NUM_MEASURED = 40  # frames


def measure(context: Context) -> dict[str, Any]:
    """Maps most of the sequence, enlarges the map, and goes on."""
    frames = context.mapped_frames
    num_before = max(len(frames) // 2, len(frames) - NUM_MEASURED)
    result = {}
    for name in ("local", "building"):
        reset_peak(context.device)
        mapper = context.warmed_mapper(num_before)
        if name == "building":
            enlarge(mapper, context.num_gaussians)
        result[name] = continued(context, mapper, num_before)
    return result


@torch.no_grad()
def enlarge(mapper: PanopticMapper, num_gaussians: int) -> None:
    """Puts copies of the map, with objects of their own, beside it on a square grid until it has so many Gaussians."""
    gaussians, queries = mapper.map.gaussians, mapper.map.queries
    own = torch.arange(len(gaussians), device=gaussians.device)
    means, instance_ids = gaussians["means"].clone(), gaussians["instance_id"].clone()
    size_m = (means.amax(0) - means.amin(0)).cpu()
    right, forward = np.delete(np.arange(3), int(np.abs(mapper.up).argmax()))
    for place in _grid_places(-(-num_gaussians // max(len(own), 1)) - 1):
        shift = torch.zeros(3)
        for axis, number in zip((right, forward), place, strict=True):
            shift[axis] = number * (float(size_m[axis]) + GAP_M)
        moved = means + shift.to(means)
        new = slice(len(gaussians), len(gaussians) + len(own))
        gaussians.duplicate(own, {"means": moved})
        gaussians["instance_id"][new] = 0
        for id in queries.ids[: int((queries.ids <= instance_ids.max().cpu()).sum())].tolist():
            members = (instance_ids == id).nonzero()[:, 0]
            if len(members) >= queries.config.min_gaussians:
                copy = queries.add(moved[members], mapper.last_stamp_ns)
                gaussians["instance_id"][new][members] = copy


def _grid_places(num: int) -> list[tuple[int, int]]:
    """The `num` places of a square grid that are nearest to its origin, without the origin."""
    reach = int(num**0.5) + 1
    places = [(i, j) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1) if (i, j) != (0, 0)]
    return sorted(places, key=lambda p: (p[0] ** 2 + p[1] ** 2, p))[:num]


def continued(context: Context, mapper: PanopticMapper, num_before: int) -> dict[str, Any]:
    """Rate and latency of the next frames, and the time of a gradient step."""
    latencies_ms: list[float] = []
    steps_before = mapper.optimizer.num_steps
    for frame in context.mapped_frames[num_before : num_before + NUM_MEASURED]:
        begin = time.perf_counter()
        mapper.integrate(frame)
        synchronize(context.device)
        latencies_ms.append(1e3 * (time.perf_counter() - begin))
    steps_ms = []
    num_frame_steps = mapper.optimizer.num_steps - steps_before
    for _ in range(context.repeats):
        begin = time.perf_counter()
        mapper.refine(3)
        synchronize(context.device)
        steps_ms.append(1e3 * (time.perf_counter() - begin) / 3)
    keyframe = mapper.keyframes.all[-1]
    view = mapper.map.view(keyframe.camera, keyframe.T_map_camera)
    return {
        "gaussians": len(mapper.map.gaussians),
        "queries": len(mapper.map.queries),
        "candidates": len(view.gaussians),
        "visible": len(view.visible_ids),
        "queries_in_view": len(view.queries),
        "frames_per_s": 1e3 * len(latencies_ms) / sum(latencies_ms),
        "frame_ms_p50": percentile(latencies_ms, 50),
        "frame_ms_p99": percentile(latencies_ms, 99),
        "steps_per_frame": num_frame_steps / len(latencies_ms),
        "step_ms": median(steps_ms),
        "peak_memory_mb": peak_memory_mb(context.device),
    }


def table(result: dict[str, Any]) -> str:
    rows = [[name, *(run[name] for run in result.values())] for name in result["local"]]
    share = result["building"]["frames_per_s"] / result["local"]["frames_per_s"]
    steps = result["local"]["step_ms"] / result["building"]["step_ms"]
    words = f"Rate in the large map: {100 * share:.0f} % of that in the local one, of single steps {100 * steps:.0f} %."
    return markdown(["", *result], rows) + f"\n\n{words}"
