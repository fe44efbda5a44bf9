"""Real 2D panoptic segmentation on a plain CPU, with 4 MB of weights."""

from __future__ import annotations

import cv2
import numpy as np

from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.model_store import find_model
from panoptic_mapper.segmenters.tiny_classes import TINY_LABEL_SPACE
from panoptic_mapper.segmenters.tiny_merge import merge_panoptic
from panoptic_mapper.segmenters.tiny_models import Detection, MosaicSemantic, YoloxDetector
from panoptic_mapper.segmenters.up_direction import UpDirection


class TinySegmenter:
    """MOSAIC R4 and YOLOX-nano, merged with the help of depth.

    Args:
        up: the map's up direction [3]; None = estimated from the first frame in which that is possible.
        model_dir: folder with the weights; empty = see `find_model`.
        score_threshold: least score of a box, 0..1.
        min_area_px: smallest segment, in pixels of a 640x480 image.
        num_threads: of the semantic network, which takes most of the time.

    Raises:
        ValueError: a run time is not installed, or the weights cannot be found or downloaded.
    """

    def __init__(
        self,
        up: np.ndarray | None = None,
        model_dir: str = "",
        score_threshold: float = 0.3,
        min_area_px: int = 400,
        num_threads: int = 2,
    ) -> None:
        self.label_space = TINY_LABEL_SPACE
        self._up = UpDirection(up)
        self._score_threshold = score_threshold
        self._min_area_px = min_area_px
        folder = model_dir or None
        self._semantic = MosaicSemantic(find_model("mosaic_r4", folder), num_threads)
        self._detector = YoloxDetector(find_model("yolox_nano_graph", folder), find_model("yolox_nano_weights", folder))

    def segment(self, frame: Frame) -> Segmentation:
        """Labels of the frame, from colour and depth."""
        mosaic, detections = self.predict(frame)
        return merge_panoptic(mosaic, detections, frame, self._up.in_map(frame), self._min_area_px)

    def predict(self, frame: Frame) -> tuple[np.ndarray, list[Detection]]:
        """What the networks see in the colour image: MOSAIC class of each pixel [H, W] uint8, and boxes."""
        size = (frame.camera.width, frame.camera.height)
        mosaic = cv2.resize(self._semantic(frame.color), size, interpolation=cv2.INTER_NEAREST)
        return mosaic, self._detector(frame.color, self._score_threshold)
