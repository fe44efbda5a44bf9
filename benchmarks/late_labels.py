"""Frames per second of the mapper while a 2D model works beside it on the same device, and what it costs inline.

    python -m benchmarks.late_labels --data FOLDER [--runs process none inline] [--rate 30] [--frames 240]
        [--out FILE.json] [key=value ...]

Frames of a sequence with labels come at a camera's pace into the queue of the node's mapping thread, without ROS: there
and back again as often as it takes, with stamps that go on. With --rate 0 they come as fast as the mapper takes them.
The model has the architecture of the published checkpoint and random weights; it does all its work on each keyframe,
but the labels are those of the sequence, so that the map is one that a trained model would give. Words key=value are
settings of the mapper, as `optimizer.steps_per_keyframe=4`, on top of --config. Runs: no labels at all, the model in a
process of its own, and inline. FILE has those that are done.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.context import PresetConfig, hardware
from benchmarks.segmenters_gpu import MAKERS, described, save_random
from panoptic_mapper.build import resolved_device
from panoptic_mapper.config import load_config
from panoptic_mapper.datasets import SYNTHETIC, open_dataset
from panoptic_mapper.datasets.base import Dataset
from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.frame_queue import FrameQueue, FrameQueueConfig, Observation
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.late_labels import take_late_labels
from panoptic_mapper.mapper import MapperConfig, PanopticMapper
from panoptic_mapper.pose_buffer import PoseBuffer
from panoptic_mapper.segmenters.background import BackgroundConfig, BackgroundSegmenter
from panoptic_mapper.segmenters.base import Segmenter
from panoptic_mapper.segmenters.dataset import DatasetSegmenter
from panoptic_mapper.segmenters.huggingface import HuggingfaceConfig, HuggingfaceSegmenter
from panoptic_mapper.segmenters.none import NoSegmenter
from panoptic_mapper.worker import MappingWorker, WorkerConfig, tune_interpreter

CONFIG = Path(__file__).resolve().parents[1] / "config"
RUNS = ("none", "process", "inline")
STAMPS_HZ = 30.0  # of frames that come as fast as they are taken
QUEUE_CAPACITY = 8  # frames that wait for the mapper; beyond it the oldest is dropped, as in the node
WARM_UP_FRAMES = 20  # not counted: libraries are loaded and kernels compiled then
END_S = 120.0  # for the frames and labels that still wait at the end of the warm-up and of the run
POLL_S = 1e-3


class WithGivenLabels:
    """Lets a network do its work on a frame, and gives the labels that came with the frame."""

    def __init__(self, folder: Path, label_space: LabelSpace) -> None:
        self._network = HuggingfaceSegmenter(HuggingfaceConfig(model=str(folder), min_score=0.0, min_visible_share=0.0))
        self._labels = DatasetSegmenter(label_space)
        self.label_space = label_space

    def segment(self, frame: Frame) -> Segmentation:
        self._network.segment(frame)
        return self._labels.segment(frame)


def measure(make: Callable[[], Segmenter], frames: list[Frame], config: MapperConfig, rate_hz: float) -> dict[str, Any]:
    """Feeds the frames in at a pace, and says what became of them."""
    segmenter = make()
    poses = PoseBuffer()
    for frame in frames:
        poses.add(frame.stamp_ns, frame.T_map_camera)
    worker = MappingWorker(
        PanopticMapper(config, segmenter, resolved_device("auto")),
        FrameQueue(poses, FrameQueueConfig(capacity=QUEUE_CAPACITY)),
        WorkerConfig(idle_refine_steps=1),  # a frame waits for a step at most
    )
    background = segmenter if isinstance(segmenter, BackgroundSegmenter) else None
    if background is not None:
        take_late_labels(background, worker)
    worker.start()
    try:
        feed(worker, frames[:WARM_UP_FRAMES], rate_hz=0)
        if background is not None:
            wait_for_labels(background)
        num_labelled = background.status().num_labelled if background is not None else 0
        worker.submit(lambda mapper: worker.reset_counters()).result(END_S)
        drops = sum(worker.frames.drops.values())
        done_s: list[float] = []  # when each frame was in the map
        worker.on_integrated = lambda frame, report: done_s.append(time.perf_counter())
        start_s = time.perf_counter()
        feed(worker, frames[WARM_UP_FRAMES:], rate_hz)
        seconds = time.perf_counter() - start_s
        status = background.status() if background is not None else None
        p50, p99 = worker.latency_ms.percentiles((50, 99))
        stats = worker.submit(lambda mapper: mapper.stats()).result(END_S)
        row: dict[str, Any] = {
            "frames_per_s": (len(done_s) - 1) / max(done_s[-1] - done_s[0], 1e-9),
            "frames": len(frames) - WARM_UP_FRAMES,
            "dropped": sum(worker.frames.drops.values()) - drops,
            "latency_p50_ms": p50,
            "latency_p99_ms": p99,
            "keyframes": stats.num_keyframes,
            "gaussians": stats.num_gaussians,
            "objects": stats.num_objects,
        }
        if status is not None:
            row |= {"labels_per_s": (status.num_labelled - num_labelled) / seconds, "labelled": status.num_labelled}
            row |= {"model_ms": status.model_ms, "delay_ms": status.delay_ms, "waiting": status.num_waiting}
            row |= {"given_up": sum(status.given_up.values()), "failures": sum(status.failures.values())}
        return row
    finally:
        if background is not None:
            background.close()
        worker.stop(END_S)


def feed(worker: MappingWorker[PanopticMapper], frames: list[Frame], rate_hz: float) -> None:
    """Puts frames into the queue at a pace (0 = as they are taken), and waits until the last is in the map."""
    start_s = time.perf_counter()
    for number, frame in enumerate(frames):
        if rate_hz > 0:
            time.sleep(max(0.0, start_s + number / rate_hz - time.perf_counter()))
        else:
            while worker.frames.num_queued >= QUEUE_CAPACITY:
                time.sleep(POLL_S)
        worker.frames.put(Observation(frame.stamp_ns, "camera", frame.color, frame.depth, frame.camera, frame.labels))
    while worker.frames.num_queued:
        time.sleep(POLL_S)
    worker.submit(lambda mapper: None).result(END_S)


def wait_for_labels(segmenter: BackgroundSegmenter) -> None:
    """Until the model has given labels and no frame waits for it; at most END_S."""
    end_s = time.perf_counter() + END_S
    while (status := segmenter.status()).num_waiting or not status.num_labelled:
        if time.perf_counter() > end_s:
            raise TimeoutError(f"the model gave no labels: {status}")
        time.sleep(POLL_S)


def walk(dataset: Dataset, num_frames: int, size: tuple[int, int], rate_hz: float) -> list[Frame]:
    """Frames of a sequence, there and back again, at `size` (width, height), with stamps that go on at a rate.

    They are read, or rendered, by all cores: a frame of the synthetic room takes one of them a third of a second.
    """
    there = range(min(len(dataset), num_frames))
    is_rendered = dataset.name.startswith(SYNTHETIC)
    make_pool = partial(ProcessPoolExecutor, mp_context=multiprocessing.get_context("spawn"))
    with make_pool() if is_rendered else ThreadPoolExecutor() as pool:
        frames = list(pool.map(partial(read, dataset, size), there, chunksize=4))
    back = frames[-2:0:-1]
    step_ns = round(1e9 / (rate_hz or STAMPS_HZ))
    first_ns = frames[0].stamp_ns
    repeated = islice(cycle(frames + back), num_frames)
    return [replace(frame, stamp_ns=first_ns + i * step_ns) for i, frame in enumerate(repeated)]


def read(dataset: Dataset, size: tuple[int, int], index: int) -> Frame:
    return dataset[index].resized(*size)


def rows(
    make_model: Callable[[], Segmenter], frames: list[Frame], config: MapperConfig, rate_hz: float, runs: list[str]
) -> Iterator[dict[str, Any]]:
    """What was measured in each of the `runs`, as soon as it is."""
    settings = BackgroundConfig(start_wait_s=END_S)
    makers: dict[str, Callable[[], Segmenter]] = {
        "none": NoSegmenter,
        "process": lambda: BackgroundSegmenter(make_model, settings),
        "inline": make_model,
    }
    for run in runs:
        yield {"run": run} | measure(makers[run], frames, config, rate_hz)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="key=value settings of the mapper")
    parser.add_argument("--data", default=f"{SYNTHETIC}:num_frames=240,width=640,height=480",
                        help="a sequence with labels: a folder, or synthetic:key=value,...")  # fmt: skip
    parser.add_argument("--runs", nargs="+", default=RUNS, choices=RUNS)
    parser.add_argument("--model", default="eomt_base", choices=list(MAKERS))
    parser.add_argument("--rate", type=float, default=30.0, help="frames per second of the camera; 0 = as it can")
    parser.add_argument("--frames", type=int, default=240, help=f"of which {WARM_UP_FRAMES} are not counted")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), help="width and height of the images")
    parser.add_argument("--config", type=Path, default=CONFIG / "latency.yaml", help="the preset")
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    arguments = parser.parse_args()
    if arguments.frames < WARM_UP_FRAMES + 2:
        parser.error(f"--frames: expected at least {WARM_UP_FRAMES + 2}, got {arguments.frames}")
    dataset = open_dataset(arguments.data)
    if dataset.label_space is None:
        parser.error(f"--data: {arguments.data} has no labels")
    width, height = arguments.size
    words = [f"mapper.{word}" for word in (f"image_width_px={width}", *arguments.settings)]
    config = load_config(PresetConfig, arguments.config, words).mapper
    started_s = time.perf_counter()
    frames = walk(dataset, arguments.frames, (width, height), arguments.rate)
    machine = {
        "hardware": hardware(resolved_device("auto")),
        "model": arguments.model,
        "data": Path(arguments.data).name,
        "size": f"{width}x{height}",
        "rate_hz": arguments.rate,
        "settings": " ".join(words),
    }
    print(f"{described(machine)}; frames read in {time.perf_counter() - started_s:.0f} s", flush=True)
    result = []
    with tempfile.TemporaryDirectory() as root:
        save_random(MAKERS[arguments.model], Path(root))
        tune_interpreter()  # as the node does
        make = partial(WithGivenLabels, Path(root), dataset.label_space)
        for row in rows(make, frames, config, arguments.rate, arguments.runs):
            print(described(row), flush=True)
            result.append(row)
            if arguments.out is not None:
                arguments.out.write_text(json.dumps({"machine": machine, "rows": result}, indent=1) + "\n")


if __name__ == "__main__":
    from benchmarks import late_labels  # the model's process finds WithGivenLabels there, not in "__main__"

    late_labels.main()
