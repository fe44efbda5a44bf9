"""A step on colour and geometry alone, differentiated by hand.

It does what autograd makes of the same losses. On a GPU the host decides how long such a step takes, and autograd costs
it more than all that there is to compute.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from panoptic_mapper import ops
from panoptic_mapper.density_control import DensityConfig
from panoptic_mapper.gaussian_map import GaussianMap
from panoptic_mapper.image_loss import IMAGE_TERMS, image_gradients
from panoptic_mapper.keyframes import Keyframe
from panoptic_mapper.losses import LossWeights
from panoptic_mapper.parameter_table import BETA_1, BETA_2, EPSILON
from panoptic_mapper.rasterizers.base import MIN_ALPHA, ProjectedView, Rendering, TracingRasterizer
from panoptic_mapper.rasterizers.checks import expected_depth
from panoptic_mapper.seen_counter import least_weight, relaxation


@dataclass(frozen=True)
class TakenStep:
    """What a step found, and what it drew before it changed the Gaussians."""

    terms: dict[str, Tensor]  # unweighted terms of its loss
    view: ProjectedView | None  # None = it was not asked for
    image: Tensor  # [H, W, 5 or 8], see `image_loss.image_gradients`
    alpha: Tensor  # [H, W]
    means: Tensor  # [M, 3] centres of all that might have been in view
    weights: Tensor  # [V] gradients of the counted channel, of the rows of the view

    @property
    def is_seen(self) -> Tensor:
        """Which rows of the view make up more than `seen_counter.MIN_SEEN_PX` pixels: bool [V]."""
        return self.weights > least_weight(*self.alpha.shape)

    @property
    def rendering(self) -> Rendering:
        depth = expected_depth(self.image[..., -1], self.alpha, MIN_ALPHA)
        return Rendering(self.image[..., :3], depth, self.alpha)


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

    @torch.no_grad()
    def __call__(
        self, keyframe: Keyframe, ids: Tensor, T_camera_map: Tensor, with_view: bool = False
    ) -> TakenStep | None:
        """Takes a step; None where nothing is in view.

        Args:
            keyframe: the observation.
            ids: rows [M] of the Gaussians that may be in view.
            T_camera_map: [4, 4] its pose.
            with_view: whether the view is asked for.
        """
        if len(ids) == 0:
            return None
        ops.load()
        table, max_scale_m = self.gaussians.appearance, self.weights.max_scale_m
        values, moments, steps = table.storage
        # A 1 for each Gaussian, whose gradient is the sum of its weights in all pixels; its colour again, for errors.
        with_copies, kernels = self.color_relaxation > 0, torch.ops.panoptic_mapper
        means, quats, scales, opacities, features = kernels.splat_inputs(values, ids, with_copies)
        traced = self.rasterizer.trace(means, quats, scales, opacities, T_camera_map, keyframe.camera, with_view)
        view, rows = traced.view, ids
        if view is not None:
            rows, features = ids[view.visible], features[view.visible]
        image, alpha = traced.splat(features)
        loss = image_gradients(image, alpha, keyframe, self.weights, self.density)
        v = traced.backward(loss.v_image, loss.v_alpha)
        kernels.splat_step_(
            values,
            moments,
            steps,
            rows,
            traced.is_complete,
            v.means,
            v.quats,
            v.scales,
            v.opacities,
            v.features,
            table.rates,
            BETA_1,
            BETA_2,
            EPSILON,
            max_scale_m,
            self.weights.scale / len(ids),
            least_weight(*alpha.shape),
            *relaxation(self.color_relaxation, *alpha.shape),
        )
        terms = dict(zip(IMAGE_TERMS, loss.terms.unbind(), strict=True))
        excess = F.softshrink(scales, max_scale_m)  # scales are above 0
        terms["scale"] = 3 * excess.mean()  # of the sum over the axes
        return TakenStep(terms, view, image, alpha, means, v.features[:, 3])
