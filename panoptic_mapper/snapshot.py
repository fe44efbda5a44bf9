"""What leaves the mapper: immutable copies, stamped with the time of the last frame that they hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from panoptic_mapper.label_space import LabelSpace


@dataclass(frozen=True)
class Box:
    """A 3D box with its own axes."""

    center: np.ndarray  # [3] float64 map frame, m
    size: np.ndarray  # [3] float64 full edge lengths, m
    quaternion: np.ndarray  # [4] float64 wxyz, box axes to map axes


@dataclass(frozen=True)
class MapObject:
    """One object of the map."""

    id: int  # stable, >= 1, never reused
    class_index: int  # index in the label space
    class_name: str
    score: float  # 0..1, share of the class evidence that agrees with `class_index`
    observations: int  # number of keyframes in which a 2D mask was matched to it
    centroid: np.ndarray  # [3] float64 map frame, m
    box: Box  # tight box, upright (one axis along the map's up direction)
    aabb_min: np.ndarray  # [3] float64 map frame, m
    aabb_max: np.ndarray  # [3]
    num_gaussians: int
    first_seen_ns: int
    last_seen_ns: int


@dataclass(frozen=True)
class MapSnapshot:
    """Labelled Gaussian centres and objects."""

    stamp_ns: int
    points: np.ndarray  # [N, 3] float32 map frame, m
    colors: np.ndarray  # [N, 3] uint8 RGB
    class_indices: np.ndarray  # [N] int32
    instance_ids: np.ndarray  # [N] int32 public id of one of `objects`, 0 = none
    confidences: np.ndarray  # [N] float32 0..1 probability of the label
    objects: tuple[MapObject, ...]
    label_space: LabelSpace


@dataclass(frozen=True)
class PanopticView:
    """The map seen from a pose."""

    color: np.ndarray  # [H, W, 3] uint8 RGB
    depth: np.ndarray  # [H, W] float32 m, 0 = nothing there
    alpha: np.ndarray  # [H, W] float32 0..1
    semantic: np.ndarray  # [H, W] int32 class index, 0 where the map is empty or unlabeled
    instance: np.ndarray  # [H, W] int32 public object id, 0 = none; also of what is too small yet to be listed


@dataclass(frozen=True)
class MapStats:
    """Counters and gauges of a mapper."""

    num_frames: int  # frames given to `integrate`
    num_keyframes: int
    num_gaussians: int
    num_objects: int  # as many as `objects` lists
    map_bytes: int  # memory of the map and of the keyframes, bytes
    losses: dict[str, float]  # last value of each loss, by name
    stage_ms: dict[str, float]  # median duration of each stage of `integrate`, ms
