"""The two networks of the `tiny` segmenter: MOSAIC R4 (semantic, through LiteRT) and YOLOX-nano (boxes, through ncnn).

Both run on a plain CPU. Their run times are imported when a network is made, not before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# MOSAIC R4's classes, the top 31 of ADE20K and "other", in the order of its outputs.
_MOSAIC_NAMES = (
    "other wall building sky floor tree ceiling road bed windowpane grass cabinet sidewalk person earth door table"
    " mountain plant curtain chair car water painting sofa shelf house sea mirror rug field armchair"
)
# COCO's classes, in the order of YOLOX's outputs.
_COCO_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
MOSAIC_CLASSES = tuple(_MOSAIC_NAMES.split())
COCO_CLASSES = tuple(_COCO_NAMES.split(","))

MOSAIC_SIZE_PX = 512  # square input and output
YOLOX_SIZE_PX = 416  # square input
YOLOX_STRIDES = (8, 16, 32)
PADDING_GRAY = 114  # what YOLOX was trained with around letterboxed images
NMS_IOU = 0.5
INSTALL_HINT = "pip install ai-edge-litert ncnn"


@dataclass(frozen=True)
class Detection:
    """One box of the detector."""

    class_index: int  # in COCO_CLASSES
    score: float  # 0..1
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 px of the image, may reach beyond it


class MosaicSemantic:
    """Semantic segmentation into `MOSAIC_CLASSES`."""

    def __init__(self, weights: Path, num_threads: int) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise ValueError(f"segmenter 'tiny' needs ai-edge-litert ({error}); {INSTALL_HINT}") from error
        self._interpreter = Interpreter(model_path=str(weights), num_threads=num_threads)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]

    def __call__(self, color: np.ndarray) -> np.ndarray:
        """Class indices [512, 512] uint8 of an RGB image [H, W, 3] uint8 that is stretched to the square."""
        square = cv2.resize(color, (MOSAIC_SIZE_PX, MOSAIC_SIZE_PX), interpolation=cv2.INTER_AREA)
        self._interpreter.set_tensor(self._input, square[None])
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output)[0].astype(np.uint8)


class YoloxDetector:
    """Box detection of `COCO_CLASSES`."""

    def __init__(self, graph: Path, weights: Path) -> None:
        try:
            import ncnn
        except ImportError as error:
            raise ValueError(f"segmenter 'tiny' needs ncnn ({error}); {INSTALL_HINT}") from error
        self._ncnn: Any = ncnn
        self._net = ncnn.Net()
        # OpenMP threads wait for each other by spinning: on a busy machine, two took a hundred times as long as one.
        self._net.opt.num_threads = 1
        text, self._input = without_focus(Path(graph).read_text())
        if self._net.load_param_mem(text) != 0 or self._net.load_model(str(weights)) != 0:
            raise ValueError(f"ncnn cannot load {graph} with {weights}")

    def __call__(self, color: np.ndarray, score_threshold: float) -> list[Detection]:
        """Boxes with at least `score_threshold` in an RGB image [H, W, 3] uint8."""
        image, scale = letterbox(color[..., ::-1], YOLOX_SIZE_PX)  # trained on BGR, 0..255
        blob = space_to_depth(image)
        extractor = self._net.create_extractor()
        extractor.input(self._input, self._ncnn.Mat(blob))  # Mat borrows the memory: `blob` must outlive `extract`
        predictions = np.array(extractor.extract("output")[1])
        return decode_boxes(predictions, scale, score_threshold)


def without_focus(graph: str) -> tuple[str, str]:
    """Removes the Focus layer of YOLOX's ncnn graph, which ncnn has not built in, and feeds its output instead.

    Returns:
        The graph, unchanged if it has no such layer, and the name of its input blob.
    """
    magic, _, *layers = graph.splitlines()
    focus = [line.split() for line in layers if line.startswith("YoloV5Focus")]
    if focus:
        input_blob = focus[0][5]  # type, name, 1 input, 1 output, blob in, blob out
        layers = [line for line in layers if not line.startswith(("YoloV5Focus", "Input "))]
        layers.insert(0, f"Input images 0 1 {input_blob}")
    else:
        input_blob = layers[0].split()[4]
    num_blobs = sum(int(line.split()[3]) for line in layers)
    return "\n".join([magic, f"{len(layers)} {num_blobs}", *layers, ""]), input_blob


def letterbox(image: np.ndarray, size_px: int) -> tuple[np.ndarray, float]:
    """Scales an image [H, W, 3] into the top left of a grey square; returns it and the scale."""
    height, width = image.shape[:2]
    scale = size_px / max(height, width)
    new_width, new_height = max(1, int(width * scale)), max(1, int(height * scale))
    square = np.full((size_px, size_px, 3), PADDING_GRAY, np.uint8)
    square[:new_height, :new_width] = cv2.resize(image, (new_width, new_height))
    return square, scale


def space_to_depth(image: np.ndarray) -> np.ndarray:
    """Focus: [H, W, 3] to [12, H/2, W/2] float32, the four pixels of each 2x2 cell side by side in the channels."""
    planes = image.transpose(2, 0, 1).astype(np.float32)
    cells = (planes[:, ::2, ::2], planes[:, 1::2, ::2], planes[:, ::2, 1::2], planes[:, 1::2, 1::2])
    return np.ascontiguousarray(np.concatenate(cells))


def decode_boxes(
    predictions: np.ndarray,  # [A, 5 + K]: box offsets and log sizes, objectness, class scores
    scale: float,  # network pixels per image pixel
    score_threshold: float,
    size_px: int = YOLOX_SIZE_PX,
) -> list[Detection]:
    """Boxes of YOLOX's raw output (anchor-free, grids of strides 8, 16 and 32), after per-class suppression."""
    cells, strides = _grid(size_px)
    class_scores = predictions[:, 5:] * predictions[:, 4:5]
    classes, scores = class_scores.argmax(1), class_scores.max(1)
    keep = scores >= score_threshold
    if not keep.any():
        return []
    centers = (predictions[keep, :2] + cells[keep]) * strides[keep] / scale
    sizes = np.exp(predictions[keep, 2:4]) * strides[keep] / scale
    corners, classes, scores = centers - sizes / 2, classes[keep], scores[keep]
    boxes = np.concatenate([corners, sizes], axis=1)
    chosen = cv2.dnn.NMSBoxesBatched(boxes.tolist(), scores.tolist(), classes.tolist(), score_threshold, NMS_IOU)
    detections = []
    for i in np.asarray(chosen, dtype=int).reshape(-1):
        x, y, w, h = (float(v) for v in boxes[i])
        detections.append(Detection(int(classes[i]), float(scores[i]), (x, y, x + w, y + h)))
    return detections


def _grid(size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Cell coordinates [A, 2] and strides [A, 1] of all predictions."""
    cells, strides = [], []
    for stride in YOLOX_STRIDES:
        n = size_px // stride
        y, x = np.mgrid[:n, :n]
        cells.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        strides.append(np.full((n * n, 1), stride))
    return np.concatenate(cells), np.concatenate(strides)
