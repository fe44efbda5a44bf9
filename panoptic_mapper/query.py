"""Which objects of a map fulfil a set of conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from panoptic_mapper.frame import checked_pose
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.snapshot import MapObject


@dataclass(frozen=True)
class BoxRegion:
    """A box with its own axes."""

    T_map_box: np.ndarray  # [4, 4]
    size: np.ndarray  # [3] full edge lengths, m

    def __post_init__(self) -> None:
        size = _checked_vector("box_size", self.size)
        if not np.all(size > 0):
            raise ValueError(f"box_size: expected three lengths > 0, got {size.tolist()}")
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "T_map_box", checked_pose(self.T_map_box))

    def contains(self, point: np.ndarray) -> bool:
        local = self.T_map_box[:3, :3].T @ (point - self.T_map_box[:3, 3])
        return bool(np.all(np.abs(local) <= self.size / 2))


@dataclass(frozen=True)
class SphereRegion:
    """A ball."""

    center: np.ndarray  # [3] map frame, m
    radius: float  # m

    def __post_init__(self) -> None:
        object.__setattr__(self, "center", _checked_vector("sphere_center", self.center))
        if not (np.isfinite(self.radius) and self.radius > 0):
            raise ValueError(f"sphere_radius: expected a finite length > 0, got {self.radius}")

    def contains(self, point: np.ndarray) -> bool:
        return float(np.linalg.norm(point - self.center)) <= self.radius


@dataclass(frozen=True)
class ObjectQuery:
    """Conditions that must all hold; the default has none. Places are tested with an object's centroid."""

    class_names: Sequence[str] = ()  # any case; empty = any class
    class_indices: Sequence[int] | None = None  # beside the names, the class must be one of these; None = any
    ids: Sequence[int] = ()  # empty = any
    box: BoxRegion | None = None
    sphere: SphereRegion | None = None
    min_score: float = 0.0
    nearest_k: int = 0  # 0 = all
    nearest_to: np.ndarray | None = None  # [3] map frame, m; None = the origin

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score: expected a value in 0..1, got {self.min_score}")
        if self.nearest_k < 0:
            raise ValueError(f"nearest_k: expected >= 0 (0 = all), got {self.nearest_k}")
        if self.nearest_to is not None:
            object.__setattr__(self, "nearest_to", _checked_vector("nearest_to", self.nearest_to))


def select_objects(objects: Sequence[MapObject], query: ObjectQuery, label_space: LabelSpace) -> tuple[MapObject, ...]:
    """The objects that fulfil `query`: nearest first where `nearest_k` is given, else by ascending id.

    Raises:
        ValueError: a class name is unknown; the known ones are listed.
    """
    classes = {label_space.index_of(name) for name in query.class_names}

    def fulfils(o: MapObject) -> bool:
        return (
            (not classes or o.class_index in classes)
            and (query.class_indices is None or o.class_index in query.class_indices)
            and (not query.ids or o.id in query.ids)
            and (query.box is None or query.box.contains(o.centroid))
            and (query.sphere is None or query.sphere.contains(o.centroid))
            and o.score >= query.min_score
        )

    found = sorted((o for o in objects if fulfils(o)), key=lambda o: o.id)
    if query.nearest_k == 0:
        return tuple(found)
    target = np.zeros(3) if query.nearest_to is None else query.nearest_to
    return tuple(sorted(found, key=lambda o: float(np.linalg.norm(o.centroid - target)))[: query.nearest_k])


def unknown_ids(objects: Sequence[MapObject], query: ObjectQuery) -> list[int]:
    """The ids that were asked for and that no object has: no error, but worth saying in an answer."""
    return sorted(set(query.ids) - {o.id for o in objects})


def _checked_vector(name: str, values: np.ndarray) -> np.ndarray:
    vector = np.asarray(values, np.float64)
    if vector.shape != (3,) or not np.all(np.isfinite(vector)):
        raise ValueError(f"{name}: expected three finite numbers, got {vector.tolist()}")
    return vector
