"""Refinement while mapping: where the camera comes near, a Gaussian that was made from afar becomes four finer ones.

Growth (density_control.py) fills what is empty. A surface that was first seen from far away is not, but its Gaussians
are as large as the pixels were then.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from panoptic_mapper.density_control import DensityConfig, read_at_centers, tolerance, usable_depth
from panoptic_mapper.gaussian_map import GaussianMap
from panoptic_mapper.keyframes import Keyframe
from panoptic_mapper.rasterizers.base import Rendering
from panoptic_mapper.transfers import to_device

CORNERS = tuple(product((-1.0, 1.0), repeat=2))  # where the parts lie beside the centre, to the right and down
SPREAD = 0.7  # of their centres along both axes, in its middle standard deviation
SHRINK = 2.0  # its standard deviations over theirs
ERROR_WINDOW_PX = 5  # over which the error of the colours is averaged


@torch.no_grad()
def refine(
    gaussians: GaussianMap, ids: Tensor, keyframe: Keyframe, rendering: Rendering, config: DensityConfig
) -> Tensor:
    """Replaces Gaussians by four each where a keyframe shows more than they can.

    These Gaussians lie on the measured surface, are `refine_coarseness` times as large as a new one would be, and the
    colours around them are off by `refine_error`. Their parts lie on the surface too and have the keyframe's colours.
    The first part of each takes its row, the others are appended. All have its label, which many keyframes may have
    confirmed, but where the keyframe's labels differ from part to part, none of them is to be trusted.

    Args:
        gaussians: of the map.
        ids: rows [V] that may be in view.
        keyframe: the observation.
        rendering: the map as the keyframe sees it.
        config: thresholds.

    Returns:
        Rows [m] of the parts that are to be labelled anew.
    """
    means, log_scales = gaussians["means"][ids], gaussians["log_scales"][ids]
    measured = keyframe.depth * usable_depth(keyframe.depth, config)
    observed = keyframe.color.float() / 255
    error = (rendering.color - observed).abs().mean(2)
    error = F.avg_pool2d(error[None], ERROR_WINDOW_PX, 1, ERROR_WINDOW_PX // 2)[0]
    depth, (surface, error_there) = read_at_centers(means, keyframe, torch.stack([measured, error]))
    middle = log_scales.median(1).values  # the largest one is that of a slanted disc, which looks round
    new_size = depth * (config.scale * config.stride_px / keyframe.camera.fx)
    is_coarse = middle.exp() > config.refine_coarseness * new_size
    is_on_surface = (depth - surface).abs() < tolerance(surface, config) * (surface > 0)
    chosen = (is_coarse & is_on_surface & (error_there > config.refine_error)).nonzero()[:, 0]
    rows, n = ids[chosen], len(chosen)
    label_images = (keyframe.semantic.float(), keyframe.mask_index.float())
    images = torch.stack([measured, *observed.unbind(2), *label_images])
    means, colors, labels = _parts(
        means[chosen], middle[chosen].exp(), gaussians["colors"][rows], keyframe, images, config
    )
    shrink = [SHRINK, SHRINK, 1.0 if gaussians.config.base == "surfel" else SHRINK]
    log_scales = log_scales[chosen] - to_device(torch.tensor(shrink).log(), means.device)
    changed = {"means": means, "colors": colors, "log_scales": log_scales.repeat(len(CORNERS), 1)}
    first_new = len(gaussians)
    gaussians.set_rows(rows, **{name: values[:n] for name, values in changed.items()})
    gaussians.duplicate(rows.repeat(len(CORNERS) - 1), {name: values[n:] for name, values in changed.items()})
    parts = torch.cat([rows, torch.arange(first_new, len(gaussians), device=rows.device)]).reshape(len(CORNERS), n)
    labels = labels.reshape(2, len(CORNERS), n)
    return parts[:, (labels != labels[:, :1]).any(1).any(0)].flatten()


def _parts(
    means: Tensor,  # [n, 3] map frame, m
    sizes: Tensor,  # [n] m, standard deviations
    colors: Tensor,  # [n, 3]
    keyframe: Keyframe,
    images: Tensor,  # [6, H, W]: measured depth in m, RGB, class, mask
    config: DensityConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Centres [4 n, 3] and colours [4 n, 3] of parts: those of the surface at their pixel, where it is the same.

    Beside them what the keyframe's labels are there [2, 4 n]: class and mask.
    """
    T_map_camera = to_device(torch.from_numpy(keyframe.T_map_camera).to(means.dtype), means.device)
    corners = to_device(torch.tensor(CORNERS, dtype=means.dtype), means.device) @ T_map_camera[:3, :2].T  # [4, 3]
    means = (means + SPREAD * sizes[:, None] * corners[:, None]).reshape(-1, 3)
    depth, (surface, *there) = read_at_centers(means, keyframe, images)
    is_same = ((depth - surface).abs() < tolerance(surface, config) * (surface > 0))[:, None]
    center = T_map_camera[:3, 3]
    on_surface = center + (means - center) * (surface / depth)[:, None]
    colors = torch.where(is_same, torch.stack(there[:3], dim=1), colors.repeat(len(CORNERS), 1))
    return torch.where(is_same, on_surface, means), colors, torch.stack(there[3:])
