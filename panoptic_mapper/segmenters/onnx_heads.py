"""The outputs of instance and semantic networks, read as masks and class images.

YOLO-seg   boxes, class scores and mask coefficients [1, 4 + C + M, A] with prototypes [1, M, h, w]; or, where
           suppression is part of the network, [1, N, 6 + M] (corners, score, class, coefficients)
RF-DETR    boxes [1, Q, 4] (centre and size in 0..1), class logits [1, Q, C], mask logits [1, Q, h, w]
semantic   logits [1, C, h, w], or class ids [1, h, w] or [1, 1, h, w]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from panoptic_mapper.segmenters.onnx_session import Placement

NMS_IOU = 0.7
MAX_INSTANCES = 100
Head = Literal["yolo", "rfdetr"]


@dataclass(frozen=True)
class Instances:
    """Masks that a network found, in the image, surest first."""

    classes: np.ndarray  # [K] int, numbers of the network
    scores: np.ndarray  # [K] float32 0..1
    masks: np.ndarray  # [K, H, W] bool; they may overlap


def recognized_head(ranks: list[int]) -> Head:
    """Which head gives outputs of these numbers of dimensions.

    Raises:
        ValueError: none does.
    """
    if sorted(ranks) == [3, 4]:
        return "yolo"
    if sorted(ranks) == [3, 3, 4]:
        return "rfdetr"
    raise ValueError(
        f"outputs with {ranks} dimensions are neither those of YOLO-seg (3 and 4) nor of RF-DETR-Seg (3, 3 and 4)"
    )


def read_yolo(
    outputs: list[np.ndarray], placement: Placement, size: tuple[int, int], min_score: float
) -> tuple[Instances, int]:
    """Instances in an image of `size` (H, W), and the number of the network's classes (0 = unknown)."""
    predictions = next(o for o in outputs if o.ndim == 3)[0].astype(np.float32)
    prototypes = next(o for o in outputs if o.ndim == 4)[0].astype(np.float32)  # [M, h, w]
    num_coefficients = len(prototypes)
    if predictions.shape[1] == 6 + num_coefficients:
        boxes, scores, classes = predictions[:, :4], predictions[:, 4], predictions[:, 5].astype(np.int64)
        coefficients, num_classes = predictions[:, 6:], 0
        kept = _surest(scores, min_score)
    else:
        predictions = predictions.T  # [A, 4 + C + M]
        num_classes = predictions.shape[1] - 4 - num_coefficients
        if num_classes < 1:
            raise ValueError(f"YOLO-seg: {predictions.shape[1]} numbers per box do not fit {num_coefficients} masks")
        class_scores = predictions[:, 4 : 4 + num_classes]
        classes, scores = class_scores.argmax(1), class_scores.max(1)
        boxes = _corners(predictions[:, :4])
        coefficients = predictions[:, 4 + num_classes :]
        kept = _suppressed(boxes, scores, classes, min_score)
    logits = np.tensordot(coefficients[kept], prototypes, axes=1)  # [K, h, w]
    masks = _in_image(logits, placement, size) & _box_masks(_boxes_in_image(boxes[kept], placement, size), size)
    return Instances(classes[kept], scores[kept], masks), num_classes


def read_rfdetr(
    outputs: list[np.ndarray], placement: Placement, size: tuple[int, int], min_score: float
) -> tuple[Instances, int]:
    """Instances in an image of `size` (H, W), and the number of the network's classes."""
    mask_logits = next(o for o in outputs if o.ndim == 4)[0].astype(np.float32)  # [Q, h, w]
    flat = [o[0].astype(np.float32) for o in outputs if o.ndim == 3]
    # Boxes come first in the exports; with four classes both outputs look the same.
    class_logits = flat[1] if flat[0].shape[1] == 4 else flat[0]  # [Q, C]
    if len(class_logits) != len(mask_logits):
        raise ValueError(f"RF-DETR-Seg: {len(class_logits)} classes for {len(mask_logits)} masks")
    probabilities = 1 / (1 + np.exp(-class_logits))
    classes, scores = probabilities.argmax(1), probabilities.max(1)
    kept = _surest(scores, min_score)
    masks = _in_image(mask_logits[kept], placement, size)
    return Instances(classes[kept], scores[kept], masks), class_logits.shape[1]


