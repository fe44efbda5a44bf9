"""Offline use: the same mapper over a recorded sequence, without ROS."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from panoptic_mapper.config import Config, param, section
from panoptic_mapper.datasets.base import Dataset
from panoptic_mapper.evaluation import split_indices
from panoptic_mapper.mapper import MapperConfig, PanopticMapper
from panoptic_mapper.segmenters import SegmenterConfig, create_segmenter

Progress = Callable[[int, int, str], None]  # frames done, frames in all, a few words about the map


@dataclass(frozen=True)
class BuildConfig(Config):
    """Settings of `panoptic-mapper build`; `mapper` and `segmenter` are those of the node."""

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
    """Maps a sequence frame by frame; held-out frames are never read.

    Raises:
        ValueError: the segmenter does not fit the sequence, or a frame is unreadable.
    """
    used = list(range(0, len(dataset), config.every))
    train, test = split_indices(len(used), config.test_every)
    splits = {"train": [used[i] for i in train], "test": [used[i] for i in test]}
    if not splits["train"]:
        raise ValueError(f"{dataset.name}: no frame is left to map out of {len(dataset)}")
    segmenter = create_segmenter(config.segmenter, dataset.label_space)
    mapper = PanopticMapper(config.mapper, segmenter, resolved_device(config.device))
    start = time.perf_counter()
    for done, index in enumerate(splits["train"], start=1):
        mapper.integrate(dataset[index])
        if progress is not None:
            num_gaussians, num_objects = len(mapper.map.gaussians), len(mapper.map.queries)
            progress(done, len(splits["train"]), f"{num_gaussians:,} Gaussians, {num_objects} objects")
    return Built(mapper, splits, time.perf_counter() - start)


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
