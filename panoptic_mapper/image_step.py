"""A step on colour and geometry alone, differentiated by hand.

It does what autograd makes of the same losses. On a GPU the host decides how long such a step takes, and autograd costs
it more than all that there is to compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from panoptic_mapper.captured_loss import CapturedLosses
from panoptic_mapper.density_control import DensityConfig
from panoptic_mapper.gaussian_map import GaussianMap, splat_inputs
from panoptic_mapper.image_loss import IMAGE_TERMS, image_loss
from panoptic_mapper.keyframes import Keyframe
from panoptic_mapper.losses import LossWeights
from panoptic_mapper.rasterizers.base import MIN_ALPHA, TracingRasterizer
from panoptic_mapper.rasterizers.checks import expected_depth
from panoptic_mapper.seen_counter import COUNT_WEIGHT, least_weight, relax_colors


@dataclass
class ImageStep:
    """Adam steps on what a keyframe's colours and depths say about the Gaussians that it sees.

    Args:
        gaussians: are changed; ellipsoids, with colours that are the same from all sides.
        color_relaxation: see `optimizer.color_relaxation`.
    """

    gaussians: GaussianMap
    rasterizer: TracingRasterizer
    weights: LossWeights
    density: DensityConfig
    color_relaxation: float

    def __post_init__(self) -> None:
        self._loss = partial(splatted_loss, weights=self.weights, density=self.density)
        self._captured = CapturedLosses(self._loss, num_differentiable=2)

    @torch.no_grad()
    def __call__(self, keyframe: Keyframe, ids: Tensor, T_camera_map: Tensor) -> dict[str, Tensor]:
        """Takes a step; returns the unweighted terms of its loss, none where nothing is in view.

        Args:
            keyframe: the observation.
            ids: rows [M] of the Gaussians that may be in view.
            T_camera_map: [4, 4] its pose.
        """
        candidates = self.gaussians.appearance.gather(ids)
        means, quats, scales, opacities = splat_inputs(candidates)
        view = self.rasterizer.trace(means, quats, scales, opacities, T_camera_map, keyframe.camera)
        visible = view.visible
        if len(visible) == 0:
            return {}
        # A 1 for each Gaussian, whose gradient is the sum of its weights in all pixels; its colour again, for errors.
        colors = candidates["colors"][visible]
        copies = colors if self.color_relaxation > 0 else colors[:, :0]
        image, alpha = view.splat(torch.cat([colors, colors.new_ones(len(visible), 1), copies], dim=1))
        terms, v_image, v_alpha = self._gradients(image, alpha, keyframe)
        v = view.backward(v_image, v_alpha)
        scales, opacities = scales[visible], opacities[visible]
        excess = scales - self.weights.max_scale_m
        v_scales = v.scales + (excess > 0) * (self.weights.scale / len(ids))
        gradients = {
            "means": v.means,
            "quats": v.quats,
            "log_scales": v_scales * scales,
            "opacity_logits": (v.opacities * opacities * (1 - opacities))[:, None],
            "colors": v.colors[:, :3],
        }
        rows, weights = ids[visible], v.colors[:, 3:4]
        is_seen = weights[:, 0] > least_weight(keyframe.camera)
        self.gaussians.appearance.step(rows, gradients, is_seen)
        if self.color_relaxation > 0:
            errors = v.colors[:, 4:]
            relax_colors(self.gaussians["colors"], rows, errors, weights, keyframe.camera, self.color_relaxation)
        return terms | {"scale": excess.clamp_min_(0).sum() / len(ids)}

    def _gradients(self, image: Tensor, alpha: Tensor, keyframe: Keyframe) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Terms of the loss, and its gradients to an image of `TracedView.splat` and to its alpha."""
        images = (image, alpha, keyframe.color, keyframe.depth)
        if image.is_cuda:
            captured = self._captured.of(images)
            _, report = captured.replay(images)
            v_image, v_alpha = captured.gradients
        else:
            with torch.enable_grad():
                total, report = self._loss(image.requires_grad_(), alpha.requires_grad_(), *images[2:])
            v_image, v_alpha = torch.autograd.grad(total, (image, alpha))
        return dict(zip(IMAGE_TERMS, report.unbind(), strict=True)), v_image, v_alpha


def splatted_loss(
    image: Tensor,  # [H, W, 5 or 8] colours, what was 1, colours again or not, and sums of depths
    alpha: Tensor,  # [H, W]
    observed_color: Tensor,  # [H, W, 3] uint8
    observed_depth: Tensor,  # [H, W] m, 0 = none
    *,
    weights: LossWeights,
    density: DensityConfig,
) -> tuple[Tensor, Tensor]:
    """`image_loss` of what a `TracedView` splats, with what is to be counted there; and its terms [3], unweighted."""
    color, count, copies, depth = image.split([3, 1, image.shape[-1] - 5, 1], dim=-1)
    depth = expected_depth(depth[..., 0], alpha, MIN_ALPHA)
    total, terms, errors = image_loss(
        color, depth, alpha, observed_color, observed_depth, weights=weights, density=density
    )
    total = total + COUNT_WEIGHT * (count[..., 0] - alpha).mean()
    if copies.shape[-1] > 0:
        total = total + (copies * errors).sum()
    return total, terms
