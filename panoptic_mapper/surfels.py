"""The surfel base: Gaussians with one scale collapsed, which have a normal, and the terms that lay them on surfaces.

After Huang et al. 2024, "2D Gaussian splatting", splatted affinely as all Gaussians are: the depth of a surfel is that
of its centre. So the same rasterisers and the same labels serve both bases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.geometry import backproject, quaternions, rotation_matrices, surface_normals, transform
from panoptic_mapper.rasterizers.base import Rendering

THICKNESS_M = 1e-4  # the collapsed standard deviation, that along axis 2
MAX_STRETCH = 3.0  # a new disc is at most so much longer than wide: beyond, the normal of the depth image is unsure


@dataclass(frozen=True)
class SurfaceRendering:
    """A rendering with what the surfels along each ray say about the surface."""

    rendering: Rendering
    normals: Tensor  # [H, W, 3] sum of weights times normals, camera frame, towards the camera; shorter than 1
    distortion: Tensor  # [H, W] m^2, sum over i, j of w_i w_j (z_i - z_j)^2


class Renders(Protocol):
    """A projected view, as far as it is asked here."""

    def render(self, colors: Tensor) -> Rendering: ...


def render_surface(
    projection: Renders,
    colors: Tensor,  # [V, 3]
    means: Tensor,  # [V, 3] map frame, m
    quats: Tensor,  # [V, 4]
    T_camera_map: Tensor,  # [4, 4]
) -> SurfaceRendering:
    """Renders visible surfels in one splat; gradients reach all of their geometry.

    With A = sum w, D1 = sum w z and D2 = sum w z^2, the distortion sum_ij w_i w_j (z_i - z_j)^2 is 2 (A D2 - D1^2). The
    depths are taken from their mean, which changes nothing but the rounding.
    """
    points = transform(T_camera_map, means)
    normals = facing_normals(points, quats, T_camera_map)
    offset = points[:, 2] - points[:, 2].detach().mean() if len(points) else points[:, 2]
    moments = torch.stack([offset, offset.square()], dim=1)
    rendering = projection.render(torch.cat([colors, normals, moments], dim=1))
    color, normal, first, second = rendering.color.split((3, 3, 1, 1), dim=-1)
    distortion = 2 * (rendering.alpha * second[..., 0] - first[..., 0].square())
    return SurfaceRendering(Rendering(color, rendering.depth, rendering.alpha), normal, distortion)


def facing_normals(points: Tensor, quats: Tensor, T_camera_map: Tensor) -> Tensor:
    """Normals [V, 3] in the camera frame of surfels at camera-frame `points` [V, 3], turned towards the camera."""
    normals = rotation_matrices(quats)[..., 2] @ T_camera_map[:3, :3].T
    away = (normals * points.detach()).sum(-1, keepdim=True) > 0
    return torch.where(away, -normals, normals)


def surface_terms(surface: SurfaceRendering, camera: PinholeCamera) -> dict[str, Tensor]:
    """Means over the pixels where the rendered depth has a normal n, which is not so at its steps.

    "normal" is sum_i w_i (1 - n_i . n), and "distortion" is that of the rendering: at a step between two objects,
    depths are apart with good reason.
    """
    of_depth, valid = surface_normals(backproject(surface.rendering.depth, camera))
    disagreement = surface.rendering.alpha - (surface.normals * of_depth).sum(-1)
    num_valid = valid.sum().clamp_min(1)
    return {
        "normal": (disagreement * valid).sum() / num_valid,
        "distortion": (surface.distortion * valid).sum() / num_valid,
    }


def disc_shapes(
    points: Tensor,  # [H, W, 3] camera frame, m: a depth image
    T_map_camera: Tensor,  # [4, 4]
    radii: Tensor,  # [n] m, standard deviation that a round Gaussian would have
    u: Tensor,  # [n] pixel columns
    v: Tensor,  # [n] pixel rows
) -> tuple[Tensor, Tensor]:
    """Quaternions [n, 4] and log scales [n, 3] of discs that lie in the surface at the pixels (u, v).

    Axis 2 is the normal. Axis 0 points along the slope and is longer, so that the disc looks round to the camera. Where
    the depth image has no normal, the disc faces the camera.
    """
    to_camera = F.normalize(-points[v, u], dim=-1)
    normals, valid = surface_normals(points)
    normal = torch.where(valid[v, u][:, None], normals[v, u], to_camera)
    cosine = (normal * to_camera).sum(-1, keepdim=True)
    slope = to_camera - cosine * normal
    any_tangent = torch.linalg.cross(normal, torch.eye(3).to(normal)[normal.abs().argmin(-1)])
    along = F.normalize(torch.where(slope.norm(dim=-1, keepdim=True) > 1e-3, slope, any_tangent), dim=-1)
    axes = torch.stack([along, torch.linalg.cross(normal, along), normal], dim=-1)  # columns, right-handed
    stretch = (1 / cosine[:, 0].clamp_min(1e-6)).clamp(1, MAX_STRETCH)
    scales = torch.stack([stretch * radii, radii, torch.full_like(radii, THICKNESS_M)], dim=-1)
    return quaternions(T_map_camera[:3, :3] @ axes), scales.log()
