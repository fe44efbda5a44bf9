"""Instance networks that users exported to ONNX, merged with an optional semantic network to panoptic labels."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np

from panoptic_mapper.config import Config, param
from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.label_space import UNLABELED, LabelSpace, SemanticClass
from panoptic_mapper.label_spaces import class_table, load_label_space
from panoptic_mapper.segmenters.checkpoint import SPACE_BY_NUMBER, resolve_classes
from panoptic_mapper.segmenters.components import with_components
from panoptic_mapper.segmenters.onnx_heads import (
    Instances,
    read_rfdetr,
    read_semantic,
    read_yolo,
    recognized_head,
)
from panoptic_mapper.segmenters.onnx_session import OnnxNetwork, letterboxed, normalized, stretched

FRAME_PIXELS = 640 * 480  # for which areas are given
MIN_VISIBLE_SHARE = 0.5  # an instance that surer ones hide more than this is dropped
SEMANTIC_CONFIDENCE = 0.5  # of a semantic network that gives ids without probabilities
COCO_COUNTS = (80, 90, 91)  # COCO's things: in order, or by their ids, which have gaps
COCO = "coco_panoptic"


@dataclass(frozen=True)
class OnnxConfig(Config):
    """Settings of the segmenter 'onnx'."""

    model: str = param("", "ONNX file of an instance network: YOLO-seg or RF-DETR-Seg")
    head: Literal["auto", "yolo", "rfdetr"] = param(
        "auto", "how its outputs are read; auto = by their shapes", choices=("auto", "yolo", "rfdetr")
    )
    label_space: str = param(
        "", "name or file of the space of its classes; empty = by the names in the file, or COCO's"
    )
    semantic_model: str = param("", "ONNX file of a semantic network for what is no instance; empty = none")
    semantic_label_space: str = param("", "name or file of the space of its classes; empty = by names or number")
    semantic_numbers: Literal["imagenet", "unit", "bytes"] = param(
        "imagenet",
        "what the semantic network takes: ImageNet's mean and std removed, 0..1, or 0..255",
        choices=("imagenet", "unit", "bytes"),
    )
    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = param(
        "auto",
        "what of onnxruntime runs them; auto = cuda where it is there, else cpu",
        choices=("auto", "cpu", "cuda", "tensorrt"),
    )
    min_score: float = param(0.3, "least score of an instance", ge=0.0, le=1.0)


class OnnxSegmenter:
    """An instance network, a semantic one or both.

    Args:
        min_area_px: smallest segment, in pixels of a 640x480 image.

    Raises:
        ValueError: no file is named, one is missing or not understood, its classes are unknown, or onnxruntime or its
            provider is missing.
    """

    def __init__(self, config: OnnxConfig, min_area_px: int) -> None:
        if not config.model and not config.semantic_model:
            raise ValueError("segmenter 'onnx': name your ONNX file in segmenter.onnx.model")
        self._config = config
        self._min_area_px = min_area_px
        probe = np.zeros((480, 640, 3), np.uint8)  # tells what comes out, and warms the run time up
        instance_space = semantic_space = None
        if config.model:
            self._instances = OnnxNetwork(config.model, config.provider)
            outputs = self._instances(np.zeros((*self._instances.input_size, 3), self._instances.dtype))
            head = recognized_head([o.ndim for o in outputs]) if config.head == "auto" else config.head
            self._is_yolo = head == "yolo"
            num_classes = self._find_instances(probe)[1]
            instance_space, self._index_of_instance = numbered_classes(
                self._instances.class_names, num_classes, config.label_space, in_order=self._is_yolo
            )
        if config.semantic_model:
            self._semantic = OnnxNetwork(config.semantic_model, config.provider)
            num_classes = self._classify(probe)[2]
            semantic_space, self._index_of_semantic = numbered_classes(
                self._semantic.class_names, num_classes, config.semantic_label_space
            )
        if instance_space is not None and semantic_space is not None:
            self.label_space, of_instance, of_semantic = joined_spaces(instance_space, semantic_space)
            self._index_of_instance = of_instance[self._index_of_instance]
            self._index_of_semantic = of_semantic[self._index_of_semantic]
        else:
            self.label_space = instance_space or semantic_space  # type: ignore[assignment]  # one is there

    def segment(self, frame: Frame) -> Segmentation:
        """The frame's labels, from its colour alone."""
        size = frame.color.shape[:2]
        semantic = np.zeros(size, np.int32)
        confidence = np.zeros(size, np.float32)
        if self._config.semantic_model:
            numbers, probability, _ = self._classify(frame.color)
            semantic = looked_up(self._index_of_semantic, numbers)
            confidence = np.where(semantic > 0, SEMANTIC_CONFIDENCE if probability is None else probability, 0)
        labels = Segmentation(semantic, np.zeros(size, np.int32), confidence.astype(np.float32))
        min_area_px = max(1, round(self._min_area_px * size[0] * size[1] / FRAME_PIXELS))
        if self._config.model:
            found = self._find_instances(frame.color)[0]
            found = dataclasses.replace(found, classes=looked_up(self._index_of_instance, found.classes))
            labels = with_instances(labels, found, self.label_space.is_thing, min_area_px)
        things = np.flatnonzero(self.label_space.is_thing)
        instance = with_components(labels.semantic, labels.instance, things, min_area_px)
        return dataclasses.replace(labels, instance=instance)

    def _find_instances(self, color: np.ndarray) -> tuple[Instances, int]:
        network, size = self._instances, (color.shape[0], color.shape[1])
        if self._is_yolo:
            image, placement = letterboxed(color, network.input_size)
            return read_yolo(network(normalized(image, "unit")), placement, size, self._config.min_score)
        image, placement = stretched(color, network.input_size)
        return read_rfdetr(network(normalized(image, "imagenet")), placement, size, self._config.min_score)

    def _classify(self, color: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, int]:
        network = self._semantic
        image, placement = stretched(color, network.input_size)
        numbers = "bytes" if network.dtype == np.uint8 else self._config.semantic_numbers
        return read_semantic(network(normalized(image, numbers))[0], placement, color.shape[:2])


