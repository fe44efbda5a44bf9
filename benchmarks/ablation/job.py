"""What is measured: one run of one method on one scene, as plain data, and the record of its outcome."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """One measurement; two jobs that are equal are the same measurement."""

    experiment: str  # module of this package whose `run` measures it
    scene: str  # name of a folder in the data folder, or a key of `context.SYNTHETIC_SCENES`, or "synthetic:..."
    method: str = "ours"  # one of `measure.METHODS`, or what the experiment's own `run` understands
    noise: str = "clean"  # a level of datasets.noise, or fields of NoiseConfig, e.g. "drop=0.3,flip=0.1"
    seed: int = 0  # of the mapper and of the label noise
    overrides: tuple[str, ...] = ()  # key=value of `panoptic-mapper build`, e.g. "mapper.losses.color=0.5"

    def key(self, width_px: int) -> str:
        """Identifies the measurement, made at an image width, in the store."""
        return json.dumps([*dataclasses.astuple(self)[:-1], *self.overrides, f"{width_px} px"])

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Job:
        return Job(**(values | {"overrides": tuple(values["overrides"])}))


@dataclass(frozen=True)
class Record:
    """A finished job."""

    key: str
    job: Job
    result: dict[str, Any]  # what the experiment's `run` returned
    machine: dict[str, Any]  # device, versions, commit
    wall_s: float

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(line: str) -> Record:
        values = json.loads(line)
        return Record(**(values | {"job": Job.from_dict(values["job"])}))
