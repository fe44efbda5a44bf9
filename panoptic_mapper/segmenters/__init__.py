"""2D panoptic segmenters behind one protocol, chosen by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from panoptic_mapper.config import Config, param, section
from panoptic_mapper.datasets.noise import NOISE_LEVELS, NoiseConfig
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.label_spaces import load_label_space
from panoptic_mapper.segmenters.background import BackgroundConfig, BackgroundSegmenter
from panoptic_mapper.segmenters.base import Segmenter, check_segmentation
from panoptic_mapper.segmenters.dataset import DatasetSegmenter
from panoptic_mapper.segmenters.geometric import GeometricSegmenter
from panoptic_mapper.segmenters.grounded_sam import GroundedSamConfig
from panoptic_mapper.segmenters.huggingface import HuggingfaceConfig, HuggingfaceSegmenter
from panoptic_mapper.segmenters.none import NoSegmenter
from panoptic_mapper.segmenters.onnx import OnnxConfig, OnnxSegmenter
from panoptic_mapper.segmenters.tiny import TinySegmenter
from panoptic_mapper.segmenters.topic import TopicSegmenter
from panoptic_mapper.segmenters.translated import TranslatedSegmenter

__all__ = ["Segmenter", "SegmenterConfig", "check_segmentation", "create_background_segmenter", "create_segmenter"]

FAST = ("dataset", "topic", "geometric", "none")  # segmenters for which a frame can wait


@dataclass(frozen=True)
class SegmenterConfig(Config):
    """Where the 2D panoptic labels come from."""

    name: Literal["dataset", "topic", "huggingface", "onnx", "tiny", "geometric", "grounded_sam", "none"] = param(
        "dataset",
        "source of the 2D labels: those of the sequence, a label image topic, a panoptic network of the Hugging Face"
        " hub, your ONNX files, small networks, shape alone, words, or none",
        choices=("dataset", "topic", "huggingface", "onnx", "tiny", "geometric", "grounded_sam", "none"),
    )
    seed: int = param(0, "dataset: seed of the instance permutation and of the label noise", ge=0)
    noise: Literal["clean", "moderate", "hard"] = param(
        "clean", "dataset: how wrong the labels are made", choices=tuple(NOISE_LEVELS)
    )
    model_dir: str = param("", "tiny: folder with the weights; empty = $PANOPTIC_MAPPER_MODELS, the cache, or download")
    score_threshold: float = param(0.3, "tiny: least score of a detected box", ge=0.05, le=1.0)
    num_threads: int = param(2, "tiny: threads of the semantic network", ge=1)
    huggingface: HuggingfaceConfig = section(HuggingfaceConfig)
    onnx: OnnxConfig = section(OnnxConfig)
    min_area_px: int = param(
        400,
        "tiny, geometric, onnx, grounded_sam and output_space: smallest segment, in pixels of a 640x480 image",
        ge=1,
    )
    output_space: str = param(
        "", "name or file of the label space that labels are translated to; empty = that of the segmenter"
    )
    run: Literal["auto", "inline", "process"] = param(
        "auto",
        "inline: frames wait for their labels; process: labels come later, from a process of their own;"
        " auto = process in the node for models, inline elsewhere",
        choices=("auto", "inline", "process"),
    )
    background: BackgroundConfig = section(BackgroundConfig)
    grounded_sam: GroundedSamConfig = section(GroundedSamConfig)


def create_background_segmenter(
    config: SegmenterConfig, label_space: LabelSpace | None = None, up: np.ndarray | None = None
) -> BackgroundSegmenter:
    """The same as `create_segmenter`, in a process of its own; its labels come later.

    Raises:
        ValueError: as `create_segmenter`.
    """
    return BackgroundSegmenter(partial(create_segmenter, config, label_space, up), config.background)


def create_segmenter(
    config: SegmenterConfig, label_space: LabelSpace | None = None, up: np.ndarray | None = None
) -> Segmenter:
    """Builds the configured segmenter.

    Args:
        label_space: classes of the labels that come with the frames; needed by 'dataset' and 'topic'.
        up: the map's up direction [3], for 'tiny' and 'geometric'; None = estimated from the first frames.

    Raises:
        ValueError: that label space is missing, or a run time, the weights or the classes of a network are.
    """
    segmenter = _create_untranslated(config, label_space, up)
    if not config.output_space:
        return segmenter
    return TranslatedSegmenter(segmenter, load_label_space(config.output_space), config.min_area_px)


def _create_untranslated(config: SegmenterConfig, label_space: LabelSpace | None, up: np.ndarray | None) -> Segmenter:
    if config.name == "none":
        return NoSegmenter()
    if config.name == "geometric":
        return GeometricSegmenter(up, config.min_area_px)
    if config.name == "tiny":
        return TinySegmenter(up, config.model_dir, config.score_threshold, config.min_area_px, config.num_threads)
    if config.name == "huggingface":
        return HuggingfaceSegmenter(config.huggingface)
    if config.name == "onnx":
        return OnnxSegmenter(config.onnx, config.min_area_px)
    if config.name == "grounded_sam":
        from panoptic_mapper.segmenters.grounded_sam_models import create_grounded_sam

        return create_grounded_sam(config.grounded_sam, config.min_area_px)
    if label_space is None:
        raise ValueError(f"segmenter '{config.name}': there is no label space; the sequence or topic has no labels")
    if config.name == "topic":
        return TopicSegmenter(label_space)
    return DatasetSegmenter(label_space, config.seed, NoiseConfig.from_level(config.noise))
