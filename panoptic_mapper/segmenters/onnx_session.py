"""ONNX files of the user, run by onnxruntime: providers, and images in the form that a network takes."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from panoptic_mapper.model_files import refuse_pickle
from panoptic_mapper.model_store import cache_folder

INSTALL_HINT = "pip install onnxruntime (on an NVIDIA GPU: onnxruntime-gpu)"
EXPORT_HINT = "only ONNX files are read; export it where you trust it: yolo export model=FILE format=onnx"
PADDING_GRAY = 114  # around letterboxed images, as YOLO networks are trained
DEFAULT_SIZE_PX = 640  # of inputs whose size is free
IMAGENET_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
IMAGENET_STD = np.array((0.229, 0.224, 0.225), np.float32)
Provider = Literal["auto", "cpu", "cuda", "tensorrt"]
Numbers = Literal["imagenet", "unit", "bytes"]
PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


@dataclass(frozen=True)
class Placement:
    """Where an image is in the input of a network."""

    input_size: tuple[int, int]  # (H, W)
    top_left: tuple[int, int]  # (row, column) of the image's first pixel
    content_size: tuple[int, int]  # (H, W) that the image has there


class OnnxNetwork:
    """A network with one image as its input.

    Raises:
        ValueError: onnxruntime is not installed, has no such provider, or cannot load the file; the input is no image.
    """

    def __init__(self, file: str, provider: Provider) -> None:
        self.file = Path(file).expanduser()
        refuse_pickle(self.file, EXPORT_HINT)
        if not self.file.is_file():
            raise ValueError(f"{self.file}: no such ONNX file")
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError(f"segmenter 'onnx' needs onnxruntime ({error}); {INSTALL_HINT}") from error
        providers = chosen_providers(provider, onnxruntime.get_available_providers())
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(self.file), providers=[(name, _options(name)) for name in providers]
            )
        except Exception as error:  # the run time's errors have no common base
            raise ValueError(f"{self.file}: onnxruntime cannot load it ({type(error).__name__}: {error})") from error
        if provider not in ("auto", "cpu") and self._session.get_providers()[0] != providers[0]:
            raise ValueError(f"{self.file}: {providers[0]} does not start here; runs {self._session.get_providers()}")
        self._read_input()

    def _read_input(self) -> None:
        inputs = self._session.get_inputs()
        shape = inputs[0].shape
        self.is_channels_last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3
        if len(inputs) != 1 or len(shape) != 4 or (not self.is_channels_last and shape[1] not in (3, None)):
            shapes = ", ".join(f"{i.name} {i.shape}" for i in inputs)
            raise ValueError(f"{self.file}: expected one input, a batch of RGB images, got {shapes}")
        if inputs[0].type not in NUMPY_TYPES:
            raise ValueError(f"{self.file}: input has type {inputs[0].type}, expected one of {', '.join(NUMPY_TYPES)}")
        self._input_name, self.dtype = inputs[0].name, NUMPY_TYPES[inputs[0].type]
        sides = shape[1:3] if self.is_channels_last else shape[2:4]
        height, width = (side if isinstance(side, int) and side > 0 else DEFAULT_SIZE_PX for side in sides)
        self.input_size = (height, width)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the outputs, where the file's metadata has them, as YOLO's exports."""
        text = self._session.get_modelmeta().custom_metadata_map.get("names", "")
        try:
            names = ast.literal_eval(text) if text else {}
            names = names if isinstance(names, dict) else dict(enumerate(names))
            return tuple(str(names[i]) for i in range(len(names)))
        except (ValueError, SyntaxError, TypeError, KeyError) as error:
            raise ValueError(f"{self.file}: metadata 'names' is not readable ({error!r})") from error

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        """All outputs for an input image [H, W, 3] as `letterboxed` or `stretched` and `normalized` made it."""
        blob = image if self.is_channels_last else image.transpose(2, 0, 1)
        return self._session.run(None, {self._input_name: np.ascontiguousarray(blob[None], self.dtype)})


def chosen_providers(provider: Provider, available: Sequence[str]) -> tuple[str, ...]:
    """onnxruntime's providers for the setting, first choice first.

    Raises:
        ValueError: this onnxruntime was built without it.
    """
    if provider == "auto":
        return PROVIDERS["cuda" if PROVIDERS["cuda"][0] in available else "cpu"]
    wanted = PROVIDERS[provider]
    if wanted[0] not in available:
        raise ValueError(f"provider '{provider}': this onnxruntime has {', '.join(available)}; {INSTALL_HINT}")
    return tuple(name for name in wanted if name in available)


def _options(provider: str) -> dict[str, Any]:
    if provider != "TensorrtExecutionProvider":
        return {}
    folder = cache_folder() / "tensorrt"  # an engine takes minutes to build
    folder.mkdir(parents=True, exist_ok=True)
    return {"trt_fp16_enable": True, "trt_engine_cache_enable": True, "trt_engine_cache_path": str(folder)}


def letterboxed(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, Placement]:
    """An image scaled into the middle of a grey one of `size` (H, W), with its proportions."""
    height, width = image.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = round((size[0] - rows) / 2 - 0.1), round((size[1] - columns) / 2 - 0.1)
    canvas = np.full((*size, 3), PADDING_GRAY, np.uint8)
    canvas[top : top + rows, left : left + columns] = _resized(image, rows, columns)
    return canvas, Placement(size, (top, left), (rows, columns))


def stretched(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, Placement]:
    """An image scaled to `size` (H, W), whatever its proportions."""
    return _resized(image, *size), Placement(size, (0, 0), size)


def normalized(image: np.ndarray, numbers: Numbers) -> np.ndarray:
    """An image [H, W, 3] uint8 as the numbers that a network takes: its bytes, 0..1, or by ImageNet's mean and std."""
    if numbers == "bytes":
        return image
    unit = image.astype(np.float32) / 255
    return unit if numbers == "unit" else (unit - IMAGENET_MEAN) / IMAGENET_STD


def _resized(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    if image.shape[:2] == (rows, columns):
        return image
    is_smaller = rows * columns < image.shape[0] * image.shape[1]
    return cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR)
