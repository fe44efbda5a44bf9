"""Open vocabulary: words to boxes by Grounding DINO, boxes to masks by SAM, masks to one label image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from panoptic_mapper.config import Config, param
from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.segmenters.mask_merge import merge_masks, without_duplicates
from panoptic_mapper.vocabulary import label_space_of_words

REFERENCE_PX = 640 * 480  # the image size that `min_area_px` is meant for

INDOOR_THINGS = (
    *("chair", "couch|sofa", "armchair", "table", "desk", "bed", "cabinet|cupboard", "shelf|bookcase", "drawer"),
    *("door", "window", "lamp", "picture|painting", "mirror", "television|tv", "monitor|computer screen", "laptop"),
    *("refrigerator|fridge", "oven|stove", "sink", "toilet", "bathtub", "potted plant", "box", "bag", "pillow", "book"),
    *("bottle", "cup|mug", "bowl", "person"),
)
INDOOR_STUFF = ("floor", "wall", "ceiling", "curtain", "rug|carpet")


@dataclass(frozen=True)
class GroundedSamConfig(Config):
    """Words, models and thresholds of the segmenter "grounded_sam"."""

    things: tuple[str, ...] = param(INDOOR_THINGS, "countable words to look for; synonyms are divided by |")
    stuff: tuple[str, ...] = param(INDOOR_STUFF, "uncountable words to look for")
    detector: str = param(
        "IDEA-Research/grounding-dino-tiny", "Grounding DINO: hub id (owner/name or owner/name@commit) or folder"
    )
    masker: str = param(
        "facebook/sam2.1-hiera-tiny", "SAM 2 or SAM: hub id (owner/name or owner/name@commit) or folder"
    )
    offline: bool = param(False, "never ask the network: the models must be in the cache or in folders")
    box_threshold: float = param(0.3, "least score of a box", ge=0, le=1)
    max_box_share: float = param(0.8, "boxes of things that cover more of the image are dropped", gt=0, le=1)
    max_box_iou: float = param(0.7, "of two boxes that overlap more, the surer is kept", gt=0, le=1)
    max_boxes: int = param(64, "most boxes of an image that get masks, the surest", ge=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = param(
        "auto", "auto = bf16 on CUDA, else fp32", choices=("auto", "fp32", "bf16", "fp16")
    )
    device: Literal["auto", "cpu", "cuda"] = param(
        "auto", "where the models run; auto = cuda where there is a GPU", choices=("auto", "cpu", "cuda")
    )


@dataclass(frozen=True)
class Boxes:
    """What a detector found in an image."""

    boxes: np.ndarray  # [K, 4] float32 x0, y0, x1, y1 in px
    scores: np.ndarray  # [K] float32 0..1
    phrases: np.ndarray  # [K] int64, number of the phrase


class Detector(Protocol):
    """Finds phrases in an image."""

    def detect(self, color: np.ndarray, phrases: Sequence[str], threshold: float) -> Boxes: ...


class Masker(Protocol):
    """Makes masks [K, H, W] bool of boxes [K, 4] in an image [H, W, 3]; K > 0."""

    def masks(self, color: np.ndarray, boxes: np.ndarray) -> np.ndarray: ...


class GroundedSamSegmenter:
    """Finds the words of its vocabulary, which may be changed between two frames.

    Args:
        min_area_px: smallest segment, in pixels of a 640x480 image.
    """

    def __init__(self, detector: Detector, masker: Masker, config: GroundedSamConfig, min_area_px: int) -> None:
        self._detector, self._masker, self._config, self._min_area_px = detector, masker, config, min_area_px
        self.set_vocabulary(config.things, config.stuff)

    def set_vocabulary(self, things: Sequence[str], stuff: Sequence[str]) -> None:
        """Looks for other words from the next frame on.

        Raises:
            ValueError: a word is wrong; the words are as before.
        """
        self.label_space: LabelSpace = label_space_of_words(things, stuff)
        words = [(word, i) for i, c in enumerate(self.label_space.classes[1:], 1) for word in (c.name, *c.synonyms)]
        self._phrases = [word for word, _ in words]
        self._classes = np.array([index for _, index in words])  # of each phrase

    def segment(self, frame: Frame) -> Segmentation:
        """Labels of all that was found; the rest of the image stays unlabeled."""
        found = self._chosen(self._detector.detect(frame.color, self._phrases, self._config.box_threshold), frame)
        shape = frame.depth.shape
        if len(found.boxes) == 0:
            return Segmentation(np.zeros(shape, np.int32), np.zeros(shape, np.int32))
        masks = self._masker.masks(frame.color, found.boxes)
        min_area_px = self._min_area_px * frame.depth.size / REFERENCE_PX
        # The detector's scores are products of many doubts: right boxes have 0.3 to 0.6. The map wants a probability.
        confidence = np.sqrt(found.scores)
        is_thing = self.label_space.is_thing
        return merge_masks(masks, confidence, self._classes[found.phrases], is_thing, min_area_px)

    def _chosen(self, found: Boxes, frame: Frame) -> Boxes:
        """Without empty, oversize and double boxes, and not too many; cut at the image's borders."""
        height, width = frame.depth.shape
        boxes = found.boxes.clip(0, (width, height, width, height)).astype(np.float32)
        size = boxes[:, 2:] - boxes[:, :2]
        is_thing = self.label_space.is_thing[self._classes[found.phrases]]
        fits = (size >= 1).all(1) & (~is_thing | (size.prod(1) <= self._config.max_box_share * height * width))
        rows = np.flatnonzero(fits)
        rows = rows[without_duplicates(boxes[rows], found.scores[rows], self._config.max_box_iou)]
        rows = rows[: self._config.max_boxes]
        return Boxes(boxes[rows], found.scores[rows], found.phrases[rows])
