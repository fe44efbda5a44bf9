"""2D panoptic segmenters behind one protocol, chosen by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from panoptic_mapper.config import Config, param
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.segmenters.base import Segmenter, check_segmentation
from panoptic_mapper.segmenters.dataset import DatasetSegmenter
from panoptic_mapper.segmenters.geometric import GeometricSegmenter
from panoptic_mapper.segmenters.none import NoSegmenter
from panoptic_mapper.segmenters.topic import TopicSegmenter

__all__ = ["Segmenter", "SegmenterConfig", "check_segmentation", "create_segmenter"]


@dataclass(frozen=True)
class SegmenterConfig(Config):
    """Where the 2D panoptic labels come from."""

    name: Literal["dataset", "topic", "geometric", "none"] = param(
        "dataset",
        "source of the 2D labels: those of the sequence, a label image topic, shape alone, or none",
        choices=("dataset", "topic", "geometric", "none"),
    )
    seed: int = param(0, "dataset: seed of the instance permutation and of the label noise", ge=0)
    min_area_px: int = param(400, "geometric: smallest object, in pixels of a 640x480 image", ge=1)
    up: Literal["+x", "-x", "+y", "-y", "+z", "-z", "auto"] = param(
        "+z",
        "geometric: the map's axis that points up; auto = estimated from the first frame",
        choices=("+x", "-x", "+y", "-y", "+z", "-z", "auto"),
    )


def create_segmenter(
    config: SegmenterConfig, label_space: LabelSpace | None = None, up: np.ndarray | None = None
) -> Segmenter:
    """Builds the configured segmenter.

    Args:
        label_space: classes of the labels that come with the frames; needed by 'dataset' and 'topic'.
        up: the map's up direction [3], where it is known better than `config.up` says.

    Raises:
        ValueError: that label space is missing.
    """
    if config.name == "none":
        return NoSegmenter()
    if config.name == "geometric":
        return GeometricSegmenter(axis_vector(config.up) if up is None else up, config.min_area_px)
    if label_space is None:
        raise ValueError(f"segmenter '{config.name}': there is no label space; the sequence or topic has no labels")
    if config.name == "topic":
        return TopicSegmenter(label_space)
    return DatasetSegmenter(label_space, config.seed)


def axis_vector(axis: str) -> np.ndarray | None:
    """The unit vector [3] of "+x" .. "-z"; None for "auto"."""
    if axis == "auto":
        return None
    return np.eye(3)["xyz".index(axis[1])] * (1.0 if axis[0] == "+" else -1.0)
