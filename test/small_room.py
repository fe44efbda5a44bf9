"""A small view of the synthetic room, mapped in a fraction of a second, and worlds with known geometry."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panoptic_mapper.config import load_config
from panoptic_mapper.datasets.synthetic import LABEL_SPACE, SyntheticConfig, SyntheticRoom
from panoptic_mapper.frame import Frame, PinholeCamera, Segmentation
from panoptic_mapper.label_space import LabelSpace, SemanticClass
from panoptic_mapper.mapper import MapperConfig, PanopticMapper
from panoptic_mapper.segmenters.base import Segmenter
from panoptic_mapper.segmenters.dataset import DatasetSegmenter

ROOM_SPACE = LABEL_SPACE
# Stuff and things alternate, so that class indices and columns of images are not the same numbers.
SPACE = LabelSpace.from_classes(
    [
        SemanticClass(10, "chair", True),
        SemanticClass(20, "wall", False),
        SemanticClass(30, "table", True),
        SemanticClass(40, "floor", False),
    ]
)
CHAIR, WALL, TABLE, FLOOR = 1, 2, 3, 4
CAMERA = PinholeCamera(40.0, 40.0, 19.5, 14.5, 40, 30)
CPU = torch.device("cpu")


@cache
def room_frames(num_frames: int = 10) -> tuple[Frame, ...]:
    """The first frames of a slow walk through the synthetic room, 80x60."""
    room = SyntheticRoom(SyntheticConfig(width=80, height=60, num_frames=60))
    return tuple(room[i] for i in range(num_frames))


def make_mapper(*settings: str, segmenter: Segmenter | None = None, device: str = "cpu") -> PanopticMapper:
    """A mapper of the room that optimises little; `settings` are key=value words."""
    config = load_config(MapperConfig, overrides=["optimizer.steps_per_keyframe=3", *settings])
    return PanopticMapper(config, segmenter or DatasetSegmenter(ROOM_SPACE), device)


def mapped(frames: Any, *settings: str, segmenter: Segmenter | None = None) -> PanopticMapper:
    mapper = make_mapper(*settings, segmenter=segmenter)
    for frame in frames:
        mapper.integrate(frame)
    return mapper


class PassOn:
    """A segmenter that gives the frame's labels unchanged, whatever they are."""

    def __init__(self, label_space: LabelSpace) -> None:
        self.label_space = label_space

    def segment(self, frame: Frame) -> Segmentation | None:
        return frame.labels


def wall_frame(depth_m: float = 2.0, T_map_camera: np.ndarray | None = None, stamp_ns: int = 0) -> Frame:
    """A flat wall in front of the camera: left half a chair (instance 5), right half a table (instance 3), FLOOR below.

    Rows 24..29 are floor; the class masks are painted on the same plane.
    """
    semantic = np.full((CAMERA.height, CAMERA.width), CHAIR, np.int32)
    semantic[:, 20:] = TABLE
    semantic[24:] = FLOOR
    instance = np.choose(semantic, [0, 5, 0, 3, 0]).astype(np.int32)
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (CAMERA.height, CAMERA.width, 3), dtype=np.uint8)
    depth = np.full(semantic.shape, depth_m, np.float32)
    pose = np.eye(4) if T_map_camera is None else T_map_camera
    return Frame(stamp_ns, color, depth, pose, CAMERA, Segmentation(semantic, instance))


def without_labels(frame: Frame) -> Frame:
    return replace(frame, labels=None)


def gaussian_columns(means: Tensor, **changed: Tensor) -> dict[str, Tensor]:
    """Columns of small round opaque grey Gaussians at `means` [n, 3], without label features."""
    n = len(means)
    columns = {
        "means": means,
        "quats": torch.tensor([[1.0, 0, 0, 0]]).expand(n, 4),
        "log_scales": torch.full((n, 3), 0.02).log(),
        "opacity_logits": torch.full((n, 1), 3.0),
        "colors": torch.full((n, 3), 0.5),
        "semantics": torch.zeros(n, 16),
        "instances": torch.zeros(n, 32),
    }
    return columns | changed


def opaque_wall(depth_m: float = 2.0, spacing_m: float = 0.05) -> dict[str, Tensor]:
    """Columns of a wall across the whole view of `CAMERA` from the origin, through which next to nothing shines."""
    axis = torch.arange(-0.6 * depth_m, 0.6 * depth_m, spacing_m)
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    means = torch.stack([x, y, torch.full_like(x, depth_m)], dim=-1).reshape(-1, 3)
    sizes = torch.tensor([spacing_m, spacing_m, 1e-3]).expand(len(means), 3)
    return gaussian_columns(means, log_scales=sizes.log(), opacity_logits=torch.full((len(means), 1), 5.0))