def with_instances(labels: Segmentation, found: Instances, is_thing: np.ndarray, min_area_px: int) -> Segmentation:
    """Labels with instances laid over them, surest first; found.classes are indices of the label space.

    An instance keeps the pixels that no surer one has; it is dropped where these are too few, or if it is no thing.
    """
    semantic, instance = labels.semantic.copy(), labels.instance.copy()
    confidence = np.ones(semantic.shape, np.float32) if labels.confidence is None else labels.confidence.copy()
    number = 0
    for index, score, mask in zip(found.classes, found.scores, found.masks, strict=True):
        free = mask & (instance == 0)
        area = int(free.sum())
        if not is_thing[index] or area < min_area_px or area < MIN_VISIBLE_SHARE * mask.sum():
            continue
        number += 1
        semantic[free], instance[free], confidence[free] = index, number, score
    return Segmentation(semantic, instance, confidence)


def looked_up(table: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Indices (int32) of a network's numbers; UNLABELED for those beyond the table."""
    is_known = (numbers >= 0) & (numbers < len(table))
    return np.where(is_known, table[np.where(is_known, numbers, 0)], UNLABELED).astype(np.int32)


def numbered_classes(
    names: tuple[str, ...], num_classes: int, label_space: str, in_order: bool = False
) -> tuple[LabelSpace, np.ndarray]:
    """The label space of a network, and the index in it of each of the network's numbers (int32).

    Args:
        names: of the network's classes, where its file has them.
        num_classes: that it tells apart; 0 = not known, it gives ids.
        label_space: name or file of its space; empty = found by the names or the number.
        in_order: its numbers 0, 1, ... are the first classes of the space, as YOLO's; else they may be the space's ids.

    Raises:
        ValueError: the space cannot be found, or has other classes.
    """
    if names:
        return resolve_classes(names, label_space)
    if not label_space:
        label_space = COCO if num_classes in COCO_COUNTS else SPACE_BY_NUMBER.get(num_classes, "")
    if not label_space:
        raise ValueError("the ONNX file does not say what its classes are called; give the setting label_space")
    space = load_label_space(label_space)
    known = len(space) - 1
    is_coco = space.name == COCO and num_classes in COCO_COUNTS
    if num_classes == known or (in_order and num_classes <= known) or (is_coco and num_classes == COCO_COUNTS[0]):
        return space, np.arange(1, (num_classes or known) + 1, dtype=np.int32)
    if num_classes == known + 1:  # the first is "other" or "background"
        return space, np.arange(known + 1, dtype=np.int32)
    if not in_order and (num_classes == 0 or num_classes > space.ids.max() or is_coco):
        return space, space.indices_from_ids(np.arange(max(num_classes, int(space.ids.max()) + 1)))
    raise ValueError(
        f"label space '{label_space}' has {known} classes, ids up to {space.ids.max()}; the network has {num_classes}"
    )


def joined_spaces(instances: LabelSpace, semantic: LabelSpace) -> tuple[LabelSpace, np.ndarray, np.ndarray]:
    """One space of two networks' classes, and the index in it of each index of the first and of the second.

    It has the semantic network's classes, and those things of the instance network that it lacks.
    """
    if instances == semantic:
        same = np.arange(len(semantic), dtype=np.int32)
        return semantic, same, same
    table = class_table(instances, semantic)
    table[~semantic.is_thing[table]] = UNLABELED
    classes, words = list(semantic.classes[1:]), {name.lower() for name in semantic.names}
    free_id = int(semantic.ids.max()) + 1
    for index, c in enumerate(instances.classes[1:], start=1):
        if table[index] != UNLABELED or not c.is_thing:
            continue
        name = c.name if c.name.lower() not in words else f"{c.name} (instance)"
        classes.append(SemanticClass(free_id, name, True, c.synonyms, c.color))
        table[index] = len(classes)
        free_id += 1
    return LabelSpace.from_classes(classes), table, np.arange(len(semantic), dtype=np.int32)
