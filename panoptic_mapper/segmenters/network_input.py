"""From images to the input of a query-based segmentation network, on the device of the network.

The settings are those of the checkpoint's own `preprocessor_config.json`. What the library's image processors do on the
CPU, through PIL or torchvision, is done here on the GPU, on the raw bytes of the image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"  # in which newer versions put it
BICUBIC = 3  # PIL's number; bilinear is 2


@dataclass(frozen=True)
class NetworkInput:
    """How images are resized, padded and normalised."""

    shortest_edge_px: int = 0  # with the longest: the proportions are kept
    longest_edge_px: int = 0
    fixed_size: tuple[int, int] | None = None  # (H, W) that images are stretched to
    multiple_px: int = 1  # sizes are rounded up to multiples of this
    padded_size: tuple[int, int] | None = None  # (H, W), zeros are added below and on the right
    is_bicubic: bool = False
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # ImageNet's
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @staticmethod
    def from_checkpoint(folder: Path, image_size: Any = None) -> NetworkInput:
        """Reads the settings beside the weights.

        Args:
            image_size: the only size that the network takes, in pixels of a square or (H, W); None = any.

        Raises:
            ValueError: naming the file that is missing or the setting that is not understood.
        """
        file, settings = _settings(folder)
        if settings.get("do_split_image"):
            raise ValueError(f"{file}: do_split_image is set: the checkpoint is for semantic, not for panoptic labels")
        padded = None if image_size is None else _pair(image_size)
        try:
            return NetworkInput(
                **_size_settings(settings, padded),
                multiple_px=int(settings.get("size_divisor") or settings.get("size_divisibility") or 1),
                padded_size=padded,
                is_bicubic=settings.get("resample") == BICUBIC,
                scale=float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0,
                mean=tuple(map(float, settings["image_mean"])),
                std=tuple(map(float, settings["image_std"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: not understood ({error!r})") from error

    def content_size(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) that an image of that size has in the input, without the padding."""
        if self.fixed_size is not None:
            return self.fixed_size
        from transformers.image_transforms import get_size_with_aspect_ratio

        size = get_size_with_aspect_ratio((height, width), self.shortest_edge_px, self.longest_edge_px or None)
        rows, columns = (-(-side // self.multiple_px) * self.multiple_px for side in size)
        return rows, columns

    def __call__(self, images: Sequence[np.ndarray], device: torch.device, dtype: torch.dtype) -> Tensor:
        """The input [B, 3, H, W] of RGB images [h, w, 3] uint8 of one size."""
        pixels = torch.from_numpy(np.stack(images)).to(device, non_blocking=True)  # [B, h, w, 3]
        pixels = pixels.permute(0, 3, 1, 2).float()
        size = self.content_size(*images[0].shape[:2])
        if pixels.shape[2:] != size:
            mode = "bicubic" if self.is_bicubic else "bilinear"
            pixels = F.interpolate(pixels, size, mode=mode, antialias=True).round_().clamp_(0, 255)
        if self.padded_size is not None:
            rows, columns = (padded - side for padded, side in zip(self.padded_size, size, strict=True))
            pixels = F.pad(pixels, (0, columns, 0, rows))
        mean = torch.tensor(self.mean, device=device)[:, None, None]
        std = torch.tensor(self.std, device=device)[:, None, None]
        return ((pixels * self.scale - mean) / std).to(dtype)


def _settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    for name in (PREPROCESSOR_FILE, PROCESSOR_FILE):
        file = folder / name
        if file.is_file():
            try:
                settings = json.loads(file.read_text())
                return file, settings.get("image_processor", settings)
            except (OSError, ValueError, AttributeError) as error:
                raise ValueError(f"{file}: not readable settings of images ({error})") from error
    raise ValueError(f"{folder}: has no {PREPROCESSOR_FILE}, which says how images are resized and normalised")


def _size_settings(settings: Mapping[str, Any], padded: tuple[int, int] | None) -> dict[str, Any]:
    size = settings["size"] if settings.get("do_resize", True) else padded
    if isinstance(size, tuple):
        return {"fixed_size": size}
    if isinstance(size, int):  # as older checkpoints have it
        return {"shortest_edge_px": size, "longest_edge_px": int(settings.get("max_size") or 0)}
    if size is not None and "height" in size:
        return {"fixed_size": (int(size["height"]), int(size["width"]))}
    if size is not None and "shortest_edge" in size:
        return {
            "shortest_edge_px": int(size["shortest_edge"]),
            "longest_edge_px": int(size.get("longest_edge") or settings.get("max_size") or 0),
        }
    raise ValueError(f"size {size!r}")


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
