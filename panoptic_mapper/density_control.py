"""Density control: where the map grows, what a new Gaussian looks like, and which Gaussians are removed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from panoptic_mapper.config import Config, param
from panoptic_mapper.gaussian_map import INSTANCE_DIM, SEMANTIC_DIM, GaussianMap
from panoptic_mapper.geometry import backproject, project, transform
from panoptic_mapper.keyframes import Keyframe
from panoptic_mapper.rasterizers.base import Rendering
from panoptic_mapper.surfels import disc_shapes
from panoptic_mapper.transfers import to_device

FILL_LEVELS = 6  # holes in the depth of up to about 2^5 pixels from their border are filled


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
    scale: float = param(0.35, "standard deviation of a new Gaussian in units of its pixels' footprint", gt=0)
    opacity: float = param(0.9, "opacity of a new Gaussian", gt=0, le=0.99)
    min_opacity: float = param(0.05, "Gaussians that fade below this are removed", ge=0, le=1)
    max_scale_m: float = param(0.5, "Gaussians that grow beyond this standard deviation are removed, m", gt=0)
    free_space_hits: int = param(3, "keyframes that see through a Gaussian before it is removed", ge=1)


def tolerance(depth: Tensor, config: DensityConfig) -> Tensor:
    """How far (m) two depths may differ and still show the same surface."""
    return (config.depth_tolerance * depth).clamp_min(config.depth_tolerance_m)


def usable_depth(depth: Tensor, config: DensityConfig) -> Tensor:
    """Where a depth image [H, W] holds a measurement that the map uses: bool [H, W]."""
    return (depth > config.min_depth_m) & (depth < config.max_depth_m)


def unobstructed(depth: Tensor, config: DensityConfig) -> Tensor:
    """Where a depth image [H, W] does not show something right before the lens: bool [H, W]; no depth passes."""
    return (depth <= 0) | (depth > config.min_depth_m)


def filled_depth(depth: Tensor, config: DensityConfig) -> Tensor:
    """The depth image [H, W] with its holes filled smoothly from around them (pull-push pyramid); 0 = still none.

    Dark and shiny surfaces give no depth. Without Gaussians of their own there, the colour loss stretches those around
    the hole over it, which ruins both. The depth loss never sees the filled values, and where another view measures
    empty space the Gaussians are removed.
    """
    weight = usable_depth(depth, config).float()[None, None]
    total = depth[None, None] * weight
    pyramid = []
    for _ in range(FILL_LEVELS):
        pyramid.append(torch.where(weight > 0, total / weight.clamp_min(1e-6), 0)[0, 0])
        total, weight = (F.avg_pool2d(x, 2, ceil_mode=True) for x in (total, weight))
    filled = pyramid.pop()
    for finer in reversed(pyramid):
        filled = F.interpolate(filled[None, None], size=finer.shape, mode="nearest")[0, 0]
        filled = torch.where(finer > 0, finer, filled)
    return torch.where(depth > 0, depth, filled)


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
    grid = torch.zeros_like(where)
    start = config.stride_px // 2
    grid[start :: config.stride_px, start :: config.stride_px] = True
    v, u = (where & grid).nonzero(as_tuple=True)
    depth = surface[v, u]
    T_map_camera = to_device(keyframe.T_map_camera.astype(np.float32), depth.device)
    n = len(depth)
    scale = config.scale * config.stride_px * depth / keyframe.camera.fx
    points = backproject(surface, keyframe.camera)
    quats, log_scales = depth.new_zeros(n, 4), scale.log()[:, None].expand(n, 3)
    quats[:, 0] = 1
    if base == "surfel":
        quats, log_scales = disc_shapes(points, T_map_camera, scale, u, v)
    return {
        "means": transform(T_map_camera, points[v, u]),
        "quats": quats,
        "log_scales": log_scales,
        "opacity_logits": torch.logit(depth.new_full((n, 1), config.opacity)),
        "colors": keyframe.color[v, u].float() / 255,
        "semantics": depth.new_zeros(n, SEMANTIC_DIM),
        "instances": depth.new_zeros(n, INSTANCE_DIM),
    }


def count_free_space_hits(gaussians: GaussianMap, ids: Tensor, keyframe: Keyframe, config: DensityConfig) -> None:
    """Counts, for the Gaussians `ids` [V] in view, those that float well in front of the measured surface.

    A Gaussian at or behind its pixel's surface takes one hit back, so that noise does not add up.
    """
    at = depth_at_centers(gaussians["means"][ids], keyframe, keyframe.depth, config)
    hits = gaussians["free_space_hits"]
    floats = at.valid & (at.depth < at.surface - 2 * tolerance(at.surface, config))
    change = floats.int() - (at.valid & ~floats).int()
    hits[ids] = (hits[ids] + change).clamp_min(0)


@dataclass(frozen=True)
class CenterSamples:
    """A depth image of a keyframe read at the pixels of V Gaussian centres."""

    u: Tensor  # [V] int64 pixel column, 0 where the centre is outside the image
    v: Tensor  # [V] int64 pixel row
    depth: Tensor  # [V] m, depth of the centre
    surface: Tensor  # [V] m, the depth image at its pixel
    valid: Tensor  # [V] bool, the centre is in the image and there is a usable depth


def depth_at_centers(means: Tensor, keyframe: Keyframe, surface: Tensor, config: DensityConfig) -> CenterSamples:
    """Reads a keyframe's measured or filled depth image `surface` [H, W] at the pixels of points [V, 3] (map, m)."""
    pixel, depth = project(transform(keyframe.T_camera_map(), means), keyframe.camera)
    u, v = pixel.round().long().unbind(-1)
    inside = (depth > 0) & (u >= 0) & (v >= 0) & (u < keyframe.camera.width) & (v < keyframe.camera.height)
    u, v = torch.where(inside, u, 0), torch.where(inside, v, 0)
    at_pixel = surface[v, u]
    return CenterSamples(u, v, depth, at_pixel, inside & usable_depth(at_pixel, config))


def survivors(gaussians: GaussianMap, config: DensityConfig) -> Tensor:
    """Which Gaussians stay [N] bool: opaque enough, not too large, not in seen-empty space, and finite."""
    opaque = gaussians["opacity_logits"][:, 0] > float(torch.logit(torch.tensor(config.min_opacity)))
    small = gaussians["log_scales"].amax(1) < math.log(config.max_scale_m)
    solid = gaussians["free_space_hits"] < config.free_space_hits
    return opaque & small & solid & torch.isfinite(gaussians["means"]).all(1)
