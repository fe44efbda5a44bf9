"""A mapper without a method: it remembers frames and shows two fixed objects. For tests of what is around a mapper."""

from __future__ import annotations

from typing import Any

import numpy as np

from panoptic_mapper.frame import Frame, PinholeCamera
from panoptic_mapper.label_space import LabelSpace, SemanticClass
from panoptic_mapper.mapper import MapperConfig
from panoptic_mapper.segmenters.none import NoSegmenter
from panoptic_mapper.snapshot import Box, MapObject, MapSnapshot, MapStats, PanopticView
from panoptic_mapper.vocabulary import label_space_of_words

LABEL_SPACE = LabelSpace.from_classes([SemanticClass(40, "wall", False), SemanticClass(5, "chair", True)])


def make_object(id_: int, centroid: tuple[float, float, float]) -> MapObject:
    c = np.array(centroid, dtype=np.float64)
    box = Box(c, np.full(3, 0.5), np.array([1.0, 0, 0, 0]))
    return MapObject(id_, 2, "chair", 0.9, 3, c, box, c - 0.25, c + 0.25, 10, 0, 1)


class FakeMapper:
    """The public interface of `PanopticMapper`."""

    label_space = LABEL_SPACE
    config = MapperConfig()
    segmenter = NoSegmenter(LABEL_SPACE)

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.all_objects = (make_object(1, (0, 0, 0)), make_object(4, (3, 0, 0)))
        self.loaded: dict[str, Any] = {}

    @property
    def last_stamp_ns(self) -> int:
        return self.frames[-1].stamp_ns if self.frames else 0

    def integrate(self, frame: Frame, waited_s: float) -> str:
        self.frames.append(frame)
        return "integrated"

    def refine(self, num_steps: int) -> None:
        pass

    def objects(self) -> tuple[MapObject, ...]:
        return self.all_objects

    def snapshot(self) -> MapSnapshot:
        points, colors = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.uint8)
        ids = np.array([1, 4], np.int32)
        classes, confidences = np.full(2, 2, np.int32), np.ones(2, np.float32)
        return MapSnapshot(self.last_stamp_ns, points, colors, classes, ids, confidences, self.all_objects, LABEL_SPACE)

    def begin_snapshot(self):
        return self.snapshot

    def render(self, camera: PinholeCamera, T_map_camera: np.ndarray) -> PanopticView:
        size = (camera.height, camera.width)
        x_m = np.float32(T_map_camera[0, 3])
        classes, instances = np.full(size, 2, np.int32), np.full(size, 70000, np.int32)
        return PanopticView(
            np.full((*size, 3), 7, np.uint8), np.full(size, x_m), np.ones(size, np.float32), classes, instances
        )

    def stats(self) -> MapStats:
        return MapStats(len(self.frames), 1, 2, len(self.all_objects), 100, {"rgb": 0.5}, {})

    def export_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {"means": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"num_objects": len(self.all_objects)}

    def restore_state(self, tensors: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        self.all_objects = ()  # like a mapper that notices an error halfway
        if "means" not in tensors:
            raise ValueError("map: 'means' is missing")
        self.all_objects = tuple(make_object(i + 1, (i, 0, 0)) for i in range(meta["num_objects"]))
        self.loaded = {"tensors": tensors, "meta": meta}

    def set_vocabulary(self, things: list[str], stuff: list[str]) -> None:
        self.label_space = self.label_space.extended(label_space_of_words(things, stuff))

    def reset(self) -> None:
        self.frames.clear()
        self.all_objects = ()
