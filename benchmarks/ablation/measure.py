"""Maps a job's scene with the job's method and evaluates held-out frames: what most experiments do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.ablation.context import TEST_EVERY, Context
from benchmarks.ablation.job import Job
from benchmarks.baselines.tracker import Tracker
from benchmarks.baselines.true_association import TrueAssociation
from benchmarks.baselines.voxel_voting import VoxelVoting
from panoptic_mapper.build import build_map
from panoptic_mapper.datasets.base import Dataset
from panoptic_mapper.evaluation import Renderer, evaluate, split_indices
from panoptic_mapper.frame import Frame, PinholeCamera
from panoptic_mapper.snapshot import PanopticView

Made = tuple[Renderer, dict[str, Any]]  # what can be evaluated, and counts of what it consists of


def held_out(job: Job, context: Context) -> dict[str, Any]:
    """What `evaluation.evaluate` gives on the held-out frames, `counts` of the map, and `map_s`, mapping time, s."""
    dataset = context.dataset(job)
    _, test = split_indices(len(dataset), TEST_EVERY)
    frames = [context.at_width(dataset[i]) for i in test]
    start = time.perf_counter()
    name, _, depth_given = job.method.partition("+")
    renderer, counts = METHODS[name](context.observed(job, dataset), job, context)
    map_s = time.perf_counter() - start
    if depth_given:
        renderer = GivenDepth(renderer, frames)
    return numbers(evaluate(renderer, frames, dataset.label_space)) | {"counts": counts, "map_s": map_s}


def numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics without words and without what is said of each class."""
    return {name: value for name, value in metrics.items() if name not in ("protocol", "per_class")}


def ours(observed: Dataset, job: Job, context: Context) -> Made:
    """The mapper, as `panoptic-mapper build` runs it."""
    built = build_map(observed, context.build_config(job))
    stats = built.mapper.stats()
    queries = len(built.mapper.map.queries)
    counts = {"gaussians": stats.num_gaussians, "keyframes": stats.num_keyframes, "queries": queries}
    return built.mapper, counts | {"objects": stats.num_objects, "map_bytes": stats.map_bytes}


def tracker(observed: Dataset, job: Job, context: Context) -> Made:
    assert observed.label_space is not None
    made = Tracker(observed.label_space)
    for frame in training_frames(observed, context):
        made.integrate(frame)
    return made, {"tracks": made.num_tracks, "keyframes": len(made.frames)}


def voxels(observed: Dataset, job: Job, context: Context) -> Made:
    assert observed.label_space is not None
    made = VoxelVoting(observed.label_space)
    for frame in training_frames(observed, context):
        made.integrate(frame)
    return made, {"voxels": len(made.grid), "instances": made.num_instances}


def true_association(observed: Dataset, job: Job, context: Context) -> Made:
    """Not to be compared with: alone of all that is here, it reads the sequence's own labels."""
    assert observed.label_space is not None
    made = TrueAssociation(observed.label_space)
    clean = training_frames(context.dataset(job), context)
    for frame, true_frame in zip(training_frames(observed, context), clean, strict=True):
        assert true_frame.labels is not None
        made.integrate(frame, true_frame.labels)
    return made, {"voxels": len(made.grid), "instances": made.num_instances}


def training_frames(observed: Dataset, context: Context) -> Iterable[Frame]:
    """All frames that are not held out: the baselines are fast enough to need no keyframes."""
    train, _ = split_indices(len(observed), TEST_EVERY)
    return (context.at_width(observed[i]) for i in train)


class GivenDepth:
    """A baseline that is told the measured depth of each view that it is asked for."""

    def __init__(self, baseline: Any, frames: Iterable[Frame]) -> None:
        self.label_space = baseline.label_space
        self._baseline = baseline
        self._depth_of = {frame.T_map_camera.tobytes(): frame.depth for frame in frames}

    def render(self, camera: PinholeCamera, T_map_camera: np.ndarray) -> PanopticView:
        return self._baseline.render(camera, T_map_camera, self._depth_of[T_map_camera.tobytes()])


METHODS: dict[str, Callable[[Dataset, Job, Context], Made]] = {
    "ours": ours,
    "tracker": tracker,
    "voxels": voxels,
    "truth": true_association,
}
