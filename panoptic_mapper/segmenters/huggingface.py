"""Panoptic networks of the Hugging Face hub: EoMT, Mask2Former, MaskFormer and OneFormer."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from panoptic_mapper.config import Config, param
from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.hub_models import find_checkpoint
from panoptic_mapper.segmenters.checkpoint import Checkpoint, resolve_classes
from panoptic_mapper.segmenters.network_input import NetworkInput
from panoptic_mapper.segmenters.panoptic_queries import MaskGrid, panoptic_from_queries

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "tue-mps/coco_panoptic_eomt_base_640_2x"
WARM_UP_SIZE = (480, 640)  # (H, W), the most frequent size of RGB-D cameras
WARM_UP_RUNS = 2
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
# Families whose weights are cast once. The others make float32 tensors of their own on the way: autocast suits them.
CAST_ONCE = ("eomt", "eomt_dinov3")


@dataclass(frozen=True)
class HuggingfaceConfig(Config):
    """Settings of the segmenter 'huggingface'."""

    model: str = param(DEFAULT_MODEL, "hub id (owner/name or owner/name@commit) or folder of the checkpoint")
    offline: bool = param(False, "never ask the network: the model must be in the cache or in a folder")
    label_space: str = param("", "name or file of the space of the model's classes; empty = recognised by their names")
    device: Literal["auto", "cpu", "cuda"] = param(
        "auto", "where the network runs; auto = cuda where there is a GPU", choices=("auto", "cpu", "cuda")
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = param(
        "auto",
        "numbers that the network computes with; auto = float16 on cuda, float32 on the CPU",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    compile: bool = param(False, "torch.compile the network: minutes at the start, faster after it")
    warm_up: bool = param(True, "run the network on an empty image at the start (on cuda, and where it is compiled)")
    min_score: float = param(0.5, "least score of a segment's class", ge=0.0, le=1.0)
    min_visible_share: float = param(0.8, "a segment that keeps less of its mask than this is dropped", ge=0.0, le=1.0)


class HuggingfaceSegmenter:
    """A mask classification network and the labels that it gives.

    Thresholds may be changed between frames, by another `config`; what else it says holds from the start.

    Raises:
        ValueError: transformers is not installed; the model is not to be had, is of no supported family, has weights
            only as pickle, or its classes are unknown; there is no such device.
    """

    def __init__(self, config: HuggingfaceConfig) -> None:
        self.config = config
        checkpoint = Checkpoint.from_folder(find_checkpoint(config.model, config.offline))
        self.label_space, self._index_of_class = resolve_classes(checkpoint.class_names, config.label_space)
        self._device = _device(config.device)
        self._dtype = _dtype(config.dtype, self._device)
        self._is_cast = checkpoint.family in CAST_ONCE
        self._input = NetworkInput.from_checkpoint(checkpoint.folder, checkpoint.image_size)
        model = checkpoint.load().to(self._device, self._dtype if self._is_cast else torch.float32)
        self._extra_inputs: dict[str, Tensor] = {}
        if checkpoint.family == "oneformer":
            self._extra_inputs["task_inputs"] = panoptic_task(checkpoint.folder).to(self._device)
        self._model: Any = torch.compile(model, dynamic=False) if config.compile else model
        if config.warm_up and (config.compile or self._device.type == "cuda"):
            self._warm_up()

    def segment(self, frame: Frame) -> Segmentation:
        """The frame's labels, from its colour alone."""
        return self.segment_images([frame.color])[0]

    @torch.inference_mode()
    def segment_images(self, images: Sequence[np.ndarray]) -> list[Segmentation]:
        """Labels of RGB images [H, W, 3] uint8 of one size, in one batch.

        Raises:
            ValueError: the images differ in size.
        """
        if len({image.shape for image in images}) > 1:
            raise ValueError(f"images: expected one size, got {sorted({image.shape[:2] for image in images})}")
        class_logits, mask_logits, grid = self.logits(images)
        height, width = images[0].shape[:2]
        return [
            panoptic_from_queries(
                classes,
                masks,
                self._index_of_class,
                self.label_space.is_thing,
                grid,
                self.config.min_score,
                self.config.min_visible_share,
            ).resized(width, height)
            for classes, masks in zip(class_logits, mask_logits, strict=True)
        ]

    @torch.inference_mode()
    def logits(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, MaskGrid]:
        """Class logits [B, Q, C + 1] and mask logits [B, Q, h, w] of images of one size, and where the image is."""
        pixels = self._input(images, self._device, self._dtype if self._is_cast else torch.float32)
        extra = {name: value.expand(len(images), -1) for name, value in self._extra_inputs.items()}
        is_mixed = not self._is_cast and self._dtype != torch.float32
        with torch.autocast(self._device.type, self._dtype) if is_mixed else nullcontext():
            outputs = self._model(pixel_values=pixels, **extra)
        height, width = images[0].shape[:2]
        content = self._input.content_size(height, width)
        # Labels finer than what the network saw would only cost time and memory.
        output = (height, width) if height * width <= content[0] * content[1] else content
        grid = MaskGrid((pixels.shape[2], pixels.shape[3]), content, output)
        return outputs.class_queries_logits, outputs.masks_queries_logits, grid

    def _warm_up(self) -> None:
        """Loads kernels, and compiles, before the first frame has to wait for it."""
        start = time.perf_counter()
        for _ in range(WARM_UP_RUNS):
            self.segment_images([np.zeros((*WARM_UP_SIZE, 3), np.uint8)])
        logger.info("%s: warm after %.1f s", self.config.model, time.perf_counter() - start)


def panoptic_task(folder: Path) -> Tensor:
    """OneFormer's task as tokens [1, 77] int64, with zeros for padding.

    Raises:
        ValueError: the checkpoint's tokenizer is missing or unreadable.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER_FILES):  # the library would make one up
        raise ValueError(f"{folder}: OneFormer needs its tokenizer ({' or '.join(TOKENIZER_FILES)} with merges.txt)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokens = tokenizer("the task is panoptic", padding="max_length", max_length=77, truncation=True)
    except Exception as error:  # the library's errors have no common base
        raise ValueError(f"{folder}: OneFormer's tokenizer cannot be read ({error})") from error
    return torch.tensor(tokens["input_ids"])[None] * torch.tensor(tokens["attention_mask"])[None]


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("segmenter.huggingface.device 'cuda': torch finds no NVIDIA GPU here; use cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]
