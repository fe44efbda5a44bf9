"""Density control: where the map grows, what a new Gaussian looks like, and which Gaussians are removed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from panoptic_mapper.config import Config, param
from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.gaussian_map import INSTANCE_DIM, SEMANTIC_DIM, GaussianMap
from panoptic_mapper.geometry import backproject, inverse_pose
from panoptic_mapper.keyframes import Keyframe
from panoptic_mapper.rasterizers.base import Rendering
from panoptic_mapper.surfels import disc_shapes
from panoptic_mapper.transfers import to_device

ImageT = TypeVar("ImageT", Tensor, np.ndarray)

FILL_LEVELS = 6  # holes in the depth of up to about 2^5 pixels from their border are filled
COARSER_WEIGHT = 1e-6  # of each level of that pyramid beside the next finer one: what float32 rounds off
LEAST_WEIGHT = 1e-36  # smaller than that of one pixel at the coarsest level, (COARSER_WEIGHT / 4) ** 5


@dataclass(frozen=True)
class DensityConfig(Config):
    """Growth from depth and pruning."""

    stride_px: int = param(2, "one new Gaussian per stride x stride pixels", ge=1)
    min_alpha: float = param(0.6, "the map grows where its rendered opacity is below this", ge=0, le=1)
    depth_tolerance_m: float = param(0.05, "surfaces this much in front of the rendered depth are new, m", gt=0)
    depth_tolerance: float = param(0.03, "the same as a share of the depth; the larger of both counts", ge=0)
    min_depth_m: float = param(0.15, "what is nearer than this hides the view and is not mapped, m", ge=0)
    min_usable_share: float = param(0.05, "frames with a smaller share of usable depth are not mapped", ge=0, le=1)
    max_depth_m: float = param(15.0, "depth beyond this is not used, m", gt=0)
    scale: float = param(0.42, "standard deviation of a new Gaussian in units of its pixels' footprint", gt=0)
    opacity: float = param(0.9, "opacity of a new Gaussian", gt=0, le=0.99)
    refine_coarseness: float = param(
        2.5,
        "Gaussians so many times as large as a new one would be are replaced by four finer ones; 0 = none is",
        ge=0,
    )
    refine_error: float = param(0.02, "only where the colours are off by more than this, mean in 0..1", ge=0)
    min_opacity: float = param(0.05, "Gaussians that fade below this are removed", ge=0, le=1)
    max_scale_m: float = param(0.5, "Gaussians that grow beyond this standard deviation are removed, m", gt=0)
    free_space_hits: int = param(3, "keyframes that see through a Gaussian before it is removed", ge=1)


def tolerance(depth: Tensor, config: DensityConfig) -> Tensor:
    """How far (m) two depths may differ and still show the same surface."""
    return (config.depth_tolerance * depth).clamp_min(config.depth_tolerance_m)


def usable_depth(depth: ImageT, config: DensityConfig) -> ImageT:
    """Where a depth image [H, W] holds a measurement that the map uses: bool [H, W]."""
    return (depth > config.min_depth_m) & (depth < config.max_depth_m)


def unobstructed(depth: ImageT, config: DensityConfig) -> ImageT:
    """Where a depth image [H, W] does not show something right before the lens: bool [H, W]; no depth passes."""
    return (depth <= 0) | (depth > config.min_depth_m)


def filled_depth(depth: Tensor, config: DensityConfig) -> Tensor:
    """The depth image [H, W] with its holes filled smoothly from around them (pull-push pyramid); 0 = still none.

    Dark and shiny surfaces give no depth. Without Gaussians of their own there, the colour loss stretches those around
    the hole over it, which ruins both. The depth loss never sees the filled values, and where another view measures
    empty space the Gaussians are removed.
    """
    weight = usable_depth(depth, config).float()
    pyramid = [torch.stack([depth * weight, weight])[None]]  # [1, 2, h, w] sums of depths and of their weights
    for _ in range(FILL_LEVELS - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2, ceil_mode=True))
    # A coarser level counts next to nothing where a finer one has any depth, and is all there is elsewhere.
    sums = pyramid.pop()
    for finer in reversed(pyramid):
        sums = torch.add(finer, F.interpolate(sums, size=finer.shape[2:], mode="nearest"), alpha=COARSER_WEIGHT)
    total, weight = sums[0]
    return torch.where(depth > 0, depth, total / weight.clamp_min(LEAST_WEIGHT))


def unexplained(depth: Tensor, surface: Tensor, rendering: Rendering, config: DensityConfig) -> Tensor:
    """Pixels [H, W] whose surface is not in the map: nothing is there, or something measured is new in front.

    Args:
        depth: [H, W] m, as measured.
        surface: [H, W] m, where the surface is taken to be: the measured depth, or the filled one.
        rendering: the map from there.
        config: thresholds.
    """
    in_front = usable_depth(depth, config) & (depth < rendering.depth - tolerance(depth, config))
    return usable_depth(surface, config) & ((rendering.alpha < config.min_alpha) | in_front)


def grown_gaussians(
    keyframe: Keyframe, surface: Tensor, where: Tensor, config: DensityConfig, base: str = "3dgs"
) -> dict[str, Tensor]:
    """Columns of new Gaussians, one per grid pixel of `where` [H, W] bool, on `surface` [H, W] m, unlabeled.

    They are round, or, where `base` is "surfel", discs that lie in the surface.
    """
    stride, camera = config.stride_px, keyframe.camera
    grid = (slice(stride // 2, None, stride),) * 2
    row, column = where[grid].nonzero(as_tuple=True)
    depth, rays = surface[grid][row, column], _rays(camera, stride, surface.device)[row, column]
    T_map_camera = to_device(keyframe.T_map_camera.astype(np.float32), depth.device)
    n = len(depth)
    log_scales = (depth * (config.scale * stride / camera.fx)).log_()[:, None].expand(n, 3)
    quats = torch.eye(1, 4, device=depth.device).expand(n, 4)
    if base == "surfel":
        v, u = (stride // 2 + stride * index for index in (row, column))
        quats, log_scales = disc_shapes(backproject(surface, camera), T_map_camera, log_scales[:, 0].exp(), u, v)
    return {
        "means": torch.addmm(T_map_camera[:3, 3], rays * depth[:, None], T_map_camera[:3, :3].T),
        "quats": quats,
        "log_scales": log_scales,
        "opacity_logits": depth.new_full((n, 1), _logit(config.opacity)),
        "colors": keyframe.color[grid][row, column] / 255,
        "semantics": depth.new_zeros(n, SEMANTIC_DIM),
        "instances": depth.new_zeros(n, INSTANCE_DIM),
    }


@lru_cache(maxsize=8)
def _rays(camera: PinholeCamera, stride_px: int, device: torch.device) -> Tensor:
    """Points [h, w, 3] at a depth of 1 of every `stride_px`-th pixel along both axes."""
    ones = torch.ones(camera.height, camera.width, device=device)
    return backproject(ones, camera)[stride_px // 2 :: stride_px, stride_px // 2 :: stride_px].contiguous()


def count_free_space_hits(gaussians: GaussianMap, ids: Tensor, keyframe: Keyframe, config: DensityConfig) -> None:
    """Counts, for the Gaussians `ids` [V] in view, those that float well in front of the measured surface.

    A Gaussian at or behind its pixel's surface takes one hit back, so that noise does not add up.
    """
    measured = keyframe.depth * usable_depth(keyframe.depth, config)
    depth, (surface,) = read_at_centers(gaussians["means"][ids], keyframe, measured[None])
    floats = depth < surface - 2 * tolerance(surface, config)
    hits = gaussians["free_space_hits"]
    is_measured = (surface > 0).int()
    hits[ids] = (hits[ids] + torch.where(floats, is_measured, -is_measured)).clamp_min_(0)


def read_at_centers(means: Tensor, keyframe: Keyframe, images: Tensor) -> tuple[Tensor, Tensor]:
    """Reads images [C, H, W] float32 of a keyframe at the pixels of points [V, 3] (map, m).

    Returns:
        The depths [V] of the points in the camera frame, m, and the values [C, V], 0 beside the image and behind the
        camera.
    """
    # To what `grid_sample` takes, from -1 to 1 across the image, by one matrix: on a GPU the host's time for each
    # operator counts, not what these compute.
    camera = keyframe.camera
    to_grid = np.array(
        [
            [2 * camera.fx / camera.width, 0, (2 * camera.cx + 1) / camera.width - 1],
            [0, 2 * camera.fy / camera.height, (2 * camera.cy + 1) / camera.height - 1],
            [0, 0, 1],
        ]
    )
    projection = to_device((to_grid @ inverse_pose(keyframe.T_map_camera)[:3]).astype(np.float32), means.device)
    projected = torch.addmm(projection[:, 3], means, projection[:, :3].T)
    depth = projected[:, 2]
    # Points behind the camera are moved far away, beside all images.
    grid = torch.where(depth[:, None] > 0, projected[:, :2] / depth[:, None], 2.0)
    values = F.grid_sample(images[None], grid[None, None], mode="nearest", padding_mode="zeros", align_corners=False)
    return depth, values[0, :, 0]


def survivors(gaussians: GaussianMap, config: DensityConfig) -> Tensor:
    """Which Gaussians stay [N] bool: opaque enough, not too large, not in seen-empty space, and finite."""
    opaque = gaussians["opacity_logits"][:, 0] > _logit(config.min_opacity)
    small = gaussians["log_scales"].amax(1) < math.log(config.max_scale_m)
    solid = gaussians["free_space_hits"] < config.free_space_hits
    return opaque & small & solid & torch.isfinite(gaussians["means"]).all(1)


def _logit(share: float) -> float:
    return math.log(share / (1 - share)) if 0 < share < 1 else math.copysign(math.inf, share - 0.5)
