"""What a job finds around it: the sequences, the device, and the resolution at which it maps and is evaluated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.ablation.job import Job
from panoptic_mapper.build import BuildConfig, resolved_device
from panoptic_mapper.config import load_config
from panoptic_mapper.datasets import open_dataset
from panoptic_mapper.datasets.base import Dataset
from panoptic_mapper.datasets.noise import NOISE_LEVELS, NoiseConfig
from panoptic_mapper.frame import Frame
from panoptic_mapper.segmenters.base import Segmenter
from panoptic_mapper.segmenters.dataset import DatasetSegmenter

SYNTHETIC_SCENES = {"synthetic_rooms": "synthetic:num_rooms=3,num_frames=200,width=320,height=240"}
SCENES = ("sim_aws_house", "sim_apt_flat", *SYNTHETIC_SCENES)
TEST_EVERY = 8  # every 8th frame is held out


@dataclass(frozen=True)
class Context:
    """Where a job runs."""

    data: Path  # folder with the ScanNet-style sequences
    device: str = "auto"  # auto, cpu or cuda
    width_px: int = 320  # images are mapped and evaluated at this width

    def dataset(self, job: Job) -> Dataset:
        """The job's sequence.

        Raises:
            ValueError: there is no such sequence, or it has no labels.
        """
        spec = SYNTHETIC_SCENES.get(job.scene, job.scene)
        dataset = open_dataset(spec if spec.startswith("synthetic") else self.data / spec)
        if dataset.label_space is None:
            raise ValueError(f"scene '{job.scene}': the sequence has no labels to measure with")
        return dataset

    def observed(self, job: Job, dataset: Dataset) -> Dataset:
        """The sequence as every method sees it: its labels with the job's noise and without identity across frames."""
        assert dataset.label_space is not None
        return Observed(dataset, DatasetSegmenter(dataset.label_space, job.seed, noise_config(job.noise)))

    def build_config(self, job: Job) -> BuildConfig:
        """The job's settings of `panoptic-mapper build`; the labels come from `observed` as they are."""
        words = [f"mapper.seed={job.seed}", f"mapper.image_width_px={self.width_px}", f"test_every={TEST_EVERY}"]
        return load_config(BuildConfig, overrides=[*words, f"device={resolved_device(self.device)}", *job.overrides])

    def at_width(self, frame: Frame) -> Frame:
        """The frame at the width of all measurements, or as it came where that is smaller."""
        if self.width_px >= frame.camera.width:
            return frame
        return frame.resized(self.width_px, round(frame.camera.height * self.width_px / frame.camera.width))


class Observed:
    """A sequence whose labels are those of a 2D model: what it has seen instead of the truth."""

    def __init__(self, dataset: Dataset, segmenter: Segmenter) -> None:
        self.name = dataset.name
        self.label_space = dataset.label_space
        self._dataset = dataset
        self._segmenter = segmenter

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Frame:
        frame = self._dataset[index]
        return replace(frame, labels=self._segmenter.segment(frame))


def noise_config(words: str) -> NoiseConfig:
    """A named level, or the fields of a NoiseConfig as "name=value,name=value"."""
    if words in NOISE_LEVELS:
        return NOISE_LEVELS[words]
    return load_config(NoiseConfig, overrides=words.split(","))
