"""Rasteriser backends behind one protocol (base.py)."""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch

from panoptic_mapper.rasterizers.base import ProjectedView, Rasterizer, Rendering

RasterizerName = Literal["auto", "cpu", "gsplat", "torch"]

__all__ = ["ProjectedView", "Rasterizer", "RasterizerName", "Rendering", "create_rasterizer"]


def create_rasterizer(name: RasterizerName, device: torch.device) -> Rasterizer:
    """The backend of that name for maps on `device`; "auto" is gsplat on CUDA and the compiled one on the CPU.

    Raises:
        ValueError: an unknown name, or a backend that does not run on the device.
        RuntimeError: the backend is not installed; the message has the command that brings it.
    """
    if name == "auto":
        name = "gsplat" if device.type == "cuda" else "cpu"
    if name == "torch":
        from panoptic_mapper.rasterizers.torch_reference import TorchRasterizer

        return TorchRasterizer()
    if name == "cpu":
        if device.type != "cpu":
            raise ValueError(f"rasterizer 'cpu': expected a map on the CPU, got {device}")
        from panoptic_mapper.rasterizers.cpu import CpuRasterizer

        return CpuRasterizer()
    if name == "gsplat":
        if device.type != "cuda":
            raise ValueError(f"rasterizer 'gsplat': expected a map on a CUDA device, got {device}")
        if importlib.util.find_spec("gsplat") is None:
            raise RuntimeError("rasterizer 'gsplat' is not installed; install it with: pip install gsplat==1.5.3")
        from panoptic_mapper.rasterizers.gsplat import GsplatRasterizer

        return GsplatRasterizer()
    raise ValueError(f"rasterizer: expected auto, cpu, gsplat or torch, got {name!r}")