def read_semantic(
    output: np.ndarray, placement: Placement, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Class numbers [H, W] of an image of `size`, their probabilities (None if unknown), and the number of classes.

    The number of classes is 0 for outputs that are class ids already.
    """
    if output.ndim == 4 and output.shape[1] > 1:
        logits = np.stack([_placed(channel, placement, size) for channel in output[0].astype(np.float32)])
        numbers = logits.argmax(0)
        top = logits.max(0)
        return numbers, 1 / np.exp(logits - top).sum(0), len(logits)
    ids = output.reshape(output.shape[-2:]).astype(np.int32)
    return _placed(ids.astype(np.float32), placement, size, cv2.INTER_NEAREST).astype(np.int32), None, 0


def _surest(scores: np.ndarray, min_score: float) -> np.ndarray:
    order = np.argsort(-scores, kind="stable")[:MAX_INSTANCES]
    return order[scores[order] > min_score]


def _suppressed(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, min_score: float) -> np.ndarray:
    candidates = np.flatnonzero(scores > min_score)
    if len(candidates) == 0:
        return candidates
    x0y0, x1y1 = boxes[candidates, :2], boxes[candidates, 2:]
    rectangles = np.concatenate([x0y0, x1y1 - x0y0], axis=1)
    chosen = cv2.dnn.NMSBoxesBatched(
        rectangles.tolist(), scores[candidates].tolist(), classes[candidates].tolist(), min_score, NMS_IOU
    )
    kept = candidates[np.asarray(chosen, dtype=np.int64).reshape(-1)]
    return kept[np.argsort(-scores[kept], kind="stable")][:MAX_INSTANCES]


def _corners(boxes: np.ndarray) -> np.ndarray:
    """Centre and size to corners, [A, 4]."""
    centers, halves = boxes[:, :2], boxes[:, 2:] / 2
    return np.concatenate([centers - halves, centers + halves], axis=1)


def _boxes_in_image(boxes: np.ndarray, placement: Placement, size: tuple[int, int]) -> np.ndarray:
    """Corners [K, 4] (x0, y0, x1, y1) in pixels of the image, of corners in pixels of the input."""
    (top, left), (rows, columns) = placement.top_left, placement.content_size
    scale = np.array([size[1] / columns, size[0] / rows] * 2)
    return (boxes - np.array([left, top] * 2)) * scale


def _box_masks(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[K, H, W] bool: pixels whose centre is inside the box."""
    y, x = np.arange(size[0])[:, None] + 0.5, np.arange(size[1])[None] + 0.5
    x0, y0, x1, y1 = (side[:, None, None] for side in boxes.T)
    return (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)


def _in_image(logits: np.ndarray, placement: Placement, size: tuple[int, int]) -> np.ndarray:
    """Masks [K, H, W] bool of the image, of mask logits [K, h, w] of the whole input."""
    return np.array([_placed(mask, placement, size) > 0 for mask in logits], bool).reshape(-1, *size)


def _placed(
    image: np.ndarray, placement: Placement, size: tuple[int, int], interpolation: int = cv2.INTER_LINEAR
) -> np.ndarray:
    """A float32 image [h, w] that covers the whole input, resampled at the pixels of the image [H, W]."""
    (top, left), (rows, columns) = placement.top_left, placement.content_size
    sy, sx = image.shape[0] / placement.input_size[0], image.shape[1] / placement.input_size[1]
    # Pixel centres of the image, in pixels of `image`, whose centres are at whole numbers.
    y = (top + (np.arange(size[0]) + 0.5) * rows / size[0]) * sy - 0.5
    x = (left + (np.arange(size[1]) + 0.5) * columns / size[1]) * sx - 0.5
    grid_x, grid_y = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    return cv2.remap(image, grid_x, grid_y, interpolation, borderMode=cv2.BORDER_REPLICATE)
