"""Frames per second of the mapper while a 2D model works beside it on the same device, and what it costs inline.

    python -m benchmarks.late_labels [--model eomt_base] [--rate 30] [--frames 240] [--out FILE.json] [key=value ...]

Frames of the synthetic room come at a camera's pace into the queue of the node's mapping thread, without ROS. The model
has the architecture of the published checkpoint and random weights; it does all its work on each keyframe, but the
labels are those of the room, so that the map is one that a trained model would give. Words key=value are settings of
the mapper, as `optimizer.steps_per_keyframe=4`. Rows: no labels at all, the model in a process of its own, and inline.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.segmenters_gpu import MAKERS, described, save_random
from panoptic_mapper.build import resolved_device
from panoptic_mapper.config import load_config
from panoptic_mapper.datasets.synthetic import LABEL_SPACE, SyntheticConfig, SyntheticRoom
from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.frame_queue import FrameQueue, FrameQueueConfig, Observation
from panoptic_mapper.late_labels import take_late_labels
from panoptic_mapper.mapper import MapperConfig, PanopticMapper
from panoptic_mapper.pose_buffer import PoseBuffer
from panoptic_mapper.segmenters.background import BackgroundConfig, BackgroundSegmenter
from panoptic_mapper.segmenters.base import Segmenter
from panoptic_mapper.segmenters.dataset import DatasetSegmenter
from panoptic_mapper.segmenters.huggingface import HuggingfaceConfig, HuggingfaceSegmenter
from panoptic_mapper.segmenters.none import NoSegmenter
from panoptic_mapper.worker import MappingWorker, tune_interpreter

WARM_UP_FRAMES = 20  # not counted: libraries are loaded and kernels compiled then
END_S = 60.0  # for the frames and labels that still wait at the end


class WithRoomLabels:
    """Lets a network do its work on a frame, and gives the labels of the room."""

    def __init__(self, folder: Path) -> None:
        self._network = HuggingfaceSegmenter(HuggingfaceConfig(model=str(folder), min_score=0.0, min_visible_share=0.0))
        self._labels = DatasetSegmenter(LABEL_SPACE)
        self.label_space = LABEL_SPACE

    def segment(self, frame: Frame) -> Segmentation:
        self._network.segment(frame)
        return self._labels.segment(frame)


def measure(make: Callable[[], Segmenter], frames: list[Frame], config: MapperConfig, rate_hz: float) -> dict[str, Any]:
    """Feeds the frames in at a pace, and says what became of them."""
    segmenter = make()
    mapper = PanopticMapper(config, segmenter, resolved_device("auto"))
    poses = PoseBuffer()
    for frame in frames:
        poses.add(frame.stamp_ns, frame.T_map_camera)
    worker = MappingWorker(mapper, FrameQueue(poses, FrameQueueConfig(capacity=8)))
    if isinstance(segmenter, BackgroundSegmenter):
        take_late_labels(segmenter, worker)
    worker.start()
    try:
        feed(worker, frames[:WARM_UP_FRAMES], rate_hz)
        worker.submit(lambda mapper: worker.reset_counters()).result(END_S)
        drops = sum(worker.frames.drops.values())
        start_s = time.perf_counter()
        feed(worker, frames[WARM_UP_FRAMES:], rate_hz)
        seconds = time.perf_counter() - start_s
        p50, p99 = worker.latency_ms.percentiles((50, 99))
        stats = worker.submit(lambda mapper: mapper.stats()).result(END_S)
        row: dict[str, Any] = {
            "frames_per_s": worker.num_integrated / seconds,
            "dropped": sum(worker.frames.drops.values()) - drops,
            "latency_p50_ms": p50,
            "latency_p99_ms": p99,
            "keyframes": stats.num_keyframes,
            "objects": stats.num_objects,
        }
        if isinstance(segmenter, BackgroundSegmenter):
            status = segmenter.status()
            row |= {"labelled": status.num_labelled, "model_ms": status.model_ms, "delay_ms": status.delay_ms}
            row |= {"waiting": status.num_waiting, "failures": sum(status.failures.values())}
        return row
    finally:
        if isinstance(segmenter, BackgroundSegmenter):
            segmenter.close()
        worker.stop(END_S)


def feed(worker: MappingWorker[PanopticMapper], frames: list[Frame], rate_hz: float) -> None:
    """Puts frames into the queue at a camera's pace, and waits until the last has left it and is in the map."""
    start_s = time.perf_counter()
    for number, frame in enumerate(frames):
        time.sleep(max(0.0, start_s + number / rate_hz - time.perf_counter()))
        worker.frames.put(Observation(frame.stamp_ns, "camera", frame.color, frame.depth, frame.camera, frame.labels))
    while worker.frames.num_queued:
        time.sleep(1e-3)
    worker.submit(lambda mapper: None).result(END_S)


def room_frames(config: SyntheticConfig) -> list[Frame]:
    """The frames of the synthetic room, rendered by all cores: one takes a third of a second at 640x480."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(SyntheticRoom(config).__getitem__, range(config.num_frames), chunksize=4))


def rows(folder: Path, frames: list[Frame], config: MapperConfig, rate_hz: float) -> list[dict[str, Any]]:
    make = partial(WithRoomLabels, folder)
    settings = BackgroundConfig()
    makers: dict[str, Callable[[], Segmenter]] = {
        "none": NoSegmenter,
        "process": lambda: BackgroundSegmenter(make, settings),
        "inline": make,
    }
    result = []
    for run, maker in makers.items():
        result.append({"run": run} | measure(maker, frames, config, rate_hz))
        print(described(result[-1]), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="key=value settings of the mapper")
    parser.add_argument("--model", default="eomt_base", choices=list(MAKERS))
    parser.add_argument("--rate", type=float, default=30.0, help="frames per second of the camera")
    parser.add_argument("--frames", type=int, default=240)
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), help="width and height of the images")
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    arguments = parser.parse_args()
    width, height = arguments.size
    frames = room_frames(SyntheticConfig(width=width, height=height, num_frames=arguments.frames))
    config = load_config(MapperConfig, None, arguments.settings)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    machine = {"device": device, "torch": torch.__version__, "numpy": np.__version__, "model": arguments.model}
    print(described(machine), flush=True)
    with tempfile.TemporaryDirectory() as root:
        save_random(MAKERS[arguments.model], Path(root))
        tune_interpreter()  # as the node does
        result = rows(Path(root), frames, config, arguments.rate)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"machine": machine, "rows": result}, indent=1) + "\n")


if __name__ == "__main__":
    from benchmarks import late_labels  # the model's process finds WithRoomLabels there, not in "__main__"

    late_labels.main()
