"""The compiled CPU rasteriser: a thin layer over the operators of cuda/rasterize.h."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panoptic_mapper import ops
from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.ops.rasterize import Lists
from panoptic_mapper.rasterizers.base import MIN_ALPHA, Rendering, SplatGradients
from panoptic_mapper.rasterizers.checks import check_gaussians, check_values, expected_depth


@dataclass
class CpuView:
    """A projected view. Its lists of weights are shared by all its images."""

    visible: Tensor  # [V] int64, ascending
    means2d: Tensor  # [V, 2] px
    depths: Tensor  # [V] m
    conics: Tensor  # [V, 3] 1/px^2
    extents: Tensor  # [V, 2] px, no gradient
    opacities: Tensor  # [V]
    lists: Lists

    def render(self, colors: Tensor) -> Rendering:
        check_values("colors", colors, self.depths, self.visible.shape[0])
        features = torch.cat((colors, self.depths[:, None]), dim=1)
        image, alpha = torch.ops.panoptic_mapper.splat(
            self.means2d, self.conics, self.extents, self.opacities, features, *self.lists
        )
        color, depth = image.split((colors.shape[1], 1), dim=2)
        return Rendering(color, expected_depth(depth[..., 0], alpha, MIN_ALPHA), alpha)

    def blend(self, values: Tensor) -> Tensor:
        check_values("values", values, self.depths, self.visible.shape[0])
        height, width = self.lists.transmittance.shape
        return torch.ops.panoptic_mapper.blend(values.contiguous(), *self.lists[:7], width, height)

    @torch.no_grad()
    def tally(self, a: Tensor, b: Tensor, weights: Tensor, num_a: int, num_b: int) -> Tensor:
        return torch.ops.panoptic_mapper.tally_pairs(*self.lists[:7], a, b, weights, num_a, num_b)


@dataclass
class TracedCpuView:
    """A view with what its gradients are computed of."""

    view: CpuView
    inputs: tuple[Tensor, ...]  # means, quats and scales of all Gaussians, and the pose
    camera: PinholeCamera
    is_complete: None = None

    @torch.no_grad()
    def splat(self, features: Tensor) -> tuple[Tensor, Tensor]:
        v, self._features = self.view, features
        features[:, -1] = v.depths
        return torch.ops.panoptic_mapper.splat(v.means2d, v.conics, v.extents, v.opacities, features, *v.lists)

    @torch.no_grad()
    def backward(self, v_image: Tensor, v_alpha: Tensor) -> SplatGradients:
        v, lists, kernels = self.view, self.view.lists, torch.ops.panoptic_mapper
        v_image, v_alpha = v_image.contiguous(), v_alpha.contiguous()
        v_means2d, v_conics, v_opacities = kernels.splat_geometry_backward(
            v_image,
            v_alpha,
            v.means2d,
            v.conics,
            v.extents,
            v.opacities,
            self._features,
            *lists[:4],
            lists.transmittance,
            lists.last,
        )
        v_features = kernels.blend_backward(v_image, *lists[:7])
        v_depths = v_features[:, -1].contiguous()
        v_means, v_quats, v_scales = kernels.project_gaussians_backward(
            *self.inputs, *self.camera.numbers, v.visible, v_means2d, v_depths, v_conics
        )
        rows = v.visible
        return SplatGradients(v_means[rows], v_quats[rows], v_scales[rows], v_opacities, v_features)


class CpuRasterizer:
    """Compiled, multi-threaded, deterministic: the same input gives the same bits for any number of threads.

    Raises:
        RuntimeError: the operators are neither built nor can be compiled here.
    """

    name = "cpu"

    def __init__(self) -> None:
        ops.load()

    def project(
        self,
        means: Tensor,  # [N, 3] float32 on the CPU
        quats: Tensor,  # [N, 4]
        scales: Tensor,  # [N, 3]
        opacities: Tensor,  # [N]
        T_camera_map: Tensor,  # [4, 4]
        camera: PinholeCamera,
    ) -> CpuView:
        check_gaussians(means, quats, scales, opacities, T_camera_map, device_type="cpu", dtype=torch.float32)
        means2d, depths, conics, extents, visible = torch.ops.panoptic_mapper.project_gaussians(
            means.contiguous(),
            quats.contiguous(),
            scales.contiguous(),
            opacities.contiguous(),
            T_camera_map.detach().contiguous(),
            *camera.numbers,
        )
        opacities = opacities[visible]
        with torch.no_grad():
            lists = torch.ops.panoptic_mapper.list_gaussians(
                means2d, depths, conics, extents, opacities, camera.width, camera.height
            )
        return CpuView(visible, means2d, depths, conics, extents, opacities, Lists(*lists))

    @torch.no_grad()
    def trace(
        self,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        T_camera_map: Tensor,
        camera: PinholeCamera,
        with_view: bool,
    ) -> TracedCpuView:
        view = self.project(means, quats, scales, opacities, T_camera_map, camera)
        return TracedCpuView(view, (means, quats, scales, T_camera_map), camera)
