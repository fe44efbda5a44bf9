"""Which Gaussians an image shows, how much each makes up of it, and colours that follow its errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.rasterizers.base import Rendering

if TYPE_CHECKING:
    from panoptic_mapper.panoptic_map import MapView

MIN_SEEN_PX = 0.3  # px
COUNT_WEIGHT = 1e-3  # of a term that is 0, but for rounding: little beside the weights of the losses
ERROR_SCALE = 1e-12  # of errors that are sent back to the Gaussians: too small to move geometry on their way
RELAXED_PX = 0.5  # a Gaussian that makes up fewer pixels follows their error less


def least_weight(height: int, width: int) -> float:
    """The gradient that a Gaussian's 1 in the counted channel of an image must exceed for the Gaussian to be seen."""
    return MIN_SEEN_PX * COUNT_WEIGHT / (width * height)


@torch.no_grad()
def relax_colors(
    colors: Tensor, rows: Tensor, errors: Tensor, weights: Tensor, camera: PinholeCamera, share: float
) -> None:
    """Each colour moves by a share of the mean error of the pixels that it makes up,

        c_g += share sum_u w_g(u) e(u) / max(sum_u w_g(u), RELAXED_PX)        e = observed - rendered

    which is an iteration of SIRT (Gilbert 1972) for the linear equations that a view sets its colours. Unlike a step of
    Adam it is as large as the error: few of them suffice.

    Args:
        colors: [N, 3] of the map, changed.
        rows: [V] those in the view.
        errors: [V, 3] sums of weights times errors, times ERROR_SCALE.
        weights: [V, 1] gradients of the counted channel.
        camera: of the view.
        share: 0..1.
    """
    factor, min_weight = relaxation(share, camera.height, camera.width)
    colors.index_add_(0, rows, errors / weights.clamp_min(min_weight), alpha=factor)


def relaxation(share: float, height: int, width: int) -> tuple[float, float]:
    """By what errors over weights, as `relax_colors` takes both, are multiplied, and the least of these weights."""
    count = COUNT_WEIGHT / (width * height)  # what a pixel counts
    return share / ERROR_SCALE * count, RELAXED_PX * count


class SeenCounter:
    """Tells which candidates of a view its image really shows, by the gradient of one more channel of a rendering.

    What is behind a wall is projected too, and gets the little gradient that leaks through. Adam would turn that into
    full steps, and the rooms behind would be bent to explain the wall.

    Every Gaussian has a 1 in that channel, whose image is the rendering's alpha. The mean difference of the two, times
    COUNT_WEIGHT, is a term of the loss (`image_loss`) that is 0 and moves nothing. Its gradient to a Gaussian's 1 is
    the sum of w_g(u) over the pixels u.
    """

    def __init__(self, view: MapView, with_errors: bool = False):
        self._view, self._with_errors = view, with_errors
        device = view.gaussians.ids.device
        self._ones = torch.ones(len(view.projection.visible), 1, device=device, requires_grad=True)
        self._copies = self._ones[:, :0].detach()  # [V, 3] of the colours, with errors
        self._counted = self._ones  # [H, W, 1 or 4] image of the ones and of the copies

    def render(self, colors: Tensor) -> Rendering:
        """Splats `colors` [V, D], of which the first three are RGB, as the view does."""
        if self._with_errors:
            self._copies = colors[:, :3].detach().requires_grad_()
        rendering = self._view.projection.render(torch.cat([colors, self._ones, self._copies], dim=1))
        num_counted = 1 + self._copies.shape[1]
        color, self._counted = rendering.color.split([colors.shape[1], num_counted], dim=-1)
        return Rendering(color, rendering.depth, rendering.alpha)

    def image(self, rendering: Rendering) -> Tensor:
        """A rendering of three colours with what was counted in it, [H, W, 5 or 8], see `image_loss`."""
        depth_sums = rendering.depth * rendering.alpha
        return torch.cat([rendering.color, self._counted, depth_sums[..., None]], dim=-1)

    def relax_colors(self, share: float) -> None:
        """Colours follow the errors; after a backward in which `copied` had these, times ERROR_SCALE, as gradient."""
        errors, weights = self._copies.grad, self._ones.grad
        if errors is not None and weights is not None:
            view = self._view
            relax_colors(view.map.gaussians["colors"], view.visible_ids, errors, weights, view.camera, share)

    def seen(self) -> Tensor:
        """After backward: which candidates [M] have a total weight of more than MIN_SEEN_PX pixels, bool."""
        view, grad = self._view, self._ones.grad
        seen = torch.zeros(len(view.gaussians), dtype=torch.bool, device=self._ones.device)
        if grad is not None:
            seen[view.projection.visible] = grad[:, 0] > least_weight(view.camera.height, view.camera.width)
        return seen
