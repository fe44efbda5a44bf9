"""Maps a job's scene with the job's method and evaluates held-out frames: what most experiments do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.ablation.context import TEST_EVERY, Context
from benchmarks.ablation.job import Job
from panoptic_mapper.build import build_map
from panoptic_mapper.datasets.base import Dataset
from panoptic_mapper.evaluation import Renderer, evaluate, split_indices

Method = Callable[[Dataset, Job, Context], tuple[Renderer, dict[str, Any]]]


def held_out(job: Job, context: Context) -> dict[str, Any]:
    """What `evaluation.evaluate` gives on the held-out frames, `counts` of the map, and `map_s`, mapping time, s."""
    dataset = context.dataset(job)
    start = time.perf_counter()
    renderer, counts = METHODS[job.method](context.observed(job, dataset), job, context)
    map_s = time.perf_counter() - start
    _, test = split_indices(len(dataset), TEST_EVERY)
    metrics = evaluate(renderer, (context.at_width(dataset[i]) for i in test), dataset.label_space)
    return metrics | {"counts": counts, "map_s": map_s}


def ours(observed: Dataset, job: Job, context: Context) -> tuple[Renderer, dict[str, Any]]:
    """The mapper, as `panoptic-mapper build` runs it."""
    built = build_map(observed, context.build_config(job))
    stats = built.mapper.stats()
    queries = len(built.mapper.map.queries)
    counts = {"gaussians": stats.num_gaussians, "keyframes": stats.num_keyframes, "queries": queries}
    return built.mapper, counts | {"objects": stats.num_objects, "map_bytes": stats.map_bytes}


METHODS: dict[str, Method] = {"ours": ours}
