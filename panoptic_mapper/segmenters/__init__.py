"""2D panoptic segmenters behind one protocol, chosen by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from panoptic_mapper.config import Config, param
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.segmenters.base import Segmenter, check_segmentation
from panoptic_mapper.segmenters.dataset import DatasetSegmenter
from panoptic_mapper.segmenters.none import NoSegmenter
from panoptic_mapper.segmenters.topic import TopicSegmenter

__all__ = ["Segmenter", "SegmenterConfig", "check_segmentation", "create_segmenter"]


@dataclass(frozen=True)
class SegmenterConfig(Config):
    """Where the 2D panoptic labels come from."""

    name: Literal["dataset", "topic", "none"] = param(
        "dataset",
        "source of the 2D labels: those of the sequence, a label image topic, or none",
        choices=("dataset", "topic", "none"),
    )
    seed: int = param(0, "seed of the instance permutation of 'dataset'", ge=0)


def create_segmenter(config: SegmenterConfig, label_space: LabelSpace | None = None) -> Segmenter:
    """Builds the configured segmenter.

    Args:
        label_space: classes of the labels that come with the frames; needed by 'dataset' and 'topic'.

    Raises:
        ValueError: that label space is missing.
    """
    if config.name == "none":
        return NoSegmenter()
    if label_space is None:
        raise ValueError(f"segmenter '{config.name}': there is no label space; the sequence or topic has no labels")
    if config.name == "topic":
        return TopicSegmenter(label_space)
    return DatasetSegmenter(label_space, config.seed)
