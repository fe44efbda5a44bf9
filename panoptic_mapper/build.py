"""The same mapper over a recorded sequence, without ROS."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from panoptic_mapper.config import Config, param, section
from panoptic_mapper.datasets.base import Dataset
from panoptic_mapper.evaluation import split_indices
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.mapper import UP_AXES, MapperConfig, PanopticMapper
from panoptic_mapper.offline import optimize_globally
from panoptic_mapper.segmenters import FAST, SegmenterConfig, create_background_segmenter, create_segmenter

Progress = Callable[[int, int, str], None]  # frames or global steps done, number of these in all, a few words


@dataclass(frozen=True)
class BuildConfig(Config):
    """Settings of `panoptic-mapper build`; `mapper` and `segmenter` are those of the node."""

    mode: Literal["online", "offline"] = param(
        "online", "offline: the map is optimised as a whole after the last frame", choices=("online", "offline")
    )
    every: int = param(1, "only every so many-th frame of the sequence is used", ge=1)
    test_every: int = param(8, "every so many-th frame is held out of mapping for the test metrics, 0 = none", ge=0)
    device: str = param(
        "auto", "where the map lives; auto = cuda where there is a GPU", choices=("auto", "cpu", "cuda")
    )
    segmenter: SegmenterConfig = section(SegmenterConfig)
    mapper: MapperConfig = section(MapperConfig)


@dataclass(frozen=True)
class Built:
    """A finished map and how it came about."""

    mapper: PanopticMapper
    splits: dict[str, list[int]]  # "train", "test": frame indices of the sequence
    wall_s: float  # reading the frames included


def build_map(dataset: Dataset, config: BuildConfig, progress: Progress | None = None) -> Built:
    """Maps a sequence frame by frame, and offline as a whole afterwards; held-out frames are never read.

    Raises:
        ValueError: the segmenter does not fit the sequence, or a frame is unreadable.
    """
    used = list(range(0, len(dataset), config.every))
    train, test = split_indices(len(used), config.test_every)
    splits = {"train": [used[i] for i in train], "test": [used[i] for i in test]}
    if not splits["train"]:
        raise ValueError(f"{dataset.name}: no frame is left to map out of {len(dataset)}")
    mapper = create_mapper(config.mapper, config.segmenter, dataset.label_space, config.device)
    start = time.perf_counter()
    for done, index in enumerate(splits["train"], start=1):
        mapper.integrate(dataset[index])
        if progress is not None:
            num_gaussians, num_objects = len(mapper.map.gaussians), len(mapper.map.queries)
            progress(done, len(splits["train"]), f"{num_gaussians:,} Gaussians, {num_objects} objects")
    if config.mode == "offline":
        optimize_globally(mapper, config.mapper.offline, _global_progress(mapper, progress))
    return Built(mapper, splits, time.perf_counter() - start)


def _global_progress(mapper: PanopticMapper, progress: Progress | None) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(done, total, f"global steps, {len(mapper.map.gaussians):,} Gaussians")


def create_mapper(
    config: MapperConfig,
    segmenter: SegmenterConfig,
    label_space: LabelSpace | None,
    device: str,
    is_live: bool = False,
) -> PanopticMapper:
    """A mapper with its segmenter, which is told the map's up direction where the configuration gives one.

    Args:
        label_space: classes of the labels that come with the frames, where there are such.
        device: "auto", "cpu" or "cuda".
        is_live: frames do not wait, so a model runs in a process of its own unless the configuration says otherwise.

    Raises:
        ValueError: the segmenter lacks its label space, run times or weights, or there is no such device.
    """
    up = None if config.up_axis == "auto" else np.array(UP_AXES[config.up_axis], dtype=np.float64)  # [3]
    in_background = segmenter.run == "process" or (segmenter.run == "auto" and is_live and segmenter.name not in FAST)
    create = create_background_segmenter if in_background else create_segmenter
    device = resolved_device(device)  # before a process is started
    return PanopticMapper(config, create(segmenter, label_space, up), device)


def resolved_device(name: str) -> str:
    """ "cuda" or "cpu" for "auto".

    Raises:
        ValueError: cuda is asked for where there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': torch finds no NVIDIA GPU here; use --device cpu")
    return name
