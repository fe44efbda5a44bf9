"""What all parts share: frames in memory, mappers of a preset, and measured times."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from panoptic_mapper.build import resolved_device
from panoptic_mapper.config import Config, load_config, section
from panoptic_mapper.datasets import open_dataset
from panoptic_mapper.datasets.base import Dataset
from panoptic_mapper.evaluation import split_indices
from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.mapper import MapperConfig, PanopticMapper
from panoptic_mapper.segmenters.dataset import DatasetSegmenter

TEST_EVERY = 8  # frames: the others are mapped


@dataclass(frozen=True)
class PresetConfig(Config):
    """The files in config/ hold the settings of the mapper as a group."""

    mapper: MapperConfig = section(MapperConfig)


class GivenLabels:
    """A segmenter that takes no time: it gives the labels that came with the frame."""

    def __init__(self, label_space: LabelSpace) -> None:
        self.label_space = label_space

    def segment(self, frame: Frame) -> Segmentation | None:
        return frame.labels


@dataclass
class Context:
    """The choices of the command line, and the frames, read once."""

    device: str
    data: str
    width: int
    num_frames: int  # 0 = all
    config: Path
    slow_config: Path
    settings: list[str]
    runs: tuple[str, ...]  # of "fast", "slow"
    num_gaussians: int
    repeats: int
    out: Path

    @staticmethod
    def of(args: argparse.Namespace) -> Context:
        runs = tuple(n for n, off in (("fast", args.only_slow), ("slow", args.no_slow)) if not off)
        return Context(
            resolved_device(args.device),
            args.data,
            args.width,
            args.frames,
            args.config,
            args.slow_config,
            args.set,
            runs,
            args.gaussians,
            args.repeats,
            args.out,
        )

    @cached_property
    def dataset(self) -> Dataset:
        return open_dataset(self.data)

    @property
    def label_space(self) -> LabelSpace:
        assert self.dataset.label_space is not None, "the sequence needs labels"
        return self.dataset.label_space

    @cached_property
    def splits(self) -> tuple[list[int], list[int]]:
        """Numbers of the frames that are mapped and of those held out."""
        return split_indices(min(self.num_frames or len(self.dataset), len(self.dataset)), TEST_EVERY)

    def frames(self, indices: Sequence[int]) -> list[Frame]:
        """Frames in memory: reading them is no part of what is measured."""
        return [self.dataset[index] for index in indices]

    @cached_property
    def mapped_frames(self) -> list[Frame]:
        """Their labels are those that a 2D model would give: instances have other numbers in every frame."""
        segmenter = DatasetSegmenter(self.label_space)
        return [replace(frame, labels=segmenter.segment(frame)) for frame in self.frames(self.splits[0])]

    @cached_property
    def held_out_frames(self) -> list[Frame]:
        return self.frames(self.splits[1])

    def mapper(self, run: str = "fast", *settings: str) -> PanopticMapper:
        """A mapper of the preset of a run, to which the labels of the frames are given without their identities."""
        file = self.config if run == "fast" else self.slow_config
        words = [f"mapper.image_width_px={self.width}", *(f"mapper.{word}" for word in (*self.settings, *settings))]
        config = load_config(PresetConfig, file, words).mapper
        return PanopticMapper(config, GivenLabels(self.label_space), self.device)

    def warmed_mapper(self, num_frames: int) -> PanopticMapper:
        """A mapper that has mapped the first frames and made a snapshot."""
        mapper = self.mapper()
        for frame in self.mapped_frames[:num_frames]:
            mapper.integrate(frame)
        mapper.snapshot()
        return mapper


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def times_ms(run: Callable[[], object], device: str, repeats: int) -> tuple[float, float]:
    """Medians: time on the device's clock from the first to the last kernel of `run`, and time until it returned.

    Where the two are alike, the device waits for the host, and fewer launches would help more than faster kernels.
    """
    run()
    device_ms, host_ms = [], []
    for _ in range(repeats):
        synchronize(device)
        begin = time.perf_counter()
        if device == "cuda":
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
        run()
        host_ms.append(1e3 * (time.perf_counter() - begin))
        if device == "cuda":
            events[1].record()
            synchronize(device)
            device_ms.append(events[0].elapsed_time(events[1]))
        else:
            device_ms.append(host_ms[-1])
    return statistics.median(device_ms), statistics.median(host_ms)


def percentile(values: Iterable[float], percent: float) -> float:
    """Linearly interpolated."""
    ordered = sorted(values)
    place = percent / 100 * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def peak_memory_mb(device: str) -> float | None:
    """Most memory that tensors have held since `reset_peak`, MB; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else None


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; numbers with a fraction get two digits of it."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows)])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def hardware(device: str) -> str:
    """What the figures were made on."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    gpu = "no GPU"
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        gpu = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return f"{gpu}; {cpu}, {os.cpu_count()} CPUs; Python {platform.python_version()}, torch {torch.__version__}"
