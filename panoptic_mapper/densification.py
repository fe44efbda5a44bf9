"""Full density control of the offline phase: more Gaussians where colours ask for them, as in 3DGS (Kerbl et al. 2023).

Growth from depth images (density_control.py) puts surfaces into the map at the step of the pixel grid; this refines
them where the image has more detail than that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from panoptic_mapper.config import Config, param
from panoptic_mapper.gaussian_map import GaussianMap
from panoptic_mapper.geometry import rotation_matrices, transform
from panoptic_mapper.keyframes import Keyframe
from panoptic_mapper.panoptic_map import MapView

SPLIT_SHRINK = 1.4  # longest standard deviation of a Gaussian over those of the two that it is split into
SPREAD = (1 - SPLIT_SHRINK**-2) ** 0.5  # of the two centres, in its standard deviations: the covariance stays the same


@dataclass(frozen=True)
class DensificationConfig(Config):
    """Which Gaussians are split during global optimisation, and how opacities are reset."""

    every: int = param(200, "steps between two rounds of splitting, 0 = none", ge=0)
    until: float = param(0.5, "share of the steps after which no Gaussian is split or reset", ge=0, le=1)
    gradient: float = param(
        1e-3, "mean gradient in the image, in units of half its size, above which a Gaussian is one too few", gt=0
    )
    max_gaussians: int = param(2_000_000, "the map is not densified beyond this number", ge=1)
    reset_every: int = param(0, "steps between two resets of the opacities, 0 = none", ge=0)
    reset_opacity: float = param(0.2, "a reset lowers opacities to this", gt=0, le=0.99)


class ScreenGradients:
    """How much each Gaussian of a map wants to move in the images, summed over steps."""

    def __init__(self, gaussians: GaussianMap):
        self.total = torch.zeros(len(gaussians), device=gaussians.device)  # [N]
        self.views = torch.zeros_like(self.total)  # [N] steps in which it was seen

    @property
    def mean(self) -> Tensor:  # [N]
        return self.total / self.views.clamp_min(1)

    def keep(self, mask: Tensor) -> None:
        """Follows the map, which drops the Gaussians where `mask` [N] is False."""
        self.total, self.views = self.total[mask], self.views[mask]

    def add(self, keyframe: Keyframe, view: MapView, seen: Tensor) -> None:
        """Counts a step, after backward: `seen` [M] of the view's candidates.

        The gradient of a centre's place in the image is not at hand with every rasteriser, but what a shift parallel to
        the image does is: with g = R dL/dmu in the camera frame, and u = f x / z + c, it is dL/du = g_x z / f_x, and
        likewise for v. As in 3DGS it counts in units of half the image's size.
        """
        ids = view.gaussians.ids[seen]
        means = view.gaussians["means"].detach()[seen]
        gradient = view.gaussians.gradient("means")[seen] @ view.T_camera_map[:3, :3].T
        depth = transform(view.T_camera_map, means)[:, 2:]
        camera = keyframe.camera
        half_size = means.new_tensor([0.5 * camera.width / camera.fx, 0.5 * camera.height / camera.fy])
        self.total[ids] += (gradient[:, :2] * depth * half_size).norm(dim=1)
        self.views[ids] += 1


@torch.no_grad()
def densify(gaussians: GaussianMap, gradients: ScreenGradients, config: DensificationConfig) -> int:
    """Splits the Gaussians that have a large mean gradient along their longest axis; returns how many there are more.

    The two lie on either side of the centre and are shorter along that axis alone, so that the pair has the mean and
    the covariance of the one, and fainter, so that it has its optical depth -ln(1 - alpha), summed along the axis. Thus
    it shows nearly what the one did. Labels, colour, anchor and all else are the same. At most `max_gaussians` are
    left, and the largest gradients come first.
    """
    room = max(0, config.max_gaussians - len(gaussians))
    ids = (gradients.mean > config.gradient).nonzero()[:, 0]
    if len(ids) > room:
        ids = ids[gradients.mean[ids].argsort(descending=True, stable=True)[:room]].sort().values
    means, log_scales = gaussians["means"][ids], gaussians["log_scales"][ids]
    along = F.one_hot(log_scales.argmax(1), 3).to(means)
    axis = (rotation_matrices(gaussians["quats"][ids]) @ along[..., None])[..., 0]
    offset = SPREAD * log_scales.amax(1, keepdim=True).exp() * axis
    shorter = log_scales - math.log(SPLIT_SHRINK) * along
    clear = (1 - gaussians["opacity_logits"][ids].sigmoid()).clamp_min(1e-6)
    changed = {"log_scales": shorter, "opacity_logits": torch.logit(1 - clear ** (SPLIT_SHRINK / 2))}
    gaussians.set_rows(ids, means=means - offset, **changed)
    gaussians.duplicate(ids, changed | {"means": means + offset})
    return len(ids)


@torch.no_grad()
def reset_opacities(gaussians: GaussianMap, config: DensificationConfig) -> None:
    """Lowers all opacities to `reset_opacity`, so that each has to earn its own again and what nobody needs fades.

    Not to 0.01 as in 3DGS: here a step changes only what the image really shows, and a Gaussian of a pixel's size with
    that opacity is not shown; it would never come back. What floats in free space goes by the depth images anyway.
    """
    logits = gaussians["opacity_logits"]
    ids = (logits[:, 0].sigmoid() > config.reset_opacity).nonzero()[:, 0]
    low = torch.logit(logits.new_full((len(ids), 1), config.reset_opacity))
    gaussians.set_rows(ids, opacity_logits=low)
